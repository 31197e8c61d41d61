"""Where and with what something was measured: goes into every row.

``python -m benchmarks.gpu.identity DEVICE`` prints it as JSON, in a process whose packages are those of the stages.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import ROOT
from benchmarks.science.storing import commit

#: Folders whose contents are the code that runs.
SOURCES = ("ase_finetune", "benchmarks")


def sources_hash(folders: Sequence[str] = SOURCES, root: Path = ROOT) -> str:
    """Of all code in some folders: a checkout without its history has nothing else to be known by."""
    found = hashlib.sha256()
    for path in sorted(p for folder in folders for p in (root / folder).rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def identity(device: str) -> dict[str, Any]:
    """Card, torch and versions as this process has them."""
    import torch

    from benchmarks.paired import cores, versions

    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu --quick sees whether everything runs")
    card = torch.cuda.get_device_name(torch.device(device)) if on_gpu else f"CPU {platform.machine()}, {cores()} cores"
    return {
        "card": card,
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
        "sources": sources_hash(),
        "package": sources_hash(SOURCES[:1]),
        "run": time.strftime("%Y%m%d-%H%M%S"),
    }


if __name__ == "__main__":
    print(json.dumps(identity(sys.argv[1])))
