"""The help of the program and of each verb, for a terminal of any width."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from ase_finetune.cli.options import Group, Option
from ase_finetune.cli.parsing import PROGRAM, VerbParser
from ase_finetune.cli.verbs import VERBS

_WIDEST = 100
_COLUMN = 26

_TOP = f"""\
usage: {PROGRAM} VERB ...

Fine-tune pretrained interatomic potentials without forgetting the periodic table.

verbs:
{{verbs}}

options:
  -h, --help         Show this help; VERB --help shows that of a verb.
  --version          Show the version of this program.
  --print-completion bash|zsh|tcsh
                     Print a script that lets the shell complete verbs, options,
                     models and files.
  -v, -q, --debug    Show more; results only; traces of errors. With every verb.

Results go to stdout, notes and progress bars to stderr. Options are called as in Python and in config files; dashes \
may be written for underscores. VERB --print-config writes a commented file for --config.

exit codes:
  0        done
  1        an error, shown in one line
  2        the command line is not understood
  3        done, but not all is well: structures that did not converge
           (relax), checks that failed or judged
           nothing (validate)
  70       a bug in this program
  128 + n  stopped by signal n (130: Ctrl-C)

examples:
  {PROGRAM} fit 7net-0 frames.extxyz --output runs/mine
  {PROGRAM} evaluate runs/mine/model test.extxyz
  {PROGRAM} relax runs/mine/model POSCAR --output relaxed.extxyz --cell
  {PROGRAM} --print-completion bash >> ~/.bash_completion
"""


def top_help() -> str:
    """The help of the program; no verb is imported."""
    verbs = "\n".join(f"  {name:10s} {summary}" for name, (summary, _) in VERBS.items())
    return "\n".join(_folded(_TOP.format(verbs=verbs), _width()))


def verb_help(parser: VerbParser) -> str:
    """The help of a verb: what it does, examples, and its options with units and defaults."""
    width, verb = _width(), parser.verb
    positions = [option for option in verb.options if option.position]
    usage = " ".join([PROGRAM, parser.name, "[options]", *(_in_usage(option) for option in positions)])
    needed = [f"--{option.name} {option.shown}" for option in verb.options if option.needed and not option.position]
    lines = [f"usage: {' '.join([usage, *needed])}", "", *textwrap.wrap(verb.description, width), "", "examples:"]
    for purpose, example in verb.examples:
        lines += [*(f"  # {line}" for line in textwrap.wrap(purpose, width - 4)), f"  {PROGRAM} {example}"]
    arguments = Group("arguments", tuple(positions))
    for group in (arguments, *parser.groups):
        options = [option for option in group.options if group is arguments or not option.position]
        if options:
            lines += ["", f"{group.title}:", *(line for option in options for line in _entry(option, width))]
    return "\n".join(lines) + "\n"


def described(option: Option) -> str:
    """What an option is for, its values, and its default."""
    notes = []
    values = option.values
    if values and len(" ".join(values)) > 24 and not all(value in option.help for value in values):
        notes.append(f"one of {', '.join(values)}")
    if option.needed:
        notes.append("needed")
    elif option.default is not None and not option.is_switch and option.default != []:
        notes.append(f"default {_shown(option.default)}")
    note = f" ({'; '.join(notes)})" if notes else ""
    return f"{option.help}{note}".strip()


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isinf(value):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_usage(option: Option) -> str:
    text = f"{option.shown}..." if option.takes_list else option.shown
    return text if option.needed else f"[{text}]"


def _entry(option: Option, width: int) -> list[str]:
    """An option at the left, its description at the right, below each other where the left one is too long."""
    start = "  " + _invocation(option)
    text = textwrap.wrap(described(option), max(30, width - _COLUMN)) or [""]
    if len(start) < _COLUMN - 1:
        return [f"{start:{_COLUMN}s}{text[0]}", *(" " * _COLUMN + line for line in text[1:])]
    return [start, *(" " * _COLUMN + line for line in text)]


def _invocation(option: Option) -> str:
    if option.position:
        return f"{option.shown}..." if option.takes_list else option.shown
    value = "" if option.is_switch else f" {option.shown}"
    if option.takes_list and option.count is None and not option.takes_one:
        value += "..."
    return f"{option.short + ', ' if option.short else ''}--{spelled(option)}{value}"


def spelled(option: Option) -> str:
    """Its name in the help: as in Python, but of what only the command line has as a shell's user expects it."""
    return "print-config" if option.name == "print_config" else option.name


def _folded(text: str, width: int) -> Iterator[str]:
    """Lines that are not longer; those that are tables are left as they are."""
    for line in text.splitlines():
        yield from [line] if not line or line.startswith(" ") else textwrap.wrap(line, width)
    yield ""


def _width() -> int:
    return max(50, min(_WIDEST, shutil.get_terminal_size().columns - 1))
