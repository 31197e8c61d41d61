"""Short molecular dynamics: does the structure hold together, and does anything diffuse?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from ase import Atoms, units
from ase.md.analysis import DiffusionCoefficient

from ase_finetune.analysis.dynamics import MDRun, run_md
from ase_finetune.analysis.validation.arguments import require, require_whole
from ase_finetune.analysis.validation.material import Material, NotApplicableError, attached, nearest_distance, repeats
from ase_finetune.analysis.validation.results import Findings, Quantity
from ase_finetune.errors import InputError

#: fs between frames, if the timestep allows, and the part of a run in which it settles.
FRAME_TIME, IGNORED = 10.0, 0.2

#: 1 Å²/ps.
_CM2_PER_S = 1e-4


@dataclass(frozen=True)
class Diffusion:
    """Self-diffusion coefficients of a run in the canonical ensemble, by ASE's :class:`DiffusionCoefficient`.

    The mean squared displacement of each element is 6 D t. The run is cut into segments after its first fifth; the
    scatter of their slopes says what the mean is worth, and a coefficient that is too small for the length of the
    run is reported as not resolved.

    Parameters
    ----------
    temperature
        K.
    picoseconds
        Length of the run. The default is short: it finds only what is as mobile as a melt or a superionic conductor.
    timestep
        fs; ``None`` is 1 with hydrogen and 2 without.
    segments
        At least 2 parts the run is cut into.
    length, largest
        The supercell is repeated to this length in Å, if it does not get more atoms than this.
    """

    name: ClassVar[str] = "diffusion"
    cost: ClassVar[float] = 12.0
    temperature: float = 600.0
    picoseconds: float = 1.0
    timestep: float | None = None
    segments: int = 4
    length: float = 6.0
    largest: int = 24

    def __post_init__(self) -> None:
        """Refuse options that cannot be used."""
        require(self, temperature=0, picoseconds=0, length=0)
        require_whole(self, segments=2, largest=2)
        if self.timestep is not None:
            require(self, timestep=0)
        least = 1e-3 * FRAME_TIME * 2 * self.segments / (1 - IGNORED)
        if self.picoseconds < least:
            raise InputError(
                f"Diffusion(picoseconds={self.picoseconds:g}) is too short for {self.segments} segments of two frames, "
                f"{FRAME_TIME:g} fs apart, after the first fifth: at least {least:.3g} ps"
            )

    def run(self, material: Material) -> Findings:
        """Run and fit.

        Raises
        ------
        SimulationError
            If the structure explodes.
        """
        material.require_solid("diffusion")
        atoms = material.relaxed.repeat(repeats(material.relaxed, self.length, self.largest, alike=False))
        if len(atoms) < 2:
            raise NotApplicableError(
                "the supercell has a single atom; allow more with Diffusion(length=..., largest=...)"
            )
        timestep = self.timestep or (1.0 if 1 in atoms.numbers else 2.0)
        run = run_md(
            attached(atoms, material.calc),
            material.calc,
            temperature=self.temperature,
            picoseconds=self.picoseconds,
            timestep=timestep,
            interval=max(1, round(FRAME_TIME / timestep)),
            seed=material.seed,
            progress=False,
            keep_positions=True,
        )
        quantities = self._coefficients(run)
        settled = run.temperatures[int(IGNORED * len(run.temperatures)) :]
        quantities.append(Quantity("mean temperature", float(settled.mean()), "K"))
        return Findings(
            [Quantity("run without explosion", self.picoseconds, "ps", "ok"), *quantities],
            f"{len(atoms)} atoms, {self.picoseconds:g} ps at {self.temperature:g} K (NVT), {self.segments} segments",
        )

    def _coefficients(self, run: MDRun) -> list[Quantity]:
        assert run.positions is not None
        frames = [Atoms(run.atoms.numbers, positions=positions) for positions in run.positions]
        apart = run.times[1] - run.times[0]
        if run.times[-1] - run.times[-2] < 0.999 * apart:
            frames.pop()  # the last step of a run is recorded in any case; the fit takes frames at equal distances
        ignored = int(IGNORED * len(frames))
        spacing = apart * 1e3 * units.fs
        fit = DiffusionCoefficient(frames, spacing)
        fit.calculate(ignore_n_images=ignored, number_of_segments=self.segments)
        # Vibration looks like diffusion until atoms have gone half of the way to a neighbour's place.
        way = 0.5 * nearest_distance(run.atoms)
        least = way**2 / (6 * (run.times[-1] - run.times[ignored])) * _CM2_PER_S
        found = []
        for symbol, slopes in zip(fit.types_of_atoms, np.asarray(fit.slopes).mean(axis=2), strict=True):
            values = slopes * 1e3 * units.fs * _CM2_PER_S
            error = values.std(ddof=1) / np.sqrt(len(values))
            lost = f"not resolved: a run of this length cannot distinguish less than {least:.1g} cm²/s from vibration"
            resolved = values.mean() > max(least, 2 * error)
            found += [
                Quantity(f"D({symbol})", float(values.mean()), "cm²/s", "not judged", "" if resolved else lost),
                Quantity(f"D({symbol}), standard error", float(error), "cm²/s"),
            ]
        return found
