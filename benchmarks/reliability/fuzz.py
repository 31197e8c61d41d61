"""Damaged inputs: each must end in an error of ours that names the file, or in a correct result.

``python -m benchmarks.reliability.fuzz --seed 0 --count 400 --output fuzz.json``
"""

from __future__ import annotations

import json
import random
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ase_finetune.finetuning.config import FinetuneConfig
from benchmarks.reliability.common import Check, options, record
from benchmarks.reliability.corpus import KINDS
from benchmarks.reliability.damage import BYTES, TEXT, VALUES, copy, harm
from benchmarks.reliability.sandbox import Outcome, attempt

_OPTION_NAMES = (
    *(item.name for item in fields(FinetuneConfig)),
    *("loss.kind", "loss.huber_delta", "loss.nothing", "bptt.gradient", "bptt.steps", "bptt.nothing", "lerning_rate"),
)


@dataclass(frozen=True)
class Case:
    """One damaged input."""

    kind: str
    damage: str
    seed: int

    @property
    def rng(self) -> random.Random:
        """The same one every time."""
        return random.Random(zlib.crc32(f"{self.kind}|{self.damage}|{self.seed}".encode()))


@dataclass(frozen=True)
class Finding:
    """How a case ended, and what is wrong with that (nothing, if empty)."""

    case: Case
    outcome: Outcome
    wrong: str


def make_cases(count: int, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Case]:
    """Cases of all kinds in turn, each with its damages in turn."""
    cases = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        turn = number // len(kinds)
        if kind == "options":
            rng = random.Random(seed * 1_000_003 + number)
            damage = f"{rng.choice(_OPTION_NAMES)}={rng.randrange(len(VALUES))}"
        else:
            damages = [*BYTES, *(TEXT if KINDS[kind].text else ())]
            damage = damages[(turn + seed) % len(damages)]
        cases.append(Case(kind, damage, seed * 1_000_000 + turn))
    return cases


class Fuzzer:
    """Builds each kind of input once and damages copies of it.

    Parameters
    ----------
    folder
        For the inputs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inputs: dict[str, tuple[Path, Any]] = {}

    def run(self, case: Case, *, seconds: float = 20.0) -> Finding:
        """Damage one input and read it."""
        kind = KINDS[case.kind]
        source, expected = self._input(case.kind)
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            path = copy(source, Path(scratch))
            harmed = self._damage(case, path)
            outcome = attempt(lambda: kind.load(path), seconds=seconds)
            unharmed = path.is_file() and not path.is_symlink() and path.read_bytes() == _bytes(source)
        names = {path.name, harmed.name, *kind.named}
        return Finding(case, outcome, _judge(outcome, names, expected if kind.exact or unharmed else None))

    def _input(self, name: str) -> tuple[Path, Any]:
        if name not in self._inputs:
            place = self._folder / f"input-{len(self._inputs)}"
            place.mkdir()
            path = KINDS[name].build(place)
            outcome = attempt(lambda: KINDS[name].load(path), seconds=120)
            assert outcome.kind == "result", f"the undamaged {name} does not load: {outcome}"
            self._inputs[name] = path, outcome.value
        return self._inputs[name]

    def _damage(self, case: Case, path: Path) -> Path:
        if case.kind == "options":
            name, _, index = case.damage.partition("=")
            path.write_text(json.dumps([name, int(index)]))
            return path
        files = sorted(path.glob(KINDS[case.kind].harmed)) if path.is_dir() else [path]
        rng = case.rng
        chosen = rng.choice(files)
        harm(chosen, case.damage, rng)
        return chosen


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _judge(outcome: Outcome, names: Iterable[str], expected: Any) -> str:
    if outcome.kind == "refused":
        return "" if any(name in outcome.text for name in names) else "the message names no culprit"
    if outcome.kind == "result":
        return "" if expected is None or outcome.value == expected else f"wrong result {str(outcome.value)[:200]}"
    return {"error": f"raises {outcome.error}", "crash": "the interpreter crashed", "hang": "hangs"}[outcome.kind]


def checks(findings: Sequence[Finding]) -> list[Check]:
    """How many cases of each kind there were, how many went wrong, and how long the slowest took."""
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.case.kind, []).append(finding)
    found = []
    for kind, own in kinds.items():
        refused = sum(not finding.wrong and finding.outcome.kind == "refused" for finding in own)
        found.append(Check(f"{kind}: refused, of {len(own)}", refused))
        found.append(Check(f"{kind}: read rightly", sum(not f.wrong and f.outcome.kind == "result" for f in own)))
        found.append(Check(f"{kind}: wrong, hanging or crashed", sum(bool(f.wrong) for f in own), "", 0))
    slowest = max(finding.outcome.seconds for finding in findings)
    return [*found, Check("cases", len(findings)), Check("slowest case", slowest, "s", 20)]


def main(arguments: Sequence[str] | None = None) -> bool:
    """Run all cases; whether none went wrong."""
    parser = options(__doc__, "fuzz.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=480)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    given = parser.parse_args(arguments)
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder))
        for case in make_cases(48 if given.quick else given.count, given.seed, given.kinds):
            findings.append(fuzzer.run(case))
            if findings[-1].wrong:
                print(f"{case}: {findings[-1].wrong}\n{findings[-1].outcome.text[-1500:]}\n", flush=True)
    wrong = [f"{finding.case}: {finding.wrong}" for finding in findings if finding.wrong]
    return record(given.output, "fuzz", checks(findings), {"seed": given.seed, "wrong": wrong}, given.quick)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
