"""All benchmarks: python -m benchmarks [NAME ...] [--quick] [--device auto] [--data FOLDER] [--output FOLDER].

Each runs ours and the peer's code on the same input in alternating repeats, prints medians and their ratio beside the
target, and writes a JSON file; all ratios are drawn in one picture. What could not be measured is listed at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from ase_finetune.errors import InputError
from ase_finetune.potentials.devices import resolve_device
from benchmarks.paired import machine
from benchmarks.suite import NAMES, Outcome, Setting, about, load, measure, write


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; all when none is named")
    parser.add_argument("--list", action="store_true", help="tell what there is")
    parser.add_argument("--quick", action="store_true", help="the smallest form of each: whether it runs")
    parser.add_argument("--full", action="store_true", help="sizes of a GPU on a CPU, too; some take an hour")
    parser.add_argument("--device", default="auto", help="a torch device; auto is a GPU where there is one")
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"), help="research data")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing, at most (slow work has fewer)")
    parser.add_argument("--output", type=Path, help="folder for JSON and picture; runs/benchmarks[-quick] if not given")
    parser.add_argument(
        "--newest-sevenn", type=Path, default=Setting.newest_sevenn, help="Python with sevenn >= 0.13, for reewc_epoch"
    )
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    # Figures of the quick form must not take the place of others.
    arguments.output = arguments.output or Path("runs/benchmarks-quick" if arguments.quick else "runs/benchmarks")
    if arguments.repeats < 1:
        parser.error("--repeats must be positive")
    return arguments


def setting_of(arguments: argparse.Namespace) -> Setting:
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    # Workers in processes of their own have as many.
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    try:
        device = resolve_device(arguments.device)
    except InputError as error:
        raise SystemExit(str(error)) from error
    data = None if arguments.data is None else Path(arguments.data).resolve()
    if data is not None and not data.is_dir():
        raise SystemExit(f"the folder of --data or ASE_FINETUNE_DATA does not exist: {data}")
    # Not resolved: the interpreter of a virtual environment is a link, and knows its packages by its place.
    newest = Path(arguments.newest_sevenn).absolute()
    return Setting(device, arguments.quick, arguments.full, arguments.repeats, data, newest)


def tell(outcomes: Sequence[Outcome]) -> None:
    """All ratios at a glance, and what is missing."""
    print(f"\n{'ratios, ours / peer':88s}{'ratio':>8s}{'target':>8s}")
    for outcome in outcomes:
        for row in outcome.rows:
            target = "-" if row.target is None else f"{row.target:.3g}"
            verdict = {True: "met", False: "NOT MET", None: ""}[row.met]
            name = f"{outcome.benchmark}: {row.name}, against {row.against}"
            print(f"{name[:87]:88s}{row.measured.ratio:8.3f}{target:>8s}  {verdict}")
    missing = [(outcome.benchmark, gap) for outcome in outcomes for gap in outcome.missing]
    if missing:
        print("\nmissing rows")
    for benchmark, gap in missing:
        against = f", against {gap.against}" if gap.against else ""
        print(f"  {benchmark}: {gap.name}{against}: {gap.reason}")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    names = arguments.names or NAMES
    if arguments.list:
        for name in names:
            print(f"{name:16s}{about(load(name))}")
        return 0
    setting = setting_of(arguments)
    # Deprecations inside the peers' packages would bury the rows.
    warnings.simplefilter("ignore")
    print(machine() + f", device {setting.device}")
    start = time.perf_counter()
    outcomes = []
    for name in names:
        outcomes.append(measure(name, setting))
        write(outcomes[-1], setting, arguments.output)
    tell(outcomes)
    print(f"\n{time.perf_counter() - start:.0f} s; JSON in {arguments.output}; {_draw(arguments.output)}")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _draw(folder: Path) -> str:
    try:
        from benchmarks.picture import draw
    except ImportError as error:
        return f"no picture: {error} (pip install matplotlib)"
    picture = draw(folder)
    return "no picture: no ratio was measured" if picture is None else f"picture in {picture}"


if __name__ == "__main__":
    sys.exit(main())
