"""Fisher information of a pretrained model, as a run estimates it, to be kept in a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ase_finetune.calculator import Model
from ase_finetune.continual import FisherInformation, save_fisher
from ase_finetune.errors import InputError, OutputExistsError
from ase_finetune.files import is_there
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.context import Context
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.loading import load_own
from ase_finetune.finetuning.old_material import estimate_fisher, label_replay
from ase_finetune.finetuning.optimizing import freeze_parameters
from ase_finetune.finetuning.preparing import Frames
from ase_finetune.finetuning.replay_sources import read_replay
from ase_finetune.losses import Loss
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.storage import potential_hash


def fisher_information(
    model: Model,
    structures: Frames = "embedded",
    *,
    kind: Literal["label-free", "empirical"] = "label-free",
    size: int = 200,
    draws: int = 1,
    probes: int | None = None,
    loss: Loss | Mapping[str, Any] | None = None,
    freeze: Sequence[str] = (),
    monitor_size: int = 32,
    replay_labels: Literal["auto", "data"] = "auto",
    seed: int = 0,
    head: str | None = None,
    device: str = "auto",
    dtype: Literal["float32", "float64"] = "float32",
    trust_pickle: bool = False,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    verbose: bool | int = True,
    processes: Processes = ALONE,
) -> FisherInformation:
    """Estimate what a pretrained potential must not forget, once for many runs.

    ``finetune(..., fisher=output)`` reads the file. With the same structures and options the result is, bit for bit,
    that of a run which estimates the Fisher information itself (and has ``replay_size >= fisher_size``).

    Parameters
    ----------
    model
        A name, a saved folder, a checkpoint or a :class:`Potential`, which is not changed.
    structures
        As ``replay`` of :func:`finetune`: ``"embedded"``, a path, or a list of ``Atoms``.
    kind
        ``"label-free"`` (:func:`~ase_finetune.continual.gaussian_fisher`) or ``"empirical"``
        (:func:`~ase_finetune.continual.empirical_fisher`), which needs labels.
    size
        Structures it is estimated on, at most.
    draws, probes
        Random draws per structure of the label-free form; backward passes per batch of the empirical one, ``None`` for
        the exact sum.
    loss
        Of the empirical form: that of the fits to come. A :class:`~ase_finetune.Loss` or its options.
    freeze
        Patterns of native parameter names that will not train, and are left out.
    monitor_size
        Structures left out because runs watch forgetting on them.
    replay_labels
        ``"data"`` insists on labels of the file.
    seed
        Of the random draws.
    head, device, dtype, trust_pickle
        As those of :func:`finetune`.
    output
        File to write, usually ``*.safetensors``.
    overwrite
        Replace an existing file.
    verbose
        Print notes, and a progress bar on terminals.
    processes
        Share the work; all get the result. Under ``torchrun`` or ``srun`` they are
        ``ase_finetune.parallel.launched()``.

    Returns
    -------
    Values by native parameter name, in units of the loss (or without units, label-free) per parameter squared.

    Raises
    ------
    InputError, DataError
        If an argument or the structures cannot be used.
    OutputExistsError, OutputError
        If the file exists or cannot be written.

    References
    ----------
    Kirkpatrick et al., PNAS 114, 3521 (2017); Kim et al., npj Comput. Mater. 12, 26 (2026).
    """
    if output is not None and is_there(Path(output)) and not overwrite:
        raise OutputExistsError(f"{output} exists; choose another name or pass overwrite=True")
    if kind not in ("label-free", "empirical"):
        raise InputError(f"kind must be 'label-free' or 'empirical', got {kind!r}")
    options: dict[str, Any] = {"fisher_size": size, "fisher_draws": draws, "fisher_probes": probes, "seed": seed}
    options |= {"freeze": freeze, "monitor_size": monitor_size, "replay_labels": replay_labels}
    options |= {"device": device, "dtype": dtype, "trust_pickle": trust_pickle}
    if loss is not None:
        options["loss"] = dict(loss) if isinstance(loss, Mapping) else loss
    options["replay_size"] = max(FinetuneConfig().replay_size, size)
    config = FinetuneConfig.from_options({"method": "ewc", "fisher": kind, **options})
    log = Log(verbose if processes.is_first else 0)
    potential, _ = load_own(model, head, config, processes)
    run = Context(potential, config, log, {}, processes)
    model_hash = potential_hash(run.potential)
    freeze_parameters(run.potential, run.config.freeze)
    fisher, data_hash = _estimate(run, structures)
    if output is not None:
        processes.on_first(
            lambda: save_fisher(fisher, output, model_hash=model_hash, data_hash=data_hash, overwrite=overwrite)
        )
    return fisher


def _estimate(run: Context, structures: Frames) -> tuple[FisherInformation, str]:
    """The Fisher information, and the hash of the structures it is of."""
    old = read_replay(run.potential, structures, run.config, run.log)
    assert old is not None
    if run.config.fisher == "empirical":
        graphs, _ = label_replay(run, old)
    else:
        # The draws need no labels, and so none are made.
        graphs = old.graphs(run.potential)[: old.trained]
    fisher = estimate_fisher(run, graphs)
    return fisher, old.frames.select(range(min(old.trained, run.config.fisher_size))).digest()
