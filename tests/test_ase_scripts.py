"""Standard ASE scripts, unchanged, with ``atoms.calc = FinetunedCalculator("7net-0")``."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.phonons import Phonons

from ase_finetune import FinetunedCalculator
from tests.pretrained import path_or_skip, sevennet_calculator

pytestmark = pytest.mark.sevenn


@pytest.fixture(scope="module")
def calculator():
    """One calculator for all scripts; the name is what a user writes."""
    path_or_skip("7net-0")
    return FinetunedCalculator("7net-0", device="cpu", dtype="float64")


def thermalize(atoms: Atoms, temperature: float) -> None:
    rng = np.random.default_rng(0)
    thermal = np.sqrt(atoms.get_masses()[:, None] * temperature * units.kB)
    atoms.set_momenta(thermal * rng.normal(size=(len(atoms), 3)))


def test_bfgs_relaxes_a_molecule(calculator):
    water = molecule("H2O")
    water.rattle(0.05, seed=0)
    water.calc = calculator
    before = water.get_potential_energy()
    assert BFGS(water, logfile=None).run(fmax=0.02, steps=30)
    assert water.get_potential_energy() < before
    assert np.linalg.norm(water.get_forces(), axis=1).max() < 0.02
    assert water.get_distance(0, 1) == pytest.approx(0.97, abs=0.03)
    assert water.get_angle(1, 0, 2) == pytest.approx(104.5, abs=4)


def test_fire_relaxes_a_cell(calculator):
    silicon = bulk("Si", a=5.7)
    silicon.rattle(0.05, seed=1)
    silicon.calc = calculator
    assert FIRE(FrechetCellFilter(silicon), logfile=None).run(fmax=0.02, steps=100)
    assert np.abs(silicon.get_stress() * silicon.get_volume()).max() < 0.05
    assert (4 * silicon.get_volume()) ** (1 / 3) == pytest.approx(5.47, abs=0.03)  # PBE
    assert silicon.cell.angles() == pytest.approx([60] * 3, abs=0.5)


def test_velocity_verlet_keeps_the_energy(calculator, record_property, capsys):
    silicon = bulk("Si")
    silicon.calc = calculator
    thermalize(silicon, 600)
    energies = []
    dynamics = VelocityVerlet(silicon, 1.0 * units.fs)
    dynamics.attach(lambda: energies.append(silicon.get_total_energy()))
    dynamics.run(20)
    kinetic = silicon.get_kinetic_energy()
    drift = (np.max(energies) - np.min(energies)) / len(silicon)
    record_property("energy_drift_eV_per_atom", drift)
    with capsys.disabled():
        print(f"\n7net-0, Si2, 600 K, 20 steps of 1 fs, float64: total energy within {1e3 * drift:.4f} meV/atom")  # noqa: T201
    assert len(energies) == 21
    assert kinetic > 0.01
    assert drift < 2e-5


def test_langevin_thermostat(calculator):
    salt = bulk("NaCl", "rocksalt", a=5.69)
    salt.calc = calculator
    dynamics = Langevin(
        salt, 2 * units.fs, temperature_K=600, friction=0.05 / units.fs, fixcm=False, rng=np.random.default_rng(0)
    )
    temperatures = []
    dynamics.attach(lambda: temperatures.append(salt.get_temperature()))
    dynamics.run(25)
    assert temperatures[0] == 0
    assert 50 < np.mean(temperatures[-10:]) < 3000
    assert np.isfinite(salt.get_forces()).all()


def test_equation_of_state(calculator):
    volumes, energies = [], []
    for factor in np.linspace(0.98, 1.02, 5):
        copper = bulk("Cu", a=3.63 * factor)
        copper.calc = calculator
        volumes.append(copper.get_volume())
        energies.append(copper.get_potential_energy())
    volume, energy, modulus = EquationOfState(volumes, energies).fit()
    assert (4 * volume) ** (1 / 3) == pytest.approx(3.63, abs=0.04)
    assert energy < min(energies) + 1e-4
    assert modulus / units.GPa == pytest.approx(140, abs=25)


@pytest.mark.parametrize("shared", [True, False])
def test_nudged_elastic_band(calculator, shared):
    """A hydrogen atom exchanges its partner in H3: a small barrier in the middle."""
    initial = Atoms("H3", positions=[(0, 0, 0), (0, 0, 0.77), (0, 0, 2.6)])
    final = initial.copy()
    final.positions[1, 2] = 2.6 - 0.77
    images = [initial, *(initial.copy() for _ in range(3)), final]
    for image in images:
        # The calculator may be shared between images or be each image's own.
        image.calc = calculator if shared else FinetunedCalculator(calculator.potential)
    band = NEB(images, method="improvedtangent", allow_shared_calculator=shared)
    band.interpolate()
    FIRE(band, logfile=None).run(fmax=0.1, steps=5)
    energies = np.array([image.get_potential_energy() for image in images])
    assert energies[0] == pytest.approx(energies[-1], abs=1e-8)
    assert energies[1:-1].max() > energies[0] + 0.02
    assert energies[1] == pytest.approx(energies[-2], abs=1e-6)


def run_phonons(calculator, folder, supercell):
    silicon = bulk("Si", a=5.46)
    folder.mkdir()
    phonons = Phonons(silicon, calculator, supercell=supercell, delta=0.02, name=str(folder / "phonon"))
    phonons.run()
    phonons.read(acoustic=True)
    return phonons.band_structure([(0, 0, 0), (0.5, 0.5, 0)])


def test_phonons(calculator, tmp_path):
    gamma, _ = run_phonons(calculator, tmp_path / "ours", (1, 1, 1))
    peer, _ = run_phonons(sevennet_calculator(path_or_skip("7net-0")), tmp_path / "peer", (1, 1, 1))
    assert gamma[:3] == pytest.approx([0, 0, 0], abs=1e-3)  # eV
    assert gamma[3:] == pytest.approx([gamma[3]] * 3, rel=1e-6)
    assert gamma[3:] == pytest.approx(peer[3:], rel=2e-3)  # the peer has float32 only
    assert gamma[3] == pytest.approx(0.052, abs=0.002)  # measured: 64 meV, universal potentials are too soft


def test_phonons_of_a_supercell(calculator, tmp_path):
    gamma, edge = run_phonons(calculator, tmp_path / "phonons", (2, 2, 2))
    assert np.abs(gamma[:3]).max() < 1e-3
    assert gamma[3] == pytest.approx(0.052, abs=0.002)
    assert edge[0] > 0.005, "the crystal is stable"
    assert edge[:2] == pytest.approx([edge[0]] * 2, rel=1e-3)  # the transverse acoustic modes at X are a pair
