"""Studies on real data: python -m benchmarks.science [STUDY ...] [--form quick|full] [--data FOLDER] [--only CASE ...].

Every case writes its result into a folder and is not run again if it is there; a case that was interrupted goes on from
its checkpoint. So a study can be finished over several sessions, and by several processes at once. Tables and pictures
are made of what is there (``--draw`` does nothing else).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.paired import machine
from benchmarks.science.fitting import fit_case
from benchmarks.science.judging import Judge
from benchmarks.science.page import with_tables
from benchmarks.science.pictures import draw
from benchmarks.science.plans import Plan, read_plan, studies
from benchmarks.science.relaxing import relax_case
from benchmarks.science.storing import Store, claimed
from benchmarks.science.tables import table
from benchmarks.science.universal_mace import with_trained_model


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.science", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"all when none is named: {', '.join(studies())}")
    parser.add_argument("--quick", action="store_true", help="the form for a CPU; otherwise the full one, for a GPU")
    parser.add_argument("--form", help="another form by name")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="some cases")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those of the cases")
    parser.add_argument("--draw", action="store_true", help="run nothing, make tables and pictures")
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"), help="research data")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of results")
    parser.add_argument("--work", type=Path, default=Path("runs/science"), help="folder of checkpoints")
    parser.add_argument("--pictures", type=Path, default=Path("runs/science"), help="folder of pictures")
    parser.add_argument("--page", type=Path, help="page whose tables are made anew, docs/science.md")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.studies if name not in studies()]
    if unknown:
        parser.error(f"there is no study {', '.join(unknown)}; there are {', '.join(studies())}")
    if arguments.data is None and not arguments.draw:
        parser.error("needs the research data: --data FOLDER or ASE_FINETUNE_DATA")
    return arguments


def run(plan: Plan, store: Store, arguments: argparse.Namespace) -> None:
    """Run the cases whose results are missing."""
    waiting = [(case, seed) for case in plan.cases for seed in arguments.seeds or case.seeds]
    waiting = [(case, seed) for case, seed in waiting if not store.has(case, seed)]
    if not waiting:
        return
    data = Path(arguments.data)
    plan = with_trained_model(plan, data, arguments.work)
    judge = Judge(data, plan.judged)
    for case, seed in waiting:
        work = arguments.work / store.folder.name / case.result(seed)
        work.parent.mkdir(parents=True, exist_ok=True)
        with claimed(work.with_name(f"{work.name}.claim")) as mine:
            if mine and not store.has(case, seed):
                print(f"--- {plan.study}, {plan.form}: {case.name}, seed {seed}", flush=True)
                fit = relax_case if plan.kind == "relaxations" else fit_case
                store.write(case, seed, fit(plan, case, seed, data, work, judge))


def main(argv: Sequence[str] | None = None) -> None:
    """Run studies, and show what is known of them."""
    arguments = parse(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    print(machine())
    for name in arguments.studies or studies():
        plan = read_plan(name, arguments.form or ("quick" if arguments.quick else "full"))
        store = Store(arguments.results, plan)
        if not arguments.draw:
            run(plan.only(arguments.only) if arguments.only else plan, store, arguments)
        print(table(plan, store.read()))
        picture = draw(plan, store.read(), arguments.pictures)
        print(f"picture: {picture}" if picture else "no picture yet")
    if arguments.page is not None:
        page = with_tables(arguments.page.read_text(encoding="utf-8"), arguments.results)
        arguments.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
