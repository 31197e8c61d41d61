"""Reference energies: the per-element shift between the labels and a pretrained model.

Another code, pseudopotential or correction shifts energies by a sum over elements. Trained in, such a
shift moves every other material that contains these elements; fitted and subtracted, it does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from ase.data import atomic_numbers, chemical_symbols

from ase_finetune.data.frames import FrameSet
from ase_finetune.errors import InputError
from ase_finetune.graphs.neighbors import FloatArray

# Directions of composition space that vary by less than this of the largest one are not fitted.
_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ReferenceOffsets:
    """Energies per element that the labels have and the model does not.

    Attributes
    ----------
    offsets
        eV per atom of each atomic number; empty if nothing was fitted.
    rank
        Number of independent compositions; below ``len(offsets)`` the data do not tell the elements
        apart, and the shift is spread over them by minimum norm.
    mae_before, mae_after
        Mean absolute error of the model's energies in eV/atom without and with the offsets.
    """

    offsets: Mapping[int, float] = field(default_factory=dict)
    rank: int = 0
    mae_before: float = 0.0
    mae_after: float = 0.0

    def energy(self, numbers: Sequence[int] | npt.NDArray[Any]) -> float:
        """The offset of a structure with these atomic numbers, in eV; 0 for elements not fitted.

        Parameters
        ----------
        numbers : (n,)
            Atomic numbers.
        """
        return float(sum(self.offsets.get(int(z), 0.0) for z in numbers))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, keyed by chemical symbols."""
        return {
            "offsets": {chemical_symbols[z]: float(value) for z, value in self.offsets.items()},
            "rank": self.rank,
            "mae_before": self.mae_before,
            "mae_after": self.mae_after,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReferenceOffsets:
        """The inverse of :meth:`to_dict`.

        Parameters
        ----------
        data
            As :meth:`to_dict` gives it.

        Returns
        -------
        The same offsets.

        Raises
        ------
        InputError
            If an entry is missing or a key is no chemical symbol.
        """
        try:
            offsets = {atomic_numbers[symbol]: float(value) for symbol, value in data["offsets"].items()}
            return cls(offsets, int(data["rank"]), float(data["mae_before"]), float(data["mae_after"]))
        except KeyError as error:
            raise InputError(f"reference offsets: {error} is missing or no chemical symbol in {dict(data)}") from error

    def describe(self) -> str:
        """What was fitted, for the report, with errors in eV/atom."""
        if not self.offsets:
            return "reference energies: nothing fitted, as no frame has an energy"
        shifts = ", ".join(f"{chemical_symbols[z]} {value:+.4f}" for z, value in self.offsets.items())
        text = (
            f"reference energies (eV per atom): {shifts}; mean absolute error of the "
            f"model's energies {self.mae_before:.4f} before, {self.mae_after:.4f} after, in eV/atom"
        )
        if self.rank == len(self.offsets):
            return text
        cause = "the composition never varies" if self.rank == 1 else "the compositions do not tell the elements apart"
        return (
            f"{text}; rank {self.rank} of {len(self.offsets)} elements: {cause}, "
            "so the offset is spread by minimum norm"
        )


def fit_reference(
    frames: FrameSet,
    predicted_energies: Sequence[float],
    *,
    more: Iterable[tuple[FrameSet, Sequence[float]]] = (),
    start: Mapping[int, float] | None = None,
) -> ReferenceOffsets:
    """Per-element offsets by least squares on the residual label - prediction.

    Every frame weighs 1/n_atoms, so the error minimised is the one per atom. Where the compositions
    leave the offsets undetermined, the solution of minimum norm is taken, or that nearest to ``start``.
    Frames without an energy are skipped.

    Parameters
    ----------
    frames
        With energies in eV.
    predicted_energies
        What the pretrained model gives for each frame, eV.
    more
        Further frames in the same reference, and what the model gives for them.
    start
        Offsets that are known from before, eV by atomic number; those of elements without a frame here are kept.

    Raises
    ------
    InputError
        If there are not as many predictions as frames, or one of those needed is not finite.
    """
    sets = [(frames, predicted_energies), *more]
    elements = tuple(sorted({z for part, _ in sets for z in part.elements}))
    residuals, rows = [], []
    for part, energies in sets:
        if len(energies) != len(part):
            raise InputError(f"{len(energies)} predicted energies for the {len(part)} frames of {part.name}")
        for position, (frame, predicted) in enumerate(zip(part, energies, strict=True)):
            if frame.energy is None:
                continue
            if not np.isfinite(predicted):
                raise InputError(f"{part.describe(position)}: the predicted energy is {predicted}")
            numbers = frame.atoms.numbers
            residuals.append((frame.energy - float(predicted)) / len(numbers))
            rows.append(np.array([np.count_nonzero(numbers == z) / len(numbers) for z in elements]))
    if not rows:
        return ReferenceOffsets()
    return _solve(np.array(rows), np.array(residuals), elements, start or {})


def align(frames: FrameSet, offsets: ReferenceOffsets) -> FrameSet:
    """The same frames with the offsets subtracted from their energies: the model's own reference.

    Parameters
    ----------
    frames
        With energies in the reference of their own.
    offsets
        As :func:`fit_reference` finds them, eV per atom.
    """
    return frames.with_energies(
        [None if frame.energy is None else frame.energy - offsets.energy(frame.atoms.numbers) for frame in frames]
    )


def _solve(
    composition: FloatArray, residual: FloatArray, elements: tuple[int, ...], start: Mapping[int, float]
) -> ReferenceOffsets:
    # Elements of frames without an energy have a column of zeros: nothing is known about them.
    known = np.flatnonzero(composition.any(axis=0))
    first = np.array([start.get(elements[column], 0.0) for column in known])
    begun = residual - composition[:, known] @ first
    change, _, rank, _ = np.linalg.lstsq(composition[:, known], begun, rcond=_RANK_TOLERANCE)
    left = begun - composition[:, known] @ change
    fitted = {elements[column]: float(value) for column, value in zip(known, first + change, strict=True)}
    return ReferenceOffsets(
        offsets=dict(sorted((dict(start) | fitted).items())),
        # Those that are kept are not undetermined.
        rank=int(rank) + len(start.keys() - fitted.keys()),
        mae_before=float(np.abs(residual).mean()),
        mae_after=float(np.abs(left).mean()),
    )
