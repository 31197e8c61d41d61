"""Molecular dynamics with ASE's integrators, watched: what explodes is stopped with an error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.bussi import Bussi
from ase.md.nose_hoover_chain import MTKNPT
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray
from tqdm import tqdm

from ase_finetune.analysis.frame_files import FrameFile, bare_frame
from ase_finetune.analysis.velocities import thermalize
from ase_finetune.analysis.watching import MDPoint, Watched
from ase_finetune.errors import InputError
from ase_finetune.graphs import check_atoms

Ensemble = Literal["nvt", "nve", "npt"]
Array = NDArray[np.float64]

#: Time constants of thermostat and barostat, in fs: the usual 100 and 1000 steps of 1 fs.
THERMOSTAT_TIME, BAROSTAT_TIME = 100.0, 1000.0


@dataclass(frozen=True)
class MDRun:
    """What a run has found; its arrays have one value per recorded point, the first at time 0.

    Attributes
    ----------
    atoms
        The end, with momenta and the last results.
    times
        (f,) ps.
    temperatures
        (f,) K.
    potential_energies, total_energies
        (f,) eV of the whole structure.
    volumes, pressures
        (f,) Å³ and GPa; NaN where there is none.
    drift
        Of the total energy in meV/atom/ps, by a straight line through all points; only for ``"nve"``, and with
        at least three points.
    path
        Of the trajectory; ``None`` if none was written.
    positions
        (f, n, 3) in Å, never wrapped into the cell; ``None`` unless they were to be kept.
    steps, seconds
        Steps made, and how long they took.
    """

    atoms: Atoms
    times: Array
    temperatures: Array
    potential_energies: Array
    total_energies: Array
    volumes: Array
    pressures: Array
    drift: float | None
    path: Path | None
    positions: Array | None
    steps: int
    seconds: float


def run_md(
    atoms: Atoms,
    calc: Calculator,
    *,
    temperature: float = 300.0,
    picoseconds: float = 1.0,
    timestep: float = 1.0,
    ensemble: Ensemble = "nvt",
    pressure: float = 0.0,
    output: str | os.PathLike[str] | None = None,
    interval: int = 10,
    seed: int = 0,
    progress: bool | None = None,
    on_interval: Callable[[MDPoint], object] | None = None,
    keep_positions: bool = False,
) -> MDRun:
    """Run molecular dynamics from new random velocities, at rest as a whole; free molecules rotate.

    ``"nvt"`` is ASE's :class:`ase.md.bussi.Bussi`: stochastic velocity rescaling samples the canonical ensemble
    and, unlike Langevin's friction, hardly disturbs how atoms move, so diffusion coefficients keep their meaning.
    ``"npt"`` is :class:`ase.md.nose_hoover_chain.MTKNPT`, in which all cell vectors move (a liquid may shear its
    cell without end). ``"nve"`` is :class:`ase.md.verlet.VelocityVerlet`.

    Parameters
    ----------
    atoms
        Start; not changed. Velocities it has are not used. Constraints are honoured, but for ``"npt"``.
    calc
        Any ASE calculator.
    temperature
        K; that of the initial velocities in ``"nve"``, where a relaxed structure settles near half of it.
    picoseconds
        Length of the run.
    timestep
        fs. 1 is for light atoms; without hydrogen 2 is common.
    ensemble
        ``"nvt"``, ``"nve"`` or ``"npt"``.
    pressure
        GPa, for ``"npt"``.
    output
        New file for the trajectory: ``.traj``, ``.extxyz``, ``.xyz`` or ``.db``. It can be read at any time.
    interval
        Steps from one recorded point and frame to the next; the last step is recorded in any case.
    seed
        Of all random numbers, at least 0: equal seeds give equal runs.
    progress
        Show a progress bar; ``None`` does on terminals.
    on_interval
        Called with each recorded point.
    keep_positions
        Keep the positions of all recorded points in memory.

    Returns
    -------
    Temperatures, energies and volumes of the recorded points, the last structure, and the drift.

    Raises
    ------
    InputError
        If an argument is not usable, or there is nothing that can move.
    SimulationError
        If positions, energies or forces are no longer finite, two atoms coincide, or the temperature or the volume
        have left all bounds. The frames before are in ``output``.
    OutputExistsError, OutputError
        If ``output`` exists or cannot be written.

    References
    ----------
    G. Bussi, D. Donadio, M. Parrinello, J. Chem. Phys. 126, 014101 (2007).
    G. J. Martyna, D. J. Tobias, M. L. Klein, J. Chem. Phys. 101, 4177 (1994).
    """
    _check_whole(interval=(interval, 1), seed=(seed, 0))
    steps = _check(atoms, ensemble, temperature, picoseconds, timestep, pressure)
    rng = np.random.default_rng(seed)
    moving = atoms.copy()
    moving.calc = calc
    velocities = thermalize(moving, temperature, rng, fix_center=ensemble != "npt")
    dynamics = _integrator(moving, ensemble, timestep, velocities.ase_temperature(temperature), pressure, rng)
    watched = Watched(moving, velocities, timestep, temperature, on_interval, keep_positions)
    start = time.perf_counter()
    with ExitStack() as stack:
        file = None if output is None else stack.enter_context(FrameFile(Path(output)))
        bar = stack.enter_context(_bar(steps, progress))
        watched.record(0, file)
        for step in range(1, steps + 1):
            watched.advance(dynamics, step)
            bar.update()
            if step % interval == 0 or step == steps:
                point = watched.record(step, file)
                bar.set_postfix_str(f"{point.temperature:.0f} K", refresh=False)
    return _finished(watched, ensemble, None if file is None else file.path, steps, time.perf_counter() - start)


def _finished(watched: Watched, ensemble: str, path: Path | None, steps: int, seconds: float) -> MDRun:
    points = watched.points
    found = {name: np.array([getattr(point, name) for point in points]) for name in _COLUMNS}
    drift = None
    if ensemble == "nve" and len(points) > 2:
        slope = np.polyfit(found["time"], found["total_energy"], 1)[0]
        drift = float(1e3 * slope / len(watched.atoms))
    return MDRun(
        atoms=bare_frame(watched.atoms),
        times=found["time"],
        temperatures=found["temperature"],
        potential_energies=found["potential_energy"],
        total_energies=found["total_energy"],
        volumes=found["volume"],
        pressures=found["pressure"],
        drift=drift,
        path=path,
        positions=None if watched.positions is None else np.array(watched.positions),
        steps=steps,
        seconds=seconds,
    )


_COLUMNS = ("time", "temperature", "potential_energy", "total_energy", "volume", "pressure")


def _check(
    atoms: Atoms,
    ensemble: str,
    temperature: float,
    picoseconds: float,
    timestep: float,
    pressure: float,
) -> int:
    """The number of steps, of arguments that can be used."""
    if ensemble not in ("nvt", "nve", "npt"):
        raise InputError(f"ensemble must be 'nvt', 'nve' or 'npt', got {ensemble!r}")
    for name, value in (("picoseconds", picoseconds), ("timestep", timestep)):
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} must be positive and finite, got {value}")
    if not np.isfinite(temperature) or temperature < 0 or (temperature == 0 and ensemble != "nve"):
        raise InputError(f"temperature must be positive and finite (0 K is for ensemble='nve'), got {temperature}")
    steps = round(1e3 * picoseconds / timestep)
    if steps < 1:
        raise InputError(f"picoseconds={picoseconds} is shorter than one timestep of {timestep} fs")
    check_atoms(atoms)
    _check_pressure(atoms, ensemble, pressure)
    return steps


def _check_whole(**values: tuple[int, int]) -> None:
    """Refuse what is no whole number, or less than the least; values are (number, least)."""
    for name, (value, least) in values.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_pressure(atoms: Atoms, ensemble: str, pressure: float) -> None:
    if not np.isfinite(pressure):
        raise InputError(f"pressure must be finite, got {pressure}")
    if ensemble != "npt":
        if pressure:
            raise InputError(f"pressure={pressure} has no effect on ensemble={ensemble!r}; use 'npt'")
        return
    if not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise InputError("ensemble='npt' needs a structure that is periodic in all directions")
    if atoms.constraints:
        raise InputError("ensemble='npt' cannot keep constraints; remove them or use 'nvt'")


def _integrator(
    atoms: Atoms, ensemble: str, timestep: float, temperature: float, pressure: float, rng: np.random.Generator
) -> Any:
    step = timestep * units.fs
    if ensemble == "nve":
        return VelocityVerlet(atoms, step)
    if ensemble == "nvt":
        return Bussi(atoms, step, temperature_K=temperature, taut=THERMOSTAT_TIME * units.fs, rng=rng)
    return MTKNPT(
        atoms,
        step,
        temperature_K=temperature,
        pressure_au=pressure * units.GPa,
        tdamp=THERMOSTAT_TIME * units.fs,
        pdamp=BAROSTAT_TIME * units.fs,
    )


def _bar(steps: int, progress: bool | None) -> tqdm[Any]:
    hidden = None if progress is None else not progress  # tqdm hides itself where there is no terminal if it is None
    return tqdm(total=steps, desc="MD", unit="step", leave=False, disable=hidden)
