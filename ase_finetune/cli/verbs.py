"""The verbs of the command line: what each does, and the module it lives in, imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

from ase_finetune.cli.options import Group, Option
from ase_finetune.cli.terminal import Terminal

#: Exit codes; 128 plus its number after a signal.
ERROR, NOT_ALL_WELL, BUG = 1, 3, 70


@dataclass(frozen=True)
class Verb:
    """What a verb takes and does.

    Attributes
    ----------
    description
        What it does, in a sentence or two.
    examples
        Command lines without the program's name, and what each is for.
    groups
        Its options; the arguments come first.
    run
        Does it, and returns the exit code.
    """

    description: str
    examples: tuple[tuple[str, str], ...]
    groups: tuple[Group, ...]
    run: Callable[[Namespace, Terminal], int]

    @property
    def options(self) -> list[Option]:
        """All options of all groups."""
        return [option for group in self.groups for option in group.options]


#: Verb, what it does in a few words, and where its :class:`Verb` is.
VERBS: dict[str, tuple[str, str]] = {
    "fit": ("fine-tune a model on labelled frames or relaxations", "fitting:FIT"),
    "relax": ("relax structures, many at once", "relaxing:RELAX"),
    "md": ("molecular dynamics of one structure", "running:MD"),
    "evaluate": ("errors of a model on labelled frames", "judging:EVALUATE"),
    "validate": ("physical checks of a model, alone or against another one", "judging:VALIDATE"),
    "report": ("a page about one run, or several in comparison", "judging:REPORT"),
    "fisher": ("estimate what a model must not forget, once for many fits", "remembering:FISHER"),
    "models": ("list the pretrained models", "managing:MODELS"),
    "export": ("write the backend's own checkpoint, for LAMMPS and others", "managing:EXPORT"),
    "doctor": ("what is installed, what works, and what mends the rest", "managing:DOCTOR"),
}


def load_verb(name: str) -> Verb:
    """A verb by its name; only now what it needs is imported."""
    module, attribute = VERBS[name][1].split(":")
    verb: Any = getattr(importlib.import_module(f"ase_finetune.cli.{module}"), attribute)
    assert isinstance(verb, Verb)
    return verb
