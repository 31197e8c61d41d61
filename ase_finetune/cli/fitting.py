"""``ase-finetune fit``: its options are the arguments of :func:`finetune` and the fields of its config."""

from __future__ import annotations

from dataclasses import fields

from jsonargparse import Namespace

from ase_finetune.cli.common import HEAD, MODEL
from ase_finetune.cli.options import Group, Option, options_of
from ase_finetune.cli.parsing import as_dict
from ase_finetune.cli.places import check_folder
from ase_finetune.cli.terminal import Terminal
from ase_finetune.cli.verbs import Verb
from ase_finetune.finetuning import finetune
from ase_finetune.finetuning.config import FinetuneConfig

_DATA = (
    MODEL,
    Option("train", str | None, None, "Labelled frames, in any format that ASE reads.", position=True),
    Option("output", str | None, None, "Folder for the result, new or empty.", "FOLDER", needed=True),
    Option("resume", bool, False, "Go on with the run in the output folder, if there is one."),
    Option("valid", float | str | None, 0.1, "Fraction of the frames to hold out, or a file.", "FRACTION|FILE"),
    Option("relaxations", list[str] | None, None, "Two files to train through relaxations with.", "FILE FILE", count=2),
    Option(
        "valid_relaxations",
        float | list[str] | None,
        0.1,
        "Fraction of the relaxations to hold out, or two files.",
        "FRACTION|FILES",
    ),
    Option(
        "replay",
        list[str] | str | None,
        "embedded",
        "Structures that stand for what must not be forgotten: embedded (a few hundred from MPtrj), a file, null, or "
        "several of them, such as embedded and the frames of an earlier round.",
        "FILE",
    ),
    Option(
        "original",
        str | None,
        None,
        "The pretrained model behind one that was fine-tuned before, where that does not know its file.",
        "MODEL",
    ),
    HEAD,
    Option("members", int, 1, "More than 1: an ensemble, whose members hold out other frames each."),
)

#: Fields of the config by what they are for; one that is named nowhere comes last.
_TITLES = {
    "training": """
        method epochs batch_size learning_rate optimizer schedule warmup weight_decay clip_norm ema_decay early_stopping
        keep freeze seed
        """,
    "loss (energies in eV/atom, forces in eV/Å, stress in kbar)": "loss",
    "labels and reference energies": """
        reference reference_frames group_by energy_key forces_key stress_key drop_outliers
        """,
    "what must not be forgotten": """
        replay_labels replay_size replay_batch_size replay_schedule replay_weight monitor_size fisher fisher_size
        fisher_draws fisher_probes fisher_normalize fisher_anchor ewc_lambda max_forgetting
        """,
    "training through relaxations (method bptt and its combinations)": "bptt",
    "machine": "device dtype trust_pickle max_edges stream num_workers",
    "what is written, and when a run gives up": "report loggers checkpoint_minutes max_skipped_steps",
}


def _config_groups() -> list[Group]:
    left = list(options_of(FinetuneConfig))
    groups = []
    for title, names in _TITLES.items():
        members = [option for name in names.split() for option in left if option.name.split(".")[0] == name]
        groups.append(Group(title, tuple(members)))
        left = [option for option in left if option not in members]
    return [*groups, Group("further options", tuple(left))] if left else groups


def _run(options: Namespace, terminal: Terminal) -> int:
    check_folder(options.output)
    values = as_dict(options)
    config = FinetuneConfig.from_options({item.name: values[item.name] for item in fields(FinetuneConfig)})
    finetune(
        options.model,
        options.train,
        options.valid,
        relaxations=options.relaxations,
        valid_relaxations=options.valid_relaxations,
        replay=options.replay,
        original=options.original,
        output=options.output,
        resume=options.resume,
        head=options.head,
        members=options.members,
        verbose=terminal.verbosity,
        config=config,
    )
    return 0


FIT = Verb(
    description="Fine-tune a pretrained model on labelled frames, or through relaxations, without forgetting the rest. "
    "A run that is interrupted goes on with --resume. Under torchrun or srun several processes share the work.",
    examples=(
        ("energies and forces of one material; nothing else is needed", "fit 7net-0 frames.extxyz --output runs/mine"),
        ("cheaper, without replay; and after an interruption", "fit 7net-0 frames.db --method ewc --output runs/mine"),
        ("", "fit 7net-0 frames.db --method ewc --output runs/mine --resume"),
        (
            "on where relaxations end",
            "fit 7net-0 --relaxations first.extxyz last.extxyz --method bptt+reewc --output runs/bptt",
        ),
        ("all options in a file, some of them on the line", "fit --config run.yaml --epochs 20 --output runs/long"),
    ),
    groups=(Group("data", _DATA), *_config_groups()),
    run=_run,
)
