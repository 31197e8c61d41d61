from __future__ import annotations

import math

import pytest

from ase_finetune.reporting.pareto import Box, pareto_front, place_labels


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 1)], [0]),
        ([(1, 1), (2, 2), (3, 1.5)], [0, 1]),
        ([(3, 9), (1, 5), (2, 7), (2, 6), (4, 9)], [1, 2, 0]),
        ([(1, 1), (1, 2)], [1]),
        ([(1, 1), (1, 1)], [0, 1]),
        ([(0, 0), (-1, 3)], [1]),
        ([(math.nan, 9), (0, math.inf), (5, 5)], [2]),
        ([], []),
    ],
)
def test_front_of_known_points(points, front):
    assert pareto_front(points) == front


def test_labels_cover_neither_points_nor_each_other():
    places = [(100.0, 100.0), (106.0, 102.0), (103.0, 110.0), (98.0, 93.0), (112.0, 97.0)]
    sizes = [(60.0, 10.0)] * 5
    frame = Box(0, 0, 300, 250)
    corners = place_labels(places, sizes, frame)
    boxes = [Box(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
    for k, box in enumerate(boxes):
        assert box.overlap(frame) == pytest.approx(600)
        assert sum(box.overlap(other) for other in boxes[:k]) == 0
        assert sum(box.overlap(Box(x - 3, y - 3, x + 3, y + 3)) for x, y in places) == 0


def test_a_label_at_the_edge_stays_inside():
    ((x, y),) = place_labels([(295.0, 5.0)], [(80.0, 10.0)], Box(0, 0, 300, 250))
    assert x >= 0
    assert x + 80 <= 300
    assert y >= 0
