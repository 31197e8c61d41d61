from __future__ import annotations

import numpy as np
import pytest
import torch

from ase_finetune.optimize.layout import Layout
from ase_finetune.trajectories.implicit import FixedPointSolver, conjugate_gradient

# Rows of three structures, mixed as those of atoms and cells are.
OWNER = torch.tensor([0, 0, 1, 2, 2, 2, 0, 1, 2, 2])
LAYOUT = Layout(OWNER, 3)
TIGHT = FixedPointSolver(tolerance=1e-12)


def blocks(seed, spectra=None):
    """One symmetric matrix for each structure, positive definite unless other eigenvalues are given."""
    rng = np.random.default_rng(seed)
    made = []
    for structure in range(3):
        size = 3 * int((structure == OWNER).sum())
        basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
        values = rng.uniform(0.5, 10.0, size=size)
        if spectra and structure in spectra:
            values[: len(spectra[structure])] = spectra[structure]
        made.append(torch.tensor(basis * values @ basis.T))
    return made


class Product:
    """The block-diagonal product; counts its calls."""

    def __init__(self, matrices):
        self.matrices, self.calls = matrices, 0

    def __call__(self, vector):
        self.calls += 1
        result = torch.empty_like(vector)
        for structure, matrix in enumerate(self.matrices):
            rows = structure == OWNER
            result[rows] = (matrix @ vector[rows].flatten()).reshape(-1, 3)
        return result


def right_hand_side(seed):
    return torch.tensor(np.random.default_rng(seed).normal(size=(len(OWNER), 3)))


def solved(matrices, right, structure):
    rows = structure == OWNER
    return np.linalg.solve(matrices[structure].numpy(), right[rows].numpy().flatten()).reshape(-1, 3)


@pytest.mark.parametrize("seed", range(5))
def test_solves_each_block(seed):
    matrices, right = blocks(seed), right_hand_side(seed + 100)
    solution, reasons = conjugate_gradient(Product(matrices), right, LAYOUT, TIGHT)
    assert reasons == {}
    for structure in range(3):
        expected = solved(matrices, right, structure)
        np.testing.assert_allclose(solution[structure == OWNER].numpy(), expected, rtol=0, atol=1e-10)


def test_the_tolerance_is_of_each_structure():
    matrices, right = blocks(0), right_hand_side(1)
    right[OWNER == 1] *= 1e-9
    for tolerance in (1e-2, 1e-6):
        product = Product(matrices)
        solution, _ = conjugate_gradient(product, right, LAYOUT, FixedPointSolver(tolerance=tolerance))
        left = LAYOUT.norm(product(solution) - right) / LAYOUT.norm(right)
        assert (left <= tolerance * (1 + 1e-6)).all()
        assert (left > 1e-4 * tolerance).any()


def test_finishes_in_as_many_steps_as_there_are_eigenvalues():
    matrices = blocks(0)
    product = Product([torch.eye(len(m), dtype=m.dtype) * (k + 1.0) for k, m in enumerate(matrices)])
    conjugate_gradient(product, right_hand_side(0), LAYOUT, TIGHT)
    assert product.calls == 1


def test_negative_curvature_is_found_and_does_not_touch_the_others():
    matrices, right = blocks(3, {1: [-0.7]}), right_hand_side(2)
    solution, reasons = conjugate_gradient(Product(matrices), right, LAYOUT, TIGHT)
    assert reasons == {1: "the curvature is negative: it is a saddle point, not a minimum"}
    assert solution.isfinite().all()
    for structure in (0, 2):
        expected = solved(matrices, right, structure)
        np.testing.assert_allclose(solution[structure == OWNER].numpy(), expected, rtol=0, atol=1e-10)


def test_too_few_iterations_are_told():
    matrices, right = blocks(4), right_hand_side(3)
    matrices[0] = torch.eye(len(matrices[0])).double()
    product = Product(matrices)
    solver = FixedPointSolver(tolerance=1e-10, max_iterations=3)
    solution, reasons = conjugate_gradient(product, right, LAYOUT, solver)
    assert product.calls == 3
    assert sorted(reasons) == [1, 2]
    left = LAYOUT.norm(product(solution) - right) / LAYOUT.norm(right)
    for structure, reason in reasons.items():
        assert f"solved to {float(left[structure]):.1e} only after 3 iterations" in reason
        assert "relax further (smaller fmax), use float64, or allow more iterations" in reason


def test_nothing_to_solve():
    product = Product(blocks(0))
    right = right_hand_side(0)
    right[OWNER == 2] = 0.0
    solution, reasons = conjugate_gradient(product, right, LAYOUT, TIGHT)
    assert reasons == {}
    assert (solution[OWNER == 2] == 0).all()
    solution, reasons = conjugate_gradient(product, torch.zeros_like(right), LAYOUT, TIGHT)
    assert reasons == {}
    assert (solution == 0).all()


def test_a_singular_system_with_a_solution():
    # As with zero modes: the right-hand side has no part along them.
    matrices, right = blocks(5, {0: [0.0, 0.0]}), right_hand_side(4)
    product = Product(matrices)
    right = product(right)
    solution, reasons = conjugate_gradient(product, right, LAYOUT, TIGHT)
    assert reasons == {}
    torch.testing.assert_close(product(solution), right, rtol=0, atol=1e-9)
