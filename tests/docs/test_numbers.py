"""Numbers that pages and docstrings share with the code."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from ase_finetune import FinetuneConfig
from ase_finetune.continual import EWCPenalty, FisherInformation
from ase_finetune.finetuning.old_material import (
    DEFAULT_LAMBDA_FRAMES,
    DEFAULT_LAMBDA_RAW,
    DEFAULT_LAMBDA_RELAXATIONS,
)
from tests.docs import pages

DEFAULTS = [DEFAULT_LAMBDA_FRAMES, DEFAULT_LAMBDA_RELAXATIONS, DEFAULT_LAMBDA_RAW]


def test_default_strengths_of_the_penalty():
    (sentence,) = re.findall(r"By default (\$\\lambda = .*?) for a raw", text("docs/mathematics.md"))
    found = re.findall(r"(?:(\d) \\cdot )?10\^\{?(-?\d)\}?", sentence)
    assert [float(f"{first or 1}e{power}") for first, power in found] == DEFAULTS
    (sentence,) = re.findall(r"``None`` is ([^;]*?) for a raw one", " ".join(str(FinetuneConfig.__doc__).split()))
    assert [float(number) for number in re.findall(r"\de-?\d", sentence)] == DEFAULTS


def test_the_penalty_has_a_factor_of_one_half():
    theta = nn.Parameter(torch.tensor([1.0, 2.0]))
    penalty = EWCPenalty([("a", theta)], FisherInformation({"a": torch.tensor([3.0, 0.5])}, {}), 2.0)
    with torch.no_grad():
        theta += torch.tensor([0.1, -0.2])
    assert penalty.value() == pytest.approx(2.0 / 2 * (3.0 * 0.1**2 + 0.5 * 0.2**2))
    assert r"P(\theta) = \frac{\lambda}{2} \sum_i F_i" in text("docs/mathematics.md")
    assert "(lambda/2) sum_i F_i (theta_i - theta*_i)^2" in str(EWCPenalty.__doc__)


def text(page: str) -> str:
    return " ".join((pages.ROOT / page).read_text(encoding="utf-8").split())
