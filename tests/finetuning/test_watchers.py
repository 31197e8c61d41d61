"""Who is told of the epochs besides the history: loggers, and the terminal."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest

from ase_finetune import FinetuneConfig, finetune
from ase_finetune.errors import BackendNotInstalledError, InputError, RunStoppedError
from ase_finetune.finetuning import api
from ase_finetune.finetuning.keeping import RunKeeper
from tests import morse

TRAIN, VALID, OLD = morse.labelled(morse.silicon(6, 1)), morse.labelled(morse.silicon(3, 2)), morse.oxide(6, 3)
OPTIONS = {"method": "naive", "replay": OLD, "epochs": 3, "monitor_size": 2, "device": "cpu", "report": False}


def scalars(folder):
    """Steps and values by name, as TensorBoard reads them."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(item.step, item.value) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard(tmp_path):
    calc = finetune(
        morse.pretrained(), TRAIN, VALID, output=tmp_path, loggers=["tensorboard"], verbose=False, **OPTIONS
    )
    found = scalars(tmp_path / "tensorboard")["frames/valid_forces_mae"]
    assert [step for step, _ in found] == [0, 1, 2, 3]
    before = calc.metadata["errors"]["before"]["valid"]["forces_mae"]
    expected = [before, *(row["valid_forces_mae"] for row in calc.history)]
    assert [value for _, value in found] == pytest.approx(expected, rel=1e-5)


def test_tensorboard_of_a_resumed_run(tmp_path, monkeypatch):
    """Steps are counted on, none twice."""
    pytest.importorskip("tensorboard")
    options = OPTIONS | {"output": tmp_path, "loggers": ["tensorboard"], "verbose": False, "batch_size": 6}
    original = RunKeeper.after_step

    def after_step(self, trainer):
        if trainer.progress.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer)

    monkeypatch.setattr(RunKeeper, "after_step", after_step)
    with pytest.raises(RunStoppedError):
        finetune(morse.pretrained(), TRAIN, VALID, **options)
    monkeypatch.undo()
    calc = finetune(morse.pretrained(), TRAIN, VALID, resume=True, **options)
    found = scalars(tmp_path / "tensorboard")["frames/valid_forces_mae"]
    assert [step for step, _ in found] == [0, 1, 2, 3]
    assert [value for _, value in found[1:]] == pytest.approx([row["valid_forces_mae"] for row in calc.history])


def test_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    pytest.importorskip("lightning")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("one", "two"):  # each is a run of its own
        finetune(morse.pretrained(), TRAIN, VALID, output=tmp_path / name, loggers=["wandb"], verbose=False, **OPTIONS)
        number = (tmp_path / name / "wandb" / "id.txt").read_text()
        assert list((tmp_path / name / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))


def test_loggers_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BackendNotInstalledError, match="pip install lightning wandb"):
        finetune(morse.pretrained(), TRAIN, VALID, output=tmp_path, loggers=["wandb"], verbose=False, **OPTIONS)


def test_a_run_that_fails_before_its_first_step_leaves_no_logs(tmp_path):
    pytest.importorskip("tensorboard")
    options = OPTIONS | {"loggers": ["tensorboard"], "verbose": False}
    with pytest.raises(InputError, match="there is no file"):
        finetune(morse.pretrained(), "none.extxyz", output=tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []


def test_loggers_need_a_folder():
    with pytest.raises(InputError, match="give output=folder"):
        finetune(morse.pretrained(), TRAIN, VALID, loggers=["tensorboard"], verbose=False, **OPTIONS)


def test_unknown_logger():
    with pytest.raises(InputError, match="'mlflow' is not known; use tensorboard and wandb"):
        FinetuneConfig(loggers=["mlflow"])


def test_details(capsys):
    finetune(morse.pretrained(), TRAIN, VALID, verbose=1, **OPTIONS)
    normal = capsys.readouterr().out
    finetune(morse.pretrained(), TRAIN, VALID, verbose=2, **OPTIONS)
    detailed = capsys.readouterr().out
    assert re.search(r"a morse potential: morse, 8 parameters, float32; device cpu", detailed)
    assert "8 parameters" not in normal
    finetune(morse.pretrained(), TRAIN, VALID, verbose=0, **OPTIONS)
    assert capsys.readouterr().out == ""


def test_a_watcher_that_fails_does_not_end_the_run(capsys, monkeypatch):
    class Broken:
        def epoch(self, *_):
            raise RuntimeError("no display")

        def skip(self, *_):
            raise AssertionError

        def close(self, failed):
            assert failed
            raise RuntimeError("not closed")

    monkeypatch.setattr(api, "build_watchers", lambda *_: [Broken()])
    calc = finetune(morse.pretrained(), TRAIN, VALID, **OPTIONS)
    assert len(calc.history) == 3
    told = capsys.readouterr().out
    assert told.count("note: Broken gets no further epochs: RuntimeError('no display')") == 1
    assert told.count("note: Broken could not be closed: RuntimeError('not closed')") == 1
