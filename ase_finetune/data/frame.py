"""One labelled structure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from ase_finetune.data.databases import Origin
from ase_finetune.data.labels import LABELS, Labels, find_labels, strip_labels
from ase_finetune.errors import DataError, InputError
from ase_finetune.graphs import check_atoms
from ase_finetune.graphs.neighbors import FloatArray


@dataclass(frozen=True)
class Frame:
    """One structure of n atoms with its labels; ``None`` where a label is missing.

    Attributes
    ----------
    atoms
        The structure alone: no calculator, constraints or labels. Not to be modified.
    energy
        eV.
    forces : (n, 3)
        eV/Å.
    stress : (6,)
        eV/Å³, ASE's sign, order xx, yy, zz, yz, xz, xy.
    group
        The trajectory it belongs to.
    index
        Its position in its source.
    source
        File name, or "list".
    """

    atoms: Atoms
    energy: float | None = None
    forces: FloatArray | None = None
    stress: FloatArray | None = None
    group: str = ""
    index: int = 0
    source: str = "list"


class Summary(NamedTuple):
    """What can be known of a frame without holding it: it is small, and the same for many frames.

    Attributes
    ----------
    size
        Number of atoms.
    elements
        Atomic numbers that occur, ascending.
    labels
        Which of :data:`LABELS` it carries.
    kind
        Its ``config_type``, a name for structures of one kind ("bulk", "surface"); empty without one.
    """

    size: int
    elements: tuple[int, ...]
    labels: tuple[bool, ...]
    kind: str = ""


def summarize(frame: Frame) -> Summary:
    """The summary of a frame."""
    elements = tuple(sorted({int(z) for z in frame.atoms.numbers}))
    labels = tuple(getattr(frame, label) is not None for label in LABELS)
    kind = frame.atoms.info.get("config_type")
    return Summary(len(frame.atoms), elements, labels, kind if isinstance(kind, str) else "")


def hash_frame(sha: hashlib._Hash, frame: Frame) -> None:
    """Add structure and labels to a hash, whatever the file is called."""
    sha.update(np.asarray(frame.atoms.numbers, dtype="<i8").tobytes())
    sha.update(np.asarray(frame.atoms.pbc, dtype=bool).tobytes())
    for value in (frame.atoms.positions, frame.atoms.cell[:], frame.energy, frame.forces, frame.stress):
        # Adding 0 turns -0.0, which files do not keep apart, into 0.0.
        sha.update(b"-" if value is None else (np.asarray(value, dtype="<f8") + 0.0).tobytes())
        sha.update(b"|")


def fingerprint(frame: Frame) -> str:
    """The structure in 16 hexadecimal digits: the same in every file format and whatever the labels are.

    Positions and cell are rounded to 1e-4 Å.
    """
    sha = hashlib.sha256(np.asarray(frame.atoms.numbers, dtype="<i8").tobytes())
    for values in (frame.atoms.cell[:], frame.atoms.positions):
        # Adding 0 turns -0.0 into 0.0.
        sha.update((np.round(np.asarray(values, dtype="<f8"), 4) + 0.0).tobytes())
    return sha.hexdigest()[:16]


def read_frame(origin: Origin, keys: Mapping[str, str | None], name: str) -> tuple[Frame, Labels]:
    """A checked frame without a group, and its labels with the keys they are from.

    Parameters
    ----------
    origin
        The structure as it was read.
    keys
        As of :func:`find_labels`.
    name
        What messages call the set.

    Raises
    ------
    DataError
        If the structure or a label cannot be used; the message names the frame.
    """
    where = f"frame {origin.index} of {name} ({origin.source})"
    try:
        check_atoms(origin.atoms)
    except InputError as error:
        raise DataError(f"{where}: {error}") from error
    labels = find_labels(origin.atoms, keys, where)
    values: dict[str, Any] = {label: getattr(labels, label) for label in LABELS}
    atoms = strip_labels(origin.atoms, keys)
    return Frame(atoms, **values, index=origin.index, source=origin.source), labels
