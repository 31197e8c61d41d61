"""The tables of docs/science.md, which are made of the results and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.science.plans import read_plan
from benchmarks.science.storing import Store
from benchmarks.science.tables import how_it_was_made, table

_TABLE = re.compile(r"<!-- results: (\S+) (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(text: str, results: Path) -> str:
    """A page with what stands between ``<!-- results: STUDY FORM -->`` and ``<!-- end -->`` made anew.

    Parameters
    ----------
    text
        The page.
    results
        Folder of the results.
    """

    def made(found: re.Match[str]) -> str:
        plan = read_plan(found[1], found[2])
        known = Store(results, plan).read()
        content = f"{how_it_was_made(plan, known)}\n\n{table(plan, known)}"
        return f"<!-- results: {found[1]} {found[2]} -->\n{content}\n<!-- end -->"

    return _TABLE.sub(made, text)
