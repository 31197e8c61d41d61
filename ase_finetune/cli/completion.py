"""Scripts that let a shell complete verbs, options, their values, models and files."""

from __future__ import annotations

import argparse
from typing import Any

from ase_finetune.cli.options import Option
from ase_finetune.cli.parsing import PROGRAM, VerbParser
from ase_finetune.cli.verbs import VERBS, load_verb
from ase_finetune.errors import BackendNotInstalledError
from ase_finetune.potentials import list_models


def completion_script(shell: str) -> str:
    """The script for a shell.

    Raises
    ------
    BackendNotInstalledError
        If shtab is not installed, which knows the shells.
    """
    try:
        import shtab
    except ImportError as error:
        raise BackendNotInstalledError("completion needs the package shtab: pip install shtab") from error
    script: str = shtab.complete(_described(), shell)
    return script


def _described() -> argparse.ArgumentParser:
    """The command line as shtab wants to see it."""
    parser = argparse.ArgumentParser(prog=PROGRAM)
    parser.add_argument("--version", action="store_true", help="show the version")
    verbs = parser.add_subparsers(dest="verb")
    for name, (summary, _) in VERBS.items():
        below = verbs.add_parser(name, help=summary, add_help=False)
        for option in VerbParser(name, load_verb(name)).options.values():
            _add(below, option)
    return parser


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    names = [option.name] if option.position else [f"--{option.name}", *([option.short] if option.short else [])]
    text = option.help.split(". ")[0].replace("%", "%%")
    if option.is_switch:
        parser.add_argument(*names, action="store_true", help=text)
        return
    count: Any = "*" if option.takes_list else "?" if option.position else None
    action: Any = parser.add_argument(*names, nargs=count, help=text)
    values = (*option.values, *option.choices)
    if option.models:
        action.complete = _models_or_files()
    elif values:
        action.choices = list(values)
    elif option.position or option.shown in ("FILE", "FOLDER"):
        action.complete = _FILES


#: As shtab has it for files, which is not imported here.
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


def _models_or_files() -> dict[str, Any]:
    names = " ".join(info.name for info in list_models())
    function = "_ase_finetune_model_or_file"
    bash = f"{function}() {{\n  compgen -W {names!r} -- $1\n  compgen -f -- $1\n}}"
    zsh = f"{{_alternative 'models:model:({names})' 'files:file:_files'}}"
    return {"bash": function, "zsh": zsh, "tcsh": "f", "preamble": {"bash": bash}}
