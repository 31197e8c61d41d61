"""Bounds on what a description in a file can make a backend build.

A description is a few numbers, and a module is built from it before its weights can be compared. Whoever wrote
"1000000000 channels" or "angular momentum 50" into a file must not take our memory or our time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ase_finetune.errors import CheckpointError

#: Numbers on which the time to build a model depends more than linearly, or by which lists are repeated, with
#: bounds far above every published model: e3nn knows angular momenta up to 11, MACE uses correlations up to 4.
_LARGEST = {
    "lmax": 11,
    "lmax_edge": 11,
    "lmax_node": 11,
    "max_ell": 11,
    "edge_irreps": 11,
    "correlation": 6,
    "num_convolution_layer": 64,
    "num_interactions": 64,
    "_number_of_species": 120,
    "_number_of_modalities": 1000,
    "num_elements": 120,
    "num_bessel": 10_000,
    "bessel_basis_num": 10_000,
    "channel": 4096,
    "radial_MLP": 100_000,
    "weight_nn_hidden_neurons": 100_000,
}
_LARGEST_OTHER = 10_000_000
_LONGEST_TEXT = 10_000

#: e3nn sorts irreps one by one, in a time that is quadratic in how many there are.
_IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps", "irreps_manual")
_MOST_IRREPS = 200
_DEEPEST = 20

#: e3nn normalises activations with a million random numbers, whatever the model is.
_ALWAYS_ALLOWED = 8_000_000
#: Building a model makes many tensors that are gone again; measured are 60 times the weights, and 6e7 elements.
_TOTAL_ALLOWED = 200_000_000
_TOTAL_FACTOR = 200


def check_numbers(architecture: Mapping[str, Any], origin: Path | str) -> None:
    """Refuse a description with numbers that no model has.

    Raises
    ------
    CheckpointError
        Naming ``origin``, the entry and its value.
    """
    for name, value in architecture.items():
        _check_value(str(name), value, _LARGEST.get(str(name), _LARGEST_OTHER), origin, 0)
        if name in _IRREPS:
            _check_irreps(str(name), value, origin)


def _check_irreps(name: str, value: Any, origin: Path | str) -> None:
    for text in value if isinstance(value, (list, tuple)) else [value]:
        numbers = [int(digits[:9]) for digits in re.findall(r"\d+", str(text))]
        angular = [int(digits[:9]) for digits in re.findall(r"(\d+)[eoy]", str(text))]
        if (
            len(numbers) > 2 * _MOST_IRREPS
            or max(numbers, default=0) > _LARGEST["channel"]
            or max(angular, default=0) > _LARGEST["lmax"]
        ):
            raise CheckpointError(f"{origin} describes no model: {name!r} is {str(text)[:80]!r}")


def _check_value(name: str, value: Any, largest: int, origin: Path | str, depth: int) -> None:
    if depth > _DEEPEST:
        raise CheckpointError(f"{origin} describes no model: {name!r} is nested more than {_DEEPEST} times")
    if isinstance(value, int) and abs(value) > largest:
        raise CheckpointError(f"{origin} describes no model: {name!r} is {str(value)[:20]}, at most {largest} is sane")
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise CheckpointError(f"{origin} describes no model: {name!r} is a text of {len(value)} characters")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_value(f"{name}.{str(key)[:80]}", item, _LARGEST.get(str(key), largest), origin, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_value(name, item, largest, origin, depth + 1)


class BoundedBuild(TorchDispatchMode):
    """Within the block, no tensor is made that is far larger than the weights it is made for.

    Parameters
    ----------
    state
        The weights, which are here already, so they are no larger than a file that somebody could store.
    origin
        What messages name.

    Raises
    ------
    CheckpointError
        In the block, before a larger tensor is allocated.
    """

    def __init__(self, state: Mapping[str, Any], origin: Path | str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        sizes = [value.numel() for value in state.values() if isinstance(value, Tensor)]
        self._largest = max(_ALWAYS_ALLOWED, 4 * max(sizes, default=0))
        self._left = _TOTAL_ALLOWED + _TOTAL_FACTOR * sum(sizes)
        self._origin = origin

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation of torch, if what it makes is within the bounds."""
        inputs = {_address(item) for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)}
        self._check(_asked_for(func, args))
        out = func(*args, **(kwargs or {}))
        made = [item for item in tree_flatten(out)[0] if isinstance(item, Tensor) and _address(item) not in inputs]
        for tensor in made:
            self._check(tensor.numel())
            self._left -= tensor.numel()
        return out

    def _check(self, elements: int) -> None:
        if elements > min(self._largest, self._left):
            raise CheckpointError(
                f"{self._origin} does not describe its weights: it asks for far larger tensors ({elements:.3g} numbers)"
            )


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _asked_for(func: Any, args: Any) -> int:
    """How many elements an operation is asked to make by numbers alone, such as ``zeros`` and ``new_zeros``."""
    name = func.overloadpacket.__name__.removeprefix("new_")
    lists = [item for item in args if isinstance(item, (list, tuple)) and all(isinstance(n, int) for n in item)]
    if lists and name.startswith(("empty", "zeros", "ones", "full", "rand", "normal")):
        return math.prod(lists[0])
    numbers = [abs(item) for item in args if isinstance(item, (int, float)) and math.isfinite(item)]
    if name == "eye":
        return int(max(numbers, default=0)) ** 2
    if name in ("arange", "range", "linspace", "logspace"):
        return int(max(numbers, default=0))
    return 0
