"""Holding a measured rise under a bound: how strong a spring has to be, and how far weights may go."""

from __future__ import annotations

import math
from collections.abc import Callable

#: Measurements over a whole training, about, and steps between two of them, at least.
_MEASUREMENTS = 20
_FEWEST_STEPS = 10

#: Halvings of the way between the pretrained weights and those that are drawn back.
_HALVINGS = 8

#: A rise over its bound that stands for all that are higher, or no number: JSON knows no infinity.
_FAR_ABOVE = 1e6


class StrengthLaw:
    """How the strength of a penalty follows what it has to hold.

    At each measurement the rise that the next one will find is foreseen, if it goes on as from the last one to this
    one. Foreseen above the bound, the strength is multiplied by how much it is above; well below it, now and foreseen,
    the strength is lowered a little. So a rise that is on its way back does not drive the strength further up, and one
    that has only begun does not drive it down.

    Parameters
    ----------
    bound
        Largest rise.
    strength
        To begin with; not 0, which no factor changes.

    Attributes
    ----------
    strength
        At present, between 1e-3 and 1e6 times the first one.
    last
        The last rise over the bound; 0 before training.
    """

    #: Factors of one measurement, and of all of them together.
    UP, DOWN = 4.0, 1 / 1.5
    LEAST, MOST = 1e-3, 1e6
    #: Share of the bound below which the strength is lowered.
    SLACK = 0.7

    def __init__(self, bound: float, strength: float) -> None:
        self._bound, self._start = bound, strength
        self.strength, self.last = strength, 0.0

    def follow(self, rise: float) -> float:
        """The strength from now on. A rise that is not finite is above every bound."""
        ratio = min(max(rise / self._bound, 0.0), _FAR_ABOVE) if math.isfinite(rise) else _FAR_ABOVE
        foreseen = 2 * ratio - self.last
        factor = 1.0
        if foreseen > 1:
            factor = min(foreseen, self.UP)
        elif max(foreseen, ratio) < self.SLACK:
            factor = max(foreseen / self.SLACK, ratio / self.SLACK, self.DOWN)
        self.strength = min(max(factor * self.strength, self.LEAST * self._start), self.MOST * self._start)
        self.last = ratio
        return self.strength


def measured_every(epochs: int, steps: int) -> int:
    """Steps between two measurements in epochs of so many steps, each of which ends with one.

    Examples
    --------
    >>> measured_every(epochs=2, steps=1000), measured_every(epochs=50, steps=1000), measured_every(epochs=2, steps=30)
    (100, 1000, 10)
    """
    parts = min(math.ceil(_MEASUREMENTS / epochs), steps // _FEWEST_STEPS)
    return math.ceil(steps / max(parts, 1))


def largest_fraction(rise: Callable[[float], float], bound: float) -> float:
    """The largest fraction of a way on which a rise stays within a bound, which it does at its beginning.

    The way is halved again and again, so the fraction is found to 1/256 if the rise only grows along the way. Where it
    does not, the rise still is within the bound at what is returned.

    Parameters
    ----------
    rise
        At a fraction between 0 and 1.
    bound
        Its largest value. One that is not a number is above it.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if rise(middle) <= bound:
            low = middle
        else:
            high = middle
    return low
