"""Labels against what the pretrained model predicts: wrong units and signs, and outliers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


@dataclass(frozen=True)
class Outlier:
    """A frame whose labels are far off: its position in the set, and why, in words that name it.

    Parameters
    ----------
    position
        Of the frame in its set.
    text
        Which label is how far off, in words that name the frame.
    """

    position: int
    text: str


def find_outliers(
    frames: FrameSet,
    *,
    energy: Sequence[float] = (),
    forces: Sequence[float] = (),
    stress: Sequence[float] = (),
    threshold: float = 20.0,
) -> list[Outlier]:
    """Frames whose labels are far from the predictions, compared with the other frames.

    Such frames are often unconverged or of another setting.

    Parameters
    ----------
    frames
        Labelled frames.
    energy, forces, stress
        How far each frame is from the prediction: energy in eV/atom, with its sign and in the model's reference (see
        :func:`align`) if compositions vary; largest force error in eV/Å; largest stress error in eV/Å³. ``nan`` where
        there is no label.
    threshold
        In robust standard deviations (1.4826 times the median absolute deviation).
    """
    # The floors keep sets that are fitted all but perfectly from raising alarms over nothing.
    return [
        *_far_off(frames, energy, 1e-3, threshold, "energy", "eV/atom from the median difference"),
        *_far_off(frames, forces, 1e-2, threshold, "largest force error", "eV/Å from the median"),
        *_far_off(frames, stress, 1e-3, threshold, "largest stress error", "eV/Å³ from the median"),
    ]


class PredictionCheck:
    """Compares labels with predictions that come one at a time, in any order.

    Memory holds a few numbers per frame, and none of the frames or predictions.

    Parameters
    ----------
    frames
        Labelled frames.

    Attributes
    ----------
    energies
        Predicted energy of each frame in eV; ``nan`` where none has come.
    force_errors, stress_errors
        Largest error of each frame in eV/Å and eV/Å³; ``nan`` where there is no label or prediction.
    """

    def __init__(self, frames: FrameSet) -> None:
        self.energies, self.force_errors, self.stress_errors = ([math.nan] * len(frames) for _ in range(3))
        self._frames = frames
        self._units = UnitCheck(frames.name)

    def add(
        self, position: int, energy: float, forces: FloatArray | None = None, stress: FloatArray | None = None
    ) -> None:
        """The prediction for a frame: eV, (n, 3) in eV/Å and (6,) in eV/Å³.

        Parameters
        ----------
        position
            Of the frame in its set.
        energy
            Predicted, eV.
        forces : (n, 3)
            Predicted, eV/Å.
        stress : (6,)
            Predicted, eV/Å³.
        """
        frame = self._frames[position]
        self.energies[position] = energy
        self._units.add(frame, forces, stress)
        if forces is not None and frame.forces is not None:
            self.force_errors[position] = float(np.linalg.norm(frame.forces - forces, axis=1).max())
        if stress is not None and frame.stress is not None:
            self.stress_errors[position] = float(np.abs(frame.stress - stress).max())

    def notes(self) -> list[str]:
        """As :func:`check_units`.

        Raises
        ------
        DataError
            As :func:`check_units`.
        """
        return self._units.notes()


def _far_off(
    frames: FrameSet, errors: Sequence[float], floor: float, threshold: float, what: str, unit: str
) -> list[Outlier]:
    positions = [position for position, error in enumerate(errors) if not math.isnan(error)]
    if len(positions) < 3:
        return []
    array = np.array([errors[position] for position in positions])
    distance = array - np.median(array)
    spread = max(1.4826 * float(np.median(np.abs(distance))), floor)
    return [
        Outlier(
            position,
            f"{frames.describe(position)}: {what} {delta:+.3g} {unit}, {abs(delta) / spread:.0f} robust deviations",
        )
        for position, delta in zip(positions, distance, strict=True)
        if abs(delta) > threshold * spread
    ]


def _check_length(frames: FrameSet, predicted: Sequence[object], what: str) -> None:
    if len(predicted) != len(frames):
        raise InputError(f"{len(predicted)} predictions of {what} for the {len(frames)} frames of {frames.name}")
