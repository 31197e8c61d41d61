"""Finding energy, forces and stress labels on ASE structures, whoever wrote them.

Without explicit keys each label is taken from the first of these places that has it:

1. ``REF_energy``, ``REF_forces``, ``REF_stress``, ``REF_virials`` (or ``REF_virial``) in ``info`` or
   ``arrays``: what files for MACE carry;
2. ``atoms.calc.results``, where ASE's readers put the labels of extxyz, OUTCAR, vasprun.xml, traj and
   db files: ``free_energy`` (what the forces derive from, also with smeared occupations) before
   ``energy``;
3. ``free_energy`` or ``energy``, ``forces`` or ``force``, ``stress``, ``virial`` or ``virials`` in
   ``info`` or ``arrays``.

Units are ASE's: eV, eV/Å, eV/Å³ with ASE's sign; virials are in eV, with stress = -virial / volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from ase_finetune.errors import DataError
from ase_finetune.graphs.neighbors import FloatArray

#: Names of the labels a frame can carry.
LABELS = ("energy", "forces", "stress")

_REFERENCE = {
    "energy": ("REF_energy",),
    "forces": ("REF_forces",),
    "stress": ("REF_stress", "REF_virials", "REF_virial"),
}
_CALCULATOR = {"energy": ("free_energy", "energy"), "forces": ("forces",), "stress": ("stress",)}
_BARE = {"energy": ("free_energy", "energy"), "forces": ("forces", "force"), "stress": ("stress", "virial", "virials")}
_STRUCTURE = frozenset({"numbers", "positions"})
_VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")

# A 3x3 label further from symmetric than this is no stress, or its components are in another order.
_ASYMMETRY_RELATIVE, _ASYMMETRY_ABSOLUTE = 0.05, 1e-4


@dataclass(frozen=True)
class Labels:
    """Labels of one structure; ``None`` where there is none.

    Attributes
    ----------
    energy
        eV.
    forces : (n, 3)
        eV/Å, of constrained atoms too.
    stress : (6,)
        eV/Å³, ASE's sign, order xx, yy, zz, yz, xz, xy.
    sources
        The key that each label came from, such as ``REF_energy (info)``.
    """

    energy: float | None = None
    forces: FloatArray | None = None
    stress: FloatArray | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


def find_labels(atoms: Atoms, keys: Mapping[str, str | None], where: str) -> Labels:
    """Labels of one structure.

    A stress label of a structure without a cell counts as missing: it has no meaning there.

    Parameters
    ----------
    atoms
        Structure with its calculator, ``info`` and ``arrays``.
    keys
        For each of :data:`LABELS` the key to take, or ``None`` to search as described above. A key with
        "virial" in its name holds virials in eV.
    where
        How messages name the structure.

    Raises
    ------
    DataError
        If a label has a wrong shape, is not finite, is not symmetric (stress), or was computed for
        another geometry.
    """
    hits = {label: hit for label in LABELS if (hit := _find(atoms, label, keys.get(label))) is not None}
    if any(place == "calc" for place, _, _ in hits.values()):
        _check_geometry(atoms, where)
    found: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for label, (place, key, value) in hits.items():
        what = f"{where}: {label} label '{key}' ({place})"
        parsed = parse_label(label, value, atoms, what, virial="virial" in key.lower())
        if parsed is not None:
            found[label], sources[label] = parsed, f"{key} ({place})"
    return Labels(**found, sources=sources)


def parse_label(label: str, value: Any, atoms: Atoms, what: str, *, virial: bool = False) -> Any:
    """One label as a float or float64 array, checked; ``None`` for the stress of no cell.

    Raises
    ------
    DataError
        As :func:`find_labels`, beginning with ``what``.
    """
    if label == "energy":
        return parse_energy(value, what)
    array = _numeric(value, what)
    if label == "forces":
        return _forces(array, atoms, what)
    return _stress(array, atoms, what, virial)


def parse_energy(value: Any, what: str) -> float:
    """An energy label, checked.

    Raises
    ------
    DataError
        As :func:`find_labels`, beginning with ``what``.
    """
    array = _numeric(value, what)
    if array.size != 1:
        raise DataError(f"{what} has shape {array.shape}, expected a single number")
    energy = float(array.reshape(-1)[0])
    if not np.isfinite(energy):
        raise DataError(f"{what} is not finite: {energy}")
    return energy


class KeyCensus:
    """The keys that occur in a set of structures, by place; takes one structure at a time."""

    def __init__(self, structures: Iterable[Atoms] = ()) -> None:
        self._seen: dict[str, set[str]] = {"info": set(), "arrays": set(), "calc": set()}
        for atoms in structures:
            self.add(atoms)

    def add(self, atoms: Atoms) -> None:
        """Count a structure as it was read."""
        for place, store in _stores(atoms):
            self._seen[place].update(map(str, store))

    def check_keys_exist(self, keys: Mapping[str, str | None], name: str) -> None:
        """Refuse an explicit key that occurs in no structure at all.

        Raises
        ------
        DataError
            Naming the argument, and the keys that do occur.
        """
        for label, key in keys.items():
            if key is not None and key not in set().union(*self._seen.values()):
                raise DataError(f"{name}: no frame has {label}_key='{key}'; the keys seen are {self.describe()}")

    def describe(self) -> str:
        """All keys by place, for messages."""
        seen = self._seen | {"arrays": self._seen["arrays"] - _STRUCTURE}
        return "; ".join(f"{place}: {', '.join(sorted(keys)) or 'none'}" for place, keys in seen.items())

    def similar(self, label: str) -> list[str]:
        """Keys that sound like the label."""
        stems = {"energy": ("energy",), "forces": ("force",), "stress": ("stress", "virial")}[label]
        seen = set().union(*self._seen.values())
        return sorted(key for key in seen if any(stem in key.lower() for stem in stems))


def label_notes(census: KeyCensus, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Remarks on labels that may have been overlooked, or that come from several keys.

    Parameters
    ----------
    census
        Of all structures as they were read.
    counts
        For each label the number of frames that had it under each key.
    """
    notes = []
    for label, found in counts.items():
        overlooked = [] if found else census.similar(label)
        if overlooked:
            keys = ", ".join(overlooked)
            notes.append(f"no {label} labels, but there are keys {keys}: the option {label}_key takes one")
        if len(found) > 1:
            used = ", ".join(f"{key} in {count} frames" for key, count in found.items())
            notes.append(f"{label} labels come from several keys: {used}")
    return notes


def strip_labels(atoms: Atoms, keys: Mapping[str, str | None]) -> Atoms:
    """A copy without calculator, constraints and label entries; other ``info`` is kept."""
    bare = atoms.copy()
    bare.calc = None
    bare.set_constraint()
    labels = {key for table in (_REFERENCE, _CALCULATOR, _BARE) for names in table.values() for key in names}
    for key in (labels | {key for key in keys.values() if key is not None}) - _STRUCTURE:
        bare.info.pop(key, None)
        bare.arrays.pop(key, None)
    return bare


def _find(atoms: Atoms, label: str, key: str | None) -> tuple[str, str, Any] | None:
    stores = dict(_stores(atoms))
    for place, candidate in _candidates(label, key):
        value = stores[place].get(candidate)
        if value is not None:
            return place, candidate, value
    return None


def _candidates(label: str, key: str | None) -> list[tuple[str, str]]:
    if key is not None:
        return [(place, key) for place in ("info", "arrays", "calc")]
    home = "arrays" if label == "forces" else "info"
    return [
        *((home, name) for name in _REFERENCE[label]),
        *(("calc", name) for name in _CALCULATOR[label]),
        *((home, name) for name in _BARE[label]),
    ]


def _stores(atoms: Atoms) -> list[tuple[str, Mapping[str, Any]]]:
    # The results themselves, not get_forces(): those would be zero on constrained atoms.
    results = getattr(atoms.calc, "results", None) or {}
    return [("info", atoms.info), ("arrays", atoms.arrays), ("calc", results)]


def _check_geometry(atoms: Atoms, where: str) -> None:
    """Refuse results that the calculator holds for another structure than this one."""
    computed = getattr(atoms.calc, "atoms", None)
    if computed is None:
        return
    same = len(computed) == len(atoms) and bool(
        (computed.numbers == atoms.numbers).all()
        and np.allclose(computed.positions, atoms.positions, rtol=0, atol=1e-6, equal_nan=True)
        and np.allclose(computed.cell[:], atoms.cell[:], rtol=0, atol=1e-6, equal_nan=True)
    )
    if not same:
        raise DataError(
            f"{where}: the calculator holds results for another geometry; the structure was changed after they were "
            "computed, or several frames share one calculator (give each its own SinglePointCalculator)"
        )


def _numeric(value: Any, what: str) -> FloatArray:
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is not numeric: {value!r}") from error


def _forces(array: FloatArray, atoms: Atoms, what: str) -> FloatArray:
    expected = (len(atoms), 3)
    if array.shape != expected:
        raise DataError(f"{what} has shape {array.shape}, expected {expected}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        index = int(np.argmin(finite))
        symbol = atoms.get_chemical_symbols()[index]
        raise DataError(f"{what} is not finite on atom {index} ({symbol}): {array[index].tolist()}")
    return array


def _stress(array: FloatArray, atoms: Atoms, what: str, virial: bool) -> FloatArray | None:
    volume = float(atoms.cell.volume)
    if volume < 1e-8:
        return None
    stress = _voigt(array, what)
    if not np.isfinite(stress).all():
        component = _VOIGT[int(np.argmin(np.isfinite(stress)))]
        raise DataError(f"{what} is not finite in {component}: {stress.tolist()}")
    return -stress / volume if virial else stress


def _voigt(array: FloatArray, what: str) -> FloatArray:
    if array.shape == (6,):
        return array
    if array.size != 9:
        raise DataError(f"{what} has shape {array.shape}, expected (6,) or (3, 3)")
    matrix = array.reshape(3, 3)
    asymmetry = np.abs(matrix - matrix.T).max()
    if asymmetry > _ASYMMETRY_ABSOLUTE + _ASYMMETRY_RELATIVE * np.abs(matrix).max():
        raise DataError(f"{what} is not symmetric: {matrix.tolist()}")
    matrix = 0.5 * (matrix + matrix.T)
    return np.array([matrix[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))])
