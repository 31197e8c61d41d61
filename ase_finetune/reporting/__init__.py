"""Showing what a run gained and what it forgot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase_finetune.reporting.record import RECORD_FILE, FrameRecord, PairRecord, RunRecord, TensorDrift

__all__ = ["RECORD_FILE", "FrameRecord", "PairRecord", "RunRecord", "TensorDrift", "write_comparison", "write_report"]


def write_report(record: RunRecord, output: Path, *, defaults: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html``, one file that needs no network, and its charts as PNG files in ``report``.

    Parameters
    ----------
    record
        What the run left behind.
    output
        A folder, or the page itself: a file that ends in ``.html``, with the pictures in a folder of its name.
    defaults
        The options of a run as they are when nothing is said, to tell those that differ.

    Returns
    -------
    The page.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    # Matplotlib is loaded by those who draw only.
    from ase_finetune.reporting.report import write_report as write

    return write(record, output, defaults=defaults)


def write_comparison(runs: Mapping[str, RunRecord], output: Path) -> Path:
    """Write a page that compares runs: what each gained on the target against what it forgot.

    Parameters
    ----------
    runs
        Records by the names they are to have.
    output
        A folder, for ``comparison.html`` and ``comparison``, or the page itself.

    Returns
    -------
    The page.

    Raises
    ------
    InputError
        If the runs cannot be compared.
    OutputError
        If a file cannot be written.
    """
    from ase_finetune.reporting.comparison import write_comparison as write

    return write(runs, output)
