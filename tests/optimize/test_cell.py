"""The logarithm of the cell's deformation as coordinates, its options, and constraints beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedPlane
from ase.filters import FrechetCellFilter

from ase_finetune.errors import InputError
from ase_finetune.optimize.cell import CellOptions, cell_options, full_stress, logarithmic_force
from ase_finetune.optimize.constraints import free_components
from ase_finetune.optimize.coordinates import Coordinates
from ase_finetune.optimize.fire import FIREStep
from ase_finetune.optimize.relaxation import Relaxation
from tests import morse
from tests.optimize import runs
from tests.optimize.runs import STRUCTURES


def random(*shape, seed=0, scale=1.0):
    return scale * torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


def test_the_force_on_the_logarithm_is_the_derivative_of_the_exponential():
    # E(F) = G : F, so that -dE/dF = -G = virial F^-T.
    logarithm, gradient = random(2, 3, 3, scale=0.4), random(2, 3, 3, seed=1)
    deformation = torch.matrix_exp(logarithm)
    virial = -gradient @ deformation.transpose(1, 2)
    force = logarithmic_force(logarithm, deformation, virial)
    h = 1e-4

    def energy(moved):
        return (gradient * torch.matrix_exp(moved)).sum(dim=(1, 2))

    for a in range(3):
        for b in range(3):
            step = torch.zeros(3, 3, dtype=torch.float64)
            step[a, b] = h
            near = energy(logarithm + step) - energy(logarithm - step)
            far = energy(logarithm + 2 * step) - energy(logarithm - 2 * step)
            torch.testing.assert_close(force[:, a, b], -(8 * near - far) / (12 * h), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": [1, 1, 1, 0, 0, 0]},
        {"mask": [1, 1, 0, 0, 0, 1]},
        {"mask": [0, 1, 0, 1, 1, 0]},
        {"hydrostatic_strain": True},
        {"constant_volume": True},
        {"scalar_pressure": 0.3, "exp_cell_factor": 2.0},
    ],
)
def test_forces_are_the_gradient_of_the_energy(options):
    """Also for masks that cut shears apart, where ASE's filter has forces that do not fit its energies."""
    atoms = STRUCTURES["small"]
    cell = CellOptions(**options)
    relaxation = Relaxation(morse.pretrained().double(), FIREStep(), [atoms], cell)
    coordinates = relaxation.coordinates
    # Within what the options allow, as an optimizer that starts without deformation stays.
    deformed = torch.cat([torch.zeros(2, 3), random(3, 3, scale=0.05) * coordinates.factor])
    rows = relaxation.start().coordinates + deformed.double()
    rows = torch.cat([rows[:2], cell.project(rows[None, 2:])[0]])

    def enthalpy(where):
        positions, cells = coordinates.structure(where)
        moved = Atoms(atoms.numbers, positions.detach().numpy(), cell=cells[0].detach().numpy(), pbc=True)
        moved.calc = runs.calculator()
        return moved.get_potential_energy() + cell.scalar_pressure * moved.get_volume()

    state = relaxation.start().with_tensors([rows, *relaxation.start().method.tensors()])
    forces = relaxation.evaluate(state, relaxation.graph(state)[0]).forces
    for row in range(5):
        for axis in range(3):
            step = torch.zeros(5, 3, dtype=torch.float64)
            step[row, axis] = 1e-5
            expected = -(enthalpy(rows + step) - enthalpy(rows - step)) / 2e-5
            assert float(forces[row, axis]) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_rows_without_deformation_are_the_structure():
    structures = [STRUCTURES["small"], STRUCTURES["strained"]]
    coordinates = Coordinates.of(structures, CellOptions())
    positions = torch.cat([torch.as_tensor(atoms.positions) for atoms in structures])
    found, cells = coordinates.structure(coordinates.rows(positions))
    torch.testing.assert_close(found, positions, rtol=0, atol=0)
    for cell, atoms in zip(cells, structures, strict=True):
        np.testing.assert_array_equal(cell, atoms.cell[:])


def test_rows_mean_the_same_as_in_the_filter():
    atoms = STRUCTURES["small"].copy()
    filtered = FrechetCellFilter(atoms, exp_cell_factor=3.0)
    logarithm = random(3, 3, scale=0.1)
    rows = torch.cat([torch.as_tensor(atoms.positions) + 0.1, 3.0 * logarithm])
    positions, cells = Coordinates.of([atoms], CellOptions(exp_cell_factor=3.0)).structure(rows)
    # The filter counts the logarithm from that of the number of atoms.
    filtered.set_positions(rows.numpy() + np.vstack([np.zeros((2, 3)), 3.0 * np.log(2) * np.eye(3)]))
    np.testing.assert_allclose(positions, atoms.positions, rtol=0, atol=1e-12)
    np.testing.assert_allclose(cells[0], atoms.cell[:], rtol=0, atol=1e-12)


def test_projections_keep_what_may_change_and_only_that():
    logarithm = random(4, 3, 3)
    for options in (
        CellOptions(mask=[1, 0, 1, 0, 1, 1]),
        CellOptions(hydrostatic_strain=True),
        CellOptions(constant_volume=True),
        CellOptions(constant_volume=True, mask=[1, 1, 1, 0, 0, 1]),
    ):
        once = options.project(logarithm)
        torch.testing.assert_close(options.project(once), once, rtol=0, atol=1e-15)
        assert not torch.allclose(once, logarithm)
    assert not CellOptions(mask=[1, 0, 1, 0, 1, 1]).project(logarithm)[:, [1, 1, 2], [1, 2, 1]].any()
    volume = CellOptions(constant_volume=True).project(logarithm).diagonal(dim1=1, dim2=2).sum(dim=1)
    torch.testing.assert_close(volume, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-14)


def test_stresses_in_voigt_order():
    voigt = torch.arange(6.0)[None]
    assert full_stress(voigt)[0].tolist() == [[0, 5, 4], [5, 1, 3], [4, 3, 2]]


def test_options_of_a_filter():
    filtered = FrechetCellFilter(
        STRUCTURES["small"].copy(),
        mask=[1, 1, 1, 0, 0, 1],
        constant_volume=True,
        scalar_pressure=0.2,
        exp_cell_factor=7,
    )
    expected = CellOptions((True, True, True, False, False, True), False, True, 0.2, 7.0)
    assert CellOptions.from_filter(filtered) == expected


def test_options_by_other_names():
    assert cell_options(False) is None
    assert cell_options(True) == CellOptions()
    assert cell_options({"hydrostatic_strain": True}) == CellOptions(hydrostatic_strain=True)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"mask": [1, 1, 1]}, "mask takes six booleans"),
        ({"hydrostatic_strain": True, "constant_volume": True}, "hydrostatic_strain goes neither"),
        ({"hydrostatic_strain": True, "mask": [1, 1, 1, 0, 0, 0]}, "hydrostatic_strain goes neither"),
        ({"constant_volume": True, "mask": [1, 1, 0, 0, 0, 0]}, "frees xx, yy and zz"),
        ({"scalar_pressure": float("inf")}, "scalar_pressure is not finite"),
    ],
)
def test_options_that_cannot_be_used(options, culprit):
    with pytest.raises(InputError, match=culprit):
        CellOptions(**options)


@pytest.mark.parametrize("atoms", [STRUCTURES["cluster"], Atoms("Si", cell=[5, 5, 0], pbc=[True, True, False])])
def test_a_structure_without_volume_has_no_cell_to_relax(atoms):
    with pytest.raises(InputError, match="structure 1 has no periodic cell"):
        Coordinates.of([STRUCTURES["small"], atoms], CellOptions())


def test_free_components_of_constraints():
    atoms = STRUCTURES["cluster"].copy()
    assert free_components(atoms).all()
    atoms.set_constraint(
        [FixAtoms([-1]), FixAtoms(mask=[False, True, False, False, False]), FixCartesian([0, 2], (True, False, True))]
    )
    expected = np.ones((5, 3), dtype=bool)
    expected[[1, 4]] = False
    expected[[0, 2]] = [False, True, False]
    assert np.array_equal(free_components(atoms), expected)


def test_constraints_that_are_not_supported_are_named():
    atoms = STRUCTURES["small"].copy()
    atoms.set_constraint(FixedPlane(0, (1, 0, 0)))
    with pytest.raises(InputError, match="the constraint FixedPlane is not supported"):
        free_components(atoms)
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match="structure 1: the constraint FixBondLengths is not supported"):
        Coordinates.of([STRUCTURES["small"], atoms], None)
    atoms.set_constraint(FixCartesian(0))
    with pytest.raises(InputError, match="FixCartesian cannot be combined with a cell that relaxes"):
        free_components(atoms, cell=True)
