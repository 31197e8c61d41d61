"""How sure a change is: intervals from drawing structures again and again."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ase_finetune.reporting.measures import Array, judged_energies, percent, structure_forces, structure_stress
from ase_finetune.reporting.record import AFTER, BEFORE, FrameRecord

#: Fewer structures than that have no interval.
FEWEST = 5

_DRAWS, _SEED = 300, 0

Interval = tuple[float, float]

#: Where too little is known.
UNKNOWN: Interval = (math.nan, math.nan)


def change_interval(count: int, measure: Callable[[NDArray[np.int64]], tuple[float, float]]) -> Interval:
    """95 % interval of a change by the bootstrap: structures are drawn with replacement, 300 times.

    Parameters
    ----------
    count
        Number of structures.
    measure
        Gives a value before and after of the structures at the positions that it is given.

    Returns
    -------
    Its ends, in per cent; NaN with fewer than :data:`FEWEST` structures or where the changes are not finite.

    References
    ----------
    B. Efron, *Ann. Statist.* **7**, 1 (1979).
    """
    if count < FEWEST:
        return UNKNOWN
    rng = np.random.default_rng(_SEED)
    changes = np.array([percent(*measure(rng.integers(count, size=count))) for _ in range(_DRAWS)])
    if not np.isfinite(changes).all():
        return UNKNOWN
    low, high = np.quantile(changes, (0.025, 0.975))
    return float(low), float(high)


def mean_interval(before: Array, after: Array, numbers: Array) -> Interval:
    """Of the change of a mean.

    Parameters
    ----------
    before, after
        (b,) sums over each structure.
    numbers
        (b,) over how many values; structures with none are left out.
    """
    known = (numbers > 0) & np.isfinite(before) & np.isfinite(after)
    before, after, numbers = before[known], after[known], numbers[known]

    def measure(chosen: NDArray[np.int64]) -> tuple[float, float]:
        many = numbers[chosen].sum()
        return float(before[chosen].sum() / many), float(after[chosen].sum() / many)

    return change_interval(len(before), measure)


def median_interval(before: Array, after: Array) -> Interval:
    """Of the change of a median over (p,) pairs, all finite."""
    return change_interval(
        len(before), lambda chosen: (float(np.median(before[chosen])), float(np.median(after[chosen])))
    )


def forces_interval(frames: FrameRecord) -> Interval:
    """Of the change of the mean absolute force error of a set."""
    (before, numbers), (after, _) = (structure_forces(frames, when) for when in (BEFORE, AFTER))
    return mean_interval(before, after, numbers)


def energy_interval(frames: FrameRecord) -> Interval:
    """Of the change of the mean absolute energy error of a set."""
    before, after, _ = judged_energies(frames)
    return mean_interval(before, after, np.ones(len(before)))


def stress_interval(frames: FrameRecord) -> Interval:
    """Of the change of the mean absolute stress error of a set."""
    (before, numbers), (after, _) = (structure_stress(frames, when) for when in (BEFORE, AFTER))
    return mean_interval(before, after, numbers)


def is_unclear(interval: Interval) -> bool:
    """Whether a change may as well be none."""
    return interval[0] <= 0 <= interval[1]
