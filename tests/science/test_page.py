"""docs/science.md shows what the results say."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.science.page import with_tables

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "science" / "results"


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    text = (ROOT / "docs" / "science.md").read_text(encoding="utf-8")
    assert text.count("<!-- results: ") == text.count("<!-- end -->") >= 5
    assert with_tables(text, RESULTS) == text


def test_every_picture_of_the_page_is_there_and_shown() -> None:
    text = (ROOT / "docs" / "science.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(images/(science_\w+\.png)\)", text))
    assert shown == {path.name for path in (ROOT / "docs" / "images").glob("science_*.png")}
