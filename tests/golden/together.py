"""Runs that several processes make together: python -m tests.golden.together FOLDER, started by torchrun.

Every process writes what the runs gave into a folder of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.golden.cases import TOGETHER
from tests.golden.outputs import dumps, outputs

ROOT = Path(__file__).parents[2]


def launch(folder: Path, **environment: str) -> list[Path]:
    """Make the runs in two processes, with these variables; returns the folders with what each of them found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.golden.together", str(folder)]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(  # noqa: S603  # our own script
        command, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [folder / "rank0", folder / "rank1"]


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    own = folder / f"rank{rank}"
    own.mkdir(parents=True)
    for name in TOGETHER:
        (own / f"{name}.json").write_text(dumps(outputs(name, folder / name)), encoding="utf-8")
    *_, name = TOGETHER
    resumed = outputs(name, folder / "resumed", [4], stopped_here=rank == 1)
    (own / "resumed.json").write_text(dumps(resumed), encoding="utf-8")


if __name__ == "__main__":
    main()
