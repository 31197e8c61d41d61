from __future__ import annotations

import math

import pytest

from ase_finetune.continual.trust_region import StrengthLaw, largest_fraction, measured_every


def follow(rises, bound=0.1, strength=1.0):
    """Strengths after each of these measurements."""
    law = StrengthLaw(bound, strength)
    return [law.follow(rise) for rise in rises]


def test_by_hand():
    law = StrengthLaw(0.1, 2.0)
    assert law.follow(0.04) == 2.0  # 0.4 of the bound now, 0.8 foreseen: left alone
    assert law.last == pytest.approx(0.4)
    assert law.follow(0.08) == pytest.approx(2.0 * 1.2)  # 0.8, and 1.2 foreseen
    assert law.follow(0.10) == pytest.approx(2.4 * 1.2)  # 1.0, and 1.2 foreseen
    assert law.follow(0.07) == pytest.approx(2.88)  # on its way back
    assert law.follow(0.06) == pytest.approx(2.88 * 0.6 / 0.7)  # well below, and no longer rising


def test_a_step_is_bounded():
    assert follow([5.0]) == [StrengthLaw.UP]
    assert follow([0.0]) == [StrengthLaw.DOWN]
    assert follow([math.nan]) == follow([math.inf]) == [StrengthLaw.UP]


def test_a_rise_that_falls_by_itself_does_not_drive_the_strength_up():
    first, second, third = follow([0.2, 0.15, 0.12])
    assert first == pytest.approx(4.0)
    assert second == third == first


def test_the_first_epochs_do_not_drive_the_strength_down():
    """A rise that is small only because training has just begun is foreseen to grow."""
    assert min(follow([0.036, 0.072])) == 1.0


def test_the_strength_stays_within_limits():
    assert follow([9.0 + k for k in range(60)])[-1] == StrengthLaw.MOST
    assert follow([0.0] * 60)[-1] == StrengthLaw.LEAST
    # ... and after no number at all the law goes on
    law = StrengthLaw(0.1, 1.0)
    law.follow(math.nan)
    assert law.follow(0.05) == pytest.approx(StrengthLaw.UP * 0.5 / 0.7)


@pytest.mark.parametrize("needed", [1e-2, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_it_settles_where_the_bound_is_used(needed, power):
    """A rise that follows the strength with some inertia ends within the bound, and not far below."""
    bound, rise = 0.03, 0.0
    law = StrengthLaw(bound, 1.0)
    for _ in range(60):
        rest = bound * (needed / law.strength) ** power
        rise += 0.5 * (min(rest, 50 * bound) - rise)
        law.follow(rise)
    assert 0.6 * bound < rise <= 1.05 * bound


def test_measurements_of_a_run():
    assert measured_every(epochs=1, steps=1000) == 50
    assert measured_every(epochs=10, steps=1000) == 500
    assert measured_every(epochs=20, steps=1000) == 1000
    # At least ten steps apart, unless an epoch has fewer
    assert measured_every(epochs=1, steps=35) == 12
    assert measured_every(epochs=1, steps=3) == 3


@pytest.mark.parametrize("bound", [0.001, 0.03, 0.5])
def test_largest_fraction(bound):
    asked = []

    def rise(fraction):
        asked.append(fraction)
        return 0.8 * fraction**2

    found = largest_fraction(rise, bound)
    assert rise(found) <= bound < rise(found + 1 / 256)
    assert len(asked) == 8 + 2


def test_largest_fraction_of_what_cannot_be_measured():
    """Not a number is above every bound, and the beginning always is within it."""
    assert largest_fraction(lambda _: math.nan, 0.1) == 0.0
    assert largest_fraction(lambda fraction: math.nan if fraction > 0.3 else 0.0, 0.1) == pytest.approx(
        0.3, abs=1 / 256
    )


def test_what_is_found_keeps_to_the_bound_where_the_rise_is_not_monotonous():
    def rise(fraction):
        return math.sin(9 * fraction)

    assert rise(largest_fraction(rise, 0.2)) <= 0.2
