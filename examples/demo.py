"""The main job in one go (`make demo`): fine-tune SevenNet-0, compare, run MD and a relaxation.

python examples/demo.py [--short]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import finetune_reewc
import md
import relax


def free_folder(root: Path = Path("runs")) -> Path:
    """runs/demo, or the first of runs/demo-2, runs/demo-3, ... that does not exist: nothing is overwritten."""
    names = itertools.chain(["demo"], (f"demo-{number}" for number in itertools.count(2)))
    return next(root / name for name in names if not (root / name).exists())


def main(folder: Path, short: bool = False) -> None:
    """Run the three examples, one after the other, with the same calculator."""
    start = time.perf_counter()
    calculator = finetune_reewc.main(folder, short)
    md.main(calculator, folder, femtoseconds=2 if short else 50)
    relax.main(calculator, folder, steps=2 if short else 60)
    print(f"all of it took {time.perf_counter() - start:.0f} s; use the result with")
    print(f'  atoms.calc = FinetunedCalculator("{folder / "model"}")')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few steps only")
    main(free_folder(), parser.parse_args().short)
