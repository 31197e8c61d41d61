from __future__ import annotations

import pytest
import torch

from ase_finetune.optimize.layout import Layout, safe_sqrt

# Rows of structures 0, 1, 2 as they lie with a variable cell: all atoms first, then the rows of the cells.
OWNER = [0, 0, 1, 2, 2, 2, 0, 1, 2]


@pytest.fixture
def layout():
    return Layout(torch.tensor(OWNER), 3)


@pytest.fixture
def rows():
    return torch.randn((len(OWNER), 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def of_each(rows):
    return [rows[[k for k, owner in enumerate(OWNER) if owner == structure]] for structure in range(3)]


def test_sums_over_each_structure(layout, rows):
    other = rows.flip(0)
    expected = [float((a * b).sum()) for a, b in zip(of_each(rows), of_each(other), strict=True)]
    torch.testing.assert_close(layout.dot(rows, other), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(layout.norm(rows), torch.stack([part.norm() for part in of_each(rows)]))
    torch.testing.assert_close(
        layout.longest(rows), torch.stack([part.norm(dim=1).max() for part in of_each(rows)]), rtol=1e-15, atol=0
    )


def test_structures_without_rows_have_zero():
    layout = Layout(torch.tensor([1, 1]), 3)
    rows = torch.ones((2, 3))
    assert layout.norm(rows).tolist() == [0.0, pytest.approx(6**0.5), 0.0]
    assert layout.longest(rows).tolist() == [0.0, pytest.approx(3**0.5), 0.0]


def test_spread(layout):
    spread = layout.spread(torch.tensor([10.0, 20.0, 30.0]))
    assert spread.shape == (len(OWNER), 1)
    assert spread.squeeze(1).tolist() == [10.0 * (owner + 1) for owner in OWNER]


@pytest.mark.parametrize("order", [[0, 2], [2, 0]])
def test_select_is_ascending(layout, rows, order):
    chosen, kept_rows, kept = layout.select(order)
    assert kept.tolist() == [0, 2]
    assert kept_rows.tolist() == [k for k, owner in enumerate(OWNER) if owner != 1]
    assert chosen.owner.tolist() == [0, 0, 1, 1, 1, 0, 1]
    assert chosen.count == 2
    assert torch.equal(chosen.norm(rows[kept_rows]), layout.norm(rows)[kept])


def test_norms_have_gradients_that_are_finite_at_zero(layout, rows):
    rows = torch.where(torch.tensor(OWNER)[:, None] == 1, 0.0, rows).requires_grad_()
    (layout.norm(rows).sum() + layout.longest(rows).sum()).backward()
    assert rows.grad.isfinite().all()
    assert (rows.grad[torch.tensor(OWNER) == 1] == 0).all()


def test_norms_have_the_right_gradient(layout, rows):
    assert torch.autograd.gradcheck(layout.norm, (rows.requires_grad_(),))
    assert torch.autograd.gradcheck(layout.longest, (rows,))


def test_square_root_at_zero():
    squares = torch.tensor([0.0, 4.0], requires_grad=True)
    roots = safe_sqrt(squares)
    assert roots.tolist() == [0.0, 2.0]
    (gradient,) = torch.autograd.grad(roots.sum(), squares)
    assert gradient.tolist() == [0.0, 0.25]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(layout, rows, broken):
    # A structure with NaN forces must not look like one without forces.
    rows[7, 1] = broken
    for norm in (layout.norm(rows), layout.longest(rows)):
        assert norm.isfinite().tolist() == [True, False, True]
