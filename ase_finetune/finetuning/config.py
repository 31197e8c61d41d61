"""All options of a fine-tuning run: the one source for Python, YAML and the command line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ase_finetune.errors import InputError
from ase_finetune.finetuning.relaxation_config import RelaxationConfig
from ase_finetune.losses import Loss
from ase_finetune.options import check_types
from ase_finetune.representations import brief, changes, html_table

#: The largest rise of errors on old structures with which weights are kept by methods that fight forgetting, where
#: ``max_forgetting`` does not say otherwise.
DEFAULT_BOUND = 0.05

#: Names of ``loggers``, and what pip has to install for each.
LOGGERS = {"tensorboard": "tensorboard", "wandb": "lightning wandb"}


@dataclass(frozen=True, repr=False)
class FinetuneConfig:
    """Options of :func:`ase_finetune.finetune`.

    Parameters
    ----------
    method
        ``"naive"`` (the new frames alone), ``"replay"`` (old structures in between), ``"ewc"`` (a spring on
        what old structures need) or ``"reewc"`` (both). ``"bptt"`` trains through relaxations, and on frames
        before that if there are any; ``"bptt+replay"``, ``"bptt+ewc"`` and ``"bptt+reewc"`` do so without forgetting.
    epochs
        Passes over the training frames.
    batch_size
        Training frames per step.
    max_edges
        Largest number of edges trained on at once; a batch with more is cut into pieces whose gradients add
        up to its own. ``None`` is 2500 on a CPU, where that is fastest; on a GPU the memory of one step is
        measured before. Pieces that do not fit all the same are halved, to the same effect.
    stream
        Leave the training frames of an ASE database on disk and read them when they are used; ``None`` does so
        for large ones.
    num_workers
        Processes that read and build the graphs of a streamed data set ahead of their use.
    learning_rate
        Peak of the schedule.
    loss
        Definition and weights of the loss.
    optimizer
        ``"adam"`` or ``"adamw"``.
    weight_decay
        Pulls parameters to zero, not to the pretrained model, hence 0 by default.
    schedule
        ``"cosine"`` (to zero) or ``"constant"``, both after a linear warm-up.
    warmup
        Fraction of the steps spent warming up.
    clip_norm
        Largest norm of the gradient, penalty included; ``None`` for no clipping.
    ema_decay
        Decay per step of an exponential moving average of the weights, which is then evaluated and kept;
        ``None`` for none.
    early_stopping
        Stop after so many epochs without a better score; ``None`` never stops early.
    freeze
        Patterns (``fnmatch``) of native parameter names that keep their values.
    reference
        ``"align"`` trains in the model's own energy reference (per-element offsets are fitted and kept in the
        metadata), ``"shift"`` moves the model's own per-element energies instead, ``"none"`` trains on raw
        energies.
    reference_frames
        Frames that the offsets are fitted on: ``"train"``, or ``"all"``, validation too, as members of an ensemble do.
    replay_labels
        ``"pseudo"`` (made by the pretrained model), ``"data"`` (from the replay file) or ``"auto"`` (from the
        file where it has labels).
    replay_size
        Replay structures to use, at most.
    replay_batch_size
        Replay structures per step; as ``batch_size`` when ``None``.
    replay_schedule
        ``"alternate"`` (a target step, then an independent replay step) or ``"joint"`` (one step on the sum).
    replay_weight
        Weight of the replay loss.
    monitor_size
        Replay structures held out from training to watch forgetting.
    fisher
        ``"label-free"``, ``"empirical"``, a file, or ``"auto"`` (label-free).
    fisher_size
        Structures the Fisher information is estimated on.
    fisher_draws
        Random draws per structure of the label-free form.
    fisher_probes
        Backward passes per batch of the empirical form, an unbiased estimate; ``None`` is exact and makes one
        per structure.
    fisher_normalize
        Divide the Fisher information by its mean; ``None`` does so for our own estimates, not for published files.
    fisher_anchor
        File with the parameters theta* that belong to a published Fisher file; the pretrained ones when ``None``.
    ewc_lambda
        Strength of the penalty; ``None`` is 2e-4 on frames and 1e-2 with relaxations for a normalised Fisher, and
        1e5, as published, for a raw one.
    keep
        ``"best"``: the weights with the lowest validation loss within the bound of ``max_forgetting``, those before
        training if validation shows that nothing was gained; with fewer than five validation examples later ones,
        unless earlier ones are better by more than the paired error. ``"last"``: those of the last epoch.
    max_forgetting
        Largest rise of the errors on the watched replay structures, of energies and of forces: 0.03 is 3 %. The
        strength of the penalty, where the method has one, adapts to it from ``ewc_lambda`` on, and weights that break
        it are drawn back towards the pretrained ones. Where the pretrained model made the labels, the rise is
        estimated. ``None``: 5 % for methods that fight forgetting, which then bounds the choice of the weights alone
        (``ewc_lambda`` stays as it is), and no bound for ``"naive"``, ``"bptt"`` and ``keep="last"``.
    group_by
        ``info`` key that says which frames belong to one trajectory, or ``"auto"``.
    energy_key, forces_key, stress_key
        Names of the labels where they are not ASE's.
    drop_outliers
        Leave out training frames whose energy, forces or stress are far from the pretrained model's prediction,
        compared with the other frames. They are named in the log in any case.
    max_skipped_steps
        A step whose loss or gradient is not finite is skipped and logged; so many of them in a row end the run.
    checkpoint_minutes
        With an output folder, a checkpoint is written after every epoch, and whenever so many minutes have passed.
    report
        With an output folder, write ``report.html`` and its pictures there at the end: what was gained, what was
        forgotten. Up to 200 structures of each set, and up to 100 pairs, are evaluated once more for it.
    loggers
        Where epochs are logged besides ``history.csv``, in the output folder: ``"tensorboard"``, ``"wandb"``
        (Weights & Biases; with WANDB_MODE=offline without a network).
    seed
        Of shuffling and random draws, and the number of the fold that is held out: seeds 0, 1, 2, ... hold out
        different frames while there are enough.
    device, dtype
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...; ``"float32"`` or ``"float64"``.
    trust_pickle
        Allow loading a foreign MACE ``.model`` file, which can execute code.
    bptt
        Options of training through relaxations.
    """

    method: Literal["naive", "replay", "ewc", "reewc", "bptt", "bptt+replay", "bptt+ewc", "bptt+reewc"] = "reewc"
    epochs: int = 20
    batch_size: int = 4
    max_edges: int | None = None
    stream: bool | None = None
    num_workers: int = 0
    learning_rate: float = 3e-4
    loss: Loss = field(default_factory=Loss)
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.1
    clip_norm: float | None = 10.0
    ema_decay: float | None = None
    early_stopping: int | None = None
    freeze: Sequence[str] = ()
    reference: Literal["align", "shift", "none"] = "align"
    reference_frames: Literal["train", "all"] = "train"
    replay_labels: Literal["auto", "pseudo", "data"] = "auto"
    replay_size: int = 650
    replay_batch_size: int | None = None
    replay_schedule: Literal["alternate", "joint"] = "alternate"
    replay_weight: float = 1.0
    monitor_size: int = 32
    fisher: str = "auto"
    fisher_size: int = 200
    fisher_draws: int = 1
    fisher_probes: int | None = None
    fisher_normalize: bool | None = None
    fisher_anchor: str | None = None
    ewc_lambda: float | None = None
    keep: Literal["best", "last"] = "best"
    max_forgetting: float | None = None
    group_by: str = "auto"
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    drop_outliers: bool = False
    max_skipped_steps: int = 5
    checkpoint_minutes: float = 10.0
    report: bool = True
    loggers: Sequence[str] = ()
    seed: int = 0
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    trust_pickle: bool = False
    bptt: RelaxationConfig = field(default_factory=RelaxationConfig)

    def __post_init__(self) -> None:
        check_types(self)
        for name in (*_POSITIVE, *_NOT_NEGATIVE):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf or (value == 0 and name in _NOT_NEGATIVE)):
                how = "must not be negative" if name in _NOT_NEGATIVE else "must be positive"
                raise InputError(f"{name} {how}, got {value}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is a fraction of the steps between 0 and 1, got {self.warmup}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"ema_decay must lie between 0 and 1, got {self.ema_decay}")
        for name in self.loggers:
            if name not in LOGGERS:
                raise InputError(f"loggers: {name!r} is not known; use {' and '.join(LOGGERS)}")
        if self.ewc_lambda is not None and not 0 <= self.ewc_lambda < float("inf"):
            raise InputError(f"ewc_lambda must be a finite number that is not negative, got {self.ewc_lambda}")
        if self.max_forgetting is not None:
            self._check_bound(self.max_forgetting)

    def _check_bound(self, most: float) -> None:
        if most > 1:
            raise InputError(f"max_forgetting is a fraction of the error between 0 and 1 (0.03 is 3 %), got {most:g}")
        if self.monitor_size == 0:
            raise InputError("max_forgetting is measured on watched replay structures, but monitor_size=0")
        if self.uses_ewc and self.ewc_lambda == 0:
            raise InputError(
                "max_forgetting multiplies ewc_lambda, and ewc_lambda=0 stays 0: start from a small one, or take a "
                "method without EWC"
            )

    @property
    def uses_replay(self) -> bool:
        """Whether replay structures are trained on."""
        return self.method.split("+")[-1] in ("replay", "reewc")

    @property
    def uses_ewc(self) -> bool:
        """Whether the EWC penalty is applied."""
        return self.method.split("+")[-1] in ("ewc", "reewc")

    @property
    def bound(self) -> float | None:
        """The largest rise of errors on old structures with which weights are kept; ``None`` for no bound."""
        if self.max_forgetting is not None or self.keep == "last" or not (self.uses_replay or self.uses_ewc):
            return self.max_forgetting
        return DEFAULT_BOUND

    @property
    def uses_relaxations(self) -> bool:
        """Whether relaxations are trained through."""
        return self.method.startswith("bptt")

    def __repr__(self) -> str:
        return brief(self)

    def _repr_html_(self) -> str:
        """All options for a notebook; those that are not as by default stand out."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return html_table("Options of finetune(); bold: not as by default", values, bold=list(changes(self)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values by name."""
        return asdict(self) | {"freeze": list(self.freeze), "loggers": list(self.loggers)}

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> FinetuneConfig:
        """Config from keyword arguments.

        Parameters
        ----------
        options
            Fields by name; ``loss`` and ``bptt`` may be dictionaries, ``loss`` also a name.

        Raises
        ------
        InputError
            If an option does not exist (near names are suggested) or its value is not usable.
        """
        known = {item.name for item in fields(cls)}
        for name in options:
            if name not in known:
                raise InputError(f"unknown option {name!r}; did you mean {_nearest(name, known)}?")
        loss = options.get("loss")
        if isinstance(loss, str):
            options = options | {"loss": Loss(kind=loss)}  # type: ignore[arg-type]  # Loss checks the name
        elif isinstance(loss, dict):
            options = options | {"loss": _loss(loss)}
        if isinstance(options.get("bptt"), dict):
            options = options | {"bptt": RelaxationConfig.from_options(options["bptt"])}
        return cls(**options)


_POSITIVE = """
    epochs batch_size max_edges learning_rate clip_norm early_stopping
    replay_size replay_batch_size fisher_size fisher_draws fisher_probes max_forgetting max_skipped_steps
    checkpoint_minutes
    """.split()

_NOT_NEGATIVE = ("replay_weight", "monitor_size", "weight_decay", "num_workers", "seed")


def _loss(options: dict[str, Any]) -> Loss:
    known = {item.name for item in fields(Loss)}
    for name in options:
        if name not in known:
            raise InputError(f"unknown option {name!r} of loss; did you mean {_nearest(name, known)}?")
    return Loss(**options)


def _nearest(name: str, known: set[str]) -> str:
    return " or ".join(repr(item) for item in difflib.get_close_matches(str(name), known, n=3, cutoff=0.3)) or "another"
