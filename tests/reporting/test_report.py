from __future__ import annotations

import dataclasses
import importlib
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from ase_finetune.errors import OutputError
from ase_finetune.reporting import RECORD_FILE, PairRecord, RunRecord, write_report
from ase_finetune.reporting.record import AFTER, BEFORE
from tests.reporting import records
from tests.reporting.pages import Page

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>&amp;"\'$x_1$\x00\x1b'


def write(record: RunRecord, folder) -> Page:
    path = write_report(record, folder)
    assert path == folder / "report.html"
    page = Page(path)
    check(page)
    for file in (folder / "report").glob("*"):
        assert file.suffix == ".png"
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(folder.rglob("*.part"))
    return page


def check(page: Page) -> None:
    """What every page has to keep to."""
    assert len(set(page.ids)) == len(page.ids)
    for reference in page.references:
        assert reference.startswith("data:image/png;base64,") or reference.removeprefix("#") in page.ids
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"https?:|//\w|@import", page.source.split("<body>")[0])
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page.source
    assert len(page.source) < 2_000_000
    for name in re.findall(r"var\(--([\w-]+)\)", page.source):
        assert f"--{name}:" in page.source


@pytest.fixture(scope="module")
def frames_run(tmp_path_factory):
    record = records.run()
    folder = tmp_path_factory.mktemp("frames")
    return record, write(record, folder), folder


@pytest.fixture(scope="module")
def relaxations_run(tmp_path_factory):
    record = records.relaxation_run()
    folder = tmp_path_factory.mktemp("relaxations")
    return record, write(record, folder), folder


def test_all_charts_of_a_run_on_frames(frames_run):
    _, page, folder = frames_run
    charts = {"learning-frames", "penalty", "parity-valid", "parity-replay", "softening", "elements-valid"}
    charts |= {"elements-replay", "drift", "cost"}
    assert charts <= set(page.ids)
    pictures = {file.stem for file in (folder / "report").glob("*.png")}
    assert pictures == {
        "learning-frames-forces", "learning-frames-energy", "learning-frames-stress", "penalty-frames",
        "parity-valid-forces", "parity-valid-energy", "parity-replay-forces", "parity-replay-energy", "softening",
        "elements-valid", "elements-replay", "drift", "seconds", "peak-memory-gb",
    }  # fmt: skip
    assert "Not shown: Skipped steps (no step was skipped)." in page.text


def test_all_charts_of_a_run_through_relaxations(relaxations_run):
    _, page, folder = relaxations_run
    charts = {"learning-frames", "learning-relaxations", "delta-q", "relaxed", "worst", "gradient", "drift"}
    assert charts <= set(page.ids)
    assert len(list((folder / "report").glob("worst-*.png"))) == 10


def test_every_picture_has_words(frames_run, relaxations_run):
    for _, page, _ in (frames_run, relaxations_run):
        assert page.tags.count("svg") == sum(label.endswith(".") for label in page.labels)
        assert page.tags.count("figcaption") == page.tags.count("figure") > 8


def test_numbers_of_the_summary_are_numpys(frames_run):
    record, page, _ = frames_run
    aim, old = record.frames
    forces = [1e3 * np.abs(aim.forces[..., k] - aim.forces[..., 0]).mean() for k in (BEFORE, AFTER)]
    assert f"force error {forces[0]:.1f} → {forces[1]:.1f} meV/Å" in page.text
    energies = [1e3 * np.abs((aim.energy[:, k] - aim.energy[:, 0]) / aim.counts).mean() for k in (BEFORE, AFTER)]
    assert f"energy error after the fitted offsets {energies[0]:.2f} → {energies[1]:.2f} meV/atom" in page.text
    moved = 1e3 * np.abs(old.forces[..., AFTER] - old.forces[..., 0]).mean()
    assert f"forces moved away from the pretrained model by {moved:.2f} meV/Å" in page.text
    assert "In brackets: 95 % interval of the change" in page.text
    assert "20 % too soft on the whole and are 5 % too soft now" in page.text


def test_numbers_of_the_elements_are_numpys(frames_run):
    record, page, _ = frames_run
    frames = record.frames[0]
    lithium = frames.numbers == 3
    errors = [1e3 * np.abs(frames.forces[lithium, :, k] - frames.forces[lithium, :, 0]).mean() for k in (1, 2)]
    words = f"Li: {errors[0]:.1f} before, {errors[1]:.1f} after, {errors[1] - errors[0]:+.1f} meV/Å"
    assert f"{words} ({lithium.sum()} atoms)" in page.labels


def test_numbers_of_the_relaxations_are_numpys(relaxations_run):
    record, page, _ = relaxations_run
    before, after = ([error["delta_q"] for error in errors] for errors in (record.pairs.before, record.pairs.after))
    assert f"Delta Q, Å √amu, all that did not fail {np.median(before):.3g} {np.nanmedian(after):.3g}" in page.text
    inside = [
        [e["delta_q"] for e in errors if e["right_basin"]] for errors in (record.pairs.before, record.pairs.after)
    ]
    assert f"in the right minimum {np.median(inside[0]):.3g} {np.median(inside[1]):.3g} median RMSD" in page.text
    closer = np.sum(np.array(after) < np.array(before))
    assert f"of 30 validation pairs, {closer} end closer to the reference" in page.text
    assert "2 of 30 relaxations failed, 0 before training" in page.text


def test_what_was_asked_for_is_told(frames_run):
    _, page, _ = frames_run
    assert "7net-0 fine-tuned with reEWC" in page.text
    assert "Li +0.0466" in page.text
    assert "ase_finetune 0.1.0" in page.text
    assert "replay: 152 structures labelled by the pretrained model" in page.text


def test_options_that_differ_from_the_defaults(tmp_path):
    defaults = records.metadata()["config"] | {"learning_rate": 3e-4}
    page = Page(write_report(records.run(frames=[], drift=[]), tmp_path, defaults=defaults))
    assert "Options that differ from the defaults learning_rate 0.0005 All options" in page.text


def notes(record: RunRecord, folder) -> str:
    return write(record, folder).text


def test_no_epoch_was_better(tmp_path):
    record = records.run(3, metadata=records.metadata(stages=[records.stage(3, best=0)]))
    assert "no epoch was better than the model it began with" in notes(record, tmp_path)


def test_an_earlier_epoch_was_best(tmp_path):
    record = records.run(3, metadata=records.metadata(stages=[records.stage(3, best=2)]))
    text = notes(record, tmp_path)
    assert "more epochs may help" not in text
    assert "The vertical line marks epoch 2, whose weights were kept" in text


def test_the_last_epoch_was_best(tmp_path):
    assert "the last epoch was the best (3 of 10 epochs were run), and the validation loss still fell" in notes(
        records.run(3), tmp_path
    )


def test_skipped_steps(tmp_path):
    rows = records.history(3)
    rows[1]["skipped_steps"] = 4
    page = write(records.run(3, history=rows), tmp_path)
    assert "4 steps were skipped" in page.text
    assert "skipped" in page.ids


def test_no_validation_set(tmp_path):
    record = records.run(3)
    text = notes(dataclasses.replace(record, frames=record.frames[1:]), tmp_path)
    assert "Not judged: there was no validation set" in text
    assert "Parity and elements of the target (there was no validation set)" in text


def test_nothing_was_watched(tmp_path):
    record = records.run(
        2,
        frames=[records.frame_record()],
        drift=records.drift(penalty=False),
        history=records.history(2, penalty=False),
        metadata=records.metadata("naive", [records.stage(2)]),
    )
    text = notes(record, tmp_path)
    assert "What was forgotten is not known" in text
    assert "EWC penalty against data loss (this run had no EWC penalty" in text
    assert "Fisher share" not in text


def test_replay_with_labels_from_data_is_told_in_per_cent(tmp_path):
    old = records.frame_record("replay", 30, 10, elements=records.OLD, before=0.03, after=0.06, slope=1, spread=2)
    text = notes(records.run(2, frames=[old]), tmp_path)
    before, after = (1e3 * np.abs(old.forces[..., k] - old.forces[..., 0]).mean() for k in (BEFORE, AFTER))
    assert f"Old structures (replay): the mean absolute force error rose from {before:.1f} to {after:.1f} meV/Å" in text
    assert f"large: +{100 * (after / before - 1):.0f} %" in text
    assert "own, so errors start at zero" not in text


def test_a_sample_is_told(tmp_path):
    record = records.run(2, frames=[records.frame_record(structures=12, available=4000)])
    assert "A sample of 12 of 4000 structures" in notes(record, tmp_path)


def test_predictions_that_are_not_finite_are_told(tmp_path):
    frames = records.frame_record(structures=12)
    frames.forces[0, 0, AFTER] = math.inf
    text = notes(records.run(2, frames=[frames]), tmp_path)
    assert "Predictions after training are not finite for 1 of 12 structures" in text


def nothing_but_nan(name="valid"):
    frames = records.frame_record(name, 3, 4)
    return dataclasses.replace(
        frames, **{key: np.full_like(getattr(frames, key), math.nan) for key in ("energy", "forces", "stress")}
    )


def energies_only():
    frames = records.frame_record(structures=6, atoms=5)
    return dataclasses.replace(frames, forces=np.full_like(frames.forces, math.nan))


def all_failed():
    pairs = records.pair_record(4, failed=4, kept=4)
    for errors in (pairs.before, pairs.after):
        for error in errors:
            error |= dict.fromkeys(("delta_q", "rmsd", "strain", "log_volume"), None)
            error |= {"failure": "forces are not finite", "right_basin": False, "converged": False}
    for atoms in pairs.ends_after:
        atoms.positions[:] = math.nan
    return pairs


NAN_ROWS = [dict.fromkeys(row, math.nan) | {"epoch": row["epoch"]} for row in records.history(3)]
EMPTY = records.frame_record(structures=0, atoms=0)
STRANGE = {
    "nothing at all": RunRecord({}, []),
    "stopped before an epoch": records.run(1, history=[], metadata=records.metadata(), frames=[], drift=[]),
    "one epoch": records.run(1),
    "not concluded": records.run(2, metadata=records.metadata()),
    "NaN in the history": records.run(3, history=NAN_ROWS, frames=[nothing_but_nan(), nothing_but_nan("replay")]),
    "None in the history": records.run(2, history=[dict.fromkeys(row) | {"epoch": 1} for row in records.history(2)]),
    "energies only": records.run(2, frames=[energies_only()]),
    "one atom": records.run(2, frames=[records.frame_record(structures=1, atoms=1)]),
    "no structures": records.run(2, frames=[EMPTY]),
    "two sets of one name": records.run(1, frames=[records.frame_record("a b", 4, 3)] * 2),
    "names that look alike": records.run(1, frames=[records.frame_record(n, 4, 3) for n in ("a/b", "a b", "Ä", "ä?")]),
    "2000 epochs": records.run(2000),
    "unchanged": records.run(2, frames=[records.frame_record(before=0, after=0, own_labels=True)], drift=[]),
    "one pair": records.run(1, pairs=records.pair_record(1, failed=0, kept=1)),
    "all pairs failed": records.run(1, pairs=all_failed()),
    "many pairs": records.run(1, pairs=records.pair_record(300, failed=3, kept=2)),
    "no pairs": records.run(1, pairs=PairRecord([], [], [])),
    "no structures kept": records.run(1, pairs=records.pair_record(5, failed=0, kept=0)),
    "huge numbers": records.run(2, frames=[records.frame_record(structures=3, atoms=4, after=1e7)]),
}  # fmt: skip


def findings(text: str) -> str:
    """What is between the contents and the section on the run, which both name it."""
    parts = text.split("The run ")
    assert len(parts) > 2
    return parts[1]


@pytest.mark.parametrize("name", STRANGE)
def test_strange_runs_have_a_page(name, tmp_path):
    text = notes(STRANGE[name], tmp_path)
    assert "Verdict" in text
    assert not re.search(r"\b(nan|inf|None)\b", findings(text))


def test_a_record_of_a_disk_makes_the_same_page(frames_run, tmp_path):
    record, page, _ = frames_run
    record.write(tmp_path / RECORD_FILE)
    again = write(RunRecord.read(tmp_path / RECORD_FILE), tmp_path)
    assert again.source == page.source


def test_what_comes_from_data_is_text(tmp_path):
    frames = dataclasses.replace(records.frame_record(structures=4, atoms=3), name=HOSTILE, descriptions=[HOSTILE] * 4)
    pairs = records.pair_record(4, failed=1, kept=4)
    pairs.descriptions[:] = [HOSTILE] * 4
    pairs.after[-1]["failure"] = HOSTILE
    metadata = records.metadata(stages=[records.stage(2)], base_model=HOSTILE, split=HOSTILE, head=HOSTILE)
    metadata["config"][HOSTILE] = {HOSTILE: HOSTILE}
    metadata["versions"] = metadata["data"] = metadata["fisher"] = {HOSTILE: HOSTILE}
    metadata["reference_offsets"] = {HOSTILE: 1.0}
    drift = [dataclasses.replace(tensor, name=HOSTILE + tensor.name) for tensor in records.drift()]
    rows = [row | {"stage": HOSTILE} for row in records.history(2)]
    metadata["stages"][0]["stage"] = HOSTILE
    record = records.run(
        2, metadata=metadata, frames=[frames], pairs=pairs, drift=drift, log=[HOSTILE, "\udce9"], history=rows
    )
    page = write(record, tmp_path)
    assert '<script>alert("1")</script>' in page.text
    assert "<script" not in page.source
    assert "<img src=x" not in page.source
    assert not re.search("[\x00-\x08\x0b-\x1f]", page.source)


def test_writing_again_replaces(tmp_path):
    write(records.run(2), tmp_path)
    write(records.run(3), tmp_path)
    assert "3 epochs" in Page(tmp_path / "report.html").text


def test_frames_trained_on_are_no_old_structures(tmp_path):
    text = notes(records.run(2, frames=[records.frame_record("train")]), tmp_path)
    assert "frames trained on: this says nothing about new ones" in text
    assert "What was forgotten is not known" in text
    assert "there was no validation set" in text
    assert "Parity: frames trained on" in text
    assert "what was learnt, and where" in text


def test_an_error_that_does_not_fall_any_more_needs_no_epochs(tmp_path):
    rows = [row | {"valid_loss": 1e-3 * (1 - 0.01 * k)} for k, row in enumerate(records.history(3))]
    assert "more epochs may help" not in notes(records.run(3, history=rows), tmp_path)


def test_a_shifted_reference_is_told(tmp_path):
    metadata = records.metadata(stages=[records.stage(2)], shifted_by={"Li": 0.1}, reference_offsets={})
    assert 'errors "before" are those of the model with the shifted reference' in notes(
        records.run(2, metadata=metadata), tmp_path
    )


def test_one_structure_with_most_of_the_error_is_named(tmp_path):
    frames = records.frame_record(structures=12, atoms=5)
    frames.forces[10:15, :, AFTER] += 50
    text = notes(records.run(2, frames=[frames]), tmp_path)
    assert "Look at frame 2 of valid (some.extxyz) and its labels: it makes more than half of the force error" in text


def test_huge_numbers_are_short(tmp_path):
    text = findings(notes(STRANGE["huge numbers"], tmp_path))
    assert re.search("→ [\\d.]+·10¹?[⁰⁹] meV/Å", text)
    assert not re.search(r"\d{7}", text)


def test_old_pictures_go_and_those_of_others_stay(tmp_path):
    write(records.relaxation_run(2, 2), tmp_path)
    others = [tmp_path / "report" / name for name in ("mine.png", "drift-of-mine.png", "notes.png")]
    for file in others:
        file.write_bytes(b"\x89PNG\r\n\x1a\n")
    page = write(records.run(2, frames=[records.frame_record(structures=6, atoms=4)]), tmp_path)
    left = {file.stem for file in (tmp_path / "report").iterdir()}
    assert {"mine", "drift-of-mine", "notes", "parity-valid-forces"} <= left
    assert not {name for name in left if name.startswith(("worst", "relaxed", "delta", "parity-replay", "gradient"))}
    assert "parity-valid" in page.ids


def test_the_page_may_have_a_name_of_its_own(tmp_path):
    path = write_report(records.run(1), tmp_path / "new" / "mine.html")
    assert path == tmp_path / "new" / "mine.html"
    check(Page(path))
    assert (tmp_path / "new" / "mine" / "drift.png").is_file()
    (tmp_path / "folder.html").mkdir()
    assert write_report(records.run(1), tmp_path / "folder.html") == tmp_path / "folder.html" / "report.html"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(OutputError, match="report"):
        write_report(records.run(1), tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_importing_loads_nothing_that_draws():
    code = "import sys, ase_finetune.reporting; sys.exit('ase_finetune.reporting.figures' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)  # noqa: S603  # our own code


def test_drawing_needs_no_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError):
        importlib.import_module("matplotlib.pyplot")
    write(records.run(1, pairs=records.pair_record(3, failed=1, kept=3)), tmp_path)
