"""What a benchmark is: its setting, its rows against targets, its JSON file, and the list of all of them."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ase_finetune.errors import BackendNotInstalledError, ModelNotAvailableError
from benchmarks.paired import Comparison, machine, versions

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "data"

#: Modules of the suite, in the order they run. The first line of a module's docstring tells what it compares.
NAMES = """
    md md_mace training_step reewc_epoch fisher ewc_step bptt relaxation memory long_tail growth two_processes
    """.split()


@dataclass(frozen=True)
class Setting:
    """What the command line asked for.

    Attributes
    ----------
    device
        A torch device, not "auto".
    quick
        The smallest form of every benchmark: whether it runs, not how fast.
    full
        The sizes of a GPU on a CPU, too; hours.
    repeats
        Of every timing, after a warm-up.
    data
        Folder of the research data, where there is one.
    newest_sevenn
        Interpreter of an environment with sevenn's reEWC trainer, which cannot live beside mace.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quick: bool = False
    full: bool = False
    repeats: int = 5
    data: Path | None = None
    newest_sevenn: Path = ROOT / ".venv-newest-sevenn" / "bin" / "python"

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is measured."""
        return self.device.type == "cuda"

    def size(self, quick: Any, cpu: Any, gpu: Any = None) -> Any:
        """What is meant for this run: the smallest form, or that of the device."""
        if self.quick:
            return quick
        return gpu if (self.on_gpu or self.full) and gpu is not None else cpu

    def times(self, most: int | None = None) -> dict[str, int]:
        """Repeats and warm-up of :func:`benchmarks.paired.compare`; ``most`` bounds those of slow work."""
        if self.quick:
            return {"repeats": 1, "warmup": 0}
        return {"repeats": min(self.repeats, most or self.repeats), "warmup": 1}


@dataclass(frozen=True)
class Target:
    """The largest ratio ours / peer that is good enough; ``None`` where there is no target."""

    cpu: float | None
    gpu: float | None = None

    def on(self, setting: Setting) -> float | None:
        """The one for the device that is measured."""
        return self.gpu if setting.on_gpu else self.cpu


@dataclass(frozen=True)
class Row:
    """One ratio against its target.

    Attributes
    ----------
    name
        The input: structures, sizes.
    against
        What the peer is.
    measured
        Values of both sides, repeat by repeat.
    target
        Largest ratio that is good enough.
    unit
        Of the values, "s/step" for example.
    notes
        What else has to be known: how far the two sides agree, or where the input was reduced.
    """

    name: str
    against: str
    measured: Comparison
    target: float | None
    unit: str = "s"
    notes: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the ratio is as good as the target; ``None`` without one."""
        return None if self.target is None else self.measured.ratio <= self.target

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values by name."""
        ours, peer = self.measured.medians
        own = {"name": self.name, "against": self.against, "ours": ours, "peer": peer, "unit": self.unit}
        judged = {"ratio": self.measured.ratio, "target": self.target, "met": self.met, "notes": self.notes}
        return own | judged | {"ours_all": self.measured.ours, "peer_all": self.measured.peer}

    def line(self) -> str:
        """For the terminal."""
        ours, peer = self.measured.medians
        target = "" if self.target is None else f" (target {self.target:.3g}: {'met' if self.met else 'NOT MET'})"
        values = f"ours {ours:.4g} {self.unit}   peer {peer:.4g}   ratio {self.measured.ratio:.3f}{target}"
        text = f"  {self.name}, against {self.against}\n    {values}   (min-max {self.measured.spread})"
        return f"{text}\n    {self.notes}" if self.notes else text


@dataclass(frozen=True)
class Missing:
    """A row that could not be measured, and why."""

    name: str
    against: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values by name."""
        return vars(self)


@dataclass
class Outcome:
    """All rows of one benchmark."""

    benchmark: str
    about: str
    rows: list[Row] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    failed: bool = False
    seconds: float = 0.0


def load(name: str) -> ModuleType:
    """The module of a benchmark."""
    return importlib.import_module(f"benchmarks.{name}")


def about(module: ModuleType) -> str:
    """What it compares: the first line of its docstring."""
    return (module.__doc__ or "").splitlines()[0]


def measure(name: str, setting: Setting) -> Outcome:
    """Run one benchmark and tell each row as it comes. What goes wrong becomes a missing row and a failure."""
    module = load(name)
    outcome = Outcome(name, about(module))
    print(f"\n{name}: {outcome.about}", flush=True)
    start = time.perf_counter()
    try:
        for item in _items(module, setting):
            if isinstance(item, Row):
                outcome.rows.append(item)
                print(item.line(), flush=True)
            else:
                outcome.missing.append(item)
    except (BackendNotInstalledError, ModelNotAvailableError) as error:
        outcome.missing.append(Missing("all rows to come", "", str(error)))
    except Exception as error:  # noqa: BLE001  # the other benchmarks are still worth running
        outcome.missing.append(Missing("all rows to come", "", f"failed with {type(error).__name__}: {error}"))
        outcome.failed = True
    outcome.seconds = time.perf_counter() - start
    print(f"  ({outcome.seconds:.0f} s)", flush=True)
    return outcome


def _items(module: ModuleType, setting: Setting) -> Iterator[Row | Missing]:
    yield from module.run(setting)
    targets: Iterable[tuple[str, Target]] = module.TARGETS.items()
    for name, target in targets:
        if target.gpu is not None and not setting.on_gpu:
            why = "run on the CPU, as asked" if torch.cuda.is_available() else "no GPU here"
            yield Missing(f"{name}, on a GPU (target {target.gpu:g})", "", why)


def write(outcome: Outcome, setting: Setting, folder: Path) -> Path:
    """One JSON file for a benchmark, with where and when it was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": outcome.benchmark,
        "about": outcome.about,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": machine(),
        "device": str(setting.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "quick": setting.quick,
        "seconds": round(outcome.seconds, 1),
        "rows": [row.to_dict() for row in outcome.rows],
        "missing": [row.to_dict() for row in outcome.missing],
    }
    path = folder / f"{outcome.benchmark}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
