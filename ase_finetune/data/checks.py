"""Labels against what the pretrained model predicts: wrong units and signs, and outliers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ase_finetune.data.frame import Frame
from ase_finetune.data.frames import FrameSet
from ase_finetune.data.unit_checks import UnitCheck
from ase_finetune.errors import InputError
from ase_finetune.graphs.neighbors import FloatArray


def check_units(
    frames: FrameSet,
    predicted_forces: Sequence[FloatArray | None],
    predicted_stress: Sequence[FloatArray | None] | None = None,
) -> list[str]:
    """Compare forces and stress labels with the pretrained model's predictions.

    Parameters
    ----------
    frames
        Labelled frames.
    predicted_forces
        (n, 3) of each frame in eV/Å.
    predicted_stress
        (6,) of each frame in eV/Å³; without them only the forces are checked.

    Returns
    -------
    Notes on labels that hardly go with the predictions, without a factor that would explain it.

    Raises
    ------
    DataError
        If other units, virials or the wrong sign explain the labels much better; with the factor and
        the line that mends it.
    InputError
        If there are not as many predictions as frames.
    """
    _check_length(frames, predicted_forces, "forces")
    stresses = [None] * len(frames) if predicted_stress is None else predicted_stress
    _check_length(frames, stresses, "stress")
    check = UnitCheck(frames.name)
    for frame, forces, stress in zip(frames, predicted_forces, stresses, strict=True):
        check.add(frame, forces, stress)
    return check.notes()


def outliers(
    frames: FrameSet,
    predicted_energies: Sequence[float] | None = None,
    predicted_forces: Sequence[FloatArray | None] | None = None,
    *,
    threshold: float = 20.0,
) -> list[str]:
    """Notes on frames whose labels are far from the predictions, compared with the other frames.

    Such frames are often unconverged or of another setting. They are told, never removed.

    Parameters
    ----------
    frames
        Labelled frames, with energies in the model's reference (see :func:`align`) if their
        compositions vary.
    predicted_energies
        eV.
    predicted_forces
        (n, 3) of each frame in eV/Å.
    threshold
        In robust standard deviations (1.4826 times the median absolute deviation).

    Raises
    ------
    InputError
        If there are not as many predictions as frames.
    """
    for given, what in ((predicted_energies, "energies"), (predicted_forces, "forces")):
        if given is not None:
            _check_length(frames, given, what)
    check = PredictionCheck(frames)
    for position, frame in enumerate(frames):
        energy = None if predicted_energies is None else float(predicted_energies[position])
        forces = None if predicted_forces is None else predicted_forces[position]
        check.compare(position, frame, energy, forces)
    return check.outliers(threshold)


class PredictionCheck:
    """:func:`check_units` and :func:`outliers` on predictions that come one at a time, in any order.

    Memory holds a few numbers per frame, and none of the frames or predictions.

    Parameters
    ----------
    frames
        Labelled frames.

    Attributes
    ----------
    energies
        Predicted energy of each frame in eV; ``nan`` where none has come.
    """

    def __init__(self, frames: FrameSet) -> None:
        self.energies: list[float] = [math.nan] * len(frames)
        self._frames = frames
        self._units = UnitCheck(frames.name)
        self._energy_errors: dict[int, float] = {}
        self._force_errors: dict[int, float] = {}

    def add(
        self, position: int, energy: float, forces: FloatArray | None = None, stress: FloatArray | None = None
    ) -> None:
        """The prediction for a frame: eV, (n, 3) in eV/Å and (6,) in eV/Å³."""
        frame = self._frames[position]
        self.energies[position] = energy
        self._units.add(frame, forces, stress)
        self.compare(position, frame, energy, forces)

    def compare(self, position: int, frame: Frame, energy: float | None, forces: FloatArray | None) -> None:
        """Note how far labels of a frame are from the prediction, without judging units."""
        if energy is not None and frame.energy is not None:
            self._energy_errors[position] = (frame.energy - energy) / len(frame.atoms)
        if forces is not None and frame.forces is not None:
            self._force_errors[position] = float(np.linalg.norm(frame.forces - forces, axis=1).max())

    def notes(self) -> list[str]:
        """Notes of :func:`check_units`, then of :func:`outliers`.

        Raises
        ------
        DataError
            As :func:`check_units`.
        """
        return [*self._units.notes(), *self.outliers()]

    def outliers(self, threshold: float = 20.0) -> list[str]:
        """As :func:`outliers`."""
        # The floors keep sets that are fitted all but perfectly from raising alarms over nothing.
        energy = ("energy", "eV/atom from the median difference")
        forces = ("largest force error", "eV/Å from the median")
        return [
            *_far_off(self._frames, self._energy_errors, 1e-3, threshold, *energy),
            *_far_off(self._frames, self._force_errors, 1e-2, threshold, *forces),
        ]


def _far_off(
    frames: FrameSet, values: dict[int, float], floor: float, threshold: float, what: str, unit: str
) -> list[str]:
    if len(values) < 3:
        return []
    positions = sorted(values)
    array = np.array([values[position] for position in positions])
    distance = array - np.median(array)
    spread = max(1.4826 * float(np.median(np.abs(distance))), floor)
    return [
        f"{frames.describe(position)}: {what} {delta:+.3g} {unit}, {abs(delta) / spread:.0f} robust deviations"
        for position, delta in zip(positions, distance, strict=True)
        if abs(delta) > threshold * spread
    ]


def _check_length(frames: FrameSet, predicted: Sequence[object], what: str) -> None:
    if len(predicted) != len(frames):
        raise InputError(f"{len(predicted)} predictions of {what} for the {len(frames)} frames of {frames.name}")
