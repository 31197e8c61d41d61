"""Labels against what the pretrained model predicts: wrong units and signs, and outliers.

A pretrained model is right within tens of per cent, and the usual mistakes of units and signs are off
by 1.9 at least, so the prediction tells them apart. An alarm needs much evidence: the labels divided by
the factor must lie much closer to the predictions than the labels do, and than zero does, and go with
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import units

from ase_finetune.data.frames import FrameSet
from ase_finetune.errors import DataError, InputError
from ase_finetune.graphs.neighbors import FloatArray

# A wrong factor is announced if it leaves less than this of the residual, and of the predictions, ...
_MUCH_BETTER = 0.5
# ... and labels and predictions are correlated better than this.
_STRONG = 0.7
# Below this correlation labels and predictions are told to disagree.
_WEAK = 0.3
# So are labels larger than the predictions by this factor.
_MUCH_LARGER = 10.0
# Factors nearer than this are not told apart: virials look like GPa in a cell of 160 Å³.
_TOO_NEAR = 1.4
# Below these mean absolute predictions (eV/Å, eV/Å³) the labels say nothing about units.
_FORCE_SIGNAL, _STRESS_SIGNAL = 1e-3, 3e-4
# Fewer numbers than this (three stresses) may fit a wrong factor by chance.
_MIN_NUMBERS = 18

_KBAR, _GPA, _PASCAL = 10 / units.GPa, 1 / units.GPa, 1e9 / units.GPa


@dataclass(frozen=True, eq=False)
class _Mistake:
    """Labels that are ``factor`` times what they should be, and the line that mends them."""

    unit: str
    factor: FloatArray | float
    line: str

    @property
    def is_sign(self) -> bool:
        """Whether nothing but the sign is wrong."""
        return isinstance(self.factor, float) and self.factor == -1.0


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
    notes = []
    labels, predictions, _ = _paired(frames, predicted_forces, "forces")
    if len(labels):
        notes += _compare("forces", frames, labels, predictions, _force_mistakes(), _FORCE_SIGNAL)
    if predicted_stress is not None:
        labels, predictions, volumes = _paired(frames, predicted_stress, "stress")
        if len(labels):
            notes += _compare("stress", frames, labels, predictions, _stress_mistakes(volumes), _STRESS_SIGNAL)
    return notes


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
    energy: dict[int, float] = {}
    force: dict[int, float] = {}
    if predicted_energies is not None:
        _check_length(frames, predicted_energies, "energies")
        for i, frame in enumerate(frames):
            if frame.energy is not None:
                energy[i] = (frame.energy - float(predicted_energies[i])) / len(frame.atoms)
    if predicted_forces is not None:
        _check_length(frames, predicted_forces, "forces")
        for i, (frame, predicted) in enumerate(zip(frames, predicted_forces, strict=True)):
            if frame.forces is not None and predicted is not None:
                force[i] = float(np.linalg.norm(frame.forces - predicted, axis=1).max())
    # The floors keep sets that are fitted all but perfectly from raising alarms over nothing.
    return [
        *_far_off(frames, energy, 1e-3, threshold, "energy", "eV/atom from the median difference"),
        *_far_off(frames, force, 1e-2, threshold, "largest force error", "eV/Å from the median"),
    ]


def _force_mistakes() -> list[_Mistake]:
    named = {
        "Hartree/Bohr": (units.Bohr / units.Hartree, "forces = forces * ase.units.Hartree / ase.units.Bohr"),
        "Ry/Bohr": (units.Bohr / units.Rydberg, "forces = forces * ase.units.Rydberg / ase.units.Bohr"),
        "kcal/mol/Å": (units.mol / units.kcal, "forces = forces * ase.units.kcal / ase.units.mol"),
        "kJ/mol/Å": (units.mol / units.kJ, "forces = forces * ase.units.kJ / ase.units.mol"),
        "meV/Å": (1e3, "forces = forces / 1000"),
    }
    mistakes = [_Mistake("eV/Å with the wrong sign (gradients)", -1.0, "forces = -forces")]
    return mistakes + [mistake for unit, (factor, line) in named.items() for mistake in _both(unit, factor, line)]


def _stress_mistakes(volumes: FloatArray) -> list[_Mistake]:
    atomic = units.Bohr**3 / units.Hartree
    named: dict[str, tuple[FloatArray | float, str]] = {
        "kbar": (_KBAR, f"stress = stress / {_KBAR:.4f}"),
        "GPa": (_GPA, f"stress = stress / {_GPA:.5f}"),
        "Pa": (_PASCAL, f"stress = stress / {_PASCAL:.5e}"),
        "Hartree/Bohr³": (atomic, "stress = stress * ase.units.Hartree / ase.units.Bohr**3"),
        "eV (virials, not divided by the volume)": (volumes[:, None], "stress = stress / atoms.get_volume()"),
    }
    mistakes = [_Mistake("eV/Å³ with the wrong sign (VASP's, pressure positive)", -1.0, "stress = -stress")]
    return mistakes + [mistake for unit, (factor, line) in named.items() for mistake in _both(unit, factor, line)]


def _both(unit: str, factor: FloatArray | float, line: str) -> list[_Mistake]:
    """A unit with the right and with the wrong sign."""
    return [
        _Mistake(unit, factor, line),
        _Mistake(f"{unit} with the wrong sign", -factor, line.replace("= ", "= -", 1)),
    ]


def _compare(
    label: str,
    frames: FrameSet,
    labels: FloatArray,
    predictions: FloatArray,
    mistakes: Sequence[_Mistake],
    signal: float,
) -> list[str]:
    """Raise if a mistake explains the labels; else the notes on them."""
    if labels.size >= _MIN_NUMBERS and np.abs(predictions).mean() >= signal:
        _refuse_mistake(label, frames, labels, predictions, mistakes)
    sizes = float(np.abs(labels).mean()), float(np.abs(predictions).mean())
    correlation = _correlation(labels, predictions)
    apart = correlation < _WEAK and _residual(labels, predictions) > np.abs(predictions).sum()
    if sizes[0] > signal and (apart or sizes[0] > _MUCH_LARGER * sizes[1]):
        return [
            f"{frames.name}: {label} labels and the pretrained model hardly agree (mean size {sizes[0]:.3g} and "
            f"{sizes[1]:.3g}, correlation {correlation:.2f}), and no unit or sign explains it"
        ]
    return []


def _refuse_mistake(
    label: str, frames: FrameSet, labels: FloatArray, predictions: FloatArray, mistakes: Sequence[_Mistake]
) -> None:
    before = _residual(labels, predictions)
    after = {mistake: _residual(labels / mistake.factor, predictions) for mistake in mistakes}
    best = min(mistakes, key=after.__getitem__)
    mended = labels / best.factor
    # A constant pressure of the model (another functional, another equilibrium volume) must not pass
    # for a wrong sign, so the sign alone is judged by how labels and predictions vary.
    agreement = _correlation(mended, predictions, about_mean=best.is_sign)
    if agreement < _STRONG or after[best] >= _MUCH_BETTER * min(before, float(np.abs(predictions).sum())):
        return
    others = [f" (or {m.unit}: '{m.line}')" for m in mistakes if m is not best and _alike(m, best)]
    raise DataError(
        f"{frames.name}: the {label} labels look like {best.unit}: with the pretrained model's {label} they agree "
        f"{before / max(after[best], 1e-300):.3g} times better after '{best.line}'{''.join(others)}; mean absolute "
        f"difference {before / labels.size:.3g} before, {after[best] / labels.size:.3g} after"
    )


def _alike(a: _Mistake, b: _Mistake) -> bool:
    """Whether the factors are too near for a model that is some ten per cent off to tell them apart."""
    ratio = float(np.median(a.factor / b.factor))
    return 1 / _TOO_NEAR < ratio < _TOO_NEAR


def _residual(labels: FloatArray, predictions: FloatArray) -> float:
    """Sum of absolute differences: a few broken frames do not rule it."""
    return float(np.abs(labels - predictions).sum())


def _correlation(labels: FloatArray, predictions: FloatArray, about_mean: bool = False) -> float:
    """Correlation of two tables of numbers, about zero or about the mean of each column."""
    if about_mean:
        labels, predictions = labels - labels.mean(axis=0), predictions - predictions.mean(axis=0)
    norm = float(np.sqrt((labels**2).sum() * (predictions**2).sum()))
    return float((labels * predictions).sum()) / norm if norm > 0 else 0.0


def _paired(
    frames: FrameSet, predicted: Sequence[FloatArray | None], label: str
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Labels and predictions as rows, and the volume of each row's cell in Å³."""
    _check_length(frames, predicted, label)
    rows, predictions, volumes = [], [], []
    for frame, values in zip(frames, predicted, strict=True):
        value = getattr(frame, label)
        if value is None or values is None:
            continue
        rows.append(np.atleast_2d(value))
        predictions.append(np.asarray(values, dtype=np.float64).reshape(rows[-1].shape))
        volumes.append(np.full(len(rows[-1]), frame.atoms.cell.volume))
    if not rows:
        return np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0)
    return np.concatenate(rows), np.concatenate(predictions), np.concatenate(volumes)


def _far_off(
    frames: FrameSet, values: dict[int, float], floor: float, threshold: float, what: str, unit: str
) -> list[str]:
    if len(values) < 3:
        return []
    array = np.array(list(values.values()))
    distance = array - np.median(array)
    spread = max(1.4826 * float(np.median(np.abs(distance))), floor)
    return [
        f"{frames.describe(position)}: {what} {delta:+.3g} {unit}, {abs(delta) / spread:.0f} robust deviations"
        for position, delta in zip(values, distance, strict=True)
        if abs(delta) > threshold * spread
    ]


def _check_length(frames: FrameSet, predicted: Sequence[object], what: str) -> None:
    if len(predicted) != len(frames):
        raise InputError(f"{len(predicted)} predictions of {what} for the {len(frames)} frames of {frames.name}")
