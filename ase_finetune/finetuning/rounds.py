"""Fine-tuning what was fine-tuned before: the model that all rounds began with, and what each of them noted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers

from ase_finetune.calculator import Model
from ase_finetune.data.frame import Frame, fingerprint
from ase_finetune.data.frames import FrameSet
from ase_finetune.errors import FinetuneError, InputError, ModelNotAvailableError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.loading import load_own
from ase_finetune.parallel import Processes
from ase_finetune.potentials import Potential
from ase_finetune.potentials.formats import CONFIG_FILE
from ase_finetune.potentials.registry import find_model
from ase_finetune.potentials.storage import potential_hash


@dataclass(frozen=True)
class Rounds:
    """The rounds of fine-tuning before this one.

    Attributes
    ----------
    model
        What this round begins with: a name or an absolute path.
    earlier
        What each round noted, the first one first: the ``model`` that it began with and its ``hash``; ``train`` and
        ``valid`` (``path``, ``digest``, ``frames``), ``offsets`` and ``kept`` where they are known.
    original
        What the first round began with, in the energy reference of what this one begins with; ``None`` in a first one.
    offsets
        Of the labels to the model, as the last round left them, eV by atomic number.
    """

    model: str = ""
    earlier: Sequence[Mapping[str, Any]] = ()
    original: Potential | None = None
    offsets: Mapping[int, float] = field(default_factory=dict)

    @property
    def held_out(self) -> set[str]:
        """Fingerprints of the validation frames of all earlier rounds."""
        return {mark for noted in self.earlier for mark in (noted.get("valid") or {}).get("fingerprints", ())}

    def describe(self) -> str:
        """Which round this is, what the earlier ones were trained on, and what forgetting is measured against."""
        name = self.earlier[0]["model"]
        parts = []
        for number, noted in enumerate(self.earlier, 1):
            train = noted.get("train")
            frames = "relaxations" if "train" in noted else "frames that were not noted"
            if train is not None:
                frames = f"{train['frames']} frames"
                frames += f" ({', '.join(Path(path).name for path in train['path'])})" if train["path"] else ""
            parts.append(f"round {number} was trained on {frames}")
        head = f"round {len(self.earlier) + 1} of {name}"
        return f"{head}: {', '.join(parts)}; forgetting is measured against {name}"


def load_rounds(
    model: Model,
    base: Mapping[str, Any],
    potential: Potential,
    original: Model | None,
    config: FinetuneConfig,
    processes: Processes,
) -> Rounds:
    """What the metadata of a model say about earlier rounds, and the model that the first of them began with.

    Parameters
    ----------
    model
        As it was given.
    base
        Its metadata.
    potential
        What it was loaded as.
    original
        The first model of the chain, where the metadata do not say where it is.
    config, processes
        Of the run.

    Raises
    ------
    ModelNotAvailableError
        If the first model cannot be loaded.
    InputError
        If it is not the one that is noted.
    """
    chain = _chain(base)
    if not chain and original is None:
        return Rounds(_place(model))
    earlier = _earlier(chain) or [{"model": _place(original or model), "hash": None}]
    first = _load_original(_place(model), earlier[0], potential, original, config, processes)
    earlier[0] = dict(earlier[0]) | {"hash": potential_hash(first)}
    shift: dict[int, float] = {}
    for level in chain:
        for z, value in _by_number(level.get("shifted_by")).items():
            shift[z] = shift.get(z, 0.0) + value
    if shift:
        first.shift_energies(shift)
    return Rounds(_place(model), earlier, first, _by_number(chain[0].get("reference_offsets")) if chain else {})


def note_round(
    rounds: Rounds,
    metadata: Mapping[str, Any],
    config: FinetuneConfig,
    train: tuple[object, FrameSet, FrameSet] | None,
    valid: tuple[object, FrameSet] | None,
) -> dict[str, Any]:
    """What a later round has to know about this one.

    Parameters
    ----------
    rounds
        Those before.
    metadata
        Of the run.
    config
        The options.
    train
        Where the frames are from, as the argument of :func:`finetune`, all of them, and those that are trained on.
    valid
        The same of the validation frames.
    """
    noted: dict[str, Any] = {"model": rounds.model, "hash": metadata["base_hash"], "train": None, "valid": None}
    held_out: set[str] = set()
    if valid is not None:
        source, frames = valid
        held_out = fingerprints(frames)
        noted["valid"] = {
            "path": _paths(source),
            "digest": metadata["data"]["valid"],
            "frames": len(frames),
            "fingerprints": sorted(held_out),
        }
    if train is not None:
        source, frames, used = train
        left_out = fingerprints(frames) - fingerprints(used) if len(used) < len(frames) else set()
        # As a later round reads them again, which knows no more of the split than the fingerprints.
        seen = frames if frames.is_streamed and not left_out else without(frames, held_out | left_out)
        digest = metadata["data"]["train"] if len(seen) == len(frames) else seen.digest()
        keys = {name: getattr(config, name) for name in ("energy_key", "forces_key", "stress_key")}
        noted["train"] = {
            "path": _paths(source),
            "digest": digest,
            "frames": len(used),
            "left_out": sorted(left_out),
            "keys": {name: key for name, key in keys.items() if key is not None},
        }
    return noted | {"offsets": metadata.get("reference_offsets"), "kept": None}


def fingerprints(frames: Iterable[Frame]) -> set[str]:
    """Those of all structures."""
    return {fingerprint(frame) for frame in frames}


def without(frames: FrameSet, marks: set[str]) -> FrameSet:
    """The frames whose fingerprints are not among these."""
    if not marks:
        return frames
    return frames.select([position for position, frame in enumerate(frames) if fingerprint(frame) not in marks])


def _chain(base: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The metadata of each round that a model went through, the last one first."""
    found = []
    while isinstance(base, Mapping) and base.get("base_model") and base.get("base_hash"):
        found.append(base)
        base = base.get("base_metadata") or {}
    return found


def _earlier(chain: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What each round noted, the first one first; of rounds that noted nothing what their metadata say."""
    if chain and chain[0].get("rounds"):
        return list(chain[0]["rounds"])
    return [
        {
            "model": str(level["base_model"]),
            "hash": str(level["base_hash"]),
            "offsets": level.get("reference_offsets"),
            "kept": level.get("outcome"),
        }
        for level in reversed(chain)
    ]


def _load_original(
    model: str,
    noted: Mapping[str, Any],
    potential: Potential,
    original: Model | None,
    config: FinetuneConfig,
    processes: Processes,
) -> Potential:
    name, digest = noted["model"], noted["hash"]
    remedy = "put it back, give it as original=..., or start anew from the pretrained model on all frames"
    try:
        first, _ = load_own(name if original is None else original, potential.head, config, processes)
    except FinetuneError as error:
        raise ModelNotAvailableError(
            f"{model} was fine-tuned from {name} (hash {digest}), which must not be forgotten and cannot be loaded "
            f"({error}); {remedy}"
        ) from error
    given = name if original is None else f"original={_place(original)}"
    if digest is not None and potential_hash(first) != digest:
        raise InputError(
            f"{given} is not the model that {model} was fine-tuned from: {name} had the hash {digest}, this one has "
            f"{potential_hash(first)}; {remedy}"
        )
    mine, theirs = ({name: tuple(p.shape) for name, p in each.native_parameters()} for each in (potential, first))
    if mine != theirs or set(potential.numbers) != set(first.numbers):
        raise InputError(f"{given} is a model of another kind than {model}: parameters or elements differ")
    return first


def _place(model: Model) -> str:
    """A name, or an absolute path: a later round may begin in another folder."""
    if isinstance(model, Potential):
        return f"a {model.backend} potential"
    path = Path(model).expanduser()
    is_path = (path / CONFIG_FILE).is_file() or (path.is_file() and find_model(str(model)) is None)
    return str(path.absolute()) if is_path else str(model)


def _paths(source: object) -> list[str] | None:
    """Absolute paths of files; ``None`` for structures."""
    items = [source] if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, (str, os.PathLike)) for item in items):
        return None
    return [str(Path(item).absolute()) for item in items]


def _by_number(offsets: Any) -> dict[int, float]:
    return {atomic_numbers[symbol]: float(value) for symbol, value in (offsets or {}).items()}
