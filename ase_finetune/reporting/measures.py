"""Numbers of a record: errors before and after, over sets and over elements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import units
from numpy.typing import NDArray

from ase_finetune.reporting.record import AFTER, BEFORE, LABEL, FrameRecord

Array = NDArray[np.float64]

#: 1 eV/Å³ in kbar.
KBAR = 1 / (0.1 * units.GPa)

# Below it, in meV/atom and meV/Å, an error is rounding: the labels are the model's own.
_NOTHING = 1e-2


@dataclass(frozen=True)
class SetErrors:
    """Errors over a set; NaN without labels or finite predictions.

    Attributes
    ----------
    energy
        Mean absolute error, meV/atom.
    aligned
        The same after the best per-element offsets; NaN with too few structures for their compositions.
    forces
        Mean absolute error of the components, meV/Å.
    stress
        Mean absolute error of the components, kbar.
    slope
        Of predicted on reference force components, through the origin: below 1 the potential is too soft.
    """

    energy: float
    aligned: float
    forces: float
    stress: float
    slope: float


@dataclass(frozen=True)
class ElementError:
    """Mean absolute force error (meV/Å) of the atoms of an element.

    Attributes
    ----------
    atoms
        How many there are with labels.
    before, after
        The errors.
    """

    atoms: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before


def set_errors(frames: FrameRecord, when: int) -> SetErrors:
    """Errors of the predictions ``BEFORE`` or ``AFTER``.

    Parameters
    ----------
    frames
        Labels and predictions.
    when
        :data:`~ase_finetune.reporting.record.BEFORE` or :data:`~ase_finetune.reporting.record.AFTER`.
    """
    return SetErrors(
        energy=1e3 * mean(np.abs(energy_residuals(frames, when))),
        aligned=1e3 * _aligned(frames, when),
        forces=1e3 * mean(np.abs(frames.forces[..., when] - frames.forces[..., LABEL])),
        stress=KBAR * mean(np.abs(frames.stress[..., when] - frames.stress[..., LABEL])),
        slope=_slope(frames, when),
    )


def energy_residuals(frames: FrameRecord, when: int) -> Array:
    """(b,) prediction minus label in eV/atom."""
    return (frames.energy[:, when] - frames.energy[:, LABEL]) / np.maximum(frames.counts, 1)


def mean(values: Array) -> float:
    """Mean of the finite values; NaN without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def median(values: Iterable[float]) -> float:
    """Median of the finite values; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def not_finite(frames: FrameRecord) -> int:
    """Structures with a prediction after training that is NaN or infinite where there is a label."""
    energies = np.isfinite(frames.energy[:, LABEL]) & ~np.isfinite(frames.energy[:, AFTER])
    atoms = (np.isfinite(frames.forces[..., LABEL]) & ~np.isfinite(frames.forces[..., AFTER])).any(axis=1)
    return int((energies | (_per_structure(atoms.astype(float), frames) > 0)).sum())


def structures_that_improved(frames: FrameRecord) -> tuple[int, int]:
    """Structures with smaller force errors after than before (energies where there are no forces), of how many."""
    sums = [_per_structure(_force_errors(frames, when).sum(axis=1), frames) for when in (BEFORE, AFTER)]
    if not np.isfinite(sums[0]).any():
        sums = [np.abs(energy_residuals(frames, when)) for when in (BEFORE, AFTER)]
    known = np.isfinite(sums[0]) & np.isfinite(sums[1])
    return int((sums[1] < sums[0])[known].sum()), int(known.sum())


def element_errors(frames: FrameRecord) -> dict[int, ElementError]:
    """Force errors by atomic number, of the elements whose atoms have labels and finite predictions."""
    before, after = (_force_errors(frames, when).mean(axis=1) for when in (BEFORE, AFTER))
    known = np.isfinite(before) & np.isfinite(after)
    found = {}
    for z in np.unique(frames.numbers[known]):
        atoms = known & (frames.numbers == z)
        found[int(z)] = ElementError(int(atoms.sum()), *(1e3 * float(e[atoms].mean()) for e in (before, after)))
    return found


def is_nothing(value: float) -> bool:
    """Whether an error in meV is one of rounding only."""
    return abs(value) < _NOTHING


def number(value: Any) -> float:
    """A value of a record as a number; NaN for what is missing, no number or infinite."""
    if isinstance(value, bool) or value is None:
        return math.nan
    try:
        result = float(value)
    except (TypeError, ValueError):
        return math.nan
    return result if math.isfinite(result) else math.nan


def formatted(value: float, form: str) -> str:
    """A number in a format, or a dash for NaN."""
    return "–" if math.isnan(value) else format(value, form)


def column(rows: Sequence[Mapping[str, Any]], name: str) -> Array:
    """One column of the history, NaN where it is missing."""
    return np.array([number(row.get(name)) for row in rows], dtype=np.float64)


def _force_errors(frames: FrameRecord, when: int) -> Array:
    return np.abs(frames.forces[..., when] - frames.forces[..., LABEL])


def _per_structure(values: Array, frames: FrameRecord) -> Array:
    """Sums over the atoms of each structure."""
    structure = np.repeat(np.arange(len(frames.counts)), frames.counts)
    return np.bincount(structure, weights=values, minlength=len(frames.counts)).astype(np.float64)


def _slope(frames: FrameRecord, when: int) -> float:
    label, predicted = frames.forces[..., LABEL].ravel(), frames.forces[..., when].ravel()
    known = np.isfinite(label) & np.isfinite(predicted)
    square = float((label[known] ** 2).sum())
    return float((label[known] * predicted[known]).sum()) / square if square > 0 else math.nan


def _aligned(frames: FrameRecord, when: int) -> float:
    residuals = energy_residuals(frames, when)
    known = np.isfinite(residuals)
    if not known.any():
        return math.nan
    elements = np.unique(frames.numbers)
    composition = np.stack(
        [_per_structure((frames.numbers == z).astype(float), frames) / np.maximum(frames.counts, 1) for z in elements],
        axis=1,
    )[known]
    offsets, _, rank, _ = np.linalg.lstsq(composition, residuals[known], rcond=1e-6)
    if known.sum() < 2 * rank:
        return math.nan
    return float(np.abs(residuals[known] - composition @ offsets).mean())
