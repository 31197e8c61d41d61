from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ase_finetune import FinetuneConfig
from ase_finetune.errors import InputError
from ase_finetune.finetuning.optimizing import (
    build_optimizer,
    build_schedule,
    freeze_parameters,
    parameter_summary,
    parameter_table,
)
from tests import morse


@pytest.fixture
def theta():
    return nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizers(theta, name, kind):
    optimizer = build_optimizer([theta], 0.02, FinetuneConfig(optimizer=name, weight_decay=0.3))
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def rates(theta, steps, **options):
    optimizer = torch.optim.SGD([theta], lr=2.0)
    schedule = build_schedule(optimizer, FinetuneConfig(**options), steps)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_schedule(theta):
    found = rates(theta, 100, warmup=0.1)
    # ten steps of warm-up: 1/11 ... 10/11 of the peak, then half a cosine over the other ninety
    assert found[:10] == pytest.approx([2 * (step + 1) / 11 for step in range(10)])
    assert found[10] == pytest.approx(2.0)
    assert found[55] == pytest.approx(1.0)
    assert found[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert 0 < found[99] < 1e-3
    assert max(found) == pytest.approx(2.0)


def test_constant_schedule(theta):
    found = rates(theta, 20, warmup=0.2, schedule="constant")
    assert found[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert found[4:] == [2.0] * 16


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs(theta, steps):
    assert all(0 < rate <= 2 for rate in rates(theta, steps, warmup=0.5))
    assert rates(theta, steps, warmup=0.0)[0] == 2.0


def test_freeze():
    potential = morse.pretrained()
    assert freeze_parameters(potential, ["d*", "shift", "*t"]) == ["depth", "distance", "shift"]
    trainable = [name for name, _ in potential.native_parameters(trainable_only=True)]
    assert trainable == ["width"]


def test_freeze_nothing():
    potential = morse.pretrained()
    assert freeze_parameters(potential, []) == []
    assert all(parameter.requires_grad for parameter in potential.parameters())


def test_freeze_pattern_that_matches_nothing():
    potential = morse.pretrained()
    with pytest.raises(InputError, match="freeze pattern 'dept' matches no parameter; names look like 'depth'"):
        freeze_parameters(potential, ["shift", "dept"])


def test_freeze_everything():
    with pytest.raises(InputError, match="every parameter is frozen"):
        freeze_parameters(morse.pretrained(), ["*"])


def test_parameter_table():
    potential = morse.pretrained()
    freeze_parameters(potential, ["shift"])
    rows = {line.split()[0]: line.split()[1:] for line in parameter_table(potential).splitlines()[1:]}
    assert rows == {
        "depth": ["2", "0"],
        "width": ["2", "0"],
        "distance": ["2", "0"],
        "shift": ["0", "2"],
        "all": ["6", "2"],
    }


def test_parameter_summary():
    potential = morse.pretrained()
    assert parameter_summary(potential) == "parameters: 8 trained, 0 frozen"
    freeze_parameters(potential, ["shift", "d*"])
    assert parameter_summary(potential) == "parameters: 2 trained, 6 frozen (depth, distance, shift)"
