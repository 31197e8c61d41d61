"""Showing what a run gained and what it forgot."""

from ase_finetune.reporting.record import FrameRecord, PairRecord, RunRecord, TensorDrift

__all__ = ["FrameRecord", "PairRecord", "RunRecord", "TensorDrift"]
