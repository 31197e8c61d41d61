from __future__ import annotations

import pytest
import torch
from torch import nn

from ase_finetune.continual import EWCPenalty, FisherInformation
from ase_finetune.continual.ewc import check_names
from ase_finetune.errors import CheckpointError, InputError


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def named():
    return {"a": nn.Parameter(vector(1.0, 2.0)), "b.c": nn.Parameter(vector(-1.0).reshape(1, 1))}


@pytest.fixture
def fisher():
    return FisherInformation({"a": vector(0.5, 4.0), "b.c": vector(2.0).reshape(1, 1)})


@pytest.fixture
def large():
    """Parameters, Fisher information and anchor of many shapes, at random."""
    generator = torch.Generator().manual_seed(0)

    def random():
        shapes = {"one": (7,), "two": (3, 4), "three": (2, 3, 4), "scalar": ()}
        return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}

    parameters = {name: nn.Parameter(value) for name, value in random().items()}
    return parameters, FisherInformation({name: value.square() for name, value in random().items()}), random()


def test_by_hand(named, fisher):
    penalty = EWCPenalty(named.items(), fisher, 10.0)
    assert penalty.value() == 0.0
    with torch.no_grad():
        named["a"].add_(vector(0.1, -0.2))
        named["b.c"].add_(0.5)
    # (10/2) * (0.5 * 0.01 + 4 * 0.04 + 2 * 0.25)
    assert penalty.value() == pytest.approx(5 * (0.005 + 0.16 + 0.5), rel=1e-12)
    penalty.add_gradient()
    torch.testing.assert_close(named["a"].grad, vector(10 * 0.5 * 0.1, 10 * 4 * -0.2), rtol=1e-12, atol=0)
    torch.testing.assert_close(named["b.c"].grad, vector(10 * 2 * 0.5).reshape(1, 1), rtol=1e-12, atol=0)


def test_equals_autograd_of_the_formula(large):
    parameters, fisher, anchor = large
    penalty = EWCPenalty(parameters.items(), fisher, 3.7, anchor=anchor)
    formula = sum(
        0.5 * 3.7 * (fisher.values[name] * (parameter - anchor[name]) ** 2).sum()
        for name, parameter in parameters.items()
    )
    expected = torch.autograd.grad(formula, list(parameters.values()))
    assert penalty.value() == pytest.approx(float(formula.detach()), rel=1e-12)
    assert all(parameter.grad is None for parameter in parameters.values())
    penalty.add_gradient()
    for parameter, gradient in zip(parameters.values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


def test_gradient_is_added_to_what_is_there(large):
    parameters, fisher, anchor = large
    penalty = EWCPenalty(parameters.items(), fisher, 2.0, anchor=anchor)
    penalty.add_gradient()
    alone = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    penalty.add_gradient()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, 1 + alone[name], rtol=1e-12, atol=1e-14)


def test_gradients_carry_no_graph(large):
    # A graph on .grad would keep every step of a training run in memory.
    parameters, fisher, anchor = large
    penalty = EWCPenalty(parameters.items(), fisher, 2.0, anchor=anchor)
    for _ in range(2):
        penalty.add_gradient()
        assert not any(parameter.grad.requires_grad for parameter in parameters.values())


def test_anchor_is_a_copy(named, fisher):
    anchor = {name: parameter.detach() for name, parameter in named.items()}  # shares memory
    penalties = [EWCPenalty(named.items(), fisher, 1.0), EWCPenalty(named.items(), fisher, 1.0, anchor=anchor)]
    with torch.no_grad():
        named["a"].add_(1.0)
    assert [penalty.value() for penalty in penalties] == pytest.approx([0.5 * 4.5] * 2)


def test_value_and_gradient_do_not_change_parameters(large):
    parameters, fisher, anchor = large
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    penalty = EWCPenalty(parameters.items(), fisher, 2.0, anchor=anchor)
    values = [penalty.value()]
    penalty.add_gradient()
    values.append(penalty.value())
    assert values[0] == values[1] > 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())


def test_frozen_parameters_are_skipped(named, fisher):
    penalty = EWCPenalty([("a", named["a"])], fisher, 10.0, known=iter(named))
    with torch.no_grad():
        named["a"].add_(1.0)
        named["b.c"].add_(1.0)
    penalty.add_gradient()
    assert named["b.c"].grad is None
    assert penalty.value() == pytest.approx(5 * 4.5)


def test_known_may_be_used_up(named, fisher):
    """An iterator serves the names of the Fisher information and those of the anchor."""
    anchor = {name: parameter.detach() + 1 for name, parameter in named.items()}
    more = FisherInformation(fisher.values | {"d": vector(1.0), "e": vector(1.0)})
    known = iter(["a", "b.c", "d", "e"])
    penalty = EWCPenalty(named.items(), more, 2.0, anchor=anchor | {"d": vector(0.0)}, known=known)
    assert penalty.value() == pytest.approx(0.5 + 4 + 2)


def test_float32_parameters_take_a_float64_fisher(fisher):
    parameters = {"a": nn.Parameter(torch.ones(2)), "b.c": nn.Parameter(torch.ones(1, 1))}
    penalty = EWCPenalty(
        parameters.items(), fisher, 1.0, anchor={n: torch.zeros_like(p) for n, p in parameters.items()}
    )
    penalty.add_gradient()
    assert parameters["a"].grad.dtype == torch.float32
    assert parameters["a"].grad.tolist() == [0.5, 4.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"z": vector(1.0)}, "Fisher information has 1 names this model has no parameter for, first 'z'"),
        ({"module.a": vector(1.0, 1.0)}, "no parameter for, first 'module.a'"),
        ({"a": vector(1.0)}, r"Fisher information of 'a' has shape \(1,\), the model has \(2,\)"),
        ({"a": vector(1.0, 1.0, 1.0)}, r"Fisher information of 'a' has shape \(3,\), the model has \(2,\)"),
        ({"b.c": vector(1.0)}, r"of 'b.c' has shape \(1,\), the model has \(1, 1\)"),
        ({"a": vector(1.0, float("nan"))}, "Fisher information of 'a' has values that are not finite"),
        ({"a": vector(float("inf"), 0.0)}, "not finite"),
    ],
)
def test_fisher_that_does_not_fit(named, fisher, values, message):
    with pytest.raises(CheckpointError, match=message):
        EWCPenalty(named.items(), FisherInformation(fisher.values | values), 1.0)


def test_missing_names(named, fisher):
    with pytest.raises(CheckpointError, match=r"Fisher information lacks 1 trainable parameters, first 'b\.c'"):
        EWCPenalty(named.items(), FisherInformation({"a": fisher.values["a"]}), 1.0)


def test_anchor_is_checked_too(named, fisher):
    with pytest.raises(CheckpointError, match=r"anchor lacks 1 trainable parameters, first 'b\.c'"):
        EWCPenalty(named.items(), fisher, 1.0, anchor={"a": vector(1.0, 2.0)})
    wrong = {"a": vector(1.0, 2.0), "b.c": vector(1.0).reshape(1, 1), "other": vector(0.0)}
    with pytest.raises(CheckpointError, match="anchor has 1 names this model has no parameter for, first 'other'"):
        EWCPenalty(named.items(), fisher, 1.0, anchor=wrong)


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_invalid_lambda(named, fisher, strength):
    with pytest.raises(InputError, match="ewc_lambda must be a finite number that is not negative"):
        EWCPenalty(named.items(), fisher, strength)


@pytest.mark.parametrize("strength", [0, 0.25])
def test_weak_springs(named, fisher, strength):
    penalty = EWCPenalty(named.items(), fisher, strength)
    with torch.no_grad():
        named["b.c"].add_(0.5)
    assert penalty.value() == pytest.approx(strength / 2 * 2.0 * 0.5**2, rel=1e-12)


def test_check_names_accepts_what_fits(named, fisher):
    assert check_names(named, fisher.values, "Fisher information") is None


def test_strength_may_be_changed(large):
    """To the bits of a penalty that was made with it."""
    parameters, fisher, anchor = large
    changed, made = (EWCPenalty(parameters.items(), fisher, strength, anchor=anchor) for strength in (3.0, 0.7))
    changed.strength = 0.7
    assert changed.value() == made.value()
    with pytest.raises(InputError, match="ewc_lambda must be a finite number that is not negative, got -1"):
        changed.strength = -1.0
    assert changed.strength == 0.7
