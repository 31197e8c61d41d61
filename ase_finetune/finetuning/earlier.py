"""Labelled frames that are replayed: those of earlier rounds, and those that are given beside pseudo-labelled ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ase_finetune.data import FrameSet, ReferenceOffsets, align, fit_reference, leave_out_isolated, read_frames
from ase_finetune.errors import InputError
from ase_finetune.finetuning.context import Context
from ase_finetune.finetuning.labelled import Labelled, spread
from ase_finetune.finetuning.preparing import labelled_graphs
from ase_finetune.finetuning.recording import MOST_FRAMES
from ase_finetune.finetuning.replay_sources import OldStructures
from ase_finetune.finetuning.rounds import fingerprints, without
from ase_finetune.potentials.batched import predict_many

_REMEDY = "to replay them, give them as replay=['embedded', frames]"


@dataclass(frozen=True)
class Part:
    """Frames from one place.

    Attributes
    ----------
    train
        Those that may be trained on, with the energies of their labels.
    held_out
        Those that an earlier round was validated on.
    is_given
        Whether they are an argument of this run; then their energies say which reference they are in.
    """

    train: FrameSet
    held_out: FrameSet
    is_given: bool = False


@dataclass(frozen=True)
class EarlierFrames:
    """Labelled frames to replay, from all places.

    Attributes
    ----------
    parts
        Earlier rounds first, then what was given.
    """

    parts: Sequence[Part] = ()

    def digests(self) -> dict[str, str]:
        """Of the frames of each place."""
        named = [frames for part in self.parts for frames in (part.train, part.held_out)]
        return {frames.name: frames.digest() for frames in named if len(frames)}

    def predict(self, run: Context) -> None:
        """Let the original model predict the energies, before its own may be shifted."""
        for part in self.parts:
            self._energies(run, part)

    def refit(self, run: Context, train: FrameSet, energies: Sequence[float]) -> ReferenceOffsets:
        """Offsets of the frames of all rounds to the original model.

        Parameters
        ----------
        run
            The run.
        train
            Training frames of this round.
        energies
            What the original model gives for them, eV.
        """
        start = run.rounds.offsets
        found = fit_reference(train, energies, start=start)
        known = [(part, self._energies(run, part)) for part in self.parts]
        more = [(part.train, values) for part, values in known if _is_of_target(part, values, found)]
        return fit_reference(train, energies, more=more, start=start) if more else found

    def labelled(self, run: Context, offsets: ReferenceOffsets | None) -> Labelled:
        """The frames with energies in the reference that is trained in.

        Parameters
        ----------
        run
            The run.
        offsets
            Of the target to the original model; ``None`` where raw labels are trained on.
        """
        config = run.config
        train: list[FrameSet] = []
        held_out: list[FrameSet] = []
        for part in self.parts:
            change = ReferenceOffsets()
            if offsets is not None:
                of_target = _is_of_target(part, self._energies(run, part), offsets)
                if part.is_given:
                    whose = "target" if of_target else "pretrained model"
                    run.log(f"{part.train.name}: the energies are in the reference of the {whose}")
                if config.reference == "align" and of_target:
                    change = offsets
                elif config.reference == "shift" and not of_target:
                    change = ReferenceOffsets({z: -value for z, value in offsets.offsets.items()})
            for frames, found in ((part.train, train), (part.held_out, held_out)):
                found.append(align(frames, change) if change.offsets else frames)
        name = "earlier rounds" if run.rounds.earlier else "labelled replay"
        if self.parts and config.uses_replay:
            count = min(sum(map(len, train)), config.replay_size)
            run.log(f"{name}: {count} frames are replayed with their own labels, about as often as all others together")
        elif self.parts:
            run.log(
                f"note: method={config.method!r} replays no frames; those of {name} only judge what is kept of them"
            )
        return Labelled(run, spread(train, name, config.replay_size), spread(held_out, name, MOST_FRAMES))

    def _energies(self, run: Context, part: Part) -> list[float]:
        """What the original model gives, eV."""

        def predict() -> list[float]:
            graphs = labelled_graphs(run.original, part.train)
            with run.log.bar(len(graphs), f"original model on {part.train.name}") as bar:
                shared: dict[str, Any] = {"on_structure": bar.update, "processes": run.processes}
                predictions = predict_many(run.original, graphs, forces=False, stress=False, **shared)
            return [float(prediction.energy[0]) for prediction in predictions]

        known: list[float] = run.prepared.value(f"original model on {part.train.name}", predict)
        return known


def read_earlier(run: Context, old: OldStructures | None, target: Iterable[FrameSet | None]) -> EarlierFrames:
    """Labelled frames beside those of the target, without any that this round validates on or has in its target.

    Parameters
    ----------
    run
        The run.
    old
        Replay structures, and labelled sets that were given beside them.
    target
        Training and validation frames of this round.

    Raises
    ------
    InputError
        If frames of earlier rounds are to stand for what the pretrained model knows.
    """
    given = () if old is None else old.beside
    if run.rounds.earlier:
        run.log(run.rounds.describe())
    elif not given:
        return EarlierFrames()
    if old is not None and old.has_labels and fingerprints(old.frames) & run.rounds.held_out:
        raise InputError(
            "replay: some of the structures are validation frames of an earlier round, which say nothing about what "
            "the pretrained model knew; give replay=['embedded', frames]"
        )
    # What is trained on or judged by needs no replay.
    own = [fingerprints(frames) for frames in target if frames is not None]
    taken, held_out = set[str]().union(*own), run.rounds.held_out
    again = len(own[0] & held_out) if own else 0
    if again:
        run.log(f"note: {again} training frames were validation frames of an earlier round: its errors are no test")
    parts = []
    for number, noted in enumerate(run.rounds.earlier, 1):
        train, valid = _read_noted(run, number, noted)
        if train is not None:
            parts.append(_part(train, held_out, taken, valid))
    for frames in given:
        part = _part(frames, held_out, taken, is_given=True)
        if part.train.digest() not in {known.train.digest() for known in parts}:
            parts.append(part)
    return EarlierFrames(parts)


def _part(
    frames: FrameSet, held_out: set[str], taken: set[str], valid: FrameSet | None = None, is_given: bool = False
) -> Part:
    """Frames in their roles; validation frames of a file of their own come behind."""
    free = without(frames, taken)
    train = without(free, held_out)
    kept = fingerprints(train)
    judged = [*without(free, kept), *(without(valid, taken) if valid is not None else ())]
    return Part(train, FrameSet(f"{frames.name}, held out", judged, frames.label_sources), is_given)


def _read_noted(run: Context, number: int, noted: Mapping[str, Any]) -> tuple[FrameSet | None, FrameSet | None]:
    """Training frames of an earlier round, with its validation frames behind if they are in the same file or another.

    ``None`` for what is not there as it was; a note says so.
    """
    name = f"round {number}"
    train, valid = noted.get("train"), noted.get("valid")
    if train is None:
        if "train" not in noted:
            run.log(f"note: what {name} was trained on was not noted, so it is not replayed; {_REMEDY}")
        return None, None
    marks = set(valid["fingerprints"] if valid else ()) | set(train["left_out"])
    found = _read(run, name, train, train["keys"], marks)
    if found is None:
        return None, None
    found = without(found, set(train["left_out"]))
    if valid is None or not valid["path"]:
        return found, None
    return found, _read(run, f"the validation of {name}", valid, train["keys"], set())


def _read(run: Context, name: str, noted: Mapping[str, Any], keys: dict[str, Any], marks: set[str]) -> FrameSet | None:
    """The frames of noted files, if those that are not among these fingerprints are as they were."""
    paths = noted["path"]
    if not paths:
        reason = "they were given as structures, not as a file"
    else:
        where = ", ".join(paths)
        try:
            frames, _ = leave_out_isolated(read_frames(paths, name=name, **keys), run.original.cutoff)
            if without(frames, marks).digest() == noted["digest"]:
                return frames
            reason = f"{where} has changed since"
        except InputError as error:
            reason = str(error)
    run.log(f"note: the {noted['frames']} frames of {name} are not used: {reason}; {_REMEDY}")
    return None


def _is_of_target(part: Part, energies: Sequence[float], offsets: ReferenceOffsets) -> bool:
    """Whether energies are in the reference of the target, rather than in that of the pretrained model.

    Those of earlier rounds are. Of others it is the one in which they are nearer to the model.
    """
    if not part.is_given:
        return True
    pairs = zip(part.train, energies, strict=True)
    known = [(frame.atoms.numbers, frame.energy - energy) for frame, energy in pairs if frame.energy is not None]
    if not known:
        return True
    raw = math.fsum(abs(difference) / len(numbers) for numbers, difference in known)
    aligned = math.fsum(abs(difference - offsets.energy(numbers)) / len(numbers) for numbers, difference in known)
    return aligned <= raw
