"""A moving structure under watch: what is recorded of it, and when it has exploded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from ase_finetune.analysis.frame_files import FrameFile
from ase_finetune.analysis.velocities import Velocities
from ase_finetune.errors import InputError, SimulationError
from ase_finetune.graphs import neighbor_list

Array = NDArray[np.float64]

#: A structure this many times hotter than asked for has exploded; what starts unrelaxed may warm up by some hundred K.
LARGEST_TEMPERATURE_RATIO, LEAST_REFERENCE_TEMPERATURE = 10.0, 300.0

#: So has one whose volume has changed by this factor, or with two atoms closer than this (Å): H2 is 0.74 Å long.
LARGEST_VOLUME_RATIO, SHORTEST_DISTANCE = 3.0, 0.4


@dataclass(frozen=True)
class MDPoint:
    """The state at one moment of a run.

    Attributes
    ----------
    step, time
        Steps made, and the time in ps.
    temperature
        K, over the degrees of freedom that move.
    potential_energy, total_energy
        eV of the whole structure.
    volume
        Å³; NaN without a cell.
    pressure
        GPa, the atoms' motion included; NaN where the calculator does not give a stress on its own.
    """

    step: int
    time: float
    temperature: float
    potential_energy: float
    total_energy: float
    volume: float
    pressure: float


class Watched:
    """A moving structure and what has been recorded of it.

    Parameters
    ----------
    atoms
        What moves, with its calculator.
    velocities
        Their degrees of freedom.
    timestep, temperature
        fs, and what was asked for in K.
    report
        Called with each recorded point.
    keep_positions
        Keep (n, 3) positions of each recorded point.

    Attributes
    ----------
    points, positions
        What was recorded; ``positions`` is ``None`` if they are not kept.
    """

    def __init__(
        self,
        atoms: Atoms,
        velocities: Velocities,
        timestep: float,
        temperature: float,
        report: Callable[[MDPoint], object] | None,
        keep_positions: bool,
    ) -> None:
        self.atoms, self._velocities, self._timestep, self._report = atoms, velocities, timestep, report
        # The temperature of a few degrees of freedom fluctuates widely.
        few = 1 + 10 / velocities.moving
        self._hottest = LARGEST_TEMPERATURE_RATIO * few * max(temperature, LEAST_REFERENCE_TEMPERATURE)
        self._volume = atoms.cell.volume
        self.points: list[MDPoint] = []
        self.positions: list[Array] | None = [] if keep_positions else None

    def advance(self, dynamics: Any, step: int) -> None:
        """Make one step.

        Raises
        ------
        SimulationError
            If it has exploded.
        """
        try:
            with np.errstate(all="ignore"):  # what overflows is noticed and reported below
                dynamics.step()
                self.atoms.get_forces()
        except (InputError, ValueError, FloatingPointError, np.linalg.LinAlgError) as error:
            raise self._exploded(step, str(error)) from error
        self._check(step)

    def record(self, step: int, file: FrameFile | None) -> MDPoint:
        """Write a frame and report where the run is."""
        self._check_distances(step)
        point = self._point(step)
        if not np.isfinite(point.total_energy):
            raise self._exploded(step, f"the energy is {point.total_energy} eV")
        self.points.append(point)
        if self.positions is not None:
            self.positions.append(self.atoms.get_positions())
        if file is not None:
            file.append(self.atoms)
        if self._report is not None:
            self._report(point)
        return point

    def _point(self, step: int) -> MDPoint:
        atoms = self.atoms
        energy = float(atoms.get_potential_energy())
        volume = atoms.cell.volume if atoms.cell.rank == 3 else np.nan
        pressure = np.nan
        if "stress" in atoms.calc.results and atoms.cell.rank == 3:  # where it cost nothing
            stress = atoms.get_stress(include_ideal_gas=True)
            pressure = -float(stress[:3].mean()) / units.GPa
        return MDPoint(
            step=step,
            time=1e-3 * step * self._timestep,
            temperature=self._velocities.temperature(atoms),
            potential_energy=energy,
            total_energy=energy + float(atoms.get_kinetic_energy()),
            volume=float(volume),
            pressure=pressure,
        )

    def _check(self, step: int) -> None:
        atoms = self.atoms
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.get_forces()).all()):
            raise self._exploded(step, "positions or forces are not finite")
        temperature = self._velocities.temperature(atoms)
        if not temperature <= self._hottest:
            raise self._exploded(step, f"its temperature is {temperature:.3g} K")
        if self._volume > 0:
            ratio = atoms.cell.volume / self._volume
            if not 1 / LARGEST_VOLUME_RATIO <= ratio <= LARGEST_VOLUME_RATIO:
                raise self._exploded(step, f"its volume has changed by a factor of {ratio:.3g}")

    def _check_distances(self, step: int) -> None:
        try:
            pairs = neighbor_list(self.atoms, SHORTEST_DISTANCE)[0]
        except InputError as error:
            raise self._exploded(step, str(error)) from error
        if pairs.shape[1]:
            i, j = pairs[:, 0]
            raise self._exploded(step, f"atoms {i} and {j} are closer than {SHORTEST_DISTANCE} Å")

    def _exploded(self, step: int, reason: str) -> SimulationError:
        when = f"{1e-3 * step * self._timestep:.4g} ps (step {step})"
        if step == 0:
            return SimulationError(f"the structure cannot be simulated: {reason}")
        return SimulationError(
            f"the structure has exploded after {when}: {reason}; relax it first, take a smaller timestep, or mistrust "
            "the potential here"
        )
