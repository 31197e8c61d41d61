from __future__ import annotations

import math

import numpy as np
import pytest

from ase_finetune.reporting.measures import percent
from ase_finetune.reporting.uncertainty import (
    FEWEST,
    energy_interval,
    forces_interval,
    is_unclear,
    mean_interval,
    median_interval,
)
from tests.reporting import records


def test_an_interval_of_a_mean_is_about_two_standard_errors():
    rng = np.random.default_rng(1)
    before, after = np.full(400, 100.0), rng.normal(90, 20, size=400)
    low, high = mean_interval(before, after, np.ones(400))
    assert low < percent(100, after.mean()) < high
    assert high - low == pytest.approx(2 * 1.96 * 20 / math.sqrt(400), rel=0.15)


def test_the_same_change_everywhere_is_certain():
    before = np.array([1.0, 5.0, 2.0, 8.0, 3.0])
    assert mean_interval(before, 0.8 * before, np.ones(5)) == pytest.approx((-20, -20))
    assert median_interval(before, 0.8 * before) == pytest.approx((-20, -20))


def test_too_few_structures_have_none():
    values = np.ones(FEWEST - 1)
    assert all(map(math.isnan, mean_interval(values, values, values)))
    assert all(map(math.isnan, median_interval(values, values)))
    assert not is_unclear(mean_interval(values, values, values))


def test_structures_without_labels_are_left_out():
    before = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 0.0, math.nan])
    numbers = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    assert mean_interval(before, before / 2, numbers) == pytest.approx((-50, -50))


def test_of_a_record():
    frames = records.frame_record()
    assert forces_interval(frames)[1] < 0
    assert forces_interval(frames) == forces_interval(frames)
    low, high = energy_interval(records.frame_record(before=0.1, after=0.1))
    assert low < 0 < high
    assert is_unclear((low, high))
