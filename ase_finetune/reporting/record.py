"""What a run leaves behind to be judged by: predictions before and after, drift of parameters, and its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from ase_finetune.errors import CheckpointError
from ase_finetune.files import read_sealed, write_sealed
from ase_finetune.reporting.record_checks import FRAME_ARRAYS, check_content

#: Name of the file in the folder of a run.
RECORD_FILE = "record.safetensors"

_KIND = "record-1"

#: The last axis of what :class:`FrameRecord` holds.
LABEL, BEFORE, AFTER = 0, 1, 2

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FrameRecord:
    """Labels of a set of structures, and what the potential says about them before and after.

    Attributes
    ----------
    name
        Of the set: ``"valid"``, ``"replay"``, ``"old"`` (old structures with reference labels), or that of a file.
    own_labels
        Whether the labels were made by the pretrained model itself, so that its errors are zero.
    numbers
        (n,) atomic numbers of all structures, one after the other.
    counts
        (b,) number of atoms of each structure.
    descriptions
        b texts: where each structure comes from.
    energy
        (b, 3) label, prediction before, prediction after, in eV and in the reference of the model. NaN
        where there is no label.
    forces
        (n, 3, 3) components in eV/Å; the last axis is as that of the energy.
    stress
        (b, 6, 3) components in eV/Å³, Voigt order xx, yy, zz, yz, xz, xy.
    available
        Structures that the set has; the b ones here may be a sample of them.
    other_reference
        Whether the energies of the labels may be in another reference than the model's, so that their errors mean
        something only after the best offsets per element.
    """

    name: str
    own_labels: bool
    numbers: NDArray[np.int64]
    counts: NDArray[np.int64]
    descriptions: list[str]
    energy: Array
    forces: Array
    stress: Array
    available: int
    other_reference: bool = False


@dataclass(frozen=True)
class PairRecord:
    """Relaxations of held-out pairs before and after.

    Attributes
    ----------
    descriptions
        Where each of the p pairs comes from.
    before, after
        For each pair the values of :class:`ase_finetune.trajectories.evaluation.PairError` by name: ``delta_q``
        (Å sqrt(amu)), ``rmsd`` (Å), ``strain``, ``log_volume``, ``steps``, ``converged``, ``right_basin``, ``failure``.
    targets, ends_before, ends_after
        For the positions in ``shown``: the reference's relaxed structures, and where those of the potential ended.
    shown
        Positions of the pairs whose structures are kept, the worst after training first.
    gradient_norms
        (s, k) norm of the loss's gradient by the coordinates before each of the k steps of s training rollouts
        with the final weights; NaN where it was not computed. Empty if it could not be taken.
    """

    descriptions: list[str]
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    shown: list[int] = field(default_factory=list)
    targets: list[Atoms] = field(default_factory=list)
    ends_before: list[Atoms] = field(default_factory=list)
    ends_after: list[Atoms] = field(default_factory=list)
    gradient_norms: Array = field(default_factory=lambda: np.zeros((0, 0)))


@dataclass(frozen=True)
class TensorDrift:
    """How far one parameter tensor has moved.

    Attributes
    ----------
    name
        The native model's.
    size
        Number of values.
    trained
        Whether it could move.
    change
        Root mean square of the change.
    scale
        Root mean square of the values before.
    stiffness
        Its share of the Fisher information, from 0 to 1; NaN without EWC.
    """

    name: str
    size: int
    trained: bool
    change: float
    scale: float
    stiffness: float


@dataclass(frozen=True)
class RunRecord:
    """Everything a report is made of.

    Attributes
    ----------
    metadata
        As in ``run.json``: ``base_model``, ``config``, ``errors``, ``stages`` (each with what it ``kept``),
        ``unchanged``, ``versions``, ...
    history
        The rows of ``history.csv``: see :data:`ase_finetune.finetuning.history.FRAME_COLUMNS`. ``penalty`` is in
        units of the loss, ``peak_memory_gb`` that of the GPU, or else of the process.
    log
        Lines logged during the run.
    frames
        One for each set.
    drift
        One for each parameter tensor, in the order of the model.
    pairs
        Only after training through relaxations.
    """

    metadata: dict[str, Any]
    history: list[dict[str, Any]]
    log: list[str] = field(default_factory=list)
    frames: list[FrameRecord] = field(default_factory=list)
    drift: list[TensorDrift] = field(default_factory=list)
    pairs: PairRecord | None = None

    def write(self, path: Path) -> None:
        """Write one file.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        tensors = {f"frames {k} {name}": array for k, item in enumerate(self.frames) for name, array in _arrays(item)}
        content: dict[str, Any] = {
            "metadata": self.metadata,
            "history": self.history,
            "log": self.log,
            "frames": [_plain(item) for item in self.frames],
            "drift": [asdict(item) for item in self.drift],
            "pairs": None,
        }
        if self.pairs is not None:
            tensors["gradient norms"] = self.pairs.gradient_norms
            content["pairs"] = {name: getattr(self.pairs, name) for name in _PLAIN_OF_PAIRS}
            content["pairs"] |= {name: [_to_plain(a) for a in getattr(self.pairs, name)] for name in _STRUCTURES}
        write_sealed(path, {name: torch.from_numpy(np.array(a)) for name, a in tensors.items()}, content, kind=_KIND)

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read what :meth:`write` wrote.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        The record, equal to the one that was written.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged or of another kind.
        """
        tensors, content = read_sealed(path, kind=_KIND)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        try:
            check_content(content, arrays)
            frames = [
                FrameRecord(**(item | {name: arrays[f"frames {k} {name}"] for name in FRAME_ARRAYS}))
                for k, item in enumerate(content["frames"])
            ]
            drift = [TensorDrift(**item) for item in content["drift"]]
            pairs = content["pairs"] and _read_pairs(content["pairs"], arrays["gradient norms"])
            return cls(content["metadata"], content["history"], content["log"], frames, drift, pairs)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a record of a run: {error}") from error


_PLAIN = ("name", "own_labels", "descriptions", "available")
_PLAIN_OF_PAIRS = ("descriptions", "before", "after", "shown")
_STRUCTURES = ("targets", "ends_before", "ends_after")


def _arrays(item: FrameRecord) -> list[tuple[str, NDArray[Any]]]:
    return [(name, getattr(item, name)) for name in FRAME_ARRAYS]


def _plain(item: FrameRecord) -> dict[str, Any]:
    found = {name: getattr(item, name) for name in _PLAIN}
    return found | ({"other_reference": True} if item.other_reference else {})


def _to_plain(atoms: Atoms) -> dict[str, Any]:
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.tolist(),
        "pbc": atoms.pbc.tolist(),
    }


def _read_pairs(content: Mapping[str, Any], gradient_norms: Array) -> PairRecord:
    structures: dict[str, Sequence[Atoms]] = {name: [Atoms(**item) for item in content[name]] for name in _STRUCTURES}
    plain = {name: content[name] for name in _PLAIN_OF_PAIRS}
    return PairRecord(**plain, **structures, gradient_norms=gradient_norms)  # type: ignore[arg-type]
