from __future__ import annotations

import math
import re

import numpy as np
import pytest
from ase.io import read, write

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.analysis import compare_runs, report_run
from ase_finetune.analysis.reports import MOST_STRUCTURES, further_record, in_reference, read_record
from ase_finetune.data import read_frames
from ase_finetune.errors import CheckpointError, InputError
from ase_finetune.potentials import save_potential
from ase_finetune.reporting import RECORD_FILE
from ase_finetune.reporting.measures import set_errors
from ase_finetune.reporting.record import AFTER, BEFORE
from tests import morse
from tests.reporting.pages import Page
from tests.reporting.test_report import check

OPTIONS = {"epochs": 2, "batch_size": 4, "learning_rate": 3e-2, "monitor_size": 3, "fisher_size": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two finished runs that began with the same saved potential."""
    path = tmp_path_factory.mktemp("runs")
    save_potential(morse.pretrained(), path / "base")
    frames, valid = (morse.labelled(morse.silicon(count, seed)) for count, seed in ((8, 1), (4, 2)))
    for method in ("naive", "ewc"):
        options = OPTIONS | {"method": method, "replay": morse.oxide(8, 3), "output": path / method, "verbose": False}
        finetune(path / "base", frames, valid, **options)
    write(path / "oxide.extxyz", morse.labelled(morse.oxide(7, 9)))
    return path


def test_a_report_is_written_again(folder, tmp_path):
    first = (folder / "naive" / "report.html").read_text()
    path = report_run(folder / "naive", output=tmp_path)
    assert path == tmp_path / "report.html"
    page = Page(path)
    check(page)
    assert "learning_rate 0.03" in page.text.split("Options that differ from the defaults")[1].split("All options")[0]
    assert Page(folder / "naive" / "report.html").source == first
    assert report_run(folder / "naive") == folder / "naive" / "report.html"


def test_further_sets_are_evaluated(folder, tmp_path):
    page = Page(report_run(folder / "naive", frames=[folder / "oxide.extxyz"], output=tmp_path, device="cpu"))
    check(page)
    assert "oxide.extxyz" in page.text
    labels = read(folder / "oxide.extxyz", ":")
    maes = []
    for model in ("base", "naive/model"):
        calculator = FinetunedCalculator(folder / model, device="cpu")
        results = calculator.calculate_many(labels)
        errors = [
            r["forces"] - atoms.get_forces(apply_constraint=False) for r, atoms in zip(results, labels, strict=True)
        ]
        maes.append(1e3 * np.abs(np.concatenate(errors)).mean())
    assert f"from {maes[0]:.1f} to {maes[1]:.1f} meV/Å" in page.text
    # The record stays that of the run.
    assert "oxide.extxyz" not in [frames.name for frames in read_record(folder / "naive").frames]


def errors_of(page, name):
    """What the table of all errors says about a set."""
    return re.findall(rf"{re.escape(name)}, \d+ structures (energy MAE|force MAE), \S+ (\S+) (\S+)", page.text)


@pytest.mark.parametrize("reference", ["align", "shift"])
def test_the_validation_frames_as_a_file_say_the_same(reference, folder, tmp_path):
    train, valid = (morse.labelled(morse.silicon(count, seed)) for count, seed in ((8, 1), (4, 2)))
    options = OPTIONS | {"epochs": 1, "method": "naive", "replay": morse.oxide(8, 3), "verbose": False}
    finetune(folder / "base", train, valid, output=tmp_path / "run", reference=reference, **options)
    write(tmp_path / "valid", valid, format="extxyz")
    write(tmp_path / "test.extxyz", valid)
    files = [tmp_path / "valid", tmp_path / "test.extxyz"]
    page = Page(report_run(tmp_path / "run", frames=files, output=tmp_path / "new.html", device="cpu"))
    check(page)
    own = errors_of(page, "target (validation)")
    assert [name for name, *_ in own] == ["energy MAE", "force MAE"]
    assert errors_of(page, "valid (file)") == errors_of(page, "test.extxyz") == own
    record = read_record(tmp_path / "run")
    (key,) = {"reference_offsets", "shifted_by"} & set(record.metadata)
    assert abs(record.metadata[key]["Si"]) > 0.05
    calculators = [FinetunedCalculator(path, device="cpu") for path in (folder / "base", tmp_path / "run" / "model")]
    further = further_record(read_frames(valid, name="v"), *(calculator.potential for calculator in calculators))
    np.testing.assert_allclose(in_reference(further, record.metadata).energy, record.frames[0].energy, atol=2e-4)


def test_elements_without_offsets_are_judged_after_the_best_ones():
    structures = morse.oxide(6, 1)
    record = further_record(read_frames(morse.labelled(structures)), morse.pretrained(), morse.truth())
    silicon, oxygen = (np.array([(atoms.symbols == symbol).sum() for atoms in structures]) for symbol in ("Si", "O"))
    for metadata in ({}, {"reference_offsets": {"Si": 0.2}}):
        found = in_reference(record, metadata)
        assert found.other_reference
        np.testing.assert_array_equal(found.energy, record.energy)
    found = in_reference(record, {"reference_offsets": {"Si": 0.2, "O": -0.1}})
    assert not found.other_reference
    np.testing.assert_allclose(found.energy[:, 0], record.energy[:, 0] - 0.2 * silicon + 0.1 * oxygen)
    np.testing.assert_array_equal(found.energy[:, 1:], record.energy[:, 1:])
    found = in_reference(record, {"shifted_by": {"Si": 0.2}})
    assert found.other_reference
    np.testing.assert_allclose(found.energy[:, 1], record.energy[:, 1] + 0.2 * silicon)
    np.testing.assert_array_equal(found.energy[:, [0, 2]], record.energy[:, [0, 2]])


def test_a_further_set_by_hand():
    before, after = morse.pretrained(), morse.truth()
    structures = morse.labelled(morse.oxide(3, 1))
    record = further_record(read_frames(structures, name="oxide"), before, after)
    assert (record.name, record.own_labels, record.available) == ("oxide", False, 3)
    assert record.counts.tolist() == [8, 8, 8]
    np.testing.assert_allclose(record.energy[:, 0], [atoms.get_potential_energy() for atoms in structures])
    np.testing.assert_allclose(record.stress[1, :, 0], structures[1].get_stress())
    errors = set_errors(record, AFTER)
    assert (errors.energy, errors.forces, errors.stress) == pytest.approx((0, 0, 0), abs=1e-2)
    assert set_errors(record, BEFORE).forces > 10


def test_missing_labels_stay_missing():
    energies = morse.labelled(morse.silicon(2, 1), labels=("energy",))
    record = further_record(read_frames(energies, name="energies"), morse.pretrained(), morse.truth())
    assert np.isnan(record.forces[..., 0]).all()
    assert np.isnan(record.stress).all()
    assert math.isnan(set_errors(record, AFTER).forces)
    assert set_errors(record, AFTER).energy == pytest.approx(0, abs=1e-2)


def test_large_sets_are_sampled_evenly():
    frames = read_frames(morse.labelled(morse.silicon(3, 1)) * 150, name="many")
    record = further_record(frames, morse.pretrained(), morse.truth())
    assert (len(record.counts), record.available) == (MOST_STRUCTURES, 450)
    assert record.energy[0, 0] == frames[0].energy
    assert record.energy[-1, 0] == frames[-1].energy


def test_runs_are_compared(folder, tmp_path):
    path = compare_runs([folder / "naive", folder / "ewc"], tmp_path)
    assert path == tmp_path / "comparison.html"
    page = Page(path)
    check(page)
    assert "2 ways to fine-tune" in page.text
    assert "option naive ewc" in page.text
    named = Page(compare_runs([folder / "naive", folder / "ewc"], tmp_path, names=["first try", "second try"]))
    assert "option first try second try" in named.text


def test_names_must_tell_runs_apart(folder, tmp_path):
    runs = [folder / "naive", folder / "ewc"]
    with pytest.raises(InputError, match="1 names for 2 runs"):
        compare_runs(runs, tmp_path, names=["a"])
    with pytest.raises(InputError, match="two runs have the name 'a'"):
        compare_runs(runs, tmp_path, names=["a", "a"])


def test_a_folder_without_a_run_is_named(folder, tmp_path):
    with pytest.raises(CheckpointError, match="base holds no finished run"):
        report_run(folder / "base")
    with pytest.raises(CheckpointError, match="base holds no finished run"):
        compare_runs([folder / "naive", folder / "base"], tmp_path)


def test_a_damaged_record_is_named(folder, tmp_path):
    data = bytearray((folder / "naive" / RECORD_FILE).read_bytes())
    data[-9] ^= 1
    (tmp_path / RECORD_FILE).write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        report_run(tmp_path)


def changed(folder, tmp_path, **metadata):
    record = read_record(folder / "naive")
    record.metadata.update(metadata)
    record.write(tmp_path / RECORD_FILE)
    return tmp_path


def test_another_base_model_is_refused(folder, tmp_path):
    save_potential(morse.truth(), tmp_path / "other")
    run = changed(folder, tmp_path, base_model=str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match=r"is not the model that the run in .* began with"):
        report_run(run, frames=[folder / "oxide.extxyz"])


def test_a_base_model_that_is_gone_is_named(folder, tmp_path):
    run = changed(folder, tmp_path, base_model="a morse potential")
    with pytest.raises(CheckpointError, match=r"the base model of the run in .* cannot be loaded: .*a morse potential"):
        report_run(run, frames=[folder / "oxide.extxyz"])
