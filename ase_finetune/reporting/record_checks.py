"""Whether what a record file holds fits together, before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Arrays of a set of structures.
FRAME_ARRAYS = ("numbers", "counts", "energy", "forces", "stress")

Arrays = Mapping[str, NDArray[Any]]

# Of metadata, what a report reads: the types that it takes.
_DICTS = ("config", "data", "versions", "machine", "fisher", "reference_offsets", "shifted_by")
_METADATA: dict[str, type] = {
    **dict.fromkeys(_DICTS, dict),
    **dict.fromkeys(("stages", "frozen", "rounds"), list),
    "unchanged": bool,
}

_PAIR_LISTS = ("descriptions", "before", "after", "shown", "targets", "ends_before", "ends_after")

_HEAVIEST = 118


def check_content(content: Mapping[str, Any], arrays: Arrays) -> None:
    """Raise on the first thing that does not fit.

    Parameters
    ----------
    content
        The plain part of the file.
    arrays
        Its arrays by name.

    Raises
    ------
    KeyError, TypeError, ValueError
        Something is missing, or of another type, shape or size; the message names it.
    """
    for name, kind in (("metadata", dict), ("history", list), ("log", list), ("frames", list), ("drift", list)):
        _need(isinstance(content[name], kind), f"{name} is no {kind.__name__}")
    _check_metadata(content["metadata"])
    for row in content["history"]:
        _need(isinstance(row, dict), "a row of the history is no dict")
        _need(_is_number(row.get("epoch")), "a row of the history has no epoch")
        _need(not any(isinstance(value, (dict, list)) for value in row.values()), "a value of the history is nested")
    for k, item in enumerate(content["frames"]):
        _check_frames(item, {name: arrays[f"frames {k} {name}"] for name in FRAME_ARRAYS}, f"set {k}")
    for item in content["drift"]:
        _need(isinstance(item, dict) and isinstance(item.get("name"), str), "a parameter tensor has no name")
        for name in ("size", "change", "scale", "stiffness"):
            _need(isinstance(item[name], (int, float)), f"{name} of the parameter tensor {item['name']!r} is no number")
        _need(isinstance(item["size"], int) and item["size"] >= 0, f"{item['name']!r} has the size {item['size']!r}")
    if content["pairs"] is not None:
        _check_pairs(content["pairs"], arrays["gradient norms"])


def _need(truth: bool, otherwise: str) -> None:
    if not truth:
        raise ValueError(otherwise)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for name, kind in _METADATA.items():
        value = metadata.get(name)
        _need(value is None or isinstance(value, kind), f"metadata: {name} is no {kind.__name__}")
    for name in ("reference_offsets", "shifted_by"):
        values = (metadata.get(name) or {}).values()
        _need(all(map(_is_number, values)), f"metadata: {name} holds something else than numbers")
    _need(all(isinstance(item, dict) for item in metadata.get("rounds") or []), "metadata: a round is no dict")
    config = metadata.get("config") or {}
    bptt = config.get("bptt")
    _need(bptt is None or isinstance(bptt, dict), "metadata: bptt is no dict")
    stages = metadata.get("stages") or []
    _need(all(isinstance(item, dict) for item in stages), "metadata: a stage is no dict")
    kept = [item.get("kept") or {} for item in stages]
    _need(all(isinstance(item, dict) for item in kept), "metadata: what a stage kept is no dict")
    counts = [config.get("epochs"), (bptt or {}).get("epochs"), *(item.get("best_epoch") for item in stages)]
    counts += [item.get("epoch") for item in kept]
    _need(all(count is None or _is_number(count) for count in counts), "metadata: a number of epochs is no number")
    for item in stages:
        for name in ("before", "after"):
            errors = item.get(name) or {}
            fits = isinstance(errors, dict) and all(e is None or isinstance(e, dict) for e in errors.values())
            _need(fits, f"metadata: the errors {name} a stage are no dict")


def _check_frames(item: Mapping[str, Any], arrays: Arrays, what: str) -> None:
    _need(isinstance(item, dict) and isinstance(item["name"], str), f"{what} has no name")
    _need(isinstance(item["own_labels"], bool), f"{what}: own_labels is neither true nor false")
    numbers, counts = arrays["numbers"], arrays["counts"]
    for name in ("numbers", "counts"):
        fits = arrays[name].dtype == np.int64 and arrays[name].ndim == 1
        _need(fits, f"{what}: {name} is no list of whole numbers")
    atoms, structures = len(numbers), len(counts)
    # Each one on its own first: the sum of wild ones may overflow to the right number.
    fits = bool(((counts >= 0) & (counts <= atoms)).all()) and int(counts.sum()) == atoms
    _need(fits, f"{what}: counts are not those of {atoms} atoms")
    _need(bool(((numbers > 0) & (numbers <= _HEAVIEST)).all()), f"{what}: an atomic number is none")
    shapes = {"energy": (structures, 3), "forces": (atoms, 3, 3), "stress": (structures, 6, 3)}
    for name, shape in shapes.items():
        fits = arrays[name].dtype == np.float64 and arrays[name].shape == shape
        _need(fits, f"{what}: {name} has the shape {arrays[name].shape}, {arrays[name].dtype}, not {shape}, float64")
    _need(_are_texts(item["descriptions"], structures), f"{what}: there is not one description for each structure")
    available = item["available"]
    _need(type(available) is int and available >= structures, f"{what}: available is {available!r}")


def _are_texts(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(isinstance(value, str) for value in values)


def _check_pairs(pairs: Mapping[str, Any], norms: NDArray[Any]) -> None:
    _need(isinstance(pairs, dict), "pairs are no dict")
    for name in _PAIR_LISTS:
        _need(isinstance(pairs[name], list), f"pairs: {name} is no list")
    count = len(pairs["descriptions"])
    _need(_are_texts(pairs["descriptions"], count), "pairs: a description is no text")
    for name in ("before", "after"):
        fits = len(pairs[name]) == count and all(isinstance(error, dict) for error in pairs[name])
        _need(fits, f"pairs: {name} has not one entry for each pair")
    shown = pairs["shown"]
    _need(all(type(k) is int and 0 <= k < count for k in shown), "pairs: shown holds positions that are none")
    for name in ("targets", "ends_before", "ends_after"):
        _need(len(pairs[name]) == len(shown), f"pairs: {name} has not one structure for each one shown")
        for item in pairs[name]:
            _check_structure(item, f"pairs: a structure of {name}")
    _need(norms.ndim == 2 and norms.dtype == np.float64, "pairs: the gradient norms are no table of numbers")


def _check_structure(item: Any, what: str) -> None:
    fits = isinstance(item, dict) and set(item) == {"numbers", "positions", "cell", "pbc"}
    _need(fits, f"{what} has other parts than a structure")
    numbers = item["numbers"]
    fits = isinstance(numbers, list) and all(type(z) is int and 0 <= z <= _HEAVIEST for z in numbers)
    _need(fits, f"{what} has atoms of no element")
    for name, shape in (("positions", (len(numbers), 3)), ("cell", (3, 3)), ("pbc", (3,))):
        kind = np.bool_ if name == "pbc" else np.float64
        found: NDArray[Any] = np.asarray(item[name], dtype=kind)
        fits = found.shape == shape or (not numbers and name == "positions" and not found.size)
        _need(fits, f"{what} has {name} of the shape {found.shape}")
