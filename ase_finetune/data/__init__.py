"""Labelled frames: reading, checks, splits, reference energies and embedded replay structures."""

from ase_finetune.data.checks import Outlier, PredictionCheck, check_units, find_outliers
from ase_finetune.data.embedded import embedded_replay
from ase_finetune.data.frames import Frame, FrameSet, read_frames
from ase_finetune.data.isolated import describe_isolated, is_isolated, isolated_energies, leave_out_isolated
from ase_finetune.data.lazy_graphs import LazyGraphs
from ase_finetune.data.loading import GraphLoader
from ase_finetune.data.pair_reports import pair_report
from ase_finetune.data.pair_splits import check_disjoint_pairs, split_pairs
from ase_finetune.data.pairs import Pair, PairSet, PairSource, read_pairs
from ase_finetune.data.reference import ReferenceOffsets, align, fit_reference
from ase_finetune.data.report import data_report
from ase_finetune.data.split_checks import pair_split_notes, split_notes
from ase_finetune.data.splits import Split, check_disjoint, hold_out, split_frames

__all__ = [
    "Frame",
    "FrameSet",
    "GraphLoader",
    "LazyGraphs",
    "Outlier",
    "Pair",
    "PairSet",
    "PairSource",
    "PredictionCheck",
    "ReferenceOffsets",
    "Split",
    "align",
    "check_disjoint",
    "check_disjoint_pairs",
    "check_units",
    "data_report",
    "describe_isolated",
    "embedded_replay",
    "find_outliers",
    "fit_reference",
    "hold_out",
    "is_isolated",
    "isolated_energies",
    "leave_out_isolated",
    "pair_report",
    "pair_split_notes",
    "read_frames",
    "read_pairs",
    "split_frames",
    "split_notes",
    "split_pairs",
]
