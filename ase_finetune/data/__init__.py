"""Labelled frames: reading, checks, splits, reference energies and embedded replay structures."""

from ase_finetune.data.checks import check_units, outliers
from ase_finetune.data.embedded import embedded_replay
from ase_finetune.data.frames import Frame, FrameSet, read_frames
from ase_finetune.data.reference import ReferenceOffsets, align, fit_reference
from ase_finetune.data.report import data_report
from ase_finetune.data.splits import Split, check_disjoint, split_frames

__all__ = [
    "Frame",
    "FrameSet",
    "ReferenceOffsets",
    "Split",
    "align",
    "check_disjoint",
    "check_units",
    "data_report",
    "embedded_replay",
    "fit_reference",
    "outliers",
    "read_frames",
    "split_frames",
]
