"""Options as dataclasses: every value is of the kind its annotation says, or an error names it."""

from __future__ import annotations

import dataclasses
import math
import os
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from ase_finetune.errors import InputError

#: Larger whole numbers are none of an option, and do not fit into what random generators take as a seed.
_LARGEST = 2**63


def check_types(options: Any, prefix: str = "") -> None:
    """Bring the fields of a dataclass to the types of their annotations.

    Whole numbers become floats where those are wanted, numbers of numpy become Python's, paths and devices become
    texts, and lists become tuples.

    Parameters
    ----------
    options
        A dataclass, frozen or not.
    prefix
        Before the names of its fields in messages.

    Raises
    ------
    InputError
        If a value is of another type; the message names the option.
    """
    hints = get_type_hints(type(options))
    for item in dataclasses.fields(options):
        value = _checked(prefix + item.name, getattr(options, item.name), hints[item.name])
        object.__setattr__(options, item.name, value)


def _checked(name: str, value: Any, hint: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    (wanted,) = (item for item in allowed if item is not type(None))
    if get_origin(wanted) is Literal:
        return _one_of(name, value, get_args(wanted))
    if get_origin(wanted) is Sequence:
        return _texts(name, value)
    if wanted is int:
        return _whole(name, value)
    if wanted is float:
        return _number(name, value)
    if wanted is str and isinstance(value, (os.PathLike, torch.device)):
        return str(value)
    if not isinstance(value, wanted):
        raise InputError(f"{name} must be {_WORDS.get(wanted, wanted.__name__)}, got {_short(value)}")
    return value


def _one_of(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name}={_short(value)} is not known; use one of {', '.join(choices)}")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, dict)):
        raise InputError(f"{name} takes a list of texts, got {_short(value)}")
    try:
        found = tuple(value)
    except TypeError:
        found = (None,)
    if not all(isinstance(item, str) for item in found):
        raise InputError(f"{name} takes a list of texts, got {_short(value)}")
    return found


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -_LARGEST < value < _LARGEST:
        raise InputError(f"{name} must be a whole number, got {_short(value)}")
    return value


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:
        number = math.nan
    if math.isnan(number):
        raise InputError(f"{name} must be a number, got {_short(value)}")
    return number


_WORDS = {str: "a text", bool: "True or False"}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
