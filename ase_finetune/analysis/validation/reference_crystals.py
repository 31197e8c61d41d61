"""Crystals for those who name none: the elements of the training, as they are in nature."""

from __future__ import annotations

from typing import Any

from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, reference_states

from ase_finetune.errors import InputError

#: Structures that ``ase.build.bulk`` makes of an element and its lattice constant alone.
_SIMPLE = ("fcc", "bcc", "diamond", "hcp", "sc")

_MOST = 3


def reference_crystals(calc: Calculator) -> tuple[list[tuple[str, Atoms]], list[str]]:
    """Elemental crystals of what a calculator was trained on.

    Returns
    -------
    Up to three crystals under their names, at the experimental lattice constant, and all elements of the training.

    Raises
    ------
    InputError
        If the calculator was not fine-tuned, or none of its elements has a simple crystal.
    """
    metadata: dict[str, Any] = getattr(calc, "metadata", {})
    elements = sorted(metadata.get("reference_offsets") or {}, key=lambda symbol: int(atomic_numbers[symbol]))
    if not elements:
        raise InputError(
            "which crystals shall be checked? Only a fine-tuned calculator knows what it was trained on; give "
            "structures=[atoms, ...] or a file"
        )
    simple = [symbol for symbol in elements if _is_simple(symbol)]
    if not simple:
        raise InputError(
            f"none of the elements of the training ({', '.join(elements)}) has a simple crystal; give "
            "structures=[atoms, ...] or a file"
        )
    return [(f"{symbol} ({_state(symbol)['symmetry']})", bulk(symbol)) for symbol in simple[:_MOST]], elements


def _state(symbol: str) -> dict[str, Any]:
    return dict(reference_states[atomic_numbers[symbol]] or {})


def _is_simple(symbol: str) -> bool:
    return _state(symbol).get("symmetry") in _SIMPLE
