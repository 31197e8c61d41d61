"""The core tests under other versions of what this package stands on: a row of passed and failed for each.

    python -m benchmarks.reliability.versions [--python INTERPRETER ...] [--pin ase==3.26.0 ...] [--floors]

Without options the tests run in the environment at hand. Each ``--python`` is an interpreter whose environment has
what this package requires. Each ``--pin`` lays one version over the environment at hand, one at a time; ``--floors``
does so for all lowest versions in setup.cfg but torch, numpy and scipy, which other packages are compiled against.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reliability.common import options
from benchmarks.suite import ROOT

CORE = """
    tests/potentials tests/test_calculator.py tests/graphs tests/optimize tests/continual
    tests/finetuning/test_finetune.py
    """.split()
QUICK = ["tests/graphs"]
BACKENDS = ("sevenn", "mace-torch", "e3nn")

#: Compiled against each other: a lower one needs an environment of its own.
NOT_OVER_OTHERS = ("torch", "numpy", "scipy")


def required() -> dict[str, str]:
    """Lowest claimed version by name, from setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"] + parser["options.extras_require"]["all"]
    found = {}
    for line in lines.strip().splitlines():
        match = re.match(r"([\w.-]+)(?:\[.*\])?\s*>=\s*([\d.]+)", line.strip())
        if match is not None:
            found[match[1]] = match[2]
    return found


def installed(python: Path, environment: dict[str, str]) -> dict[str, str]:
    """Versions in an environment by name."""
    script = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    names = [*required(), *(name for name in BACKENDS if name not in required())]
    done = subprocess.run(
        [str(python), "-c", script, *names], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def overlay(pin: str, folder: Path) -> Path:
    """A folder with one package, to come first on the path."""
    target = folder / re.sub(r"\W", "_", pin)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), pin]
    subprocess.run(command, check=True)
    return target


def run_tests(python: Path, environment: dict[str, str], tests: Sequence[str]) -> dict[str, Any]:
    """Counts and names of what failed."""
    marks = "not slow" if "mace-torch" in installed(python, environment) else "not slow and not mace"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Warnings of other versions about each other are no failures of ours.
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "-m", marks]
        command.append(f"--junitxml={report}")
        done = subprocess.run(
            [*command, *tests], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if not report.exists():
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            return {"passed": 0, "failed": 1, "skipped": 0, "failures": [f"pytest did not run: {''.join(last)}"]}
        suite = next(ET.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    return {
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
        "failures": [_failure(case) for case in suite.iter("testcase") if _failure(case)],
        "seconds": round(time.perf_counter() - began),
    }


def _failure(case: ET.Element) -> str:
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            reason = (found.get("message") or "").strip().splitlines() or [""]
            return f"{case.get('classname')}::{case.get('name')}: {reason[0][:200]}"
    return ""


def record(output: Path, name: str, row: dict[str, Any]) -> None:
    """Put a row into the file beside those of earlier calls, and tell it."""
    rows: dict[str, Any] = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    rows[name] = row
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    versions = ", ".join(f"{key} {value}" for key, value in row["versions"].items())
    print(f"{name:24s}{row['passed']:6d} passed{row['failed']:5d} failed{row['skipped']:5d} skipped   {versions}")
    for failure in row["failures"]:
        print(f"    {failure}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = options(__doc__, "versions.json")
    parser.add_argument("--python", type=Path, nargs="+", default=[], help="interpreters of other environments")
    parser.add_argument("--pin", nargs="+", default=[], help="versions to lay over this environment, one at a time")
    parser.add_argument("--floors", action="store_true", help="lay each lowest claimed version over this environment")
    parser.add_argument("--tests", nargs="+", help="instead of the core tests")
    arguments = parser.parse_args(argv)
    floors = [f"{name}=={low}" for name, low in required().items() if name not in NOT_OVER_OTHERS]
    pins = arguments.pin + (floors if arguments.floors else [])
    tests = arguments.tests or (QUICK if arguments.quick else CORE)
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        rows: list[tuple[Path, str | None]] = [(python, None) for python in arguments.python]
        rows += [(Path(sys.executable), pin) for pin in pins]
        for python, pin in rows or [(Path(sys.executable), None)]:
            environment = dict(os.environ) | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
            environment["PYTHONPATH"] = "" if pin is None else str(overlay(pin, Path(folder)))
            versions = installed(python, environment)
            name = pin or f"python {versions['python']}, torch {versions.get('torch', '-')}"
            row = run_tests(python, environment, tests)
            record(
                arguments.output, name, {"date": time.strftime("%Y-%m-%d"), "versions": versions, "of": tests, **row}
            )
            passed = passed and row["failed"] == 0
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
