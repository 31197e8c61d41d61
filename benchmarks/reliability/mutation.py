"""Mutation testing: what share of small faults planted in the code do the tests notice?

``python -m benchmarks.reliability.mutation --sample 300 --seed 0 --output FILE`` plants faults of cosmic-ray's
operators, one at a time, in a copy of the package and runs the tests of the same room that execute the line, the
fastest first. Places are drawn at random, as many per file as its size asks for, and one fault for each.
``--budget`` bounds the time of those tests; what passes them may still be found by slower ones. ``--again FILE``
tries the survivors of an earlier run once more, by all tests, but those that a person has judged in that file to be
equivalent or unimportant. Needs ``cosmic-ray`` and ``coverage``, and a Unix system.

Left out are annotations, messages of errors, assertions and ``strict=`` of zip (checks of the program on itself), and
faults that raise a TypeError wherever they are (shifts and bits of floating-point numbers).
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.context import ForkServerContext
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import cosmic_ray.plugins
import coverage
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ase_finetune"
ROOMS = ("graphs", "continual", "trajectories")
#: Pretrained models make each run longer and find what the small potential finds.
SELECTION = "not slow and not sevenn and not mace and not data"
OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0")
#: Imported once, then inherited by the process of each fault. Not the package itself, which differs.
PRELOAD = ["ase.io", "ase.optimize", "ase.filters", "lightning_fabric", "pytest", "safetensors.torch"]
PRELOAD += ["scipy.linalg", "scipy.optimize", "torch", "tqdm", "vesin", "cosmic_ray.mutating", "coverage"]
_ARITHMETIC = "Add|Sub|Mul|Div|FloorDiv|Mod|Pow"
SKIPPED = re.compile(
    rf"Variable|_({_ARITHMETIC})_([LR]Shift|Bit\w+)$|_(Bit\w+|[LR]Shift)_({_ARITHMETIC}|[LR]Shift)$|USub_(Invert|Not)$"
)
#: CPU seconds: this many times what the tests take on the sound code, and some more.
SLOWER, START = 1.5, 30
#: Seconds for what waits without computing.
WAIT = 600


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes
    ----------
    file
        Relative to the package.
    line
        Counted from 1.
    operator, occurrence
        Of cosmic-ray.
    was, now
        The lines that differ.
    verdict, reason
        Of a survivor, by a person: "equivalent", "unimportant" or "gap", and why.
    """

    file: str
    line: int
    operator: str
    occurrence: int
    was: str
    now: str
    verdict: str = ""
    reason: str = ""

    @property
    def room(self) -> str:
        return self.file.split("/")[0]

    def code(self) -> str | None:
        """The whole file with the fault in it, or ``None`` if the sound line is no longer there."""
        return _mutated((ROOT / PACKAGE / self.file).read_text(), self.operator, self.occurrence)


def _mutated(source: str, operator: str, occurrence: int) -> str | None:
    code: str | None = mutate_code(source, cosmic_ray.plugins.get_operator(operator)(), occurrence)
    return code


def places(file: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Operators and occurrences by line and column."""
    source = (ROOT / PACKAGE / file).read_text()
    text, tree, outside = source.splitlines(), get_ast(source), list(_left_out(ast.parse(source)))
    found: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    for name in cosmic_ray.plugins.operator_names():
        if SKIPPED.search(name):
            continue
        operator = cosmic_ray.plugins.get_operator(name)()
        positions = [position for node in ast_nodes(tree) for position in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(positions):
            if text[start[0] - 1].startswith("*,", start[1]):  # arguments by keyword only
                continue
            if not any(first <= start < last for first, last in outside):
                found[start].append((name, occurrence))
    return dict(sorted(found.items()))


def _left_out(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(tree):
        inner: list[ast.expr | ast.stmt | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            inner = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            inner = [node.returns]
        elif isinstance(node, ast.Raise):
            inner = [node.exc]
        elif isinstance(node, ast.Assert):
            inner = [node]
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            inner = [node.value]
        for part in inner:
            if part is not None:
                assert part.end_lineno is not None
                assert part.end_col_offset is not None
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def draw(count: int, seed: int) -> tuple[list[Mutant], Counter[str], Counter[str]]:
    """A sample of faults; by room the places there are, and the faults there are."""
    files = [
        str(path.relative_to(ROOT / PACKAGE)) for room in ROOMS for path in sorted((ROOT / PACKAGE / room).glob("*.py"))
    ]
    known = {file: places(file) for file in files}
    total = sum(map(len, known.values()))
    generator = random.Random(seed)
    sample: list[Mutant] = []
    number: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for file, found in known.items():
        room = file.split("/")[0]
        number[room] += len(found)
        faults[room] += sum(map(len, found.values()))
        wanted = min(len(found), max(2, round(count * len(found) / total)))
        drawn = [
            (place, generator.sample(found[place], len(found[place])))
            for place in generator.sample(list(found), wanted)
        ]
        sample.extend(_mutant(file, place[0], choices) for place, choices in drawn)
    return sample, number, faults


def _mutant(file: str, line: int, choices: Sequence[tuple[str, int]]) -> Mutant:
    """The first of the choices that can be compiled."""
    source = (ROOT / PACKAGE / file).read_text()
    for operator, occurrence in choices:
        code = _mutated(source, operator, occurrence) or ""
        with contextlib.suppress(SyntaxError, SyntaxWarning), warnings.catch_warnings():
            warnings.simplefilter("error")
            compile(code, file, "exec")
            pairs = [(a, b) for a, b in zip(source.splitlines(), code.splitlines(), strict=False) if a != b]
            if len(source.splitlines()) != len(code.splitlines()):  # a decorator that is gone
                pairs = [(source.splitlines()[line - 1], "")]
            if pairs:
                was, now = (" / ".join(text.strip() for text in texts) for texts in zip(*pairs, strict=True))
                return Mutant(file, line, operator, occurrence, was, now)
    raise ValueError(f"no fault can be planted in {file}, line {line}")


class _Contexts:
    """Plugin of pytest: which test executes which line, and how long it takes."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self.measured, self.seconds = measured, dict[str, float]()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.measured.switch_context(item.nodeid)
        start = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - start
        return result


def _enter(copy: Path) -> None:
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    log = os.open("pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    package = __import__(PACKAGE)
    if Path(package.__file__ or "").parent != copy / PACKAGE:
        raise RuntimeError("another copy of the package is imported")


def _survey(copy: Path) -> None:
    """Run all tests on the sound code and write what they cover."""
    measured = coverage.Coverage(data_file=None, source=[str(copy / PACKAGE / room) for room in ROOMS])
    contexts = _Contexts(measured)
    measured.start()
    _enter(copy)
    folders = [f"tests/{room}" for room in ROOMS]
    code = pytest.main([*OPTIONS, "-m", SELECTION, *folders], plugins=[contexts])
    measured.stop()
    if code != pytest.ExitCode.OK:
        sys.exit(1)
    lines = {}
    for file in measured.get_data().measured_files():
        by_line = measured.get_data().contexts_by_lineno(file)
        lines[str(Path(file).relative_to(copy / PACKAGE))] = {k: [c for c in v if c] for k, v in by_line.items()}
    (copy / "survey.json").write_text(json.dumps({"lines": lines, "seconds": contexts.seconds}))


def _try(copy: Path, tests: Sequence[str], limit: int) -> None:
    # Of the CPU's time: the machine may be busy otherwise.
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    try:
        _enter(copy)
        code = pytest.main([*OPTIONS, *tests])
    except BaseException:  # noqa: BLE001 - the package cannot even be imported
        code = 1
    os._exit(int(code))


class Laboratory:
    """A copy of package and tests, and what each test covers.

    Parameters
    ----------
    copy
        Empty folder.
    budget
        CPU seconds of the tests that try one fault, the fastest first.
    """

    def __init__(self, copy: Path, budget: float = math.inf) -> None:
        self.copy, self.budget = copy.resolve(), budget
        for name in (PACKAGE, "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "examples"):
            (copy / name).symlink_to(ROOT / name)
        # Bytecode of one fault must not be taken for that of the next, which may be as old and as long.
        compileall.compile_dir(copy, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        survey = self.context.Process(target=_survey, args=(self.copy,))
        survey.start()
        survey.join()
        if survey.exitcode != 0:
            log = (copy / "pytest.log").read_text()
            raise SystemExit(f"{log[-3000:]}\nthe tests do not pass on the sound code")
        content = json.loads((copy / "survey.json").read_text())
        self.lines: dict[str, dict[str, list[str]]] = content["lines"]
        self.seconds: dict[str, float] = content["seconds"]

    def tests(self, mutant: Mutant) -> list[str]:
        """Tests of its room (or else of others) that execute the statement; all of the room if none is known to."""
        covered = self.lines.get(mutant.file, {})
        tree = ast.parse((ROOT / PACKAGE / mutant.file).read_text())
        here = set(covered.get(str(mutant.line), ()))
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt) and not hasattr(node, "body") and node.end_lineno is not None:
                lines = range(node.lineno, node.end_lineno + 1)
                here |= {test for line in lines if mutant.line in lines for test in covered.get(str(line), ())}
        candidates = here or set(self.seconds)
        chosen = {test for test in candidates if test.startswith(f"tests/{mutant.room}/")}
        ordered = sorted(chosen or candidates, key=self.seconds.__getitem__)
        until = itertools.accumulate(self.seconds[test] for test in ordered)
        return [test for test, total in zip(ordered, until, strict=True) if total <= self.budget or test == ordered[0]]

    def outcome(self, mutant: Mutant) -> str:
        """What became of it: "killed", "timed out" or "survived"."""
        code, target = mutant.code(), self.copy / PACKAGE / mutant.file
        if code is None or mutant.was.split(" / ")[0] not in (ROOT / PACKAGE / mutant.file).read_text():
            raise SystemExit(f"{mutant.file} has changed: {mutant.was}")
        tests = self.tests(mutant)
        if not tests:
            return "survived"
        target.write_text(code)
        limit = int(START + SLOWER * sum(self.seconds[test] for test in tests))
        process = self.context.Process(target=_try, args=(self.copy, tests, limit))
        process.start()
        process.join(WAIT)
        hangs = process.exitcode is None
        if hangs:
            process.kill()
            process.join()
        shutil.copy(ROOT / PACKAGE / mutant.file, target)
        if hangs or process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
            return "timed out"
        return "survived" if process.exitcode == 0 else "killed"


def run(mutants: Sequence[Mutant], budget: float = math.inf) -> Iterator[tuple[Mutant, str]]:
    """Try all of them; yields each with its outcome."""
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(Path(folder), budget)
        for index, mutant in enumerate(mutants):
            start = time.perf_counter()
            outcome = laboratory.outcome(mutant)
            seconds = time.perf_counter() - start
            print(f"{index + 1:4d} {outcome:9s} {seconds:5.1f} s  {mutant.file}:{mutant.line}", flush=True)
            if outcome == "survived":
                print(f"       - {mutant.was}\n       + {mutant.now}", flush=True)
            yield mutant, outcome


def score(room: dict[str, Any], equivalent: int = 0) -> float:
    """Share of the faults noticed, of all that can be."""
    noticed: int = room["killed"] + room["timed_out"]
    sampled: int = room["sampled"]
    return round(noticed / max(1, sampled - equivalent), 4)


def report(sample: int, seed: int, budget: float) -> dict[str, Any]:
    """Figures of a new sample."""
    mutants, number, faults = draw(sample, seed)
    rooms: dict[str, dict[str, Any]] = {
        room: {"places": number[room], "faults": faults[room], "sampled": 0, "killed": 0, "timed_out": 0, "survived": 0}
        for room in ROOMS
    }
    survivors = []
    for mutant, outcome in run(mutants, budget):
        rooms[mutant.room]["sampled"] += 1
        rooms[mutant.room][outcome.replace(" ", "_")] += 1
        if outcome == "survived":
            survivors.append(asdict(mutant))
    for room in rooms.values():
        room["score"] = score(room)
    packages = ("cosmic-ray", "coverage", "pytest", "torch", "ase")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "seed": seed,
        "budget": budget if math.isfinite(budget) else None,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "rooms": rooms,
        "survivors": survivors,
    }


def again(earlier: dict[str, Any]) -> dict[str, Any]:
    """Figures of an earlier run after those of its survivors that no person has excused are tried once more."""
    rooms = earlier["rooms"]
    for room in rooms.values():
        room.setdefault("survived_at_first", room["survived"])
        room.setdefault("score_at_first", room["score"])
    judged = {"equivalent", "unimportant"}
    survivors = [fields for fields in earlier["survivors"] if fields["verdict"] in judged]
    open_ones = [Mutant(**fields) for fields in earlier["survivors"] if fields["verdict"] not in judged]
    for mutant, outcome in run(open_ones):
        if outcome == "survived":
            survivors.append(asdict(mutant))
        else:
            rooms[mutant.room]["survived"] -= 1
            rooms[mutant.room][outcome.replace(" ", "_")] += 1
    for name, room in rooms.items():
        mine = [fields for fields in survivors if Mutant(**fields).room == name]
        room["equivalent"] = sum(fields["verdict"] == "equivalent" for fields in mine)
        room["score"] = score(room)
        room["score_without_equivalent"] = score(room, room["equivalent"])
    return earlier | {"survivors": survivors}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, default=300, help="faults to plant")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--budget", type=float, default=math.inf, help="CPU seconds of the tests that try one fault")
    parser.add_argument("--again", type=Path, metavar="FILE", help="try the survivors of this earlier run instead")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of figures and survivors")
    arguments = parser.parse_args(argv)
    if arguments.again is None:
        figures = report(arguments.sample, arguments.seed, arguments.budget)
    else:
        figures = again(json.loads(arguments.again.read_text()))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    for name, room in figures["rooms"].items():
        print(f"{name:14s}{room}")


if __name__ == "__main__":
    main()
