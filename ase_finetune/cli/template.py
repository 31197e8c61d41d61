"""All options of a verb as a commented YAML file that ``--config`` reads back."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from ase_finetune.cli.help import described
from ase_finetune.cli.options import Option
from ase_finetune.cli.parsing import COMMON, PROGRAM, VerbParser

_WIDTH = 100

#: What runs code of files or replaces files: config files may only say that it is not allowed.
_ALLOWING = ("trust_pickle", "overwrite")


def template(parser: VerbParser, values: Mapping[str, Any]) -> str:
    """The file, with these values.

    Parameters
    ----------
    parser
        Of the verb.
    values
        Options by name, nested.
    """
    lines = [f"# Options of '{PROGRAM} {parser.name}', for its --config; what is on the command line comes first."]
    open_groups: list[str] = []
    for group in (*parser.verb.groups, COMMON):
        options = [
            option for option in group.options if option.in_files and option.name not in ("config", "print_config")
        ]
        if not options:
            continue
        lines += ["", f"# {group.title}"]
        for option in options:
            *path, name = option.name.split(".")
            for depth, part in enumerate(path):
                if open_groups[: depth + 1] != path[: depth + 1]:
                    lines.append(f"{'  ' * depth}{part}:")
                    open_groups = path[: depth + 1]
            open_groups = path
            lines += _entry(option, name, _value(values, option), "  " * len(path))
    return "\n".join(lines) + "\n"


def _entry(option: Option, name: str, value: Any, indent: str) -> list[str]:
    text = described(option)
    if option.name in _ALLOWING:
        text, value = f"{text} Only the command line can allow it.", False
    comment = [f"{indent}# {line}" for line in textwrap.wrap(text, _WIDTH - len(indent))]
    written = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=math.inf)
    return [*comment, f"{indent}{name}: {written.removesuffix('...' + chr(10)).strip()}"]


def _value(values: Mapping[str, Any], option: Option) -> Any:
    found: Any = values
    for part in option.name.split("."):
        found = found[part]
    return found
