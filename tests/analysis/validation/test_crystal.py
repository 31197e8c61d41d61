"""Numbers of the checks against numbers that are known."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.units import GPa

from ase_finetune import FinetunedCalculator
from ase_finetune.analysis import validate
from ase_finetune.analysis.validation.crystal import hill, named_constants, voigt_strain
from ase_finetune.analysis.validation.material import Material, repeats
from ase_finetune.potentials import MorsePotential


@pytest.fixture(scope="module")
def copper():
    return validate(EMT(), bulk("Cu", cubic=True), checks=["equilibrium", "equation of state", "elastic constants"])


def value(result, check: str, name: str) -> float:
    return result.result(check).quantity(name).value


def test_equilibrium_of_copper(copper):
    # EMT's own lattice constant is 3.59 Å: K. W. Jacobsen, P. Stoltze, J. K. Nørskov, Surf. Sci. 366, 394 (1996).
    assert (4 * value(copper, "equilibrium", "volume per atom")) ** (1 / 3) == pytest.approx(3.59, abs=0.005)
    assert value(copper, "equilibrium", "volume change") == pytest.approx(-1.67, abs=0.05)
    assert value(copper, "equilibrium", "noise of the forces") < 1e-6


def test_bulk_modulus_of_copper(copper):
    # d2E/dV2 by differences, beside the fit.
    def energy(volume):
        atoms = bulk("Cu", a=(4 * volume) ** (1 / 3))
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    volume, h = value(copper, "equation of state", "volume of the minimum"), 0.02
    curvature = (energy(volume + h) - 2 * energy(volume) + energy(volume - h)) / h**2
    assert value(copper, "equation of state", "bulk modulus") == pytest.approx(volume * curvature / GPa, rel=0.01)
    assert value(copper, "equation of state", "deviation from the fit") < 0.01


def test_elastic_constants_of_copper(copper):
    # Energies of three strains give what the stresses give.
    atoms = bulk("Cu", a=(4 * value(copper, "equilibrium", "volume per atom")) ** (1 / 3))

    def curvature(direction):
        h, energies = 5e-3, []
        for size in (-h, 0.0, h):
            strained = atoms.copy()
            strained.set_cell(atoms.cell[:] @ (np.eye(3) + size * direction), scale_atoms=True)
            strained.calc = EMT()
            energies.append(strained.get_potential_energy())
        return (energies[0] - 2 * energies[1] + energies[2]) / h**2 / atoms.get_volume() / GPa

    c11 = curvature(np.diag([1.0, 0, 0]))
    c12 = 0.5 * curvature(np.diag([1.0, 1.0, 0])) - c11
    c44 = curvature(np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]))
    for name, expected in (("C11", c11), ("C12", c12), ("C44", c44)):
        assert value(copper, "elastic constants", name) == pytest.approx(expected, rel=5e-3)
    bulk_modulus = value(copper, "elastic constants", "bulk modulus (Hill)")
    assert bulk_modulus == pytest.approx((c11 + 2 * c12) / 3, rel=5e-3)
    assert bulk_modulus == pytest.approx(value(copper, "equation of state", "bulk modulus"), rel=5e-3)
    assert copper.passed
    assert copper.verdict == "ok"


def test_atoms_move_with_the_strain():
    """C44 of diamond is softer by the motion of its sublattices; a pair potential shows it."""
    calc = FinetunedCalculator(MorsePotential(cutoff=5.0).double(), dtype="float64", device="cpu")
    found = validate(calc, bulk("Si", a=4.3), checks=["elastic constants"]).result("elastic constants")
    constants = {name: found.quantity(name).value for name in ("C11", "C12", "C44")}
    material = Material.of(bulk("Si", a=4.3), calc, "Si")
    atoms = material.copy()
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + voigt_strain(3, 5e-3)), scale_atoms=True)
    clamped = atoms.get_stress()[3] / 5e-3 / GPa
    assert abs(constants["C44"]) < 0.99 * clamped
    assert found.quantity("stress against energies").verdict == "ok"


def test_a_crystal_that_shears_by_itself_fails():
    result = validate(EMT(), bulk("Cu", "sc", a=2.4), checks=["elastic constants"])
    smallest = result.result("elastic constants").quantity("smallest eigenvalue")
    assert (smallest.verdict, smallest.why) == ("failed", "the crystal deforms by itself (Born's criterion)")
    assert smallest.value < 0
    assert not result.passed


def test_moduli_of_an_isotropic_solid():
    constants = np.diag([20.0, 20, 20, 8, 8, 8])
    constants[:3, :3] += 4.0 - np.eye(3) * 4 + np.eye(3) * 0
    np.fill_diagonal(constants[:3, :3], 20.0)
    assert hill(constants) == pytest.approx(((20 + 2 * 4) / 3, 8.0))
    assert [name for name, _ in named_constants(constants)] == ["C11", "C12", "C44"]
    constants[2, 2] = 40.0
    assert len(named_constants(constants)) == 9


def test_supercells_are_compact_and_alike():
    cubic = bulk("Cu", cubic=True)
    assert repeats(cubic, 8.0, 64) == (2, 2, 2)
    assert repeats(cubic, 8.0, 1000) == (3, 3, 3)
    assert repeats(cubic, 6.0, 8, alike=False) == (2, 1, 1)
    long = bulk("Cu", cubic=True).repeat((1, 1, 3))
    assert repeats(long, 8.0, 200) == (3, 3, 1)
