"""Training and validation sets that do not share trajectories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ase_finetune.data.frame import fingerprint
from ase_finetune.data.frames import FrameSet
from ase_finetune.errors import DataError, InputError

# Whole trajectories go to validation unless that takes more than this multiple of the frames wanted.
_TOLERATED_EXCESS = 2.0


@dataclass(frozen=True)
class Split:
    """Two sets, and in words how they were made.

    Parameters
    ----------
    train, valid
        Without a trajectory in common, where that is possible.
    description
        In words how they were made.
    """

    train: FrameSet
    valid: FrameSet
    description: str


def split_frames(frames: FrameSet, valid: float | int, *, seed: int = 0, group_by: str = "auto") -> Split:
    """Split into training and validation frames, keeping trajectories together.

    Whole trajectories, drawn at random, go to validation until their frames come as close as they can
    to the number wanted. With a single trajectory, or where even the smallest has more than twice the
    frames wanted, a contiguous block of each is taken instead, with seed 0 the last one: in time it is
    furthest from what was trained on.

    The seed is a fold: seeds 0, 1, 2, ... hold out different frames while there are enough of them, as the
    members of an ensemble should. :func:`hold_out` says which.

    Parameters
    ----------
    frames
        At least two.
    valid
        Fraction of the frames (a float between 0 and 1) or their number (an int).
    seed
        Number of the fold, from 0.
    group_by
        A key of ``info`` that identifies the trajectory; "auto" takes :attr:`Frame.group`.

    Returns
    -------
    Both sets, and in words how they were made.

    Raises
    ------
    InputError
        If ``valid`` leaves one of the sets empty, or a frame lacks the key.
    """
    groups = frames.groups if group_by == "auto" else list(_values(frames, group_by))
    rest, picked, how = hold_out(groups, valid, seed=seed, name=frames.name)
    text = f"validation: {len(picked)} of {len(frames)} frames of {frames.name}, {how}"
    return Split(frames.select(rest), frames.select(picked, name="valid"), text)


def hold_out(
    groups: Sequence[str], valid: float | int, *, seed: int, name: str, noun: str = "frames"
) -> tuple[list[int], list[int], str]:
    """Which members of a set are held out, keeping groups together where that is possible.

    Where whole groups are held out, they are drawn in a random order. Seed 0 draws first, seed 1 draws in the same way
    from what seed 0 left, and so on, then single groups of up to twice what is wanted; when what is left is less than
    half of what is wanted, or more than twice, another order is begun.
    Where blocks are held out, seed 0 takes the last block of each group, seed 1 the block before it, and so on; after
    the first whole block it is the turn of the last again.

    Parameters
    ----------
    groups
        The group of each member, at least two members.
    valid
        Fraction of the members (a float between 0 and 1) or their number (an int).
    seed
        Number of the fold, from 0.
    name, noun
        What messages call the set and its members.

    Returns
    -------
    rest, picked
        Positions of the others and of those held out, ascending.
    how
        In words how these were chosen.

    Raises
    ------
    InputError
        If ``valid`` leaves one of the sets empty.
    """
    wanted = _wanted(len(groups), valid, name, noun)
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    chosen = _whole_groups({group: len(positions) for group, positions in members.items()}, wanted, seed)
    if chosen:
        picked = [position for group in chosen for position in members[group]]
        named = f" ({', '.join(sorted(chosen))})" if len(chosen) <= 3 else ""
        how = f"{len(chosen)} of {len(members)} trajectories{named}"
    else:
        picked, which = _blocks(list(members.values()), wanted, seed)
        how = f"{which} of {'the one trajectory' if len(members) == 1 else f'each of {len(members)} trajectories'}"
    taken = set(picked)
    return [position for position in range(len(groups)) if position not in taken], sorted(picked), how


def check_disjoint(train: FrameSet, valid: FrameSet) -> None:
    """Refuse sets that share structures (same atoms, cell and positions within 1e-4 Å).

    Parameters
    ----------
    train, valid
        As :func:`read_frames` gives them.

    Raises
    ------
    DataError
        Naming the frames of both sets.
    """
    seen = {fingerprint(frame): position for position, frame in enumerate(train)}
    shared = [(seen[key], position) for position, frame in enumerate(valid) if (key := fingerprint(frame)) in seen]
    if shared:
        pairs = "; ".join(f"{valid.describe(b)} is {train.describe(a)}" for a, b in shared[:5])
        more = f"; and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise DataError(f"{train.name} and {valid.name} share {len(shared)} structures: {pairs}{more}")


def _wanted(total: int, valid: float | int, name: str, noun: str) -> int:
    """How many are to be held out, from 1 to total - 1."""
    if total < 2:
        raise InputError(f"{name} has {total} {noun}; a split needs at least 2")
    if isinstance(valid, bool) or not isinstance(valid, int | float | np.integer | np.floating):
        raise InputError(f"valid must be a fraction or a number of {noun}, got {valid!r}")
    if isinstance(valid, int | np.integer):
        if not 1 <= valid < total:
            raise InputError(f"valid={valid} {noun} cannot be taken from the {total} {noun} of {name}")
        return int(valid)
    if not 0 < valid < 1:
        raise InputError(f"valid={valid} must lie between 0 and 1 (an int is a number of {noun})")
    return min(max(1, round(valid * total)), total - 1)


def _values(frames: FrameSet, key: str) -> Iterator[str]:
    for position, frame in enumerate(frames):
        if key not in frame.atoms.info:
            keys = ", ".join(sorted(map(str, frame.atoms.info))) or "none"
            raise InputError(f"{frames.describe(position)} has no '{key}' in info; its keys: {keys}")
        yield str(frame.atoms.info[key])


def _whole_groups(sizes: Mapping[str, int], wanted: int, seed: int) -> list[str]:
    """Names of the groups to take; empty if there is one only, or none is small enough."""
    if len(sizes) < 2:
        return []
    folds = list(islice(_folds(sizes, wanted, 0), seed + 1))
    if folds and len(folds) <= seed:
        order, number = divmod(seed, len(folds))
        folds = list(islice(_folds(sizes, wanted, order), number + 1))
    return folds[-1] if folds else []


def _folds(sizes: Mapping[str, int], wanted: int, order: int) -> Iterator[list[str]]:
    """Disjoint choices of whole groups: draws from one random order, then single groups that are larger than wanted.

    All draws but the first have at least half of what is wanted.
    """
    names, smallest, total = list(sizes), min(sizes.values()), sum(sizes.values())
    left = [names[position] for position in np.random.default_rng(order).permutation(len(names))]
    chosen, left = _draw(left, sizes, wanted, smallest, total)
    if chosen:
        yield chosen
    while left and chosen:
        chosen, left = _draw(left, sizes, wanted, smallest, total)
        if 2 * sum(sizes[name] for name in chosen) >= wanted:
            yield chosen
    large = [name for name in names if name in left and wanted <= sizes[name] <= _TOLERATED_EXCESS * wanted]
    yield from ([name] for name in sorted(large, key=sizes.__getitem__))


def _draw(
    names: list[str], sizes: Mapping[str, int], wanted: int, smallest: int, total: int
) -> tuple[list[str], list[str]]:
    """Those that bring the number of members closer to the one wanted, one after the other, and the others.

    ``smallest`` and ``total`` are the smallest and the sum of all sizes: the whole is never drawn.
    """
    count = 0
    chosen: list[str] = []
    left: list[str] = []
    for position, name in enumerate(names):
        # A group brings the number closer if it has fewer members than this.
        room = 2 * (wanted - count)
        if smallest >= room:
            return chosen, [*left, *names[position:]]
        if sizes[name] < room and count + sizes[name] < total:
            chosen.append(name)
            count += sizes[name]
        else:
            left.append(name)
    return chosen, left


def _blocks(groups: Sequence[list[int]], wanted: int, seed: int) -> tuple[list[int], str]:
    """A contiguous block of each group, together ``wanted``, in proportion to their sizes; and which, in words."""
    sizes = np.array([len(group) for group in groups])
    exact = wanted * sizes / sizes.sum()
    quota = np.floor(exact).astype(int)
    missing = wanted - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:missing]] += 1
    folds = int((sizes[quota > 0] // quota[quota > 0]).min())
    number = seed % folds
    ends = sizes - number * quota
    picked = [index for group, end, size in zip(groups, ends, quota, strict=True) for index in group[end - size : end]]
    return picked, f"block {number + 1} of {folds} from the end" if number else "the last block"
