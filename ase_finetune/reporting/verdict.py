"""The verdict on a run: better or not, forgotten or not, what is worst, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ase_finetune.reporting import sentences
from ase_finetune.reporting.forgetting import Forgotten, forgotten
from ase_finetune.reporting.next_steps import next_steps
from ase_finetune.reporting.record import FrameRecord, PairRecord, RunRecord
from ase_finetune.reporting.sets import is_watched, kept, target, trained_on
from ase_finetune.reporting.stages import is_unchanged, stages
from ase_finetune.reporting.tiles import Tile, forgotten_tile, frame_tiles, pair_tiles, rise
from ase_finetune.reporting.worst import Worst, worst_frames, worst_pairs


@dataclass
class Verdict:
    """The summary of a run.

    Attributes
    ----------
    headline
        Better or not, and forgotten or not.
    tone
        Of the target: ``"better"``, ``"worse"`` or ``""``.
    tiles
        Rows of numbers: those of the run first, then those of further sets.
    worst
        Elements, structures and relaxations by name.
    steps
        What to do next.
    sentences
        What was gained and forgotten, set by set.
    warnings
        What to bear in mind.
    """

    headline: str = ""
    tone: str = ""
    tiles: list[list[Tile]] = field(default_factory=list)
    worst: list[Worst] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def judge(record: RunRecord) -> Verdict:
    """The summary of a run."""
    aim, pairs = target(record), _pairs(record)
    others = [frames for frames in kept(record) if not is_watched(frames)]
    gained = frame_tiles(aim, fitted=bool(record.metadata.get("reference_offsets"))) if aim else []
    gained += pair_tiles(pairs) if pairs else []
    forgetting = forgotten(record)
    word, tone = _outcome(record, gained)
    rows = [gained + ([forgotten_tile(forgetting)] if forgetting else [])]
    rows += [frame_tiles(frames) for frames in [*trained_on(record), *others]]
    verdict = Verdict(
        headline=_headline(word, gained, forgetting),
        tone=tone,
        tiles=[tiles for tiles in rows if tiles],
        worst=[found for found in (aim and worst_frames(aim), pairs and worst_pairs(pairs)) if found],
        steps=next_steps(record, tone, forgetting),
    )
    sets = [*([aim] if aim else []), *trained_on(record), *kept(record)]
    _add_sentences(verdict, record, sets, pairs)
    return verdict


def _pairs(record: RunRecord) -> PairRecord | None:
    return record.pairs if record.pairs is not None and record.pairs.descriptions else None


#: Headlines that name no numbers.
UNCHANGED = "Unchanged"
_NOT_JUDGED = "Not judged"


def _outcome(record: RunRecord, gained: Sequence[Tile]) -> tuple[str, str]:
    """A word for what became of the target, and its tone."""
    if is_unchanged(record):
        return UNCHANGED, ""
    tones = {tile.tone for tile in gained} - {""}
    if not gained:
        return _NOT_JUDGED, ""
    if len(tones) == 2:
        return "Mixed", ""
    return {"better": "Better", "worse": "Worse", "": "No clear change"}[tone := "".join(tones)], tone


def _headline(word: str, gained: Sequence[Tile], forgetting: Forgotten | None) -> str:
    if word == UNCHANGED:
        return f"{word}: the result is the pretrained model itself. Nothing gained, nothing forgotten."
    if word == _NOT_JUDGED:
        first = f"{word}: there was no validation set, or it has no labels with finite predictions."
    else:
        first = f"{word} on the target: {', '.join(tile.brief for tile in gained if tile.brief)}."
    if forgetting is None:
        return f"{first} What was forgotten is not known: no old structures were watched."
    estimated = "" if forgetting.labelled else ", estimated"
    return f"{first} Forgotten: {forgetting.word} ({rise(forgetting.percent)} on old structures{estimated})."


def _add_sentences(verdict: Verdict, record: RunRecord, sets: Sequence[FrameRecord], pairs: PairRecord | None) -> None:
    moved = [] if is_unchanged(record) else sets
    found = [*map(sentences.weights, stages(record)), *map(sentences.of_frames, moved)]
    if pairs is not None:
        found.append(sentences.of_pairs(pairs))
        verdict.warnings += sentences.pair_warnings(pairs)
    if record.metadata.get("shifted_by"):
        found.append('The errors "before" are those of the model with the shifted reference energies.')
    verdict.sentences = [sentence for sentence in found if sentence]
    for frames in sets:
        verdict.warnings += sentences.warnings(frames)
    verdict.warnings += sentences.skipped(record)
