from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from ase_finetune.errors import InputError
from ase_finetune.reporting import write_comparison
from tests.reporting import records
from tests.reporting.pages import Page
from tests.reporting.test_report import HOSTILE, check


def run(method="reewc", after=0.08, forgotten=0.005, **more):
    old = records.frame_record(
        "replay", 8, 6, seed=1, elements=records.OLD, before=0.0, after=forgotten, own_labels=True, spread=2.0
    )
    metadata = records.metadata(method, [records.stage(2)])
    metadata["config"]["learning_rate"] = after
    metadata |= more
    return records.run(2, metadata=metadata, frames=[records.frame_record(structures=12, atoms=8, after=after), old])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    runs = {
        "naive": run("naive", 0.06, 0.03),
        "careful": run("ewc", 0.1, 0.002),
        "both": run("reewc", 0.07, 0.006),
        "neither": run("replay", 0.12, 0.02),
    }
    folder = tmp_path_factory.mktemp("comparison")
    return runs, write_comparison(runs, folder), folder


def test_a_page_and_two_pictures(comparison):
    _, path, folder = comparison
    assert path == folder / "comparison.html"
    check(Page(path))
    pictures = {file.name: file.read_bytes()[:8] for file in (folder / "comparison").iterdir()}
    assert pictures == dict.fromkeys(("pareto-replay-forces.png", "pareto-replay-energy.png"), b"\x89PNG\r\n\x1a\n")


def test_numbers_are_numpys(comparison):
    runs, path, _ = comparison
    page = Page(path)
    for name, record in runs.items():
        aim, old = record.frames
        errors = [1e3 * np.abs(f.forces[..., 2] - f.forces[..., 0]).mean() for f in (aim, old)]
        row = re.search(rf"\b{name} [\w ]*?(\d+\.\d+) (\d+\.\d+) (\d+\.\d+) (\d+\.\d+) 2 93 s", page.text)
        assert row
        assert float(row[1]) == pytest.approx(errors[0], abs=0.06)
        assert float(row[3]) == pytest.approx(errors[1], abs=0.06)
        gained = 1e3 * np.abs(aim.forces[..., 1] - aim.forces[..., 0]).mean() - errors[0]
        assert f"{name} gained {gained:.3g}, forgot {errors[1]:.3g}" in " ".join(page.labels)


def test_those_that_nobody_beats_are_marked(comparison):
    _, path, _ = comparison
    marked = re.findall(r"(\w+) (?:the new data alone|EWC|reEWC|replay) [\d. ]+ s front", Page(path).text)
    assert marked == ["naive", "careful", "both"]


def test_unchanged_runs_are_named_as_such(tmp_path):
    same = run("reewc", 0.08, unchanged=True)
    long = "a_very_long_name_of_a_run_" * 3
    page = Page(write_comparison({"a": run("ewc", 0.1), long: same}, tmp_path))
    check(page)
    assert f"{long} (unchanged) reEWC" in page.text
    assert "a (unchanged)" not in page.text
    labels = " ".join(page.labels)
    assert f"{long} (unchanged) gained" in labels
    assert "n_ (unchanged)" in page.text.split("Each mark is a run")[0]


def test_labelled_old_structures_are_judged_first(tmp_path):
    def both(after):
        record = run(after=after)
        old = records.frame_record("old", 8, 6, seed=2, elements=records.OLD, before=0.04, after=after, slope=1)
        return dataclasses.replace(record, frames=[*record.frames, old])

    page = Page(write_comparison({"a": both(0.05), "b": both(0.06)}, tmp_path))
    check(page)
    assert "run method target: forces energies old structures with DFT labels: forces" in page.text


def test_what_differs_is_told(comparison):
    _, path, _ = comparison
    text = Page(path).text
    assert "option naive careful both neither method naive ewc reewc replay learning_rate 0.06 0.1 0.07 0.12" in text
    assert "bptt.loss" not in text


def test_names_of_runs_are_text(tmp_path):
    page = Page(write_comparison({HOSTILE: run(), "b": run(after=0.1)}, tmp_path / "page.html"))
    check(page)
    assert '<script>alert("1")</script>' in page.text
    assert (tmp_path / "page" / "pareto-replay-forces.png").is_file()


def test_relaxations_are_compared_by_strain_and_distance(tmp_path):
    def relaxations(seed):
        record = run("bptt+reewc", data={"valid_relaxations": "1"})
        return dataclasses.replace(record, frames=record.frames[1:], pairs=records.pair_record(12, seed=seed))

    page = Page(write_comparison({"a": relaxations(1), "b": relaxations(2)}, tmp_path))
    check(page)
    names = {file.stem for file in (tmp_path / "comparison").iterdir()}
    assert names == {"pareto-replay-strain", "pareto-replay-rmsd"}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"base_hash": "0"}, "'a' and 'b' began with different models"),
        ({"data": {"valid": "0"}}, "'a' and 'b' were judged by different validation frames"),
        (
            {"data": {"valid": "690ea9", "valid_relaxations": "0"}},
            "'a' and 'b' were judged by different validation rel",
        ),
    ],
)
def test_runs_that_mean_different_things_are_refused(second, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_comparison({"a": run(), "b": run(**second)}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_runs_without_validation_are_refused(tmp_path):
    with pytest.raises(InputError, match="'a', 'b' have no validation data"):
        write_comparison({"a": run(data={}), "b": run(data={})}, tmp_path)


def test_other_old_structures_are_refused(tmp_path):
    other = run()
    other.frames[1].numbers[:] = 14
    with pytest.raises(InputError, match="'a', 'b' did not watch the same old structures"):
        write_comparison({"a": run(), "b": other}, tmp_path)


def test_other_old_structures_of_the_same_atoms_are_refused(tmp_path):
    other = run()
    other.frames[1].forces[..., 0] += 0.5
    with pytest.raises(InputError, match="'a', 'b' did not watch the same old structures"):
        write_comparison({"a": run(), "b": other}, tmp_path)


@pytest.mark.parametrize("position", [0, 1], ids=["target", "old structures"])
def test_energies_in_other_references_are_left_out(position, tmp_path):
    other = run(after=0.1)
    frames = other.frames[position]
    frames.energy[...] += 0.3 * frames.counts[:, None]
    page = Page(write_comparison({"a": run(), "b": other}, tmp_path))
    check(page)
    assert [file.stem for file in (tmp_path / "comparison").iterdir()] == ["pareto-replay-forces"]
    assert "Energies are left out: the runs have their labels in different references" in page.text
    assert "run method target: forces old structures (replay): forces epochs" in page.text


def test_one_run_is_no_comparison(tmp_path):
    with pytest.raises(InputError, match="two runs at least, got 1"):
        write_comparison({"a": run()}, tmp_path)
