"""Kill test: runs that are killed at random moments and resumed end as the run that was not.

A small reEWC fine-tune of 7net-0 is run once without interruption. Then it is started again and again in processes
that are killed (SIGKILL) after a random time, up to three times each, and resumed until the end; some are killed in the
middle of writing a checkpoint. Weights have to be the same to the last bit, and so has the history but for its times.

python -m benchmarks.reliability.kill --runs 50
"""

from __future__ import annotations

import csv
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from ase_finetune import FinetunedCalculator, files, finetune
from benchmarks.reliability.common import Check, options, quiet, record


def crystals(count: int, seed: int, labels: FinetunedCalculator | None = None) -> list[Atoms]:
    """Rattled silicon and salt; labelled by 7net-0 with forces a tenth larger, which is something to learn."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        atoms = bulk("Si") if number % 2 else bulk("NaCl", "rocksalt", a=5.6)
        atoms.rattle(0.15, rng=rng)
        if labels is not None:
            atoms.calc = labels
            energy, forces = atoms.get_potential_energy(), 1.1 * atoms.get_forces()
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        made.append(atoms)
    return made


def start(output: Path, train: list[Atoms], epochs: int) -> None:
    """The run, from wherever it got to."""
    finetune(
        "7net-0",
        train,
        0.25,
        replay=crystals(10, 1),
        output=output,
        resume=True,
        method="reewc",
        epochs=epochs,
        batch_size=2,
        fisher_size=4,
        monitor_size=4,
        learning_rate=1e-3,
        ema_decay=0.9,
        checkpoint_minutes=0.01,
        device="cpu",
        verbose=False,
    )


def in_a_process(work: Callable[[], None], seconds: float | None = None) -> bool:
    """Do the work in a fork, which is killed after so many seconds; whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)  # and nothing of what the parent would do at its end
    end = math.inf if seconds is None else time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a run failed by itself"
            return os.WIFEXITED(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def killed_while_writing(work: Callable[[], None], number: int) -> Callable[[], None]:
    """The work in a process that dies in the middle of its checkpoint of this number."""
    real, written = os.fsync, 0

    def torn(descriptor: int) -> None:
        nonlocal written
        if "checkpoint-" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            written += 1
            if written == number:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    def patched() -> None:
        files.os.fsync = torn
        work()

    return patched


def same(one: Path, other: Path) -> tuple[bool, bool]:
    """Whether weights and history of two runs are the same."""
    weights = [FinetunedCalculator(path / "model", device="cpu").potential.native.state_dict() for path in (one, other)]
    equal = all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    histories = []
    for path in (one, other):
        with (path / "history.csv").open(encoding="utf-8", newline="") as file:
            histories.append(
                [
                    {k: v for k, v in row.items() if k not in ("seconds", "peak_memory_gb")}
                    for row in csv.DictReader(file)
                ]
            )
    return equal, histories[0] == histories[1]


def main() -> bool:
    """Run everything; whether nothing was lost."""
    parser = options(__doc__, "kill.json")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    runs, epochs = (3, 2) if given.quick else (given.runs, 3)
    quiet()
    # Sums of several threads may differ in the last digit from run to run; and forks need a single thread.
    torch.set_num_threads(1)
    train = crystals(8, 0, FinetunedCalculator("7net-0", device="cpu"))
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        begin = time.monotonic()
        assert in_a_process(lambda: start(whole, train, epochs))
        length = time.monotonic() - begin
        lost, torn, kills, weights, histories = 0, 0, 0, 0, 0
        for number in range(runs):
            output = Path(scratch) / f"run{number}"
            work = lambda output=output: start(output, train, epochs)  # noqa: E731
            ended = False
            if number % 10 == 0:
                ended = in_a_process(killed_while_writing(work, 2 + rng.randrange(3)))
                torn += not ended
            for _ in range(rng.randint(1, 3)):
                ended = ended or in_a_process(work, rng.uniform(0, length))
                kills += not ended
            ended = ended or in_a_process(work)
            found = same(whole, output) if ended else (False, False)
            lost += not ended
            weights += not found[0]
            histories += not found[1]
            print(f"  {number + 1:3d} of {runs}: {kills + torn} kills, {lost} lost, {weights} differ", flush=True)
            shutil.rmtree(output)
    checks = [
        Check("runs", runs),
        Check("kills at a random moment", kills),
        Check("kills in the middle of writing a checkpoint", torn),
        Check("uninterrupted run", length, "s"),
        Check("runs lost", lost, "", 0),
        Check("runs with other weights", weights, "", 0),
        Check("runs with another history", histories, "", 0),
    ]
    return record(given.output, "kill", checks, {"seed": given.seed}, given.quick)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
