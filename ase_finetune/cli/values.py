"""From words and from what YAML holds to values of the kind that an option takes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from ase_finetune.cli.options import Option, nearest

#: As they are commonly written; neither 0x10 nor 1_000.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NOT_FINITE = re.compile(r"[+-]?\.?(inf|infinity|nan)", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d+")

#: Words that are a switch's value where they follow it.
SWITCHED = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


class ValueKindError(ValueError):
    """A value that is not of the kind that its option takes."""


def value_of_words(option: Option, words: Sequence[str]) -> Any:
    """The value that words on the command line stand for; texts stay as they are written.

    Parameters
    ----------
    option
        Its option.
    words
        One, or several of a list.

    Raises
    ------
    ValueKindError
        If they are not what the option takes; the message does not name it.
    """
    if len(words) == 1 and words[0] == "null" and type(None) in option.kinds:
        return None
    if not option.takes_list:
        return _of_word(option, words[0], option.kinds)
    if len(words) == 1:
        if option.takes_one:
            return _of_word(option, words[0], option.kinds)
        if words[0] == "[]":
            return []
        if str not in option.items:
            words = [word.strip() for word in words[0].strip("[]").split(",")]
    _check_count(option, words)
    return [_of_word(option, word, option.items) for word in words]


def check_value(option: Option, value: Any) -> Any:
    """The value of a config file, if it is of the kind that the option takes.

    Raises
    ------
    ValueKindError
        If not; the message does not name the option.
    """
    if value is None and type(None) in option.kinds:
        return None
    if isinstance(value, list) and option.takes_list:
        if value:
            _check_count(option, value)
        return [_of_plain(option, item, option.items) for item in value]
    return _of_plain(option, value, [kind for kind in option.kinds if get_origin(kind) is not list])


def _check_count(option: Option, values: Sequence[Any]) -> None:
    if option.count is not None and len(values) != option.count:
        raise ValueKindError(f"takes {option.count} values, got {' '.join(map(str, values))}")


def _of_word(option: Option, word: str, kinds: Sequence[Any]) -> Any:
    if word == "":
        raise ValueKindError(f"takes {option.wanted}, got an empty text")
    for kind in kinds:
        if kind is bool and word.lower() in SWITCHED:
            return SWITCHED[word.lower()]
        if get_origin(kind) is Literal and word in get_args(kind):
            return word
        if kind is int and _WHOLE.fullmatch(word):
            return int(word)
        if kind is float and (_NUMBER.fullmatch(word) or (_NOT_FINITE.fullmatch(word) and str not in kinds)):
            return _finite(option, float(word.replace(".inf", "inf").replace(".nan", "nan")), word)
    if str in kinds:
        return word
    raise _wrong(option, repr(word), kinds, near=word)


def _of_plain(option: Option, value: Any, kinds: Sequence[Any]) -> Any:
    """As :func:`_of_word`, of a value that YAML has made."""
    for kind in kinds:
        if kind is bool and isinstance(value, bool):
            return value
        if get_origin(kind) is Literal and isinstance(value, str) and value in get_args(kind):
            return value
        if kind in (int, float) and isinstance(value, int) and not isinstance(value, bool):
            return value if kind is int else _finite(option, _as_float(value), value)
        if kind is float and isinstance(value, float):
            return _finite(option, value, value)
        if kind is float and isinstance(value, str) and _NUMBER.fullmatch(value):
            return _finite(option, float(value), value)  # PyYAML takes 1e-3 for a text
        if kind is str and isinstance(value, str) and value:
            return value
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    remedy = "; write it in quotes" if str in kinds and value is not None and value != "" else ""
    raise _wrong(option, shown[:80], kinds, near=str(value), remedy=remedy)


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _finite(option: Option, number: float, written: Any) -> float:
    if not math.isfinite(number):
        raise ValueKindError(f"takes {option.wanted} that is finite, got {written}")
    return number


def _wrong(option: Option, shown: str, kinds: Sequence[Any], near: str, remedy: str = "") -> ValueKindError:
    wanted = option.wanted
    if option.takes_list and tuple(kinds) == option.items:
        wanted = f"{option.count or 'some'} {option.wanted_items}"
    return ValueKindError(f"takes {wanted}, got {shown}{remedy}{nearest(near, option.values)}")
