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

# eV/Å; labels below it on the whole are those of isolated atoms and of minima, and rounding decides on their slope.
_NO_FORCES = 1e-3

# Of fewer structures one always makes much of the error.
_FEWEST = 5


@dataclass(frozen=True)
class SetErrors:
    """Errors over a set; NaN without labels or finite predictions.

    What has no finite prediction before or after is left out of both, so that they are of the same structures.

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
        Of predicted on reference force components, through the origin: below 1 the potential is too soft. NaN where
        the labels are below 1 meV/Å (root mean square).
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
        forces=1e3 * mean(_force_errors(frames, when)),
        stress=KBAR * mean(np.abs(_residuals(frames.stress, when))),
        slope=_slope(frames, when),
    )


def energy_residuals(frames: FrameRecord, when: int) -> Array:
    """(b,) prediction minus label in eV/atom; NaN where any of label, before and after is not finite."""
    return _residuals(frames.energy, when) / np.maximum(frames.counts, 1)


def judged_energies(frames: FrameRecord) -> tuple[Array, Array, bool]:
    """The energy errors that mean something.

    Returns
    -------
    before, after
        (b,) absolute errors, eV/atom.
    aligned
        Whether they are those after the best offsets per element, since the labels may be in another reference. That
        needs enough structures; with fewer the errors are against the labels as they are.
    """
    before, after = (energy_residuals(frames, when) for when in (BEFORE, AFTER))
    if frames.other_reference:
        aligned = [_without_offsets(frames, residuals) for residuals in (before, after)]
        if all(np.isfinite(residuals).any() for residuals in aligned):
            return np.abs(aligned[0]), np.abs(aligned[1]), True
    return np.abs(before), np.abs(after), False


def structure_forces(frames: FrameRecord, when: int) -> tuple[Array, Array]:
    """Force errors of each structure.

    Returns
    -------
    sums, numbers
        (b,) sum of the absolute errors of the components (eV/Å), and how many of them are known.
    """
    errors = _force_errors(frames, when)
    known = np.isfinite(errors)
    sums = np.where(known, errors, 0.0).sum(axis=1)
    return _per_structure(sums, frames), _per_structure(known.sum(axis=1).astype(np.float64), frames)


def structure_stress(frames: FrameRecord, when: int) -> tuple[Array, Array]:
    """Stress errors of each structure, as :func:`structure_forces`; eV/Å³."""
    errors = np.abs(_residuals(frames.stress, when))
    known = np.isfinite(errors)
    return np.where(known, errors, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64)


def percent(before: float, after: float) -> float:
    """Change in per cent; NaN from nothing."""
    return 100 * (after / before - 1) if before > 0 else math.nan


def mean(values: Array) -> float:
    """Mean of the finite values; NaN without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def median(values: Iterable[float]) -> float:
    """Median of the finite values; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def not_finite(frames: FrameRecord, when: int = AFTER) -> int:
    """Structures with a prediction that is NaN or infinite where there is a label."""
    return int((_lost(frames.energy, when) | (_per_structure(_lost_atoms(frames, when), frames) > 0)).sum())


def lost(frames: FrameRecord, what: str) -> bool:
    """Whether a finite prediction of ``what`` (``"energy"``, ``"forces"``, ``"stress"``) was lost by training."""
    values = getattr(frames, what)
    return bool((_lost(values, AFTER) & ~_lost(values, BEFORE)).any())


def structures_that_improved(frames: FrameRecord) -> tuple[int, int, str]:
    """How many structures are better after than before.

    Returns
    -------
    improved, known, what
        Structures with smaller errors, of how many; and of which errors: ``"force"``, ``"energy"`` or
        ``"force or energy"``. The energies decide where there are no forces, known or to be had, as of isolated atoms.
    """
    (forces, numbers), (forces_after, _) = (structure_forces(frames, when) for when in (BEFORE, AFTER))
    energy, energy_after, _ = judged_energies(frames)
    # Forces that symmetry makes zero are so before and after, and in the labels.
    moved = (numbers > 0) & (np.maximum(forces, forces_after) > 1e-6 * numbers)
    before, after = np.where(moved, forces, energy), np.where(moved, forces_after, energy_after)
    known = np.isfinite(before) & np.isfinite(after)
    kinds = set(moved[known].tolist())
    what = "force or energy" if len(kinds) == 2 else "force" if True in kinds else "energy"
    return int((after < before)[known].sum()), int(known.sum()), what


def dominant(frames: FrameRecord) -> tuple[int, str] | None:
    """The structure that makes more than half of the error after training, and of which; ``None`` without one."""
    forces = structure_forces(frames, AFTER)[0]
    for what, errors in (("force", forces), ("energy", np.nan_to_num(judged_energies(frames)[1]))):
        if (errors > 0).sum() >= _FEWEST and 1e3 * errors.sum() > _NOTHING and errors.max() > 0.5 * errors.sum():
            return int(errors.argmax()), what
    return None


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


def _residuals(values: Array, when: int) -> Array:
    """Prediction minus label, NaN where label, before or after is not finite: both are of the same values."""
    known = np.isfinite(values).all(axis=-1)
    with np.errstate(invalid="ignore"):
        found: Array = np.where(known, values[..., when] - values[..., LABEL], np.nan)
    return found


def _force_errors(frames: FrameRecord, when: int) -> Array:
    errors: Array = np.abs(_residuals(frames.forces, when))
    return errors


def _lost(values: Array, when: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.isfinite(values[..., LABEL]) & ~np.isfinite(values[..., when])
    return found


def _lost_atoms(frames: FrameRecord, when: int) -> Array:
    return np.asarray(_lost(frames.forces, when).any(axis=1), dtype=np.float64)


def _per_structure(values: Array, frames: FrameRecord) -> Array:
    """Sums over the atoms of each structure."""
    structure = np.repeat(np.arange(len(frames.counts)), frames.counts)
    return np.bincount(structure, weights=values, minlength=len(frames.counts)).astype(np.float64)


def _slope(frames: FrameRecord, when: int) -> float:
    known = np.isfinite(frames.forces).all(axis=-1)
    label, predicted = frames.forces[..., LABEL][known], frames.forces[..., when][known]
    if not label.size or math.sqrt(float((label**2).mean())) < _NO_FORCES:
        return math.nan
    return float((label * predicted).sum()) / float((label**2).sum())


def _aligned(frames: FrameRecord, when: int) -> float:
    return mean(np.abs(_without_offsets(frames, energy_residuals(frames, when))))


def _without_offsets(frames: FrameRecord, residuals: Array) -> Array:
    """(b,) residuals less the best offset per element; NaN with too few structures for their compositions."""
    known = np.isfinite(residuals)
    nothing = np.full(len(residuals), np.nan)
    if not known.any():
        return nothing
    elements = np.unique(frames.numbers)
    composition = np.stack(
        [_per_structure((frames.numbers == z).astype(float), frames) / np.maximum(frames.counts, 1) for z in elements],
        axis=1,
    )
    offsets, _, rank, _ = np.linalg.lstsq(composition[known], residuals[known], rcond=1e-6)
    if known.sum() < 2 * rank:
        return nothing
    return np.asarray(residuals - composition @ offsets, dtype=np.float64)
