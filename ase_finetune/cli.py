"""The command line: ``ase-finetune fit | evaluate | models | export | doctor``."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ase_finetune.analysis.doctor import doctor
from ase_finetune.analysis.evaluation import evaluate_calculator, evaluation_table
from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.config_files import ConfigFile
from ase_finetune.data import read_frames
from ase_finetune.errors import FinetuneError, RunStoppedError
from ase_finetune.finetuning import finetune
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.parallel import ALONE, Processes, launched
from ase_finetune.potentials import list_models
from ase_finetune.version import __version__

# An abbreviated option would come to mean another one with the next option that is added.
_Parser = functools.partial(ArgumentParser, allow_abbrev=False)


def build_parser() -> ArgumentParser:
    """The parser; the options of ``fit`` are the fields of :class:`FinetuneConfig`."""
    parser = _Parser(
        prog="ase-finetune",
        version=__version__,
        description="Fine-tune pretrained interatomic potentials without forgetting the periodic table.",
    )
    parser.add_argument("--debug", action="store_true", help="show the full trace of an error")
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("fit", _fit_parser(), help="fine-tune a model on labelled frames or relaxations")
    commands.add_subcommand("evaluate", _evaluate_parser(), help="errors of a model on labelled frames")
    commands.add_subcommand("models", _models_parser(), help="list the pretrained models")
    commands.add_subcommand("export", _export_parser(), help="write the backend's own checkpoint")
    commands.add_subcommand("doctor", _doctor_parser(), help="what is installed, what works, and what mends the rest")
    return parser


def _fit_parser() -> ArgumentParser:
    parser = _Parser(description="Example: ase-finetune fit 7net-0 frames.extxyz --output runs/mine --epochs 20")
    parser.add_argument("--config", action=ConfigFile, help="YAML file with any of these options")
    parser.add_argument("model", type=str, help="name, saved folder or checkpoint")
    parser.add_argument("train", type=str | None, nargs="?", help="labelled frames, any format ASE reads")
    parser.add_argument("--output", type=str, required=True, help="folder for the result, new or empty")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in the output folder, if there is one"
    )
    parser.add_argument("--valid", type=float | str, default=0.1, help="fraction to hold out, or a file")
    parser.add_argument(
        "--relaxations",
        type=str,
        nargs=2,
        metavar=("INITIAL", "RELAXED"),
        help="pairs to train through relaxations with",
    )
    parser.add_argument("--valid_relaxations", type=float | list[str], default=0.1, help="fraction, or two files")
    parser.add_argument("--replay", type=str | None, default="embedded", help="'embedded' or a file")
    parser.add_argument("--head", type=str | None, default=None, help="head or modality of the model")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    parser.add_class_arguments(FinetuneConfig)
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = _Parser(description="Example: ase-finetune evaluate runs/mine/model test.extxyz")
    parser.add_argument("model", type=str, help="name, saved folder or checkpoint")
    parser.add_argument("frames", type=str, nargs="+", help="files of labelled frames")
    _add_model_options(parser)
    return parser


def _models_parser() -> ArgumentParser:
    return _Parser(description="Names, where they come from, licence and number of elements.")


def _export_parser() -> ArgumentParser:
    parser = _Parser(description="Example: ase-finetune export runs/mine/model mine.pth")
    parser.add_argument("model", type=str, help="saved folder")
    parser.add_argument("path", type=str, help="file to write: .pth for SevenNet, .model for MACE")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    _add_model_options(parser)
    return parser


def _doctor_parser() -> ArgumentParser:
    parser = _Parser(
        description="Versions, backends, devices, models and a short self-test; 0 if it can be worked with."
    )
    parser.add_argument("--self_test", type=bool, default=True, help="try each backend for some seconds")
    return parser


def _add_model_options(parser: ArgumentParser) -> None:
    parser.add_argument("--head", type=str | None, default=None, help="head or modality of the model")
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--dtype", type=str, default="float32")
    parser.add_argument("--trust_pickle", action="store_true", help="allow a foreign MACE .model file")


def _fit(options: Namespace) -> None:
    values = options.as_dict()
    config = FinetuneConfig.from_options({item.name: values[item.name] for item in fields(FinetuneConfig)})
    finetune(
        options.model,
        options.train,
        options.valid,
        relaxations=options.relaxations,
        valid_relaxations=options.valid_relaxations,
        replay=options.replay,
        output=options.output,
        resume=options.resume,
        head=options.head,
        verbose=not options.quiet,
        config=config,
    )


def _evaluate(options: Namespace) -> None:
    processes = launched(options.device)
    calculator = _calculator(options, processes)
    frames = [read_frames(path, name=Path(path).stem) for path in options.frames]
    first = processes.is_first
    found = [evaluate_calculator(calculator, item, verbose=first, processes=processes) for item in frames]
    if first:
        print(evaluation_table(found))


def _models(_: Namespace) -> None:
    print(f"{'name':24s}{'backend':9s}{'here':13s}{'elements':>9s}  licence")
    for info in list_models():
        elements = "?" if info.elements is None else str(len(info.elements))
        print(f"{info.name:24s}{info.backend:9s}{info.availability:13s}{elements:>9s}  {info.licence}")


def _export(options: Namespace) -> None:
    calculator = _calculator(options)
    calculator.export(options.path, overwrite=options.overwrite)
    print(f"written to {options.path}")


def _doctor(options: Namespace) -> int:
    report = doctor(self_test=options.self_test)
    print(report)
    return 0 if report.ok else 1


def _calculator(options: Namespace, processes: Processes = ALONE) -> FinetunedCalculator:
    return FinetunedCalculator(
        options.model,
        head=options.head,
        device=str(processes.device or options.device),
        dtype=options.dtype,
        trust_pickle=options.trust_pickle,
    )


_COMMANDS = {"fit": _fit, "evaluate": _evaluate, "models": _models, "export": _export, "doctor": _doctor}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    0; 1 after an error, which is told in one line, or if the doctor finds nothing that works; 128 plus the number of
    the signal that stopped it.
    """
    options = build_parser().parse_args(None if arguments is None else list(arguments))
    try:
        return _COMMANDS[options.command](options[options.command]) or 0
    except RunStoppedError as stopped:
        print(f"ase-finetune: {str(stopped).replace('resume=True', 'the same command with --resume')}", file=sys.stderr)
        return 128 + stopped.signal_number
    except FinetuneError as error:
        if options.debug:
            traceback.print_exc()
        else:
            print(f"ase-finetune: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ase-finetune: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    raise SystemExit(main())
