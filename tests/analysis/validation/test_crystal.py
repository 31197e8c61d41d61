"""Numbers of the checks against numbers that are known."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.units import GPa

from ase_finetune import FinetunedCalculator
from ase_finetune.analysis import validate
from ase_finetune.analysis.validation.elasticity import hill, named_constants, voigt_strain
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


class Rough(EMT):
    """EMT with the rounding of single precision, and with stress and forces that are scaled."""

    def __init__(self, noise: float = 0.0, stress: float = 1.0, forces: float = 1.0) -> None:
        super().__init__()
        self.noise, self.scales = noise, {"stress": stress, "forces": forces}

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        x = self.atoms.positions.sum() + self.atoms.cell[:].sum()
        self.results["energy"] += self.noise * np.sin(1e7 * x)
        for name, scale in self.scales.items():
            if name in self.results:
                self.results[name] = self.results[name] * scale


@pytest.mark.parametrize("symbol", ["Cu", "Pt"])
@pytest.mark.parametrize(("noise", "wrong"), [(0.0, 0.9), (1e-6, 0.9), (1e-5, 0.75)])
def test_rounding_is_no_wrong_stress(noise, wrong, symbol):
    found = [
        validate(Rough(noise, stress), bulk(symbol), checks=["elastic constants"]).result("elastic constants")
        for stress in (1.0, wrong)
    ]
    verdicts = [item.quantity("stress against energies").verdict for item in found]
    assert verdicts == ["ok", "failed"]


@pytest.mark.parametrize(
    ("noise", "scale", "verdict"), [(1e-6, 1.0, "ok"), (0.0, 0.9, "failed"), (1e-6, 1.1, "failed")]
)
@pytest.mark.parametrize("cubic", [True, False])
def test_forces_are_held_against_energies(noise, scale, verdict, cubic):
    found = validate(Rough(noise, forces=scale), bulk("Cu", cubic=cubic), checks=["equilibrium"])
    assert found.results[0].quantity("force against energies").verdict == verdict


def test_moduli_of_stress_and_energy_are_compared(copper):
    name = "bulk modulus against that of the EOS"
    agreed = copper.result("elastic constants").quantity(name)
    assert (agreed.verdict, agreed.value) == ("ok", pytest.approx(0, abs=0.5))
    checks = ["equation of state", "elastic constants"]
    crooked = validate(Rough(stress=1.2), bulk("Cu"), checks=checks).result("elastic constants").quantity(name)
    assert (crooked.verdict, crooked.value) == ("suspicious", pytest.approx(20, abs=1))
    assert validate(EMT(), bulk("Cu"), checks=checks[1:]).results[0].quantity(name) is None


def test_axes_that_are_not_the_crystals_are_told(copper):
    turned = bulk("Cu", cubic=True)
    turned.rotate(20, "x", rotate_cell=True)
    found = validate(EMT(), turned, checks=["elastic constants"]).results[0]
    (other,) = [item for item in found.quantities if "largest of the others" in item.name]
    assert "these axes are not those of the crystal's symmetry" in other.why
    assert "Cartesian axes" in found.note
    straight = copper.result("elastic constants")
    assert not [item for item in straight.quantities if "of the others" in item.name]
    hills = [item.quantity("bulk modulus (Hill)").value for item in (found, straight)]
    assert hills[0] == pytest.approx(hills[1], rel=5e-3)


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
