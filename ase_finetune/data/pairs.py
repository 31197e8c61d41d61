"""Pairs of initial and relaxed structures, for training through relaxations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from ase import Atoms
from ase.io.jsonio import encode

from ase_finetune.data.databases import Origin
from ase_finetune.data.frames import Frame, FrameSet, read_frames
from ase_finetune.data.labels import strip_labels
from ase_finetune.data.pair_checks import check_pair
from ase_finetune.data.sources import load_structures
from ase_finetune.errors import DataError, InputError

#: Keys of ``info`` that identify a relaxation. The first one that all structures of both ends carry, and
#: that no two of an end share, says which belong together.
ID_KEYS = ("structure_id", "id", "material_id", "mp_id", "name")

# So many names are listed in a message.
_LISTED = 5


@dataclass(frozen=True)
class Pair:
    """The two ends of one relaxation, the same n atoms in the same order. Not to be modified.

    Attributes
    ----------
    initial
        Where it starts: no calculator and labels, but with its constraints, which a relaxation obeys.
    relaxed
        Where it should end: no calculator, labels and constraints.
    name
        Its identity in the files, or "pair 7".
    energy
        Label of the relaxed structure in eV; ``None`` where it is missing.
    index
        Its position in its source.
    source
        File names, or "list".
    """

    initial: Atoms
    relaxed: Atoms
    name: str
    energy: float | None = None
    index: int = 0
    source: str = "list"


class PairSet(Sequence[Pair]):
    """An immutable, named sequence of pairs.

    Parameters
    ----------
    name
        What messages and reports call it.
    pairs
        Its pairs.
    notes
        Remarks for the report.
    """

    def __init__(self, name: str, pairs: Iterable[Pair], notes: Iterable[str] = ()) -> None:
        self.name = name
        self.pairs = tuple(pairs)
        self.notes = tuple(notes)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> PairSet: ...
    def __getitem__(self, index: int | slice) -> Pair | PairSet:
        if isinstance(index, slice):
            return PairSet(self.name, self.pairs[index], self.notes)
        return self.pairs[index]

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"PairSet({self.name!r}, {len(self)} pairs, {self.num_energies} with energies)"

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(sorted({int(z) for pair in self.pairs for z in set(pair.initial.numbers)}))

    @property
    def num_energies(self) -> int:
        """How many pairs have the energy of the relaxed structure."""
        return sum(pair.energy is not None for pair in self.pairs)

    def select(self, indices: Iterable[int], *, name: str | None = None) -> PairSet:
        """The pairs at these ``indices`` of the set, in this order; ``name`` is that of the new set."""
        return PairSet(name or self.name, (self.pairs[int(index)] for index in indices), self.notes)

    def renamed(self, name: str) -> PairSet:
        """The same pairs under another ``name``."""
        return PairSet(name, self.pairs, self.notes)

    def describe(self, position: int) -> str:
        """How messages name the pair at ``position``: its index in its source, its name, the set and the source."""
        return describe_pair(self.pairs[position], self.name)

    def digest(self) -> str:
        """SHA-256 (hex) of structures, masses, constraints and energies in their order, whatever the files' names."""
        sha = hashlib.sha256()
        for pair in self.pairs:
            sha.update(np.asarray(pair.initial.numbers, dtype="<i8").tobytes())
            sha.update(np.asarray(pair.initial.pbc, dtype=bool).tobytes())
            sha.update(_constraints(pair.initial).encode())
            ends = (end for atoms in (pair.initial, pair.relaxed) for end in (atoms.positions, atoms.cell[:]))
            sha.update(np.asarray(pair.initial.get_masses(), dtype="<f8").tobytes())
            for value in (*ends, pair.energy):
                # Adding 0 turns -0.0, which files do not keep apart, into 0.0.
                sha.update(b"-" if value is None else (np.asarray(value, dtype="<f8") + 0.0).tobytes())
                sha.update(b"|")
        return sha.hexdigest()


#: Initial and relaxed structures as two sources (files, or lists of structures), or pairs of structures.
PairSource: TypeAlias = "PairSet | Sequence[str | Path] | Sequence[Sequence[Atoms]] | tuple[Atoms, Atoms]"


def read_pairs(source: PairSource, *, name: str = "relaxations") -> PairSet:
    """Read initial structures and the structures they relax to.

    The two ends are matched by the first of :data:`ID_KEYS` that identifies all structures of both;
    their order may then differ. Without ids, or with ids that repeat in the same order, they are matched
    by order. Energies are searched on the relaxed structures as :func:`read_frames` does.

    Parameters
    ----------
    source
        Two sources, initial and relaxed: ``["initial.extxyz", "relaxed.extxyz"]`` or
        ``([atoms, ...], [atoms, ...])``. Or pairs of structures: ``[(initial, relaxed), ...]``, tuples
        which are taken as they are. Or a :class:`PairSet`.
    name
        What messages and reports call the set.

    Returns
    -------
    The pairs, each of an initial and a relaxed structure with the same atoms.

    Raises
    ------
    DataError
        If there is nothing to read, or structures cannot be evaluated or matched; if the atoms of a pair
        differ, are in another order, or look swapped; if nothing has moved. The message names the pair.
    InputError
        If the source is of another kind.
    """
    if isinstance(source, PairSet):
        return source.renamed(name)
    ends, matched = _ends(source, name)
    initial = load_structures(ends[0], f"{name}, initial structures")
    relaxed = read_frames(ends[1], name=f"{name}, relaxed structures", require_labels=False)
    order, how = (range(len(initial)), "as given") if matched else _match(initial, relaxed, name)
    pairs, notes = [], []
    for origin, position in zip(initial, order, strict=True):
        pair = _pair(origin, relaxed[position])
        note = check_pair(pair.initial, pair.relaxed, describe_pair(pair, name))
        pairs.append(pair)
        notes += [] if note is None else [note]
    more = [f"{len(notes) - _LISTED} more such pairs"] if len(notes) > _LISTED else []
    return PairSet(name, pairs, [f"initial and relaxed structures are paired {how}", *notes[:_LISTED], *more])


def describe_pair(pair: Pair, name: str) -> str:
    """How messages name a pair of the set called ``name``."""
    number = f"pair {pair.index}"
    identity = "" if pair.name == number else f" '{pair.name}'"
    return f"{number}{identity} of {name} ({pair.source})"


def _ends(source: Any, name: str) -> tuple[tuple[Any, Any], bool]:
    """Sources of the initial and of the relaxed structures, and whether they are matched already."""
    if isinstance(source, str | Path | Atoms | FrameSet) or not isinstance(source, Iterable):
        raise InputError(_wrong_source(name, source))
    items: list[Any] = [source] if _is_pair(source) else list(source)
    if not items:
        raise DataError(f"{name}: the list holds no pairs")
    if all(_is_pair(item) for item in items):
        return ([initial for initial, _ in items], [relaxed for _, relaxed in items]), True
    if len(items) != 2 or not all(isinstance(item, str | Path | list) for item in items):
        culprit = next((item for item in items if not _is_pair(item)), source)
        raise InputError(_wrong_source(name, source if isinstance(culprit, str | Path | list) else culprit))
    # Two lists of two structures: lists of initial and relaxed ones, or two pairs?
    if isinstance(source, list) and all(isinstance(item, list) and _is_pair(tuple(item)) for item in items):
        raise InputError(
            f"{name}: two lists of two structures can be read in two ways; write pairs as tuples, "
            "[(initial, relaxed), ...], and ends as a tuple of lists, ([initial, ...], [relaxed, ...])"
        )
    return (items[0], items[1]), False


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(end, Atoms) for end in item)


def _match(initial: Sequence[Origin], relaxed: FrameSet, name: str) -> tuple[Sequence[int], str]:
    """For each initial structure the position of its relaxed one, and how that was found."""
    files = ", ".join(dict.fromkeys([*(origin.source for origin in initial), *(frame.source for frame in relaxed)]))
    repeating = None
    for key in ID_KEYS:
        before = [_identity(origin.atoms, key) for origin in initial]
        after = [_identity(frame.atoms, key) for frame in relaxed]
        if None in before or None in after:
            continue
        if len(set(before)) == len(before) and len(set(after)) == len(after):
            _check_same_ids(before, after, key, f"{name} ({files})")
            positions = {value: position for position, value in enumerate(after)}
            return [positions[value] for value in before], f"by '{key}'"
        # One value for all is no identity but a kind, such as "bulk".
        if repeating is None and before != after and len(set(before) | set(after)) > 2:
            repeating = key
    if repeating is not None:
        raise DataError(
            f"{name} ({files}): values of '{repeating}' repeat, and not in the same order in both ends, so nothing "
            "says which structures belong together; make them unique, or give pairs: [(initial, relaxed), ...]"
        )
    if len(initial) != len(relaxed):
        raise DataError(
            f"{name} ({files}): {len(initial)} initial and {len(relaxed)} relaxed structures; without ids in info "
            f"({', '.join(ID_KEYS)}) they are matched by order and must be as many"
        )
    return range(len(initial)), "by their order"


def _check_same_ids(before: Sequence[str | None], after: Sequence[str | None], key: str, name: str) -> None:
    lonely = []
    for end, own, others in (("initial", before, set(after)), ("relaxed", after, set(before))):
        missing = [str(value) for value in own if value not in others]
        if missing:
            more = ", ..." if len(missing) > _LISTED else ""
            lonely.append(f"{len(missing)} {end} ones have no partner ({', '.join(missing[:_LISTED])}{more})")
    if lonely:
        raise DataError(f"{name}: structures are matched by '{key}', but {' and '.join(lonely)}")


def _pair(origin: Origin, frame: Frame) -> Pair:
    initial = strip_labels(origin.atoms, {})
    initial.set_constraint(origin.atoms.copy().constraints)
    identity = next((i for key in ID_KEYS if (i := _identity(initial, key)) == _identity(frame.atoms, key) and i), None)
    source = origin.source if origin.source == frame.source else f"{origin.source}, {frame.source}"
    return Pair(initial, frame.atoms, identity or f"pair {origin.index}", frame.energy, origin.index, source)


def _identity(atoms: Atoms, key: str) -> str | None:
    value = atoms.info.get(key)
    return str(value) if isinstance(value, str | int | np.integer) else None


def _constraints(atoms: Atoms) -> str:
    # Constraints of other packages may not have ASE's todict; their kind is then all that is known.
    return str(encode([c.todict() if hasattr(c, "todict") else type(c).__name__ for c in atoms.constraints]))


def _wrong_source(name: str, culprit: Any) -> str:
    return (
        f"{name}: expected two sources, [initial, relaxed], each a path or a list of ase.Atoms, or a list of "
        f"(initial, relaxed) tuples, got {culprit!r} of type {type(culprit).__name__}"
    )
