"""Training and validation sets that do not share trajectories."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ase_finetune.data.frames import Frame, FrameSet
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
    frames wanted, the last contiguous block of each is taken instead: in time it is furthest from what
    was trained on.

    Parameters
    ----------
    frames
        At least two.
    valid
        Fraction of the frames (a float between 0 and 1) or their number (an int).
    seed
        Chooses the trajectories.
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
    wanted = _wanted(len(frames), valid, frames.name)
    groups = _groups(frames, group_by)
    chosen = _whole_groups(groups, wanted, len(frames), seed)
    if chosen:
        picked = sorted(index for key in chosen for index in groups[key])
        named = f" ({', '.join(sorted(chosen))})" if len(chosen) <= 3 else ""
        how = f"{len(chosen)} of {len(groups)} trajectories{named}"
    else:
        picked = _last_blocks(list(groups.values()), wanted)
        how = f"the last block of {'the one trajectory' if len(groups) == 1 else f'each of {len(groups)} trajectories'}"
    taken = set(picked)
    rest = [index for index in range(len(frames)) if index not in taken]
    text = f"validation: {len(picked)} of {len(frames)} frames of {frames.name}, {how}"
    return Split(frames.select(rest), frames.select(picked, name="valid"), text)


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
    seen = {_fingerprint(frame): position for position, frame in enumerate(train)}
    shared = [(seen[key], position) for position, frame in enumerate(valid) if (key := _fingerprint(frame)) in seen]
    if shared:
        pairs = "; ".join(f"{valid.describe(b)} is {train.describe(a)}" for a, b in shared[:5])
        more = f"; and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise DataError(f"{train.name} and {valid.name} share {len(shared)} structures: {pairs}{more}")


def _wanted(total: int, valid: float | int, name: str) -> int:
    """Number of validation frames, from 1 to total - 1."""
    if total < 2:
        raise InputError(f"{name} has {total} frames; a split needs at least 2")
    if isinstance(valid, bool) or not isinstance(valid, int | float | np.integer | np.floating):
        raise InputError(f"valid must be a fraction or a number of frames, got {valid!r}")
    if isinstance(valid, int | np.integer):
        if not 1 <= valid < total:
            raise InputError(f"valid={valid} frames cannot be taken from the {total} frames of {name}")
        return int(valid)
    if not 0 < valid < 1:
        raise InputError(f"valid={valid} must lie between 0 and 1 (an int is a number of frames)")
    return min(max(1, round(valid * total)), total - 1)


def _groups(frames: FrameSet, group_by: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for position, key in enumerate(frames.groups if group_by == "auto" else _values(frames, group_by)):
        groups.setdefault(key, []).append(position)
    return groups


def _values(frames: FrameSet, key: str) -> Iterator[str]:
    for position, frame in enumerate(frames):
        if key not in frame.atoms.info:
            keys = ", ".join(sorted(map(str, frame.atoms.info))) or "none"
            raise InputError(f"{frames.describe(position)} has no '{key}' in info; its keys: {keys}")
        yield str(frame.atoms.info[key])


def _whole_groups(groups: dict[str, list[int]], wanted: int, total: int, seed: int) -> list[str]:
    """Names of the groups to take; empty if there is one only, or none is small enough."""
    if len(groups) < 2:
        return []
    names = list(groups)
    chosen: list[str] = []
    count = 0
    for position in np.random.default_rng(seed).permutation(len(names)):
        size = len(groups[names[position]])
        closer = abs(count + size - wanted) < abs(count - wanted)
        if closer and count + size < total:
            chosen.append(names[position])
            count += size
    if chosen:
        return chosen
    smallest = min(names, key=lambda name: len(groups[name]))
    return [smallest] if len(groups[smallest]) <= _TOLERATED_EXCESS * wanted else []


def _last_blocks(groups: Sequence[list[int]], wanted: int) -> list[int]:
    """The last frames of each group, together ``wanted``, in proportion to their sizes."""
    sizes = np.array([len(group) for group in groups])
    exact = wanted * sizes / sizes.sum()
    quota = np.floor(exact).astype(int)
    missing = wanted - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:missing]] += 1
    return sorted(index for group, size in zip(groups, quota, strict=True) for index in group[len(group) - size :])


def _fingerprint(frame: Frame) -> bytes:
    atoms = frame.atoms
    sha = hashlib.sha256(np.asarray(atoms.numbers, dtype=np.int64).tobytes())
    for values in (atoms.cell[:], atoms.positions):
        # Adding 0 turns -0.0 into 0.0.
        sha.update((np.round(np.asarray(values, dtype=np.float64), 4) + 0.0).tobytes())
    return sha.digest()
