"""What to do after a run: one to three short pieces of advice."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ase_finetune.reporting.forgetting import Forgotten
from ase_finetune.reporting.measures import column, dominant, mean
from ase_finetune.reporting.record import FrameRecord, RunRecord
from ase_finetune.reporting.sentences import FEW
from ase_finetune.reporting.sets import is_watched, kept, target
from ase_finetune.reporting.stages import Stage, is_unchanged, stages
from ase_finetune.reporting.worst import worst_structures

#: More than that nobody reads.
MOST = 3

# A validation loss that fell by this share in the last epoch may fall further.
_STILL_FALLING = 0.03

# A structure with so many times the average error is looked at.
_FAR_OFF = 3.0


def next_steps(record: RunRecord, tone: str, forgetting: Forgotten | None) -> list[str]:
    """Advice for a run, the most urgent first.

    Parameters
    ----------
    record
        The run.
    tone
        ``"better"`` or ``"worse"`` on the target, or ``""``.
    forgetting
        What was forgotten; ``None`` if nothing was watched.
    """
    found = [*_of_stages(record), *_of_outcome(record, tone, forgetting), *_of_data(record)]
    return found[:MOST]


def _of_stages(record: RunRecord) -> Iterator[str]:
    """What the course of training suggests."""
    nothing = is_unchanged(record)
    for stage in stages(record):
        if stage.best_epoch is None:
            yield f"Training on {stage.title} did not come to its end: go on with resume=True."
        elif (nothing or stage.unchanged) and stage.rows:
            yield _kept_nothing(stage)
        elif stage.kept.fraction < 1 or _passed_over(stage):
            yield (
                f"The bound on forgetting ({_bound(stage)}) cost something on the target: "
                "a larger max_forgetting gains more."
            )
        elif _falls(stage):
            done = len(stage.rows)
            early = f" ({done} of {stage.planned} epochs were run)" if stage.planned and done < stage.planned else ""
            yield (
                f"Training on {stage.title}: the last epoch was the best{early}, and the validation loss still fell; "
                "more epochs may help."
            )


def _kept_nothing(stage: Stage) -> str:
    last = 'keep="last" keeps the last epoch all the same'
    if _passed_over(stage):
        return (
            f"Training on {stage.title}: every epoch that was better on the target forgot more than allowed "
            f"({_bound(stage)}). Allow more with a larger max_forgetting; {last}."
        )
    return (
        f"Training on {stage.title}: no epoch was better than the model it began with. Try a smaller learning_rate, "
        f"more epochs or more frames; {last}."
    )


def _bound(stage: Stage) -> str:
    return f"{100 * stage.kept.bound:.3g}\N{NO-BREAK SPACE}%" if math.isfinite(stage.kept.bound) else "max_forgetting"


def _passed_over(stage: Stage) -> bool:
    """Whether an epoch was better on the target than the one that was kept, but forgot too much."""
    losses = stage.curve("valid", "loss")
    kept_loss = losses[np.searchsorted(stage.epochs, stage.best_epoch or 0).clip(0, len(losses) - 1)]
    too_much = column(stage.rows, "forgetting") > stage.kept.bound
    return bool((too_much & (losses[1:] < kept_loss)).any())


def _falls(stage: Stage) -> bool:
    """Whether the last epoch was the best, and the validation loss still fell clearly in it."""
    losses = stage.curve("valid", "loss")
    last = len(losses) > 1 and stage.best_epoch == stage.epochs.max()
    return bool(last and losses[-1] < (1 - _STILL_FALLING) * losses[-2])


def _of_outcome(record: RunRecord, tone: str, forgetting: Forgotten | None) -> Iterator[str]:
    """What the result suggests."""
    if tone == "worse" and not is_unchanged(record):
        last = (record.metadata.get("config") or {}).get("keep") == "last"
        also = ', or keep="best"' if last else ""
        yield f"The target got worse: take a smaller learning_rate{also}."
    if forgetting is not None and forgetting.word == "large":
        yield _forgot_much(record, forgetting)


def _forgot_much(record: RunRecord, forgetting: Forgotten) -> str:
    method = str((record.metadata.get("config") or {}).get("method"))
    if not method.endswith(("ewc", "replay")):
        return 'Much was forgotten: method="reewc" trains against that.'
    if math.isnan(forgetting.bound):
        return "Much was forgotten: set a bound, such as max_forgetting=0.05, or take a larger ewc_lambda."
    return "More was forgotten than allowed: take a smaller learning_rate or fewer epochs."


def _of_data(record: RunRecord) -> Iterator[str]:
    """What the sets suggest."""
    aim, pairs = target(record), record.pairs
    if aim is None and (pairs is None or not pairs.descriptions):
        yield "Give validation data, such as valid=0.1: without it nobody knows what was gained."
    for count, what in ((len(aim.counts) if aim else 0, "structure"), (len(pairs.after) if pairs else 0, "pair")):
        if 0 < count < FEW:
            yield f"Validate on more: with {count} {what}{'' if count == 1 else 's'} the numbers are uncertain."
    if aim is not None:
        yield from _labels(aim)
    if not any(map(is_watched, kept(record))):
        yield "Watch old structures, with replay and monitor_size: what was forgotten is not known."
    if aim is not None and not is_unchanged(record) and all(map(is_watched, kept(record))):
        yield "Evaluate it on frames it has never seen: ase-finetune report RUN --frames test.extxyz."


def _labels(aim: FrameRecord) -> Iterator[str]:
    """Structures whose labels may be wrong."""
    most = dominant(aim)
    if most is not None:
        yield (f"Look at {aim.descriptions[most[0]]} and its labels: it makes more than half of the {most[1]} error.")
        return
    _, errors = worst_structures(aim, len(aim.counts))
    after = np.array([error[2] for error in errors])
    if len(after) >= FEW and after[0] > _FAR_OFF * mean(after):
        times = f"{after[0] / mean(after):.0f}"
        yield f"Look at the labels of the worst frames: the first one has {times} times the mean error."
