"""The command line, ``ase-finetune VERB``: fit, relax, md, evaluate, validate, report, fisher, models, ..."""

from ase_finetune.cli.main import build_parser, main

__all__ = ["build_parser", "main"]
