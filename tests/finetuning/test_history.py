"""The tables that a run prints."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from ase_finetune import finetune
from ase_finetune.finetuning.history import (
    FRAME_COLUMNS,
    RELAXATION_COLUMNS,
    Columns,
    comparison_table,
    epoch_line,
    epoch_row,
    header_line,
)
from ase_finetune.trajectories.evaluation import RelaxationErrors
from tests import morse


def row(columns: Columns, **values: float) -> dict[str, Any]:
    judged = {"forgetting": 0.021, "score": -0.11}
    return epoch_row(1, {}, columns, learning_rate=1e-3, seconds=2.0, penalty=0.5, **judged) | values


@pytest.mark.parametrize("columns", [FRAME_COLUMNS, RELAXATION_COLUMNS])
@pytest.mark.parametrize(("loss", "shown"), [(2.0, "0.25"), (math.nan, "-"), (0.0, "-")])
def test_penalty_beside_the_loss(columns, loss, shown):
    columns = replace(columns, penalty=True)
    line, header = epoch_line(row(columns, train_loss=loss), columns, best=True), header_line(columns).splitlines()[-1]
    assert "nan" not in line
    end = header.index("penalty/loss") + len("penalty/loss")
    assert line[:end].split()[-3:] == ["2.1", "-11.0", shown]
    without = replace(columns, penalty=False)
    assert "penalty" not in header_line(without)
    line = epoch_line(row(columns, train_loss=loss), without, best=False)
    assert len(line) == len(header_line(without).splitlines()[-1]) == len(header) - 14
    assert line.split()[-2:] == ["0.001", "2"]


@pytest.mark.parametrize(("method", "shown"), [("naive", False), ("ewc", True)])
def test_no_column_for_a_penalty_that_there_is_not(capsys, method, shown):
    frames = morse.labelled(morse.silicon(4, 1))
    options = {"epochs": 1, "method": method, "replay": morse.oxide(4, 3), "monitor_size": 2, "device": "cpu"}
    finetune(morse.pretrained(), frames[:3], frames[3:], **options)
    assert ("penalty/loss" in capsys.readouterr().out) == shown


def test_counts_have_a_total_and_no_percentage():
    before = RelaxationErrors(0.1, 0.2, 0.2, 0.04, 0.04, 1.0, 3.0, 20.0, right_basin=2, converged=3, failed=0, total=3)
    lines = comparison_table({"valid": before}, {"valid": replace(before, right_basin=3, rmsd_median=0.1)}).splitlines()
    cells = {line[14:38].strip(): line[38:].split() for line in lines[1:]}
    assert cells["in the right basin"] == ["2", "of", "3", "3", "of", "3"]
    assert cells["relaxations failed"] == ["0", "of", "3", "0", "of", "3"]
    assert cells["RMSD, median, Å"] == ["0.2000", "0.1000", "-50.0%"]
    many = replace(before, right_basin=1200, total=1300)
    assert " 1200 of 1300 1200 of 1300" in comparison_table({"valid": many}, {"valid": many})
