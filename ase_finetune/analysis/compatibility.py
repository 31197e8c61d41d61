"""Which versions go together: a pure function of what is installed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: Lowest versions of the backends; those of everything else are in the package's metadata.
LOWEST_BACKENDS = {"sevenn": "0.10.4", "mace-torch": "0.3.16"}

#: mace-torch pins this one; sevenn needs 0.5 from 0.11 on.
MACE_E3NN = "0.4.4"


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes
    ----------
    text
        What, in one line.
    remedy
        What mends it: a line for the shell wherever there is one.
    serious
        Whether something does not work; otherwise it is worth knowing.
    """

    text: str
    remedy: str
    serious: bool = True


def diagnose(installed: Mapping[str, str], required: Mapping[str, str] | None = None) -> list[Problem]:
    """Problems that follow from versions alone, the most basic first.

    Parameters
    ----------
    installed
        Version by name of distribution ("torch", "sevenn", "mace-torch", "e3nn", ...); what is missing is left out.
    required
        Lowest version by name of what this package needs.

    Returns
    -------
    Empty if all is well.
    """
    problems = [
        _missing_or_old(name, installed.get(name), lowest)
        for name, lowest in (required or {}).items()
        if name not in installed or _older(installed[name], lowest)
    ]
    return problems + _backend_problems(installed)


def mend_backends(installed: Mapping[str, str]) -> str:
    """The pip line after which the installed backends (all, if there is none) work together."""
    if "mace-torch" not in installed and "sevenn" not in installed:
        return 'pip install "ase_finetune[all]"'
    if "mace-torch" not in installed:
        return (
            'pip install "e3nn>=0.5"' if _old_e3nn(installed) else f'pip install "sevenn>={LOWEST_BACKENDS["sevenn"]}"'
        )
    sevenn = f'"sevenn>={LOWEST_BACKENDS["sevenn"]},<0.11" ' if "sevenn" in installed else ""
    return f'pip install {sevenn}"mace-torch>={LOWEST_BACKENDS["mace-torch"]}" "e3nn=={MACE_E3NN}"'


def _old_e3nn(installed: Mapping[str, str]) -> bool:
    """Whether e3nn is too old for sevenn."""
    sevenn, e3nn = installed.get("sevenn"), installed.get("e3nn")
    return sevenn is not None and e3nn is not None and not _older(sevenn, "0.11") and _older(e3nn, "0.5")


def _backend_problems(installed: Mapping[str, str]) -> list[Problem]:
    sevenn, mace, e3nn = (installed.get(name) for name in ("sevenn", "mace-torch", "e3nn"))
    mend = mend_backends(installed)
    if sevenn is None and mace is None:
        return [Problem("there is no backend: neither sevenn nor mace-torch is installed", mend)]
    problems = [
        Problem(f"{name} {installed[name]} is older than {lowest}, the lowest that is supported", mend)
        for name, lowest in LOWEST_BACKENDS.items()
        if name in installed and _older(installed[name], lowest)
    ]
    if e3nn is None:
        users = " and ".join(name for name in LOWEST_BACKENDS if name in installed)
        return [*problems, Problem(f"e3nn is not installed, without which {users} cannot be imported", mend)]
    if mace is not None and sevenn is not None and not _older(sevenn, "0.11"):
        return [*problems, _conflict(sevenn, mace, e3nn, mend)]
    if _old_e3nn(installed):
        problems.append(Problem(f"sevenn {sevenn} needs e3nn >= 0.5, and {e3nn} is installed", mend))
    if mace is not None and _release(e3nn) != _release(MACE_E3NN):
        problems.append(Problem(f"mace-torch {mace} asks for e3nn {MACE_E3NN}, and {e3nn} is installed", mend, False))
    return problems


def _conflict(sevenn: str, mace: str, e3nn: str, mend: str) -> Problem:
    text = f"sevenn {sevenn} needs e3nn >= 0.5, mace-torch {mace} asks for {MACE_E3NN}, and {e3nn} is installed"
    loser = "sevenn does not work" if _older(e3nn, "0.5") else "mace is outside of what its authors test"
    remedy = f"{mend}   # or keep sevenn {sevenn} in an environment of its own, without mace-torch"
    return Problem(f"{text}: {loser}", remedy, serious=_older(e3nn, "0.5"))


def _missing_or_old(name: str, version: str | None, lowest: str) -> Problem:
    state = "is not installed" if version is None else f"{version} is older than {lowest}, the lowest that is supported"
    return Problem(f"{name} {state}", f'pip install "{name}>={lowest}"')


def _older(version: str, lowest: str) -> bool:
    return _release(version) < _release(lowest)


def _release(version: str) -> tuple[int, ...]:
    """Numbers of a version without zeros at its end: (2, 4) of "2.4.0+cu121"."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(number) for number in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
