"""All soak checks, one after the other: ``python -m benchmarks.reliability [--quick] [--data FOLDER] [NAME ...]``.

Each writes a JSON file of its own into ``benchmarks/results/reliability``. The data are needed by ``md`` alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path("benchmarks/results/reliability")

#: Names of the checks, and what each is given besides.
CHECKS = {"kill": [], "fuzz": [], "memory": [], "md": [], "mutation": []}
QUICK = {"mutation": ["--sample", "5"]}


def main() -> int:
    """Run the checks in processes of their own; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*CHECKS, []], help="all of them by default")
    parser.add_argument("--data", default=os.environ.get("ASE_FINETUNE_DATA"), help="folder with the research data")
    parser.add_argument("--quick", action="store_true", help="the smallest form: whether they run")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for the figures")
    given = parser.parse_args()
    failed = []
    for name in given.names or CHECKS:
        more = QUICK.get(name, ["--quick"]) if given.quick else CHECKS[name]
        if name == "md" and given.data is not None:
            more = [*more, "--data", str(given.data)]
        print(f"\n== {name}", flush=True)
        command = [
            sys.executable,
            "-m",
            f"benchmarks.reliability.{name}",
            "--output",
            str(given.output / f"{name}.json"),
        ]
        if subprocess.run([*command, *more], check=False).returncode:
            failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall passed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
