"""Units and signs of labels, judged by what the pretrained model predicts, one frame at a time.

A pretrained model is right within tens of per cent, and the usual mistakes of units and signs are off
by 1.9 at least, so the prediction tells them apart. An alarm needs much evidence: the labels divided by
the factor must lie much closer to the predictions than the labels do, and than zero does, and go with
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase import units

from ase_finetune.data.frame import Frame
from ase_finetune.errors import DataError
from ase_finetune.graphs.neighbors import FloatArray

# A wrong factor is announced if it leaves less than this of the residual, and of the predictions, ...
_MUCH_BETTER = 0.5
# ... and labels and predictions are correlated better than this.
_STRONG = 0.7
# Below this correlation labels and predictions count as disagreeing.
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


@dataclass(frozen=True)
class _Mistake:
    """Labels that are ``factor`` (times the volume) too large, and the line that mends them."""

    unit: str
    factor: float
    line: str
    per_volume: bool = False

    @property
    def is_sign(self) -> bool:
        """Whether nothing but the sign is wrong."""
        return self.factor == -1.0 and not self.per_volume


class UnitCheck:
    """Compares forces and stress labels with predictions; memory holds sums, and a volume per frame.

    Parameters
    ----------
    name
        What messages call the set.
    """

    def __init__(self, name: str) -> None:
        self._forces = _Tally("forces", name, _force_mistakes(), _FORCE_SIGNAL)
        self._stress = _Tally("stress", name, _stress_mistakes(), _STRESS_SIGNAL)

    def add(self, frame: Frame, forces: FloatArray | None, stress: FloatArray | None = None) -> None:
        """Count a frame.

        Parameters
        ----------
        frame
            With its labels; those that are missing are not compared.
        forces
            (n, 3) predicted, eV/Å.
        stress
            (6,) predicted, eV/Å³.
        """
        volume = float(frame.atoms.cell.volume)
        for tally, label, predicted in ((self._forces, frame.forces, forces), (self._stress, frame.stress, stress)):
            if label is not None and predicted is not None:
                rows = np.atleast_2d(label)
                tally.add(rows, np.asarray(predicted, dtype=np.float64).reshape(rows.shape), volume)

    def notes(self) -> list[str]:
        """Notes on labels that hardly go with the predictions, without a factor that would explain it.

        Raises
        ------
        DataError
            If other units, virials or the wrong sign explain the labels much better; with the factor and
            the line that mends it.
        """
        return [*self._forces.notes(), *self._stress.notes()]


class _Tally:
    """Sums over the labels and predictions of one quantity."""

    def __init__(self, label: str, name: str, mistakes: Sequence[_Mistake], signal: float) -> None:
        self._label, self._name, self._mistakes, self._signal = label, name, mistakes, signal
        self._factors = np.array([mistake.factor for mistake in mistakes])
        self._per_volume = np.array([mistake.per_volume for mistake in mistakes])
        self._count, self._rows = 0, 0
        # Sizes of labels and predictions, and their difference, as sums of absolute values: a few broken
        # frames do not rule those.
        self._sizes, self._residual = np.zeros(2), 0.0
        self._residuals = np.zeros(len(mistakes))
        # Products of mended labels and predictions with themselves and each other, for each mistake.
        self._products = np.zeros((3, len(mistakes)))
        # The same of labels, by columns and about the first row, with the sums that give the mean.
        self._origin: tuple[FloatArray, FloatArray] | None = None
        self._sums, self._centred = np.zeros((2, 1)), np.zeros((3, 1))
        self._volumes: list[float] = []

    def add(self, labels: FloatArray, predictions: FloatArray, volume: float) -> None:
        """Count (m, columns) labels and predictions of a frame with this volume in Å³."""
        self._count, self._rows = self._count + labels.size, self._rows + len(labels)
        self._volumes.append(volume)
        self._sizes += np.abs(labels).sum(), np.abs(predictions).sum()
        self._residual += float(np.abs(labels - predictions).sum())
        factors = np.where(self._per_volume, volume * self._factors, self._factors)
        # A label of a structure without a cell is no stress, so the volume is not zero where it counts.
        mended = labels / factors[:, None, None]
        self._residuals += np.abs(mended - predictions).sum(axis=(1, 2))
        self._products += (
            (mended * predictions).sum(axis=(1, 2)),
            (mended**2).sum(axis=(1, 2)),
            np.full(len(factors), (predictions**2).sum()),
        )
        if self._origin is None:
            self._origin = labels[0], predictions[0]
        a, b = labels - self._origin[0], predictions - self._origin[1]
        self._sums = np.add(self._sums, (a.sum(axis=0), b.sum(axis=0)))
        self._centred = np.add(self._centred, ((a * b).sum(axis=0), (a**2).sum(axis=0), (b**2).sum(axis=0)))

    def notes(self) -> list[str]:
        """Raise if a mistake explains the labels; else the notes on them."""
        if not self._count:
            return []
        if self._count >= _MIN_NUMBERS and self._sizes[1] / self._count >= self._signal:
            self._refuse_mistake()
        size, predicted = (self._sizes / self._count).tolist()
        # As they are, labels are their own opposite of the wrong sign.
        correlation = -self._correlation(next(i for i, mistake in enumerate(self._mistakes) if mistake.is_sign))
        apart = correlation < _WEAK and self._residual > self._sizes[1]
        if size > self._signal and (apart or size > _MUCH_LARGER * predicted):
            return [
                f"{self._name}: {self._label} labels and the pretrained model hardly agree (mean size {size:.3g} and "
                f"{predicted:.3g}, correlation {correlation:.2f}), and no unit or sign explains it"
            ]
        return []

    def _refuse_mistake(self) -> None:
        index = int(np.argmin(self._residuals))
        best, after = self._mistakes[index], float(self._residuals[index])
        # A constant pressure of the model (another functional, another equilibrium volume) must not pass
        # for a wrong sign, so the sign alone is judged by how labels and predictions vary.
        agreement = -self._correlation_about_mean() if best.is_sign else self._correlation(index)
        if agreement < _STRONG or after >= _MUCH_BETTER * min(self._residual, float(self._sizes[1])):
            return
        others = [f" (or {m.unit}: '{m.line}')" for m in self._mistakes if m is not best and self._alike(m, best)]
        raise DataError(
            f"{self._name}: the {self._label} labels look like {best.unit}: with the pretrained model's {self._label} "
            f"they agree {self._residual / max(after, 1e-300):.3g} times better after '{best.line}'{''.join(others)}; "
            f"mean absolute difference {self._residual / self._count:.3g} before, {after / self._count:.3g} after"
        )

    def _alike(self, a: _Mistake, b: _Mistake) -> bool:
        """Whether the factors are too near for a model that is some ten per cent off to tell them apart."""
        volume = float(np.median(self._volumes)) ** (int(a.per_volume) - int(b.per_volume))
        return 1 / _TOO_NEAR < a.factor / b.factor * volume < _TOO_NEAR

    def _correlation(self, mistake: int) -> float:
        """Correlation about zero of mended labels and predictions."""
        product, square, other = self._products[:, mistake]
        return float(product / np.sqrt(square * other)) if square * other > 0 else 0.0

    def _correlation_about_mean(self) -> float:
        """Correlation of labels and predictions about the mean of each column."""
        a, b = self._sums
        product, square, other = (self._centred - np.stack([a * b, a * a, b * b]) / self._rows).sum(axis=1)
        return float(product / np.sqrt(square * other)) if square > 0 and other > 0 else 0.0


def _force_mistakes() -> list[_Mistake]:
    named = {
        "Hartree/Bohr": (units.Bohr / units.Hartree, "forces = forces * ase.units.Hartree / ase.units.Bohr"),
        "Ry/Bohr": (units.Bohr / units.Rydberg, "forces = forces * ase.units.Rydberg / ase.units.Bohr"),
        "kcal/mol/Å": (units.mol / units.kcal, "forces = forces * ase.units.kcal / ase.units.mol"),
        "kJ/mol/Å": (units.mol / units.kJ, "forces = forces * ase.units.kJ / ase.units.mol"),
        "meV/Å": (1e3, "forces = forces / 1000"),
    }
    sign = _Mistake("eV/Å with the wrong sign (gradients)", -1.0, "forces = -forces")
    return _both_signs(sign, [_Mistake(unit, factor, line) for unit, (factor, line) in named.items()])


def _stress_mistakes() -> list[_Mistake]:
    atomic = units.Bohr**3 / units.Hartree
    named = [
        _Mistake("kbar", _KBAR, f"stress = stress / {_KBAR:.4f}"),
        _Mistake("GPa", _GPA, f"stress = stress / {_GPA:.5f}"),
        _Mistake("Pa", _PASCAL, f"stress = stress / {_PASCAL:.5e}"),
        _Mistake("Hartree/Bohr³", atomic, "stress = stress * ase.units.Hartree / ase.units.Bohr**3"),
        _Mistake(
            "eV (virials, not divided by the volume)", 1.0, "stress = stress / atoms.get_volume()", per_volume=True
        ),
    ]
    return _both_signs(
        _Mistake("eV/Å³ with the wrong sign (VASP's, pressure positive)", -1.0, "stress = -stress"), named
    )


def _both_signs(sign: _Mistake, others: Sequence[_Mistake]) -> list[_Mistake]:
    """The wrong sign alone, and each unit with the right and with the wrong sign."""
    wrong = [
        replace(m, unit=f"{m.unit} with the wrong sign", factor=-m.factor, line=m.line.replace("= ", "= -", 1))
        for m in others
    ]
    return [sign, *(mistake for pair in zip(others, wrong, strict=True) for mistake in pair)]
