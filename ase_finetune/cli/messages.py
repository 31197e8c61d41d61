"""Messages that were written for Python, in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from ase_finetune.errors import FinetuneError

_PHRASES = (
    ("give train=frames, or relaxations=pairs with method='bptt'", "give frames, or --relaxations with --method bptt"),
    ("give relaxations=pairs", "give --relaxations"),
    ("give output=folder", "give --output"),
    ("structures=[atoms, ...] or a file", "--structures FILE"),
    ("ase_finetune.potentials.list_models() lists all", "'ase-finetune models' lists all"),
    ("list_models()", "'ase-finetune models'"),
    ("(energy_key=... and forces_key=... name others)", "(--energy_key and --forces_key name others)"),
)

#: ``name='value'``, ``name=True`` and the like, but not ``--name=value``.
_ARGUMENT = re.compile(r"(?<![\w.-])([a-z]\w*(?:\.\w+)*)=('[^']*'|\[[^\]]*\]|\.\.\.|[\w.+-]*\w)")

_UNREADABLE = re.compile(r"ASE cannot read '(?P<path>.*)' \((?P<kind>\w+): .*\)")


def for_command_line(error: FinetuneError, options: Collection[str]) -> str:
    """What an error says, in one line, its remedies as options.

    Parameters
    ----------
    error
        Of this package.
    options
        Names of the options there are.
    """
    text = " ".join(str(error).split())
    unreadable = _UNREADABLE.search(text)
    if unreadable is not None:
        text = text.replace(unreadable[0], _why_unreadable(unreadable["path"], unreadable["kind"]) or unreadable[0])
    for written, meant in _PHRASES:
        text = text.replace(written, meant)
    return _ARGUMENT.sub(lambda found: _as_option(found[0], found[1], found[2], options), text)


def _why_unreadable(path: str, kind: str) -> str:
    """What is wrong with a file, where the error of ASE's reader does not say it."""
    if Path(path).is_dir():
        return f"'{path}' is a folder, not a file of structures"
    file, _, selection = path.rpartition("@")
    if kind in ("IndexError", "StopIteration") and file:
        return f"'{file}' does not hold as many structures as @{selection} asks for (the first is @0)"
    if kind == "TypeError" and file:
        return f"'{path}': @ takes a number or a range such as @3, @-1, @0:10, got @{selection}"
    return ""


def _as_option(written: str, name: str, value: str, options: Collection[str]) -> str:
    if name not in options and name not in ("overwrite", "resume", "trust_pickle"):
        return written
    if value in ("True", "..."):
        return f"--{name}"
    plain = {"False": "false", "None": "null"}.get(value, value.strip("'"))
    return f"--{name} {plain}" if plain and plain[0] != "[" else f"--{name} {value}"
