"""Ensembles: fine-tunings that differ in their seed and in the frames that they hold out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.errors import InputError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.history import History
from ase_finetune.potentials.formats import RUN_MEMBER

Fit = Callable[[FinetuneConfig, Path | None], FinetunedCalculator]


def fit_members(
    members: int, fit: Fit, config: FinetuneConfig, output: str | os.PathLike[str] | None
) -> FinetunedCalculator:
    """An ensemble of fine-tunings, one after the other.

    Member k has the seed of the config plus k, and so holds out the fold of that number. All fit their reference
    energies on the frames of training and validation together: fits of their own would make them differ by offsets.

    Parameters
    ----------
    members
        How many, at least 2.
    fit
        Makes a member with a config, in a folder.
    config
        The options of all.
    output
        Folder of their folders, ``member-0`` and so on; ``None`` for none.

    Returns
    -------
    An ensemble, with the history of all (a column ``member``), and the metadata of each in ``metadata["members"]``.

    Warns
    -----
    UserWarning
        If training left a member unchanged: it is the pretrained model, and says nothing of how far members agree.

    Raises
    ------
    InputError
        If there are fewer than 2.
    """
    if members < 2:
        raise InputError(f"members={members}: an ensemble has at least 2; leave it out for a single model")
    calculators = []
    for number in range(members):
        folder = None if output is None else Path(output) / RUN_MEMBER.format(number)
        calculators.append(fit(replace(config, seed=config.seed + number, reference_frames="all"), folder))
    return _ensemble(calculators)


def _ensemble(calculators: Sequence[FinetunedCalculator]) -> FinetunedCalculator:
    first = calculators[0]
    ensemble = FinetunedCalculator(
        [calculator.potential for calculator in calculators],
        device=first.parameters["device"],
        dtype=first.parameters["dtype"],
    )
    ensemble.parameters["model"] = [calculator.parameters["model"] for calculator in calculators]
    ensemble.metadata = first.metadata | {"members": [calculator.metadata for calculator in calculators]}
    ensemble.history = History(
        {"member": number, **row} for number, calculator in enumerate(calculators) for row in calculator.history
    )
    unchanged = [number for number, calculator in enumerate(calculators) if calculator.metadata["unchanged"]]
    ensemble.metadata["unchanged"] = len(unchanged) == len(calculators)
    if unchanged:
        named = ", ".join(map(str, unchanged))
        warnings.warn(
            f"unchanged by training: member {named} of {len(calculators)}; the spread of this ensemble is too small",
            stacklevel=4,
        )
    return ensemble
