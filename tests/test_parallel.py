"""Several processes do what one does: the same numbers, and one of them writes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import write

from ase_finetune.errors import InputError, TrainingError
from ase_finetune.parallel import ALONE, launched, layout
from ase_finetune.potentials import save_potential
from tests import morse
from tests.parallel_worker import METHODS

ROOT = Path(__file__).parents[1]


def worker(folder: Path, *launcher: str) -> list[dict[str, Any]]:
    """The results of all processes, told apart by their rank."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "tests.parallel_worker", str(folder)]
    options: dict[str, Any] = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 600}
    done = subprocess.run(command, check=False, **options)  # noqa: S603 - our own worker
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]
    results[0]["printed"] = done.stdout
    return results


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Any]:
    (result,) = worker(tmp_path_factory.mktemp("alone"))
    return result


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, worker(folder, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.parametrize("method", [*METHODS, "bptt"])
def test_two_processes_make_the_losses_of_one(alone, two, method):
    """Every number of the history, and the weights, with the same global batches; in float64 to rounding."""
    ours, theirs = two[1][0]["fits"][method], alone["fits"][method]
    assert len(ours["history"]) == 2
    assert_same(ours["history"], theirs["history"])
    assert_same(ours["weights"], theirs["weights"])


@pytest.mark.parametrize("what", ["energies", "forces", "errors", "exact", "probes", "gaussian", "relaxed"])
def test_two_processes_find_what_one_does(alone, two, what):
    for result in two[1]:
        assert_same(result["others"][what], alone["others"][what])


def test_resumed_together(alone, two):
    """A signal to one process stops both; resumed, they end with the bits of the run that was not stopped."""
    for results in (two[1], [alone]):
        for result in results:
            assert result["resumed"]["told"].startswith("stopped by SIGTERM in epoch 2, 2 steps into it")
            for what in ("history", "weights"):
                assert json.dumps(result["resumed"][what]) == json.dumps(result["fits"]["alternate"][what])


def test_a_run_that_is_refused_leaves_nothing(alone, two):
    for result in (*two[1], alone):
        assert result["refused"] == {"told": "DataError", "left": False}


def test_both_processes_end_with_the_same_bits(two):
    first, second = two[1]
    assert first["size"] == second["size"] == 2
    assert len(set(first["digests"])) == 1
    assert first["fits"] == second["fits"]


def test_one_process_talks_and_writes(two, alone):
    folder, results = two
    for name in METHODS:
        assert {path.name for path in (folder / name).iterdir()} >= {"model", "history.csv", "run.json", "log.txt"}
        assert json.loads((folder / name / "run.json").read_text())["processes"] == 2
    outcomes = [
        [line.split(": ")[:2] for line in found["printed"].splitlines() if line.startswith(("kept: ", "unchanged: "))]
        for found in (results[0], alone)
    ]
    assert len(outcomes[0]) == len(METHODS)
    assert outcomes[0] == outcomes[1]


def test_all_hear_of_a_failure(two):
    first, second = (result["failures"] for result in two[1])
    assert first["agree"] == "ProcessError: process 1 of 2 stopped with TrainingError: no more"
    assert second["agree"] == "TrainingError: no more"
    assert first["update"] == "ProcessError: process 1 of 2 stopped with MemoryError: not even one, [1.0, 1.0]"
    assert second["update"] == "MemoryError: not even one, [1.0, 1.0]"
    assert first["on_first"] == "TrainingError: the first one failed"
    assert second["on_first"] == "ProcessError: process 0 of 2 stopped with TrainingError: the first one failed"


def test_processes_leave_their_group_at_the_end(two):
    """A process that ends as a member of its group is aborted now and then, and the job counts as failed."""
    assert [json.loads((two[0] / f"joined{rank}.json").read_text()) for rank in (0, 1)] == [False, False]


def assert_same(ours: Any, theirs: Any) -> None:
    pairs = list(_pairs(ours, theirs))
    assert len(pairs) > 3
    for mine, other in pairs:
        if isinstance(mine, str | bool):
            assert mine == other
            continue
        assert mine == pytest.approx(other, rel=1e-9, abs=1e-12, nan_ok=True)


def _pairs(ours: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            yield from _pairs(mine, other)
    else:
        yield ours, theirs


def test_command_line_in_two_processes(tmp_path):
    """python -m ase_finetune under the launcher: the table of one process, printed once."""
    save_potential(morse.pretrained(), tmp_path / "model")
    write(tmp_path / "frames.extxyz", morse.labelled(morse.silicon(5, 1)))
    command = ["-m", "ase_finetune", "evaluate", str(tmp_path / "model"), str(tmp_path / "frames.extxyz")]
    printed = [
        subprocess.run(  # noqa: S603 - our own command
            [sys.executable, *launcher, *command, "--device", "cpu", "--dtype", "float64"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])
    ]
    assert "frames" in printed[0]
    assert printed[0] == printed[1]


# A process by itself


def test_alone():
    assert launched() is ALONE
    assert (ALONE.rank, ALONE.size, ALONE.is_first, ALONE.device) == (0, 1, True, None)
    assert ALONE.share([3.0, 1.0, 2.0]) == [0, 1, 2]
    assert ALONE.total([1.5, 2]) == [1.5, 2.0]
    assert ALONE.gather("it") == ["it"]
    assert ALONE.on_first(lambda: 7) == 7
    tensor = torch.ones(2)
    ALONE.sum_([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    with pytest.raises(TrainingError, match="no more"):
        ALONE.agree(TrainingError("no more"))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_are_even_and_complete(size):
    costs = [math.exp(k % 7) for k in range(40)] + [0.0, 0.0]
    shares = []
    for rank in range(size):
        processes = type(ALONE)()
        processes.rank, processes.size = rank, size
        shares.append(processes.share(costs))
    assert sorted(position for share in shares for position in share) == list(range(42))
    loads = [sum(costs[position] for position in share) for share in shares]
    assert max(loads) < 1.1 * sum(costs) / size
    assert all(share == sorted(share) for share in shares)


def test_launches_are_told_apart():
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    srun = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3", "SLURM_NTASKS": "8"}
    assert layout(torchrun) == (4, 2, "torchrun")
    assert layout(srun) == layout(srun | {"SLURM_JOB_NAME": "interactive"}) == (4, 2, "slurm")
    assert layout({}) is None
    # A batch script that starts python without srun is one process, whatever was asked for.
    assert layout({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "fit"}) is None
    assert layout({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_one_device_for_several_processes_is_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="'cuda:1' names one device for several processes"):
        launched("cuda:1")
