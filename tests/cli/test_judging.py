from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase.io import read, write

from ase_finetune import FinetunedCalculator
from ase_finetune.analysis import evaluate_calculator, validate
from ase_finetune.cli import judging, main
from ase_finetune.data import read_frames
from tests import morse
from tests.cli.running import fit


def test_errors_for_scripts(folder, capsys):
    output = folder / "errors.json"
    words = ["evaluate", str(folder / "model"), str(folder / "train.extxyz"), str(folder / "valid.extxyz")]
    assert main([*words, "--output", str(output), "--device", "cpu", "-q"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert len(told.out.splitlines()) == 4
    content = json.loads(output.read_text())
    assert (content["model"], content["reference"]) == (str(folder / "model"), "model")
    calculator = FinetunedCalculator(folder / "model", device="cpu")
    for found, name in zip(content["sets"], ("train", "valid"), strict=True):
        expected = evaluate_calculator(calculator, read_frames(folder / f"{name}.extxyz", name=name))
        assert (found["name"], found["frames"]) == (name, expected.frames)
        assert found["forces_mae"] == pytest.approx(expected.raw.forces_mae)
        assert found["aligned_energy_mae"] == pytest.approx(expected.aligned_energy_mae)
    assert main([*words, "--output", str(output)]) == 1
    assert "give --overwrite" in capsys.readouterr().err
    assert main([*words, "--output", str(output), "--overwrite"]) == 0


def test_errors_in_the_reference_of_the_target(folder, capsys):
    assert fit(folder, "--epochs", "1", "--quiet") == 0
    words = ["evaluate", str(folder / "run" / "model"), str(folder / "valid.extxyz"), "--device", "cpu"]
    energies = []
    for reference in ("model", "target"):
        assert main([*words, "--reference", reference]) == 0
        energies.append(float(capsys.readouterr().out.splitlines()[-1].split()[2]))
    calculator = FinetunedCalculator(folder / "run" / "model", device="cpu", reference="target")
    expected = evaluate_calculator(calculator, read_frames(folder / "valid.extxyz"))
    assert energies[1] == pytest.approx(expected.raw.energy_mae, abs=0.006)
    assert energies[1] < 0.5 * energies[0]


def test_labels_under_other_names(folder, capsys):
    frames = read(folder / "valid.extxyz", ":")
    for atoms in frames:
        atoms.info["mine"] = atoms.get_potential_energy()
        atoms.calc = None
    write(folder / "other.extxyz", frames)
    words = ["evaluate", str(folder / "model"), str(folder / "other.extxyz"), "--device", "cpu"]
    assert main([*words, "--energy_key", "mine"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[4] == "-"
    assert main(words) == 1


def test_validate_is_validate(folder, capsys):
    write(folder / "crystal.extxyz", morse.silicon(1, 1))
    words = ["validate", str(folder / "model"), "--structures", str(folder / "crystal.extxyz"), "--device", "cpu"]
    checks = ["--checks", "equation-of-state", "equilibrium", "--against", str(folder / "model")]
    code = main([*words, *checks, "--output", str(folder / "found.json"), "-q"])
    told = capsys.readouterr()
    calculator, other = (FinetunedCalculator(folder / "model", device="cpu", dtype="float64") for _ in range(2))
    structures = read(folder / "crystal.extxyz", ":")
    expected = validate(calculator, structures, against=other, checks=["equation of state", "equilibrium"])
    assert code == (0 if expected.passed else 3)
    written = json.loads((folder / "found.json").read_text())
    assert _without_seconds(written) == _without_seconds(json.loads(json.dumps(expected.to_dict())))
    assert "equation of state" in told.out
    assert told.err == ""


def _without_seconds(content):
    if isinstance(content, dict):
        return {name: _without_seconds(value) for name, value in content.items() if name != "seconds"}
    return [_without_seconds(value) for value in content] if isinstance(content, list) else content


def test_validate_tells_what_did_not_pass(folder, monkeypatch, capsys):
    class Found:
        passed = False
        verdict = "failed"

        def __str__(self):
            return "a table"

    monkeypatch.setattr(judging, "validate", lambda *_, **__: Found())
    words = ["validate", str(folder / "model"), "--device", "cpu"]
    assert main(words) == 3
    assert capsys.readouterr().out == "a table\n"
    Found.passed, Found.verdict = True, "ok"
    assert main(words) == 0
    monkeypatch.undo()
    assert main([*words, "--checks", "phonon"]) == 1
    told = capsys.readouterr().err
    assert "there is no check phonon; there are equilibrium, equation-of-state" in told
    assert "did you mean phonons?" in told


def test_reports(folder, monkeypatch, capsys):
    """The arguments arrive; what the pages hold is tested where they are made."""
    calls = []

    def report_run(*arguments, **options):
        calls.append(("report_run", arguments, options))
        return Path("there/report.html")

    def compare_runs(*arguments, **options):
        calls.append(("compare_runs", arguments, options))
        return Path("there/comparison.html")

    monkeypatch.setattr(judging, "_check_run", lambda _: None)
    monkeypatch.setattr(judging, "report_run", report_run)
    monkeypatch.setattr(judging, "compare_runs", compare_runs)
    assert main(["report", "runs/mine", "--frames", "a.xyz", "b.xyz", "--device", "cpu", "-q"]) == 0
    assert main(["report", "runs/a", "runs/b", "--output", "c.html", "--names", "one", "two"]) == 0
    shared = {"trust_pickle": False, "verbose": False}
    expected = {"frames": ("a.xyz", "b.xyz"), "output": None, "device": "cpu", **shared}
    assert calls == [
        ("report_run", ("runs/mine",), expected),
        ("compare_runs", (["runs/a", "runs/b"], "c.html"), {"names": ["one", "two"]}),
    ]
    assert capsys.readouterr().out.splitlines() == ["written to there/report.html", "written to there/comparison.html"]
    assert main(["report", "runs/a", "runs/b"]) == 1
    assert main(["report", "runs/a", "runs/b", "--output", "c", "--frames", "x"]) == 1
    assert main(["report", "runs/a", "--names", "x"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.slow
def test_a_report_of_a_run(folder, capsys):
    assert fit(folder, "--epochs", "1", "--quiet", report=True) == 0
    assert main(["report", str(folder / "run"), "--frames", str(folder / "valid.extxyz"), "-q", "--device", "cpu"]) == 0
    path = folder / "run" / "report.html"
    assert capsys.readouterr().out == f"written to {path}\n"
    assert "<html" in path.read_text()
    assert main(["report", str(folder / "run" / "model")]) == 1
    assert f"is not the output folder of a fit; did you mean {folder / 'run'}?" in capsys.readouterr().err


def test_where_nothing_can_be_judged(folder, capsys):
    (atoms,) = morse.silicon(1, 1)
    atoms.pbc = False
    write(folder / "cluster.extxyz", atoms)
    words = ["validate", str(folder / "model"), "--structures", str(folder / "cluster.extxyz"), "--device", "cpu"]
    assert main([*words, "--checks", "elastic-constants"]) == 3
    assert "nothing could be judged" in capsys.readouterr().out.splitlines()[-1]


def test_folders_that_are_no_run(folder, capsys):
    (folder / "begun" / "checkpoints").mkdir(parents=True)
    for name, message in (
        ("none", "there is no folder"),
        ("model", "is not the output folder of a fit"),
        ("begun", "has not ended; the same fit with --resume goes on with it"),
    ):
        assert main(["report", str(folder / name)]) == 1
        told = capsys.readouterr().err
        assert message in told
        assert len(told.splitlines()) == 1


@pytest.mark.parametrize("verb", ["evaluate", "validate", "relax", "md", "export", "fisher"])
def test_places_are_checked_before_the_work(folder, capsys, monkeypatch, verb):
    """Each verb that writes a file: nothing is read, loaded or removed for a place that cannot be written to."""
    monkeypatch.setattr("ase_finetune.cli.common.FinetunedCalculator", None)
    (folder / "there.extxyz").write_text("precious")
    frames = str(folder / "train.extxyz")
    words = {
        "validate": ["--structures", frames],
        "export": [],
        "fisher": ["--structures", frames],
    }.get(verb, [frames + "@0" if verb in ("md", "relax") else frames])
    for output, overwrite, message in (
        (folder / "there.extxyz", False, "exists; choose another name or give --overwrite"),
        (folder / "model", True, "is a folder; name a file in it"),
        (folder / "none" / "o.extxyz", True, "there is no folder"),
        (folder / "train.extxyz", True, "is what is read; choose another name"),
        (folder / "train.extxyz" / "o.extxyz", False, "there is no folder"),
    ):
        if verb == "export" and "what is read" in message:
            continue
        place = [str(output)] if verb == "export" else ["--output", str(output)]
        assert main([verb, str(folder / "model"), *words, *place, *(["--overwrite"] if overwrite else [])]) == 1
        assert message in capsys.readouterr().err
    assert (folder / "there.extxyz").read_text() == "precious"
    assert len(read(frames, ":")) == 6


def test_checkpoints_have_the_ending_of_their_backend(folder, capsys):
    assert main(["export", str(folder / "model"), str(folder / "m.pth")]) == 1
    assert "must end in .json: that is what a checkpoint of morse is called" in capsys.readouterr().err
    assert not (folder / "m.pth").exists()
