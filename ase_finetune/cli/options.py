"""Options of the command line as data: parser, help, templates and completion are made of the same."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: What it takes in messages: one, and several.
_WORDS = {int: "a whole number", float: "a number", str: "a text"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "texts"}

#: What an option takes, where its type says it all.
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}


@dataclass(frozen=True)
class Option:
    """An option, or with ``position`` an argument that needs no ``--name`` before it.

    Attributes
    ----------
    name
        As in Python and in config files; dots lead into groups.
    kind
        Type hint of its value; ``bool`` with a default of ``False`` is a switch.
    default
        Its value when it is not given.
    help
        One or two sentences, with units.
    metavar
        Stands for the value in the help; made of ``kind`` when empty.
    needed
        Whether it has to be given, on the line or in a config file.
    position
        Whether words without an option before them are its value.
    count
        Number of values of a list; ``None`` for any.
    short
        One letter, such as ``"-q"``.
    in_files
        Whether config files may hold it.
    models
        Whether it is the name of a pretrained model, for completion.
    choices
        Values to offer besides those of a ``Literal``, for completion.
    """

    name: str
    kind: Any = str
    default: Any = None
    help: str = ""
    metavar: str = ""
    needed: bool = False
    position: bool = False
    count: int | None = None
    short: str = ""
    in_files: bool = True
    models: bool = False
    choices: tuple[str, ...] = ()

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool and self.default is False

    @property
    def takes_list(self) -> bool:
        """Whether it takes several values."""
        return any(get_origin(kind) in (list, Sequence) for kind in self.kinds)

    @property
    def items(self) -> tuple[Any, ...]:
        """Types of the values of a list."""
        return tuple(item for kind in self.kinds if get_origin(kind) in (list, Sequence) for item in get_args(kind))

    @property
    def takes_one(self) -> bool:
        """Whether it takes a value that is no list."""
        return any(get_origin(kind) not in (list, Sequence) for kind in self.kinds if kind is not type(None))

    @property
    def values(self) -> tuple[str, ...]:
        """All values there are, if they are a few names; ``()`` otherwise."""
        for kind in self.kinds:
            if get_origin(kind) is Literal:
                return tuple(str(value) for value in get_args(kind))
        return ("true", "false") if bool in self.kinds and not self.is_switch else ()

    @property
    def shown(self) -> str:
        """The value in the help."""
        if self.metavar:
            return self.metavar
        if self.position:
            return self.name.upper()
        if self.values:
            return "|".join(self.values) if len("|".join(self.values)) <= 24 else "NAME"
        kinds = [kind for kind in self.kinds if kind is not type(None)]
        return _METAVARS.get(kinds[0], "TEXT")

    @property
    def wanted(self) -> str:
        """What it takes, for messages."""
        if self.values and bool not in self.kinds:
            return f"one of {', '.join(self.values)}"
        if bool in self.kinds:
            return "true or false"
        if self.takes_list and not self.takes_one:
            return f"{self.count or 'some'} {self.wanted_items}"
        return " or ".join(_WORDS.get(kind, f"several {self.wanted_items}") for kind in self._types)

    @property
    def wanted_items(self) -> str:
        """What the values of a list are, for messages."""
        return " or ".join(_SEVERAL.get(kind, "values") for kind in self.items)

    @property
    def _types(self) -> tuple[Any, ...]:
        return tuple(kind for kind in self.kinds if kind is not type(None))

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that its value may have."""
        return get_args(self.kind) if get_origin(self.kind) in (Union, types.UnionType) else (self.kind,)


@dataclass(frozen=True)
class Group:
    """Options under one title of the help."""

    title: str
    options: tuple[Option, ...]


def nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion for an unknown word, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def options_of(config: type, prefix: str = "") -> Iterator[Option]:
    """The fields of a dataclass as options, those of nested ones too, with the help of its docstring."""
    hints, texts = get_type_hints(config), documented(config)
    for item in dataclasses.fields(config):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from options_of(hint, f"{prefix}{item.name}.")
            continue
        default: Any = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        kind = hint
        if get_origin(hint) is Sequence:
            kind, default = list[str], list(default)
        # One without a description of its own is part of that of another.
        text = texts.get(item.name) or next((text for text in texts.values() if item.name in text), "")
        yield Option(prefix + item.name, kind, default, text)


def documented(thing: Any) -> dict[str, str]:
    """Help of parameters and attributes in a NumPy docstring, as plain text; those described together share it."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    inside = False
    lines = inspect.cleandoc(thing.__doc__ or "").splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following and set(following) == {"-"}:
            inside, names = line in ("Parameters", "Attributes"), []
        elif inside and line and not line[0].isspace() and set(line) != {"-"}:
            names = [name.strip("* ") for name in line.split(",")]
        elif inside and line:
            for name in names:
                found.setdefault(name, []).append(line.strip())
    return {name: plain(" ".join(text)) for name, text in found.items()}


def plain(text: str) -> str:
    """Docstring text without its markup."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda match: match[1].rsplit(".", 1)[-1], text)
    text = re.sub(r"``None``", "null", text)  # as the command line and YAML write it
    return text.replace('``"', "").replace('"``', "").replace("``", "").replace("`", "")
