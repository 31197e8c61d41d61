"""Isolated atoms among labelled frames: references of energies, which nothing can be learnt from about a material."""

from __future__ import annotations

from collections.abc import Iterable

from ase import Atoms
from ase.data import chemical_symbols

from ase_finetune.data.frames import FrameSet
from ase_finetune.data.report import listed
from ase_finetune.errors import DataError
from ase_finetune.graphs.neighbors import neighbor_list


def is_isolated(atoms: Atoms, cutoff: float) -> bool:
    """Whether a structure is one atom without neighbours, or one atom that its ``config_type`` calls isolated.

    The only atom of a crystal's primitive cell has its own images as neighbours.

    Parameters
    ----------
    atoms
        Any structure; ``info["config_type"]`` may be "IsolatedAtom", "isolated_atom", ...
    cutoff
        Radius of the potential in Å.
    """
    if len(atoms) != 1:
        return False
    kind = str(atoms.info.get("config_type", "")).lower()
    return "".join(filter(str.isalpha, kind)) == "isolatedatom" or not neighbor_list(atoms, cutoff)[0].size


def leave_out_isolated(frames: FrameSet, cutoff: float) -> tuple[FrameSet, FrameSet]:
    """The frames of a material, and the isolated atoms among them. Of a streamed set only frames of one atom are read.

    Parameters
    ----------
    frames
        Labelled frames.
    cutoff
        Radius of the potential in Å.

    Raises
    ------
    DataError
        If all are isolated atoms.
    """
    lone = {i for i, size in enumerate(frames.sizes) if size == 1 and is_isolated(frames[i].atoms, cutoff)}
    if len(lone) == len(frames):
        raise DataError(
            f"{frames.name}: all {len(frames)} frames are isolated atoms ({listed(map(_symbol, frames.elements))}), "
            f"which are not trained on; add frames whose atoms have neighbours within {cutoff:g} Å"
        )
    isolated = frames.select(sorted(lone))
    return (frames.select(i for i in range(len(frames)) if i not in lone) if lone else frames), isolated


def isolated_energies(isolated: Iterable[FrameSet]) -> dict[str, float]:
    """Energy of the isolated atom of each element in eV as labelled; the lowest of several, which is the ground state.

    Parameters
    ----------
    isolated
        Sets of isolated atoms, as :func:`leave_out_isolated` gives them.
    """
    energies: dict[str, float] = {}
    for frame in (frame for frames in isolated for frame in frames):
        if frame.energy is not None:
            symbol = _symbol(frame.atoms.numbers[0])
            energies[symbol] = min(frame.energy, energies.get(symbol, frame.energy))
    return energies


def describe_isolated(isolated: FrameSet) -> str:
    """How many isolated atoms a set has, of which elements, with which energies.

    Parameters
    ----------
    isolated
        As :func:`leave_out_isolated` gives it, not empty.
    """
    energies = isolated_energies([isolated])
    symbols = map(_symbol, isolated.elements)
    items = listed(f"{symbol} {energies[symbol]:.4f} eV" if symbol in energies else symbol for symbol in symbols)
    count = "1 isolated atom is" if len(isolated) == 1 else f"{len(isolated)} isolated atoms are"
    return f"{isolated.name}: {count} left out of training, validation and reference energies: {items}"


def _symbol(number: int) -> str:
    return str(chemical_symbols[number])
