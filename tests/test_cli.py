from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from ase.io import write

from ase_finetune import FinetuneConfig, FinetunedCalculator, cli, finetune, list_models
from ase_finetune.analysis import evaluate_calculator
from ase_finetune.cli import build_parser, main
from ase_finetune.data import read_frames
from ase_finetune.finetuning.keeping import RunKeeper
from ase_finetune.potentials import save_potential
from ase_finetune.version import __version__
from tests import morse


@pytest.fixture
def folder(tmp_path):
    """A saved potential and files of frames."""
    save_potential(morse.pretrained(), tmp_path / "model")
    write(tmp_path / "train.extxyz", morse.labelled(morse.silicon(6, 1)))
    write(tmp_path / "valid.extxyz", morse.labelled(morse.silicon(3, 2)))
    write(tmp_path / "replay.extxyz", morse.oxide(4, 3))
    return tmp_path


def fit(folder, *options, output="run"):
    files = [str(folder / "model"), str(folder / "train.extxyz"), "--replay", str(folder / "replay.extxyz")]
    return main(["fit", *files, "--output", str(folder / output), "--device", "cpu", *options])


def weights(path):
    return FinetunedCalculator(path, device="cpu").potential


def test_models(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(list_models())
    (sevennet0,) = [line for line in lines if line.startswith("7net-0 ")]
    assert {"sevenn", "89"} <= set(sevennet0.split())


def test_fit_through_relaxations(folder, capsys):
    """Two files of pairs, nested options, and no frames: the same weights as from Python."""
    target = morse.silicon(3, 7)
    start = [atoms.copy() for atoms in target]
    for number, atoms in enumerate(start):
        atoms.rattle(0.05, seed=number)
    files = [str(folder / "initial.extxyz"), str(folder / "relaxed.extxyz")]
    for name, structures in zip(files, (start, target), strict=True):
        write(name, structures)
    arguments = ["fit", str(folder / "model"), "--relaxations", *files, "--valid_relaxations", "0.34"]
    options = [
        "--method",
        "bptt",
        "--bptt.steps",
        "4",
        "--bptt.epochs",
        "1",
        "--bptt.loss.rmsd",
        "2.0",
        "--monitor_size",
        "1",
    ]
    places = ["--output", str(folder / "run"), "--replay", str(folder / "replay.extxyz"), "--device", "cpu"]
    assert main([*arguments, *options, *places]) == 0
    assert "valid strain" in capsys.readouterr().out
    calculator = finetune(
        folder / "model",
        relaxations=files,
        valid_relaxations=0.34,
        method="bptt",
        bptt={"steps": 4, "epochs": 1, "loss": {"rmsd": 2.0}},
        replay=folder / "replay.extxyz",
        monitor_size=1,
        device="cpu",
        verbose=False,
    )
    assert morse.same_weights(weights(folder / "run" / "model"), calculator.potential)


def test_fit_is_finetune(folder, capsys):
    """A YAML file, options that overrule it, and the same from Python: the same weights."""
    config = {
        "method": "ewc",
        "epochs": 5,
        "learning_rate": 0.02,
        "loss": {"kind": "mse", "stress_weight": 0.1},
        "freeze": ["shift"],
        "monitor_size": 1,
        "valid": str(folder / "valid.extxyz"),
    }
    (folder / "options.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    overrides = ["--epochs", "2", "--loss.energy_weight", "2.0", "--seed", "7", "--method", "reewc"]
    assert fit(folder, "--config", str(folder / "options.yaml"), *overrides) == 0
    assert "best epoch" in capsys.readouterr().out
    expected = finetune(
        folder / "model",
        folder / "train.extxyz",
        folder / "valid.extxyz",
        replay=folder / "replay.extxyz",
        verbose=False,
        method="reewc",
        epochs=2,
        learning_rate=0.02,
        loss={"kind": "mse", "stress_weight": 0.1, "energy_weight": 2.0},
        freeze=["shift"],
        monitor_size=1,
        seed=7,
        device="cpu",
    )
    assert morse.same_weights(weights(folder / "run" / "model"), expected.potential)
    assert not morse.same_weights(expected.potential, morse.pretrained())
    written = json.loads((folder / "run" / "run.json").read_text())
    assert FinetuneConfig.from_options(written["config"]) == FinetuneConfig.from_options(expected.metadata["config"])


def test_a_stopped_fit_is_resumed(folder, capsys, monkeypatch):
    original = RunKeeper.after_step

    def after_step(self, trainer):
        os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer)

    monkeypatch.setattr(RunKeeper, "after_step", after_step)
    assert fit(folder, "--epochs", "1", "--quiet") == 128 + 15
    told = capsys.readouterr()
    assert "stopped by SIGTERM in epoch 1, 1 steps into it; the same command with --resume goes on" in told.err
    assert "Traceback" not in told.err
    monkeypatch.undo()
    assert fit(folder, "--epochs", "1", "--quiet", "--resume") == 0
    assert json.loads((folder / "run" / "run.json").read_text())["errors"]["best_epoch"] in (0, 1)


def test_interrupted_before_training(folder, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "finetune", interrupt)
    assert fit(folder) == 128 + 2
    assert capsys.readouterr().err == "ase-finetune: interrupted\n"


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss: {class_path: trap.Loss}", "'class_path' is no option here"),
        ("bptt:\n  loss: {class_path: trap.Loss}", "'class_path' is no option here"),
        ("""loss: '{"class_path": "trap.Loss"}'""", "loss takes options by name"),
        ("loss: 'class_path: trap.Loss'", "loss takes options by name"),
        ("""bptt: '{"class_path": "trap.Loss"}'""", "bptt takes options by name"),
        ("bptt: {loss: 'class_path: trap.Loss'}", "loss takes options by name"),
        ("loss.class_path: trap.Loss", "'loss.class_path' is no option here"),
        ("bptt.loss.class_path: trap.Loss", "is no option here"),
        ("config: inner.yaml", "'config' is no option here"),
        ("loss: inner.yaml", "loss takes options by name"),
        ("method: {class_path: trap.Loss}", "method takes a value or a list of values"),
        ("freeze: [{class_path: trap.Loss}]", "freeze takes a value or a list of values"),
        ("loss: !!python/object/apply:os.system ['touch executed']", "could not determine a constructor for the tag"),
        ("model: !!python/name:trap.Loss", "could not determine a constructor"),
        ("trust_pickle: true", "an option of the command line only"),
        ("relaxations: x", "relaxations takes a list of two files"),
        ("- epochs", "it holds no options by name"),
        ("", "it holds no options by name"),
        ("epochs: &a [*a]", "aliases (*name) are not read"),
        (BOMB, "aliases (*name) are not read"),
        (MERGES, "aliases (*name) are not read"),
        ("epochs: [" * 3000, "cannot be used"),
        ("a" * (2 << 20), "it has more than 1 MB"),
        ("epochs: [", "while parsing"),
        ("\x00", "cannot be used"),
    ],
)
def test_config_files_run_nothing(folder, capsys, monkeypatch, text, message):
    """A module that can be imported is not, whatever a file of options says."""
    (folder / "trap.py").write_text("from pathlib import Path\nPath('executed').touch()\nclass Loss: pass\n")
    (folder / "inner.yaml").write_text("class_path: trap.Loss\n")
    (folder / "options.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(SystemExit):
        fit(folder, "--config", "options.yaml")
    told = capsys.readouterr().err
    assert "the config file options.yaml cannot be used: " in told
    assert message in told
    assert not (folder / "executed").exists()


def test_config_file_that_is_not_there(folder, capsys):
    with pytest.raises(SystemExit):
        fit(folder, "--config", str(folder / "none.yaml"))
    assert "there is no such file" in capsys.readouterr().err


def test_fit_quietly(folder, capsys):
    assert fit(folder, "--quiet", "--epochs", "1", "--valid", "0.3", "--monitor_size", "1") == 0
    assert capsys.readouterr().out == ""
    assert json.loads((folder / "run" / "run.json").read_text())["split"].startswith("validation: 2 of 6 frames")


def test_print_config(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        fit(folder, "--epochs", "3", "--print_config")
    assert caught.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["epochs"] == 3
    assert printed["loss"]["huber_delta"] == 0.01
    names = {item.name for item in fields(FinetuneConfig)}
    assert names <= set(printed)
    options = {name: printed[name] for name in names}
    assert FinetuneConfig.from_options(options) == FinetuneConfig(epochs=3, device="cpu")
    assert not (folder / "run").exists()


def test_every_option_has_its_help(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    for item in fields(FinetuneConfig):
        assert f"--{item.name}" in text
    assert "Peak of the schedule" in text


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
        (["export", "{folder}", "x.pth"], "not a saved potential"),
    ],
)
def test_an_error_is_one_line(folder, capsys, arguments, message):
    arguments = [argument.format(folder=folder) for argument in arguments]
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


def test_the_options_are_those_of_the_config():
    """One dataclass is the source: every field is an option, with its default."""
    parser = build_parser()
    options = parser.parse_args(["fit", "model", "train", "--output", "run"])["fit"].as_dict()
    values = {item.name: options[item.name] for item in fields(FinetuneConfig)}
    assert FinetuneConfig.from_options(values) == FinetuneConfig()
    extra = set(options) - set(values)
    sources = {"model", "train", "valid", "relaxations", "valid_relaxations", "replay"}
    assert extra == sources | {"config", "output", "resume", "head", "quiet"}


def test_no_replay(folder):
    options = ["--replay", "null", "--method", "naive", "--epochs", "1", "--quiet"]
    assert fit(folder, *options) == 0
    assert json.loads((folder / "run" / "run.json").read_text())["data"].keys() == {"train", "valid"}


def test_as_a_program():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "ase_finetune.cli", "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)  # noqa: S603  # our own module
    assert re.search(rf"\b{re.escape(__version__)}\b", answer.stdout)
