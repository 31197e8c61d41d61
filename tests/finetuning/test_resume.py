"""A run that is interrupted at any moment and resumed is the run that was not."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from ase.db import connect
from filelock import FileLock

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.continual import gaussian_fisher, save_fisher, trust_region
from ase_finetune.errors import (
    CheckpointError,
    FinetuneError,
    InputError,
    OutputError,
    OutputExistsError,
    RunStoppedError,
)
from ase_finetune.files import read_sealed, write_sealed
from ase_finetune.finetuning import keeping, run_folder
from ase_finetune.finetuning.keeping import RunKeeper
from ase_finetune.finetuning.signals import StopSignals
from ase_finetune.potentials.mace import MACEPotential
from ase_finetune.potentials.storage import potential_hash
from tests import helpers, morse

TRAIN = morse.labelled(morse.silicon(10, 1))
VALID = morse.labelled(morse.silicon(4, 2))
OLD = morse.oxide(8, 3)
PAIRS = list(zip(morse.silicon(4, 4), morse.silicon(4, 5), strict=True))
COMMON = {"epochs": 3, "learning_rate": 0.02, "monitor_size": 3, "batch_size": 3, "verbose": False, "device": "cpu"}
COMMON |= {"report": False}  # those of resumed runs: test_recording
BPTT = {"epochs": 2, "batch_size": 2, "learning_rate": 3e-4, "start": "initial", "steps": 3, "valid_steps": 5}
BPTT |= {"train_step_size": True, "step_size": 0.1, "robust": None}
METHODS = {
    "naive": {"method": "naive", "schedule": "constant"},
    "alternate": {"method": "reewc", "ema_decay": 0.8},
    "joint": {"method": "reewc", "replay_schedule": "joint", "optimizer": "adamw", "max_edges": 150},
    "stops early": {"method": "replay", "early_stopping": 1, "learning_rate": 0.1, "reference": "shift"},
    "streamed": {"method": "naive", "stream": True, "num_workers": 1, "valid": 0.2, "epochs": 2},
    "relaxations": {"method": "bptt+reewc", "relaxations": PAIRS, "epochs": 1, "bptt": BPTT, "dtype": "float64"},
}
STOPS = {"stops early": (1, 4), "streamed": (1, 3), "relaxations": (1, 4, 6, 7)}


@pytest.fixture(autouse=True)
def interruptible():
    """A shell ignores SIGINT for what it starts in the background, and a program keeps to that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def stop_at(monkeypatch):
    """Send this process a signal when a run has made so many iterations, counted over all of its starts."""

    def install(number, sent=signal.SIGTERM):
        made = 0
        original = RunKeeper.after_step

        def after_step(self, trainer):
            nonlocal made
            made += 1
            if made == number:
                os.kill(os.getpid(), sent)
            original(self, trainer)

        monkeypatch.setattr(RunKeeper, "after_step", after_step)

    yield install
    monkeypatch.undo()


def run(output=None, *, train=TRAIN, valid=VALID, replay=OLD, **options):
    return finetune(morse.pretrained(), train, valid, replay=replay, output=output, **(COMMON | options))


def outcome(calculator, output):
    """Everything that must not depend on interruptions."""
    rows = [
        {name: value for name, value in row.items() if name not in ("seconds", "peak_memory_gb")}
        for row in calculator.history
    ]
    stages = calculator.metadata["stages"]
    lines = (output / "history.csv").read_text().splitlines()
    saved = FinetunedCalculator(output / "model", device="cpu", dtype=calculator.parameters["dtype"]).potential
    weights = {name: value.tolist() for name, value in morse.weights(calculator.potential).items()}
    assert {name: value.tolist() for name, value in morse.weights(saved).items()} == weights
    # repr: NaN is not equal to itself.
    return repr((rows, stages, weights, len(lines)))


@pytest.mark.parametrize("name", METHODS)
def test_stopped_after_every_step(name, tmp_path, stop_at):
    options = dict(METHODS[name])
    if "stream" in options:
        with connect(tmp_path / "frames.db") as rows:
            for atoms in TRAIN:
                rows.write(atoms)
        options["train"] = tmp_path / "frames.db"
    whole = run(tmp_path / "whole", **options)
    expected = outcome(whole, tmp_path / "whole")
    assert (len(whole.history) < 3) == (name in ("stops early", "streamed"))
    # After the first step, and in the middle and at the end of an epoch, where validation is still to come.
    for number in STOPS.get(name, (1, 4, 6, 12)):
        output = tmp_path / f"stopped{number}"
        stop_at(number)
        with pytest.raises(RunStoppedError, match=r"^stopped by SIGTERM in epoch \d, \d steps? into it; resume=True"):
            run(output, **options)
        assert outcome(run(output, resume=True, **options), output) == expected, number
        shutil.rmtree(output)


@pytest.mark.parametrize("name", ["naive", "alternate", "relaxations"])
def test_stopped_within_a_bound(name, tmp_path, stop_at, monkeypatch):
    """The strength of the penalty, and weights that are to be drawn back, are part of a checkpoint."""
    monkeypatch.setattr(trust_region, "_FEWEST_STEPS", 1)
    options = METHODS[name] | {"max_forgetting": 0.05 if name == "relaxations" else 0.01}
    if name == "alternate":  # and without validation the last weights are drawn back
        options |= {"max_forgetting": 1e-3, "valid": None}
    whole = run(tmp_path / "whole", **options)
    expected = outcome(whole, tmp_path / "whole")
    strengths = [row["ewc_lambda"] for row in whole.history]
    assert len(set(strengths)) == (1 if name == "naive" else len(strengths))
    told = (tmp_path / "whole" / "log.txt").read_text().count("drawn back")
    assert told == 1
    for number in STOPS.get(name, (1, 6, 12)):
        output = tmp_path / f"stopped{number}"
        stop_at(number)
        with pytest.raises(RunStoppedError):
            run(output, **options)
        assert outcome(run(output, resume=True, **options), output) == expected, number
        assert (output / "log.txt").read_text().count("drawn back") == told


@pytest.mark.sevenn
@pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")
def test_sevennet(tiny_sevennet, tmp_path, stop_at):
    check_tiny(tiny_sevennet(), tmp_path, stop_at)


@pytest.mark.mace
@pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")
def test_mace(tiny_mace, tmp_path, stop_at):
    check_tiny(MACEPotential(tiny_mace()), tmp_path, stop_at)


def check_tiny(potential, folder, stop_at):
    options = COMMON | {"epochs": 2, "learning_rate": 1e-3, "ema_decay": 0.5, "method": "reewc", "replay": OLD[:4]}
    whole = finetune(potential, TRAIN[:4], VALID[:2], output=folder / "whole", **options)
    stop_at(3)
    with pytest.raises(RunStoppedError):
        finetune(potential, TRAIN[:4], VALID[:2], output=folder / "run", **options)
    resumed = finetune(potential, TRAIN[:4], VALID[:2], output=folder / "run", resume=True, **options)
    assert outcome(resumed, folder / "run") == outcome(whole, folder / "whole")


def test_stopped_again_and_again(tmp_path, stop_at):
    expected = outcome(run(tmp_path / "whole"), tmp_path / "whole")
    starts = 0
    while True:
        stop_at(2)
        starts += 1
        try:
            calculator = run(tmp_path / "run", resume=True)
        except RunStoppedError:
            continue
        break
    # Twelve iterations and three ends of epochs, of which every start saw one and was stopped at the second.
    assert starts > 6
    assert outcome(calculator, tmp_path / "run") == expected
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("\nresumed ") == starts - 1
    assert log.count("reference energies (eV per atom)") == 1


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    output = tmp_path / "run"
    expected = outcome(run(output), output)
    log = (output / "log.txt").read_text()
    monkeypatch.setattr("ase_finetune.finetuning.training.Trainer._epoch", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr("ase_finetune.finetuning.preparing.predict_each", lambda *_, **__: pytest.fail("predicted"))
    monkeypatch.setattr("ase_finetune.finetuning.old_material.gaussian_fisher", lambda *_, **__: pytest.fail("Fisher"))
    assert outcome(run(output, resume=True), output) == expected
    assert (output / "log.txt").read_text().replace("resumed after the last epoch\n", "") == log


def test_resume_starts_a_run_where_there_is_none(tmp_path):
    for output in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert outcome(run(output, resume=True), output) == outcome(run(tmp_path / output.name / "2"), output / "2")


def test_killed_before_the_first_checkpoint(tmp_path, monkeypatch):
    """What was found before the first step is kept."""
    monkeypatch.setattr("ase_finetune.finetuning.training.Trainer._begin", lambda _: (_ for _ in ()).throw(KeyError()))
    with pytest.raises(KeyError):
        run(tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr("ase_finetune.finetuning.old_material.gaussian_fisher", lambda *_, **__: pytest.fail("again"))
    resumed = run(tmp_path / "run", resume=True)
    monkeypatch.undo()
    assert outcome(resumed, tmp_path / "run") == outcome(run(tmp_path / "whole"), tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"replay": OLD[:-1]}, ["folder: other replay structures; resume"]),
        ({"dtype": "float64"}, ["folder: other option dtype: float32 then, float64 now; resume"]),
        (
            {"learning_rate": 0.5, "loss": {"forces_weight": 2.0}},
            ["other option learning_rate: 0.02 then, 0.5 now", "; other option loss.forces_weight: 1.0 then, 2.0 now"],
        ),
        ({"train": TRAIN[:-1]}, ["folder: other frames: train; resume"]),
        ({"valid": VALID[:-1]}, ["folder: other frames: valid; resume"]),
        (
            {"valid": None},
            ["other frames: valid (none now)", "other split of the frames: validation frames given then, no valid"],
        ),
        (
            {"freeze": ["shift"], "seed": 3},
            ["other option freeze: [] then, ['shift'] now; other option seed: 0 then, 3 now"],
        ),
    ],
)
def test_another_run_is_not_resumed(tmp_path, stop_at, options, named):
    stop_at(2)
    with pytest.raises(RunStoppedError):
        run(tmp_path / "run")
    with pytest.raises(InputError, match="not the run that was started in the output folder") as caught:
        run(tmp_path / "run", resume=True, **options)
    for part in named:
        assert part in str(caught.value)
    assert not re.search("[0-9a-f]{32}", str(caught.value))  # hashes say nothing to a reader
    run(tmp_path / "run", resume=True, num_workers=0, checkpoint_minutes=0.01, device="auto")


def test_another_model_is_not_resumed(tmp_path):
    run(tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match="folder: other model; resume it as it was"):
        finetune(
            morse.truth(), TRAIN, VALID, replay=OLD, output=tmp_path / "run", resume=True, **(COMMON | {"epochs": 1})
        )


def test_other_relaxations_are_not_resumed(tmp_path):
    options = {k: v for k, v in METHODS["relaxations"].items() if k != "relaxations"} | {
        "train": None,
        "valid": None,
        "valid_relaxations": PAIRS[3:],
    }
    run(tmp_path / "run", **options, relaxations=PAIRS[:3])
    with pytest.raises(InputError, match="folder: other relaxations: train; resume"):
        run(tmp_path / "run", resume=True, **options, relaxations=PAIRS[:2])


def damaged(path, how):
    data = path.read_bytes()
    if how == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif how == "a flipped bit":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["torn", "a flipped bit", "empty"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path, stop_at, how, capsys):
    expected = outcome(run(tmp_path / "whole"), tmp_path / "whole")
    stop_at(9)
    with pytest.raises(RunStoppedError):
        run(tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert len(checkpoints) == 2
    damaged(checkpoints[1], how)
    resumed = run(tmp_path / "run", resume=True, verbose=True)
    told = capsys.readouterr().out
    assert f"note: {checkpoints[1]} is damaged: " in told
    assert "; the checkpoint before it is used" in told
    assert outcome(resumed, tmp_path / "run") == expected
    assert "is damaged" in (tmp_path / "run" / "log.txt").read_text()


def test_without_any_good_checkpoint(tmp_path, stop_at):
    stop_at(9)
    with pytest.raises(RunStoppedError):
        run(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"):
        damaged(path, "torn")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*run.checkpoints can be read: .*is damaged"):
        run(tmp_path / "run", resume=True)


def test_damage_before_the_first_step(tmp_path, stop_at):
    """What was found then is kept twice."""
    expected = outcome(run(tmp_path / "whole"), tmp_path / "whole")
    stop_at(6)
    with pytest.raises(RunStoppedError):
        run(tmp_path / "run")
    first, second = sorted((tmp_path / "run" / "checkpoints").glob("prepared-*"))
    damaged(first, "torn")
    assert outcome(run(tmp_path / "run", resume=True), tmp_path / "run") == expected
    damaged(second, "a flipped bit")
    with pytest.raises(CheckpointError, match=r"cannot be resumed: .*prepared-2.* is damaged.*start anew in another"):
        run(tmp_path / "run", resume=True)
    first.unlink()
    second.unlink()
    with pytest.raises(OutputExistsError, match="exists and is not empty"):
        run(tmp_path / "run", resume=True)


def test_a_folder_of_checkpoints_is_not_yet_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "log.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="exists and is not empty"):
        run(tmp_path, resume=True)
    (tmp_path / "log.txt").unlink()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("mine")
    with pytest.raises(OutputExistsError, match="exists and is not empty"):
        run(tmp_path, resume=True)
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    # What a run leaves that is killed while it makes its first file.
    (tmp_path / "checkpoints" / ".prepared-1.safetensors.0123456789ab.part").touch()
    run(tmp_path, epochs=1)


def unknown_element():
    frames = morse.labelled(morse.silicon(4, 1))
    frames[2].numbers[0] = 92
    return frames


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"train": "none.extxyz"}, "there is no file"),
        ({"train": unknown_element()}, "frame 2 of train"),
        ({"replay": "none.extxyz"}, "there is no file"),
        ({"fisher": "none.safetensors"}, "none.safetensors"),
        ({"freeze": ["no such parameter"]}, "no such parameter"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_fails_before_its_first_step_leaves_nothing(tmp_path, options, error, resume):
    for output in (tmp_path / "deep" / "down" / "run", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(FinetuneError, match=error):
            run(output, resume=resume, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["empty"]
        assert list((tmp_path / "empty").iterdir()) == []
    run(tmp_path / "empty", epochs=1)


def test_what_others_put_beside_a_run_that_fails_stays(tmp_path, monkeypatch):
    def other(*_):
        (tmp_path / "runs" / "one" / "notes.txt").write_text("mine")
        raise InputError("no")

    monkeypatch.setattr("ase_finetune.finetuning.api.prepare", other)
    with pytest.raises(InputError, match="no"):
        run(tmp_path / "runs" / "one")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]


def test_a_failure_after_the_first_step_removes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("ase_finetune.finetuning.training.Trainer._epoch", lambda _: (_ for _ in ()).throw(KeyError()))
    with pytest.raises(KeyError):
        run(tmp_path / "run")
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["checkpoint-000001.safetensors", "prepared-1.safetensors", "prepared-2.safetensors"]
    monkeypatch.undo()
    assert outcome(run(tmp_path / "run", resume=True), tmp_path / "run") == outcome(
        run(tmp_path / "whole"), tmp_path / "whole"
    )


def test_a_start_that_is_refused_removes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_PATIENCE", 0.1)
    run(tmp_path / "run", epochs=1)
    part = tmp_path / "run" / ".history.csv.0123456789ab.part"
    part.touch()
    lock = FileLock(tmp_path / "run" / ".lock")
    with lock, pytest.raises(OutputExistsError, match="another process is writing"):
        run(tmp_path / "run", resume=True, epochs=1)
    assert part.exists()
    run(tmp_path / "run", resume=True, epochs=1)
    assert not part.exists()


def test_seconds_are_those_of_the_epoch(tmp_path, stop_at):
    stop_at(1)
    with pytest.raises(RunStoppedError):
        run(tmp_path / "run")
    calculator = run(tmp_path / "run", resume=True)
    assert all(0 < row["seconds"] < 30 for row in calculator.history)


def test_another_fisher_file_is_not_resumed(tmp_path):
    potential = morse.pretrained()
    for name, draws in (("one", 1), ("two", 2)):
        fisher = gaussian_fisher(potential, morse.graphs(TRAIN, potential), draws=draws)
        save_fisher(fisher, tmp_path / name, model_hash=potential_hash(potential), data_hash="")
    shutil.copy(tmp_path / "one", tmp_path / "fisher.safetensors")
    options = {"method": "ewc", "fisher": tmp_path / "fisher.safetensors", "epochs": 1}
    run(tmp_path / "run", **options)
    run(tmp_path / "run", resume=True, **options)
    shutil.copy(tmp_path / "two", tmp_path / "fisher.safetensors")
    with pytest.raises(InputError, match="folder: other content of the file fisher; resume"):
        run(tmp_path / "run", resume=True, **options)


@pytest.mark.mace
@pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")
def test_other_reference_energies_of_the_model_are_not_resumed(tiny_mace, tmp_path):
    """They are no parameters of MACE."""
    potential = MACEPotential(tiny_mace())
    options = COMMON | {"epochs": 1, "replay": OLD[:4], "method": "naive", "output": tmp_path / "run"}
    finetune(potential, TRAIN[:3], None, **options)
    potential.shift_energies({14: 5.0})
    with pytest.raises(InputError, match="folder: other constants of the model, such as reference energies; resume"):
        finetune(potential, TRAIN[:3], None, resume=True, **options)


@pytest.mark.parametrize("lost", ["progress", "best", "rates", "schedule", "tasks", "stages", "log", "surroundings"])
def test_a_checkpoint_of_somebody_else(tmp_path, lost):
    """Well sealed, and yet not ours."""
    run(tmp_path / "run", epochs=1)
    for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"):
        tensors, values = read_sealed(path, kind="checkpoint-1")
        del values[lost]
        write_sealed(path, tensors, values, kind="checkpoint-1")
    with pytest.raises(CheckpointError, match=f"the checkpoint does not fit this .*{lost}"):
        run(tmp_path / "run", resume=True, epochs=1)


def test_weights_of_another_shape(tmp_path):
    run(tmp_path / "run", epochs=1)
    for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"):
        tensors, values = read_sealed(path, kind="checkpoint-1")
        write_sealed(path, tensors | {"weights/depth": torch.zeros(2**10)}, values, kind="checkpoint-1")
    with pytest.raises(CheckpointError, match=r"has no depth of \(2,\)"):
        run(tmp_path / "run", resume=True, epochs=1)


def test_another_machine_is_told(tmp_path):
    run(tmp_path / "run", epochs=1)
    for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"):
        tensors, values = read_sealed(path, kind="checkpoint-1")
        values["surroundings"] |= {"torch": "1.0", "processes": 4}
        write_sealed(path, tensors, values, kind="checkpoint-1")
    run(tmp_path / "run", resume=True, epochs=1)
    (line,) = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "last digits" in line]
    assert "processes: 4 then, 1 now" in line
    assert f"torch: 1.0 then, {version('torch')} now" in line


def test_resume_needs_a_folder():
    with pytest.raises(InputError, match="resume=True goes on with the run in an output folder: give output=folder"):
        run(resume=True)


def test_a_run_is_not_written_over(tmp_path):
    run(tmp_path / "run", epochs=1)
    with pytest.raises(OutputExistsError, match="holds a run already; pass resume=True to go on with it"):
        run(tmp_path / "run", epochs=1)


def test_what_is_no_run_is_not_resumed(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="exists and is not empty"):
        run(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("resume", [False, True])
def test_the_second_of_two_processes_refuses(tmp_path, monkeypatch, resume):
    monkeypatch.setattr(run_folder, "_PATIENCE", 0.1)
    seen = []
    original = RunKeeper.after_epoch

    def after_epoch(self, trainer):
        if not seen:
            # A thread has no less of a lock than another process.
            with pytest.raises(OutputExistsError) as caught:
                run(tmp_path / "run", resume=resume, epochs=1)
            seen.append(str(caught.value))
        original(self, trainer)

    monkeypatch.setattr(RunKeeper, "after_epoch", after_epoch)
    run(tmp_path / "run", epochs=1)
    (message,) = seen
    assert ("another process is writing into" in message) or (not resume and "holds a run already" in message)
    monkeypatch.undo()
    run(tmp_path / "run", resume=True, epochs=1)


# Signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_signals_stop_a_run(tmp_path, stop_at, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    stop_at(3, number)
    with pytest.raises(RunStoppedError, match=f"stopped by {name}") as caught:
        run(tmp_path / "run")
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is before


SCRIPT = """
import os, signal, sys
from ase_finetune import finetune
from ase_finetune.finetuning.history import Log
from tests import morse

signal.signal(signal.SIGINT, signal.default_int_handler)
original = Log.epoch

def epoch(self, *arguments, **options):
    original(self, *arguments, **options)
    os.kill(os.getpid(), signal.SIGINT)

Log.epoch = epoch
output = sys.argv[1] or None
frames, options = morse.labelled(morse.silicon(4, 1)), {"method": "naive", "replay": None, "device": "cpu"}
finetune(morse.pretrained(), frames, output=output, **options)
"""


@pytest.mark.parametrize("output", ["run", ""])
def test_how_a_script_ends_that_is_interrupted(tmp_path, output):
    """With a folder in one line that says how to go on; else as Python ends it, with nothing nested."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, output]
    done = subprocess.run(  # noqa: S603  # our own script
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    if output:
        assert lines[-1] == "stopped by SIGINT in epoch 1, 0 steps into it; resume=True goes on from there"
        assert lines[:-1] == ["SIGINT: stopping after this step, with a checkpoint"]
    else:
        assert lines[-1] == "KeyboardInterrupt"
        assert done.stderr.count("Traceback") == 1


def test_a_signal_that_comes_too_late_is_not_lost(tmp_path, monkeypatch):
    original = run_folder.RunFolder.write_result

    def write_result(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        original(self, *arguments)

    monkeypatch.setattr(run_folder.RunFolder, "write_result", write_result)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", epochs=1)
    assert FinetunedCalculator(tmp_path / "run" / "model", device="cpu").get_property("energy", TRAIN[0].copy()) < 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_has_its_usual_effect():
    def interrupted_twice():
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("it had no effect")

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_the_program_are_left_alone(tmp_path, stop_at):
    called = []
    before = signal.signal(signal.SIGUSR1, lambda *_: called.append(1))
    try:
        stop_at(3, signal.SIGUSR1)
        run(tmp_path / "run", epochs=1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert called == [1]


def test_without_a_folder_signals_have_their_usual_effect(monkeypatch):
    monkeypatch.setattr(keeping.StopSignals, "__enter__", lambda _: pytest.fail("taken"))
    run(epochs=1)


def test_in_a_thread(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(tmp_path / "run", epochs=1)))
    thread.start()
    thread.join()
    assert len(found[0].history) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs groups of processes")
def test_a_signal_to_all_processes_of_a_job(tmp_path):
    """As clusters send it: to the workers that read data too."""
    with connect(tmp_path / "frames.db") as rows:
        for atoms in TRAIN:
            rows.write(atoms)
    options = COMMON | {"epochs": 100, "stream": True, "num_workers": 2, "method": "naive", "checkpoint_minutes": 1e-9}
    options["output"] = str(tmp_path / "run")
    script = (
        "from ase_finetune import finetune\nfrom tests import morse\n"
        f"finetune(morse.pretrained(), {str(tmp_path / 'frames.db')!r}, 0.2, replay=None, **{options!r})\n"
    )
    shared = {"start_new_session": True, "stderr": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], **shared)  # noqa: S603
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "history.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGTERM)
    _, told = child.communicate(timeout=60)
    assert re.search("^stopped by SIGTERM in epoch", told, re.MULTILINE)
    assert "DataLoader" not in told
    assert child.returncode == 1


# Writing


def test_checkpoints_are_written_in_between(tmp_path, monkeypatch):
    written = []
    original = run_folder.RunFolder.checkpoint

    def checkpoint(self, state):
        progress = state.values["progress"]
        written.append((progress["epoch"], progress["steps"]))
        original(self, state)
        assert len(list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))) <= 2

    monkeypatch.setattr(run_folder.RunFolder, "checkpoint", checkpoint)
    run(tmp_path / "run", epochs=1, checkpoint_minutes=1e-9)
    assert written == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0)]
    shutil.rmtree(tmp_path / "run")
    written.clear()
    run(tmp_path / "run", epochs=2)
    assert written == [(1, 0), (2, 0), (3, 0)]


def test_a_disk_that_is_full_or_read_only_at_every_write(tmp_path, monkeypatch):
    """The run ends with an error that names the file; what was there is intact, and the run goes on from it."""
    short = functools.partial(run, epochs=1, method="naive", batch_size=10)
    expected = outcome(short(tmp_path / "whole"), tmp_path / "whole")
    real, left, code = os.fsync, 0, 0

    def full(descriptor):
        nonlocal left
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):  # of which not every file system is capable
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if left == 0:
            raise OSError(code, os.strerror(code))
        left -= 1
        real(descriptor)

    failures = 0
    for number in range(80):
        output = tmp_path / f"run{number}"
        left, code = number, (errno.ENOSPC, errno.EROFS)[number % 2]
        monkeypatch.setattr(os, "fsync", full)
        told = ""
        try:
            short(output)
        except OutputError as error:
            told = str(error)
        monkeypatch.undo()
        if not told:
            break
        failures += 1
        assert os.strerror(code) in told
        assert str(output) in told
        assert not list(output.rglob("*.part"))
        if (output / "model" / "potential.json").exists():
            FinetunedCalculator(output / "model", device="cpu")
        if (output / "run.json").exists():
            json.loads((output / "run.json").read_text())
        assert outcome(short(output, resume=True), output) == expected
        shutil.rmtree(output)
    assert failures > 8


def test_model_and_history_are_there_from_the_first_epoch_on(tmp_path, stop_at):
    stop_at(6)
    with pytest.raises(RunStoppedError):
        run(tmp_path / "run", method="naive", schedule="constant")
    assert FinetunedCalculator(tmp_path / "run" / "model", device="cpu").get_property("energy", TRAIN[0].copy()) < 0
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2
    assert Path(tmp_path / "run" / "log.txt").read_text().count("\n") > 5
