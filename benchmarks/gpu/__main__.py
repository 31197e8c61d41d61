"""Measurements on a GPU that is lent for minutes.

python -m benchmarks.gpu prepare --to FOLDER    on a machine with a package index: wheels and data for one without
python -m benchmarks.gpu run --out FOLDER       on the GPU: what matters first, every row kept the moment it is known
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.installing import BundleError, install
from benchmarks.gpu.plan import MODELS, QUICK_MODELS, ROOT, STAGES


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("prepare", help="an offline bundle, on a machine with a package index")
    making.add_argument(
        "--to", type=Path, required=True, metavar="FOLDER", help="of the bundle; .gpu is ignored by git"
    )
    making.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"), help="research data")
    making.add_argument("--have", default="", metavar="LIST", help="packages that the GPU's machine has, with commas")
    making.add_argument("--no-peers", action="store_true", help="leave out sevenn's reEWC trainer and torch-sim")
    running = verbs.add_parser("run", help="measure")
    running.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="goes on with what is missing in it")
    running.add_argument("--bundle", type=Path, metavar="FOLDER", help="installed before, beside it; without an index")
    running.add_argument("--minutes", type=float, default=8.0, help="for everything (8)")
    running.add_argument("--stages", default=",".join(STAGES), help=f"some of {','.join(STAGES)}")
    running.add_argument("--device", default="cuda", help="cuda, or cpu to see whether everything runs")
    running.add_argument("--quick", action="store_true", help="small sizes")
    running.add_argument("--models", help=f"of the stage right ({','.join(MODELS)}); pair is one for seconds")
    running.add_argument(
        "--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"), help="instead of the bundle's"
    )
    arguments = parser.parse_args(argv)
    if arguments.verb == "run":
        arguments.stages = arguments.stages.split(",")
        unknown = [name for name in arguments.stages if name not in STAGES]
        if unknown:
            parser.error(f"there is no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
        if not arguments.minutes > 0:
            parser.error("--minutes must be positive")
    if arguments.data is not None and not arguments.data.is_dir():
        parser.error(f"the folder of --data or ASE_FINETUNE_DATA does not exist: {arguments.data}")
    return arguments


def run(arguments: argparse.Namespace) -> bool:
    """Install the bundle, and run the stages; returns whether everything worked and was right."""
    end = time.time() + 60 * arguments.minutes
    installed = install(arguments.bundle)
    sys.path[:0] = installed.paths
    # Not before: their packages may come with the bundle.
    from benchmarks.gpu.runner import Options, Runner

    data = arguments.data or installed.data
    options = Options(
        folder=arguments.out,
        end=end,
        # In the order of what matters, whatever the order on the command line.
        stages=[name for name in STAGES if name in arguments.stages],
        device=arguments.device,
        quick=arguments.quick,
        models=models_of(arguments),
        data=None if data is None else data.resolve(),
        peers=installed.peers or ROOT / ".venv-newest-sevenn" / "bin" / "python",
        environment=installed.environment,
    )
    return Runner(options, installed.identity(arguments.device) | {"quick": arguments.quick}).run()


def models_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Of the stage *right*."""
    if arguments.models:
        return tuple(arguments.models.split(","))
    return QUICK_MODELS if arguments.quick else MODELS


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare or run."""
    arguments = parse(argv)
    # As an error, so that the processes of stages are ended, too.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if arguments.verb == "run":
            return 0 if run(arguments) else 1
        from benchmarks.gpu.bundle import prepare  # needs packages that the machine of the GPU may not have

        prepare(arguments.to, arguments.data, arguments.have, peers=not arguments.no_peers)
    except BundleError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
