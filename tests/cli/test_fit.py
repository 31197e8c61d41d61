from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import fields

import pytest
import yaml
from ase.io import read, write

from ase_finetune import FinetuneConfig, finetune
from ase_finetune.cli import build_parser, fitting, main
from ase_finetune.finetuning.keeping import RunKeeper
from tests import morse
from tests.cli.running import NO_REPORT, fit, weights


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
    assert main([*arguments, *options, *places, *NO_REPORT]) == 0
    assert "strain   RMSD Å" in capsys.readouterr().out
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
        report=False,
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
    assert "kept: epoch" in capsys.readouterr().out
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
        report=False,
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
    assert "stopped by SIGTERM in epoch 1, 1 step into it; the same command with --resume goes on" in told.err
    assert "Traceback" not in told.err
    monkeypatch.undo()
    assert fit(folder, "--epochs", "1", "--quiet", "--resume") == 0
    assert json.loads((folder / "run" / "run.json").read_text())["errors"]["best_epoch"] in (0, 1)


def test_no_line_speaks_of_python(folder, capsys, monkeypatch):
    """Log lines are for scripts and the command line alike: they say what to do, in the syntax of neither."""
    monkeypatch.setattr(RunKeeper, "write_report", lambda *_: 1 / 0)
    atoms = read(folder / "train.extxyz", ":")
    for frame in atoms:
        frame.info["dft_energy"] = frame.get_potential_energy()
        frame.calc.results.pop("energy")
    write(folder / "train.extxyz", atoms)
    assert fit(folder, "--epochs", "1", report=True) == 0
    told = capsys.readouterr().out + (folder / "run" / "log.txt").read_text()
    for line in ("there is no report", "checkpoints are there to resume", "the option energy_key takes one"):
        assert line in told
    assert not re.search(r"\w=(True|False|None|\.\.\.)", told)


def test_interrupted_before_training(folder, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "finetune", interrupt)
    assert fit(folder) == 128 + 2
    assert capsys.readouterr().err == "ase-finetune: interrupted\n"


def test_fit_quietly(folder, capsys):
    assert fit(folder, "--quiet", "--epochs", "1", "--valid", "0.3", "--monitor_size", "1") == 0
    assert capsys.readouterr().out == ""
    assert json.loads((folder / "run" / "run.json").read_text())["split"].startswith("validation: 2 of 6 frames")


def test_no_replay(folder):
    options = ["--replay", "null", "--method", "naive", "--epochs", "1", "--quiet"]
    assert fit(folder, *options) == 0
    assert json.loads((folder / "run" / "run.json").read_text())["data"].keys() == {"train", "valid"}


def test_every_option_has_its_help(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    for item in fields(FinetuneConfig):
        assert f"--{item.name}" in text
    assert "Peak of the schedule" in text


def test_the_options_are_those_of_the_config():
    """One dataclass is the source: every field is an option, with its default."""
    parser = build_parser()
    options = parser.parse_args(["fit", "model", "train", "--output", "run"])["fit"].as_dict()
    values = {item.name: options[item.name] for item in fields(FinetuneConfig)}
    assert FinetuneConfig.from_options(values) == FinetuneConfig()
    extra = set(options) - set(values)
    sources = {"model", "train", "valid", "relaxations", "valid_relaxations", "replay", "original", "members"}
    assert extra == sources | {
        "config",
        "output",
        "resume",
        "head",
        "quiet",
        "verbose",
        "debug",
        "help",
        "print_config",
    }


METHODS = {
    "naive": {},
    "replay": {"replay_weight": 0.5, "replay_batch_size": 2},
    "ewc": {"ewc_lambda": 0.5, "fisher_draws": 2},
    "reewc": {"ewc_lambda": 0.5, "replay_schedule": "joint"},
    "bptt": {"bptt": {"steps": 3, "epochs": 1, "loss": {"rmsd": 2.0}}},
    "bptt+reewc": {"ewc_lambda": 0.5, "bptt": {"steps": 2, "epochs": 1, "gradient": "truncated", "window": 1}},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_config_file_is_python(folder, method):
    """Every option in a file, none on the line: for each method the weights of finetune(), bit for bit."""
    target = morse.silicon(3, 7)
    start = [atoms.copy() for atoms in target]
    for number, atoms in enumerate(start):
        atoms.rattle(0.05, seed=number)
    pairs = [str(folder / "initial.extxyz"), str(folder / "relaxed.extxyz")]
    for name, structures in zip(pairs, (start, target), strict=True):
        write(name, structures)
    options = {"method": method, "epochs": 2, "learning_rate": 0.02, "monitor_size": 1, "seed": 3, "report": False}
    options |= {"device": "cpu", "freeze": ["shift"], "loss": {"kind": "mse"}, "clip_norm": None} | METHODS[method]
    sources = {"train": str(folder / "train.extxyz"), "valid": None, "replay": str(folder / "replay.extxyz")}
    if method.startswith("bptt"):
        sources |= {"relaxations": pairs, "valid_relaxations": 0.34}
    content = {"model": str(folder / "model"), "output": str(folder / "run"), "quiet": True, **sources, **options}
    (folder / "run.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["fit", "--config", str(folder / "run.yaml")]) == 0
    expected = finetune(folder / "model", **sources, **options, verbose=False)
    assert morse.same_weights(weights(folder / "run" / "model"), expected.potential)
    assert not morse.same_weights(expected.potential, morse.pretrained())


@pytest.mark.parametrize(("options", "verbosity"), [(["-q"], 0), ([], 1), (["-v"], 2)])
def test_verbosity(folder, monkeypatch, options, verbosity):
    seen = []
    monkeypatch.setattr(fitting, "finetune", lambda *_, verbose, **__: seen.append(verbose))
    assert fit(folder, *options) == 0
    assert seen == [verbosity]
