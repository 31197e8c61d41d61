from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ase_finetune.continual import EWCPenalty, FisherInformation
from ase_finetune.errors import NotFiniteError, TrainingError
from ase_finetune.finetuning.updating import Piece, PieceLoss, Updater
from ase_finetune.potentials.memory import EdgeBudget

START = [1.0, -2.0]


@pytest.fixture
def theta():
    return nn.Parameter(torch.tensor(START, dtype=torch.float64))


def quadratic(theta, target, scale=1.0):
    """A piece of a loss, scale/2 |theta - target|^2, whose gradient is scale * (theta - target)."""
    return piece(lambda: 0.5 * scale * (theta - torch.tensor(target, dtype=torch.float64)).square().sum())


def piece(loss):
    """A piece of one example."""
    return Piece([0], {0: 1}, lambda _: PieceLoss(loss(), lambda: None), EdgeBudget(1))


def updater(theta, rate=0.1, strength=None, **options):
    penalty = None
    if strength is not None:
        fisher = FisherInformation({"theta": torch.tensor([1.0, 3.0])})
        penalty = EWCPenalty([("theta", theta)], fisher, strength, anchor={"theta": torch.tensor([0.0, 1.0])})
    return Updater(torch.optim.SGD([theta], lr=rate), penalty, **options)


def test_one_update_by_hand(theta):
    value = updater(theta).update([quadratic(theta, [0.0, 0.0])])
    assert value == pytest.approx(2.5)
    assert theta.tolist() == pytest.approx([0.9, -1.8])


def test_alternate_is_two_independent_updates(theta):
    """The second gradient is taken where the first step ended, and holds nothing of the first gradient."""
    steps = updater(theta)
    steps.update([quadratic(theta, [0.0, 0.0])])
    steps.update([quadratic(theta, [3.0, 3.0], scale=2.0)])
    # (0.9, -1.8), then minus 0.1 * 2 * (theta - 3)
    assert theta.tolist() == pytest.approx([0.9 + 0.2 * 2.1, -1.8 + 0.2 * 4.8], rel=1e-12)


def test_joint_is_one_update_on_the_sum(theta):
    value = updater(theta).update([quadratic(theta, [0.0, 0.0]), quadratic(theta, [3.0, 3.0], scale=2.0)])
    assert value == pytest.approx(2.5 + 4 + 25)
    assert theta.tolist() == pytest.approx([1 - 0.1 * (1 + 2 * -2), -2 - 0.1 * (-2 + 2 * -5)], rel=1e-12)


def test_alternate_has_the_penalty_in_both_updates(theta):
    steps = updater(theta, strength=2.0)
    steps.update([quadratic(theta, [0.0, 0.0])])
    # penalty gradient: 2 * F * (theta - anchor) = 2 * (1 * 1, 3 * -3)
    first = [1 - 0.1 * (1 + 2), -2 - 0.1 * (-2 - 18)]
    assert theta.tolist() == pytest.approx(first, rel=1e-12)
    steps.update([quadratic(theta, [3.0, 3.0])])
    second = [first[0] - 0.1 * (first[0] - 3 + 2 * first[0]), first[1] - 0.1 * (first[1] - 3 + 6 * (first[1] - 1))]
    assert theta.tolist() == pytest.approx(second, rel=1e-12)


def test_joint_has_the_penalty_once(theta):
    updater(theta, strength=2.0).update([quadratic(theta, [0.0, 0.0]), quadratic(theta, [3.0, 3.0])])
    expected = [1 - 0.1 * (1 - 2 + 2), -2 - 0.1 * (-2 - 5 - 18)]
    assert theta.tolist() == pytest.approx(expected, rel=1e-12)


def test_value_is_the_loss_without_the_penalty(theta):
    assert updater(theta, strength=100.0).update([quadratic(theta, [0.0, 0.0])]) == pytest.approx(2.5)


def test_old_gradients_do_not_count(theta):
    theta.grad = torch.full_like(theta, 1e6)
    updater(theta).update([quadratic(theta, [0.0, 0.0])])
    assert theta.tolist() == pytest.approx([0.9, -1.8])


def test_clipping(theta):
    updater(theta, clip_norm=0.5).update([quadratic(theta, [0.0, 0.0])])
    length = math.sqrt(5)
    assert theta.tolist() == pytest.approx([1 - 0.1 * 0.5 / length, -2 + 0.1 * 0.5 * 2 / length], rel=1e-5)


def test_clipping_leaves_small_gradients(theta):
    updater(theta, clip_norm=2.3).update([quadratic(theta, [0.0, 0.0])])
    assert theta.tolist() == pytest.approx([0.9, -1.8], rel=1e-12)


def test_clipping_includes_the_penalty(theta):
    updater(theta, rate=1.0, strength=1e6, clip_norm=0.5).update([quadratic(theta, [0.0, 0.0])])
    moved = theta.detach() - torch.tensor(START, dtype=torch.float64)
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position", [0, 1])
def test_loss_that_is_not_finite(theta, bad, position):
    pieces = [quadratic(theta, [0.0, 0.0])] * 2
    pieces[position] = piece(lambda: bad * theta.sum())
    with pytest.raises(TrainingError, match="the loss is"):
        updater(theta, strength=1.0).update(pieces)
    assert theta.tolist() == START


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradient_that_is_not_finite(theta, clip_norm):
    """sqrt(0) is 0, its slope is infinite."""
    with pytest.raises(TrainingError, match="the norm of the gradient is"):
        updater(theta, clip_norm=clip_norm).update([piece(lambda: (theta - theta.detach()).abs().sqrt().sum())])
    assert theta.tolist() == START


class Large:
    """A batch of quadratic losses of which no more than ``fits`` can be worked on at once."""

    def __init__(self, theta, fits, *, backward=False):
        self.targets = torch.arange(14.0, dtype=torch.float64).reshape(7, 2)
        self.theta, self.fits, self.backward = theta, fits, backward
        self.sizes, self.kept, self.told = [], [], []
        self.budget = EdgeBudget(1000, self.told.append)

    def piece(self):
        return Piece(list(range(7)), dict.fromkeys(range(7), 100), self.loss, self.budget)

    def loss(self, examples):
        self.sizes.append(len(examples))
        theta = self.theta
        if len(examples) > self.fits:
            if not self.backward:
                torch.empty(2**58)  # what the allocator itself says
            theta = _RunsOut.apply(theta)
        value = 0.5 * (theta - self.targets[examples]).square().sum()
        return PieceLoss(value, lambda: self.kept.extend(examples))


class _RunsOut(torch.autograd.Function):
    @staticmethod
    def forward(_, value):
        return value.clone()

    @staticmethod
    def backward(_, gradient):
        torch.empty(2**58)
        return gradient


@pytest.mark.parametrize("backward", [False, True])
def test_pieces_that_do_not_fit_are_halved_to_the_same_effect(theta, backward):
    large, other = Large(theta, fits=2, backward=backward), nn.Parameter(theta.detach().clone())
    value = updater(theta).update([large.piece()])
    assert value == pytest.approx(updater(other).update([Large(other, fits=7).piece()]), rel=1e-12)
    torch.testing.assert_close(theta, other, rtol=1e-12, atol=1e-12)
    assert large.sizes == [7, 4, 2, 2, 3, 2, 1]
    assert sorted(large.kept) == list(range(7))
    assert large.budget.edges == 150  # half of the smallest that failed, three examples
    (told,) = large.told
    assert told.startswith("note: memory ran out with 700 edges at once; ")


def test_a_single_example_that_does_not_fit_is_an_error(theta):
    large = Large(theta, fits=0)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        updater(theta).update([large.piece()])
    assert theta.tolist() == START
    assert large.kept == []


def test_other_errors_are_not_taken_for_lack_of_memory(theta):
    with pytest.raises(RuntimeError, match="something else"):
        updater(theta).update([Piece([0, 1], {0: 1, 1: 1}, fail, EdgeBudget(1))])


def fail(examples):
    raise RuntimeError("something else")


def named(losses, kept=None):
    """A piece of examples with a loss each, which messages call by their index."""
    kept = [] if kept is None else kept

    def loss(examples):
        return PieceLoss(sum(losses[index]() for index in examples), lambda: kept.extend(examples))

    numbers = list(range(len(losses)))
    return Piece(numbers, dict.fromkeys(numbers, 1), loss, EdgeBudget(10), "frame {} of train".format)


def test_the_example_that_is_not_finite_is_named(theta):
    kept = []
    good, bad = (lambda: theta.square().sum()), (lambda: (theta - theta.detach()).abs().sqrt().sum())
    with pytest.raises(NotFiniteError, match=r"^the norm of the gradient is nan because of frame 2 of train$"):
        updater(theta).update([named([good] * 2, kept), named([good, good, bad], kept)])
    assert theta.tolist() == START
    # Nothing of the step counts, not even its good pieces.
    assert kept == []
    with pytest.raises(NotFiniteError, match=r"^the loss is inf because of frame 0 of train; frame 1 "):
        updater(theta).update([named([lambda: math.inf * theta.square().sum()] * 5)])


def test_a_sum_that_is_not_finite_though_its_parts_are(theta):
    with pytest.raises(NotFiniteError, match="though that of no example alone is, in the step on frame 0 of train; fr"):
        updater(theta).update([named([lambda: 3e307 * theta.square().sum()] * 2)])


def test_a_skipped_step_leaves_the_optimizer_as_it_was(theta):
    optimizer = torch.optim.Adam([theta], lr=0.1)
    steps = Updater(optimizer)
    steps.update([quadratic(theta, [0.0, 0.0])])
    before = {name: value.clone() for name, value in optimizer.state[theta].items()}
    with pytest.raises(NotFiniteError):
        steps.update([piece(lambda: math.nan * theta.sum())])
    assert all(torch.equal(value, before[name]) for name, value in optimizer.state[theta].items())
