"""Showing what a run gained and what it forgot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase_finetune.reporting.record import RECORD_FILE, FrameRecord, PairRecord, RunRecord, TensorDrift

__all__ = ["RECORD_FILE", "FrameRecord", "PairRecord", "RunRecord", "TensorDrift", "write_comparison", "write_report"]


def write_report(record: RunRecord, folder: Path, *, defaults: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html`` and its pictures; see :func:`ase_finetune.reporting.report.write_report`."""
    # Matplotlib is loaded by those who draw only.
    from ase_finetune.reporting.report import write_report as write

    return write(record, folder, defaults=defaults)


def write_comparison(runs: Mapping[str, RunRecord], output: Path) -> Path:
    """Write a page that compares runs; see :func:`ase_finetune.reporting.comparison.write_comparison`."""
    from ase_finetune.reporting.comparison import write_comparison as write

    return write(runs, output)
