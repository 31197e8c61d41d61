"""What newcomers' fits keep: the table of the page is that of the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.science.first_fits import earlier_rule, forgetting_of, line
from benchmarks.science.situations import SITUATIONS

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "science" / "results" / "first_fits.json").read_text(encoding="utf-8"))


def test_the_table_of_the_page_is_that_of_the_results():
    page = (ROOT / "docs" / "science.md").read_text(encoding="utf-8")
    table = page.split("<!-- first fits -->")[1].split("<!-- end of first fits -->")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ") and not row.startswith(("| ---", "| situation"))]
    assert rows == [line(name, RESULTS[name]) for name in SITUATIONS if name in RESULTS]


def test_what_was_kept_is_what_is_right():
    """Unchanged where there is nothing to learn, and nowhere else."""
    unchanged = {name for name, found in RESULTS.items() if found["kept"]["unchanged"]}
    assert unchanged <= {"noise48", "highlr"}
    assert {name for name, found in RESULTS.items() if found["unseen"] > 0} <= {"noise48"}
    for name in set(RESULTS) - {"noise48", "highlr"}:
        bound = RESULTS[name]["kept"]["bound"]
        assert bound is None or RESULTS[name]["kept"]["forgetting"] <= bound, name


@pytest.mark.parametrize(("fights", "epoch"), [(True, 0), (False, 2)])
def test_the_earlier_rule(fights, epoch):
    rows = [{"epoch": k, "valid_loss": 1.0 - 0.1 * k, "replay_loss": 0.2 * k} for k in (1, 2)]
    assert earlier_rule(rows, {"loss": 1.0}, fights, on_pairs=False) == epoch


def test_forgetting_of_a_row_is_the_estimate():
    assert forgetting_of({"replay_energy_mae": 0.0, "replay_forces_mae": 15.0}) == pytest.approx(0.125)
