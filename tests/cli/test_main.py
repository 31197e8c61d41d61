from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ase_finetune import FinetunedCalculator, list_models
from ase_finetune.analysis import evaluate_calculator
from ase_finetune.cli import main, managing
from ase_finetune.data import read_frames
from ase_finetune.errors import InputError, RunStoppedError
from ase_finetune.potentials import save_potential
from ase_finetune.version import __version__
from tests import morse
from tests.cli.running import fit


def test_models(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(list_models())
    (sevennet0,) = [line for line in lines if line.startswith("7net-0 ")]
    assert {"sevenn", "89"} <= set(sevennet0.split())


def test_evaluate(folder, capsys):
    files = [str(folder / "train.extxyz"), str(folder / "valid.extxyz")]
    assert main(["evaluate", str(folder / "model"), *files, "--device", "cpu"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    calculator = FinetunedCalculator(folder / "model", device="cpu")
    for name, path in (("train", files[0]), ("valid", files[1])):
        item = evaluate_calculator(calculator, read_frames(path))
        expected = [item.frames, item.raw.energy_mae, item.aligned_energy_mae, item.raw.forces_mae, item.raw.stress_mae]
        assert [float(value) for value in rows[name][:5]] == pytest.approx(expected, abs=0.006)
        assert float(rows[name][5]) == pytest.approx(item.raw.slope, abs=6e-4)


def test_export(folder, capsys):
    path = folder / "morse.json"
    assert main(["export", str(folder / "model"), str(path)]) == 0
    assert capsys.readouterr().out == f"written to {path}\n"
    assert json.loads(path.read_text())["distance"] == pytest.approx(morse.PRETRAINED["distance"])
    assert main(["export", str(folder / "model"), str(path)]) == 1
    assert f"{path} exists" in capsys.readouterr().err
    assert main(["export", str(folder / "model"), str(path), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("backend", "head", "versions", "last"),
    [
        ("sevenn", None, ("0.13.0", "0.5.6"), "sevenn get_model 'my runs/a.pth' -o a"),
        ("sevenn", "mpa", ("0.13.0", "0.5.6"), "sevenn get_model 'my runs/a.pth' -o a --modal mpa"),
        (
            "sevenn",
            None,
            ("0.10.4", "0.4.4"),
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 sevenn_get_model 'my runs/a.pth' -o a",
        ),
        ("mace", "pbe", ("", ""), "mace_create_lammps_model 'my runs/a.pth' --head pbe"),
        ("morse", None, ("", ""), None),
    ],
)
def test_what_comes_after_an_export(monkeypatch, backend, head, versions, last):
    installed = dict(zip(("sevenn", "e3nn"), versions, strict=True))
    monkeypatch.setattr(managing, "installed_version", installed.get)
    lines = managing.next_steps(backend, "my runs/a.pth", head)
    assert lines[-1:] == ([] if last is None else [f"for LAMMPS: {last}"])


@pytest.mark.sevenn
def test_export_of_sevennet_ends_with_the_next_command(tiny_sevennet, tmp_path, capsys):
    save_potential(tiny_sevennet(), tmp_path / "model")
    path = tmp_path / "mine.pth"
    assert main(["export", str(tmp_path / "model"), str(path), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"written to {path}\n"
    in_ase, for_lammps = captured.err.splitlines()
    assert in_ase == f"in ASE: SevenNetCalculator({str(path)!r})"
    assert for_lammps.startswith("for LAMMPS: ")
    assert for_lammps.endswith(f"get_model {path} -o mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "7net_00", "x.extxyz"], "did you mean 7net-0"),
        (["evaluate", "{folder}/model", "{folder}/none.extxyz"], "there is no file"),
        (["evaluate", "{folder}/model", "{folder}/train.extxyz", "--device", "cuda:99"], "does not exist here"),
        (["evaluate", "{folder}/model", "{folder}/train.extxyz", "--dtype", "float16"], "dtype must be"),
        (["fit", "{folder}/model", "{folder}/train.extxyz", "--output", "{folder}"], "exists and is not empty"),
        (["fit", "{folder}/model", "{folder}/replay.extxyz", "--output", "{folder}/run"], "the keys seen are"),
        (["fit", "{folder}/model", "x", "--output", "{folder}/run", "--epochs", "0"], "epochs must be positive"),
        (["fit", "{folder}/model", "x", "--output", "{folder}/run", "--ewc_lambda", "-1"], "ewc_lambda must be"),
        (["export", "{folder}/none", "x.pth"], "there is no file and no pretrained model called"),
    ],
)
def test_an_error_is_one_line(folder, capsys, arguments, message):
    arguments = [argument.format(folder=folder) for argument in arguments]
    message = message.format(folder=folder)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("ase-finetune: error: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert main(["--debug", *arguments]) == 1
    trace = capsys.readouterr().err
    assert trace.startswith("Traceback (most recent call last):")
    assert message in trace


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epoch", "2"], "epoch"),
        (["--method", "rewc"], "method"),
        (["--epochs", "many"], "epochs"),
        (["--loss.kin", "mse"], "kin"),
    ],
)
def test_options_that_do_not_exist(folder, capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        fit(folder, *options)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_as_a_program():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "ase_finetune.cli", "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)  # noqa: S603  # our own module
    assert re.search(rf"\b{re.escape(__version__)}\b", answer.stdout)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([], bool),
        (["SEVENN"], lambda info: info.backend == "sevenn"),
        (["mace", "mit"], lambda info: info.backend == "mace" and "MIT" in info.licence),
        (["sevennet-0"], lambda info: "sevennet-0" in (info.name, *info.aliases)),
    ],
)
def test_some_models(capsys, words, kept):
    assert main(["models", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [info["name"] for info in found]
    assert set(names) >= {info.name for info in list_models() if kept(info)}
    assert names == [info.name for info in list_models() if info.name in names]
    assert all(info["licence"] and isinstance(info["elements"], list | None) for info in found)
    assert main(["models", *words]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == names


def test_no_such_model(capsys):
    assert main(["models", "unobtainium"]) == 1
    assert "no pretrained model has 'unobtainium'" in capsys.readouterr().err


def test_doctor(capsys, monkeypatch):
    class Report:
        ok = True

        def __str__(self):
            return "healthy"

    seen = []
    monkeypatch.setattr(managing, "doctor", lambda *, self_test: seen.append(self_test) or Report())
    assert main(["doctor"]) == 0
    Report.ok = False
    assert main(["doctor", "--self-test", "false"]) == 1
    assert seen == [True, False]
    assert capsys.readouterr().out == "healthy\nhealthy\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "runs"), 1, "error: runs: Permission denied"),
        (OSError("the network\nis gone"), 1, "error: the network is gone"),
        (
            MemoryError(),
            1,
            "error: there is not enough memory; a smaller --max_edges needs less, where the verb has it",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            1,
            "error: there is not enough memory; a smaller --max_edges needs less, where the verb has it",
        ),
        (
            ZeroDivisionError("division\nby zero"),
            70,
            "bug: ZeroDivisionError: division by zero; please report it, with what --debug shows",
        ),
        (InputError("pass overwrite=True"), 1, "error: pass --overwrite"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RunStoppedError("stopped; resume=True goes on", 15), 143, "stopped; the same command with --resume goes on"),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code, line):
    def fail(**_):
        raise error

    monkeypatch.setattr(managing, "doctor", fail)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == f"ase-finetune: {line}\n"
    if not isinstance(error, KeyboardInterrupt | RunStoppedError):
        assert main(["doctor", "--debug"]) == code
        assert capsys.readouterr().err.startswith("Traceback")


@pytest.mark.parametrize("module", ["ase_finetune", "ase_finetune.cli"])
def test_as_modules(module, tmp_path):
    command = [sys.executable, "-m", module, "models", "7net-0", "--quiet"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)  # noqa: S603
    assert answer.stdout.splitlines()[1].startswith("7net-0 ")
    assert answer.stderr == ""
