"""Molecular dynamics: the right ensemble, whole trajectories, and explosions that are told."""

from __future__ import annotations

import os
import sqlite3

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read

from ase_finetune import FinetunedCalculator
from ase_finetune.analysis import MDPoint, run_md
from ase_finetune.errors import InputError, OutputError, OutputExistsError, SimulationError
from tests.morse import silicon, truth


def copper(repeat: int = 2) -> Atoms:
    return bulk("Cu", cubic=True).repeat(repeat)


class Mine(Calculator):
    """Pulls all atoms to the origin until they explode, or gives what is no number after a while."""

    implemented_properties = ("energy", "forces")

    def __init__(self, stiffness: float = -50.0, nan_after: int | None = None) -> None:
        super().__init__()
        self.stiffness, self.nan_after, self.calls = stiffness, nan_after, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        x = self.atoms.positions
        energy = 0.5 * self.stiffness * (x**2).sum()
        broken = self.nan_after is not None and self.calls > self.nan_after
        self.results = {"energy": np.nan if broken else energy, "forces": -self.stiffness * x}


@pytest.mark.slow
def test_nvt_has_the_temperature_and_its_fluctuations():
    run = run_md(copper(1), EMT(), temperature=400, picoseconds=30, timestep=4, interval=5, seed=3)
    settled = run.temperatures[200:]
    freedom = 3 * 4 - 3  # the centre of mass rests
    assert settled.mean() == pytest.approx(400, rel=0.06)
    assert settled.std() == pytest.approx(400 * np.sqrt(2 / freedom), rel=0.15)  # of the canonical ensemble
    assert np.abs(run.atoms.get_momenta().sum(axis=0)).max() < 1e-8
    assert run.drift is None


def test_nve_keeps_the_energy_and_shares_it():
    run = run_md(copper(), EMT(), ensemble="nve", temperature=400, picoseconds=1, timestep=2, interval=5)
    assert run.temperatures[0] == pytest.approx(400)
    assert run.temperatures[50:].mean() == pytest.approx(200, rel=0.25), "half of it becomes potential energy"
    assert np.ptp(run.total_energies) / len(run.atoms) < 2e-3
    assert abs(run.drift) < 0.5  # meV/atom/ps


@pytest.mark.slow
def test_npt_finds_the_pressure():
    run = run_md(copper(), EMT(), ensemble="npt", temperature=300, pressure=10, picoseconds=5, timestep=4, interval=5)
    settled = slice(len(run.times) // 2, None)
    assert run.pressures[settled].mean() == pytest.approx(10, abs=1.5)
    assert run.temperatures[settled].mean() == pytest.approx(300, rel=0.15)
    assert run.volumes[settled].mean() < run.volumes[0] * 0.98


def test_the_cell_moves_in_npt_alone():
    volumes = {e: run_md(copper(1), EMT(), ensemble=e, picoseconds=0.1).volumes for e in ("nvt", "nve", "npt")}
    assert np.ptp(volumes["nvt"]) == np.ptp(volumes["nve"]) == 0
    assert 1e-4 < np.ptp(volumes["npt"]) < 5


def test_equal_seeds_give_equal_runs():
    one, two, other = (
        run_md(copper(1), EMT(), picoseconds=0.05, seed=seed, interval=1, keep_positions=True) for seed in (1, 1, 2)
    )
    assert np.array_equal(one.positions, two.positions)
    assert not np.array_equal(one.positions, other.positions)
    assert one.positions.shape == (51, 4, 3)
    assert one.times == pytest.approx(np.arange(51) * 1e-3)


def test_the_structure_given_stays_as_it_is():
    atoms = copper(1)
    before = atoms.copy()
    run = run_md(atoms, EMT(), picoseconds=0.02)
    assert atoms == before
    assert atoms.calc is None
    assert run.positions is None
    assert not run.atoms.constraints
    assert run.atoms.get_potential_energy() == pytest.approx(run.potential_energies[-1])


def test_constraints_are_kept():
    atoms = copper()
    atoms.set_constraint(FixAtoms([0, 5]))
    run = run_md(atoms, EMT(), picoseconds=0.1, timestep=2, temperature=500)
    moved = np.linalg.norm(run.atoms.positions - atoms.positions, axis=1)
    assert moved[[0, 5]].max() == 0
    assert np.delete(moved, [0, 5]).min() > 1e-3


class Spring(Calculator):
    """Two atoms on a stiff spring: their mean potential energy is k_B T / 2, whatever else they do."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        vector = self.atoms.positions[1] - self.atoms.positions[0]
        length = np.linalg.norm(vector)
        pull = 40.0 * (length - 1.5)
        self.results = {
            "energy": 0.5 * pull * (length - 1.5),
            "forces": np.array([pull * vector / length, -pull * vector / length]),
        }


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_molecule_vibrates_at_the_temperature_that_is_told(seed):
    pair = Atoms("Ar2", positions=[(0, 0, 0), (0, 0, 1.5)])
    run = run_md(pair, Spring(), temperature=300, picoseconds=60, timestep=4, interval=3, seed=seed)
    vibration = 2 * run.potential_energies[500:] / units.kB
    assert run.temperatures[500:].mean() == pytest.approx(300, rel=0.1)
    assert vibration.mean() == pytest.approx(300, rel=0.25)


@pytest.mark.parametrize("ensemble", ["nvt", "nve"])
@pytest.mark.parametrize("name", ["H2O", "CO2", "N2"])
def test_molecules_rotate_and_do_not_drift(name, ensemble):
    start = molecule(name)
    run = run_md(start, EMT(), picoseconds=0.2, timestep=0.5, temperature=200, ensemble=ensemble)
    assert np.abs(run.atoms.get_momenta().sum(axis=0)).max() < 1e-8
    assert np.linalg.norm(run.atoms.get_angular_momentum()) > 1e-2
    assert run.temperatures[0] == pytest.approx(200)
    kinetic = run.total_energies[0] - run.potential_energies[0]
    assert kinetic == pytest.approx((3 * len(start) - 3) / 2 * units.kB * 200)


@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".xyz", ".db"])
def test_trajectories_hold_what_was_found(tmp_path, suffix):
    path = tmp_path / f"run{suffix}"
    run = run_md(copper(1), EMT(), picoseconds=0.05, output=path, interval=10, keep_positions=True)
    frames = read(path, ":")
    assert run.path == path
    assert len(frames) == 6
    assert np.abs([f.positions for f in frames] - run.positions).max() < 1e-7
    assert [f.get_potential_energy() for f in frames] == pytest.approx(run.potential_energies, abs=1e-6)
    assert np.abs(frames[-1].get_momenta() - run.atoms.get_momenta()).max() < 1e-6
    assert np.abs(frames[-1].get_forces() - run.atoms.get_forces()).max() < 1e-6
    assert not frames[0].constraints
    with pytest.raises(OutputExistsError, match="choose another name"):
        run_md(copper(1), EMT(), picoseconds=0.01, output=path)
    assert len(read(path, ":")) == 6


@pytest.mark.parametrize("suffix", [".traj", ".extxyz"])
def test_a_trajectory_can_be_read_while_it_grows(tmp_path, suffix):
    path, seen = tmp_path / f"run{suffix}", []
    run_md(copper(1), EMT(), picoseconds=0.03, output=path, on_interval=lambda _: seen.append(len(read(path, ":"))))
    assert seen == [1, 2, 3, 4]


def test_a_full_disk_leaves_whole_frames(tmp_path, monkeypatch):
    from ase_finetune.analysis import frame_files

    path, calls = tmp_path / "run.extxyz", []

    def half(text: bytes) -> bytes:
        calls.append(text)
        if len(calls) == 3:
            monkeypatch.setattr(os, "fstat", _full(os.fstat))
        return text

    def _full(original):
        def fstat(descriptor):
            raise OSError(28, "No space left on device")

        return fstat

    as_text = frame_files._as_text
    monkeypatch.setattr(frame_files, "_as_text", lambda frame: half(as_text(frame)))
    with pytest.raises(OutputError, match="No space left on device; its earlier frames are whole"):
        run_md(copper(1), EMT(), picoseconds=0.05, output=path)
    monkeypatch.undo()
    assert len(read(path, ":")) == 2


def test_a_database_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    from ase_finetune.analysis import frame_files

    def locked(_path):
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(frame_files, "connect", locked)
    with pytest.raises(OutputError, match=r"run\.db cannot be written: database is locked"):
        run_md(copper(1), EMT(), picoseconds=0.01, output=tmp_path / "run.db")


def test_every_point_is_told():
    points: list[MDPoint] = []
    run = run_md(copper(1), EMT(), picoseconds=0.05, interval=20, on_interval=points.append)
    assert [point.step for point in points] == [0, 20, 40, 50], "the end is one of them"
    assert [point.temperature for point in points] == run.temperatures.tolist()
    assert points[1].total_energy > points[1].potential_energy
    assert points[1].volume == pytest.approx(copper(1).get_volume())


def test_pressure_is_told_where_it_costs_nothing():
    calc = FinetunedCalculator(truth(), device="cpu")
    (atoms,) = silicon(1, 0)
    run = run_md(atoms, calc, picoseconds=0.01, interval=5)
    ideal = len(atoms) * units.kB * run.temperatures[0] / atoms.get_volume() * (7 / 8)  # 3N - 3 that move
    stress = calc.calculate_many([atoms])[0]["stress"]
    assert run.pressures[0] == pytest.approx((ideal - stress[:3].mean()) / units.GPa, rel=1e-4)
    assert np.isnan(run_md(molecule("N2"), EMT(), picoseconds=0.01).pressures).all()


def test_an_explosion_is_told_and_earlier_frames_stay(tmp_path):
    path = tmp_path / "run.traj"
    with pytest.raises(SimulationError, match=r"exploded after 0\.\d+ ps \(step \d+\): its temperature is .* relax it"):
        run_md(copper(1), Mine(stiffness=-1.0), picoseconds=1, output=path, interval=1)
    assert len(read(path, ":")) > 2
    assert np.isfinite(read(path, "-1").positions).all()


def test_energies_that_are_no_numbers_are_told():
    with pytest.raises(SimulationError, match="the energy is nan"):
        run_md(copper(1), Mine(stiffness=1.0, nan_after=15), picoseconds=1)
    with pytest.raises(SimulationError, match="cannot be simulated: the energy is nan"):
        run_md(copper(1), Mine(stiffness=1.0, nan_after=0), picoseconds=1)


def test_atoms_that_coincide_are_told():
    atoms = copper(1)
    atoms.positions[1] = atoms.positions[0] + 0.1
    with pytest.raises(SimulationError, match=r"atoms 0 and 1 are closer than 0.4 Å"):
        run_md(atoms, EMT(), picoseconds=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": "nvp"}, "ensemble must be"),
        ({"temperature": -3}, "temperature must be positive"),
        ({"temperature": 0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"timestep": 0}, "timestep must be positive"),
        ({"interval": 0}, "interval must be a whole number of at least 1"),
        ({"interval": 2.5}, "interval must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"picoseconds": 1e-5}, "shorter than one timestep"),
        ({"pressure": 1.0}, "has no effect"),
        ({"ensemble": "npt", "pressure": float("inf")}, "pressure must be finite"),
        ({"output": "run.cif"}, r"must end in one of \.traj"),
        ({"output": "missing/run.traj"}, "there is no folder missing"),
        ({"output": "missing/run.db"}, "there is no folder missing"),
    ],
)
def test_unusable_arguments_are_named(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, OutputError), match=message):
        run_md(copper(1), EMT(), **({"picoseconds": 0.01} | options))


def test_what_cannot_move_is_told():
    with pytest.raises(InputError, match="nothing that can move"):
        run_md(bulk("Cu"), EMT())
    with pytest.raises(InputError, match="'npt' needs a structure that is periodic"):
        run_md(molecule("N2"), EMT(), ensemble="npt")
    fixed = copper(1)
    fixed.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match="cannot keep constraints"):
        run_md(fixed, EMT(), ensemble="npt")
