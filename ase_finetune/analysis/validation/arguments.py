"""Options of checks: what cannot be used is refused when a check is made, before any work."""

from __future__ import annotations

import numpy as np

from ase_finetune.errors import InputError


def require(check: object, **least: float) -> None:
    """Refuse options of a check that are not finite numbers above some bounds.

    Raises
    ------
    InputError
        Naming the option.
    """
    for name, bound in least.items():
        value = getattr(check, name)
        if not (np.isfinite(value) and value > bound):
            raise InputError(f"{type(check).__name__}({name}={value!r}): {name} must be above {bound:g} and finite")


def require_whole(check: object, **least: int) -> None:
    """Refuse options of a check that are not whole numbers, or less than the least.

    Raises
    ------
    InputError
        Naming the option.
    """
    for name, bound in least.items():
        value = getattr(check, name)
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < bound:
            message = f"{name} must be a whole number of at least {bound}"
            raise InputError(f"{type(check).__name__}({name}={value!r}): {message}")
