"""Write the files of tests/golden/outputs anew: python -m tests.golden [FOLDER].

Only where results are meant to change, which the commit has to name and explain: everything else is held by these
files. Needs sevenn and mace-torch.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch

from tests.golden import comparison, together
from tests.golden.cases import CASES, TOGETHER
from tests.golden.outputs import dumps, outputs


def generate(folder: Path, work: Path) -> None:
    """Make all runs, in a folder for their files, and write what they give."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        (folder / f"{name}.json").write_text(dumps(outputs(name, work / name)), encoding="utf-8")
    first, _ = together.launch(work / "together")
    for name in TOGETHER:
        found = (first / f"{name}.json").read_text(encoding="utf-8")
        (folder / f"{name}{comparison.TOGETHER}.json").write_text(found, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = str(Path(place) / "cache")
        generate(Path(sys.argv[1]) if len(sys.argv) > 1 else comparison.FOLDER, Path(place))
