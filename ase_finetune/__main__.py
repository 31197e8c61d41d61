"""``python -m ase_finetune``: the command line, also for launchers that start a module."""

from ase_finetune.cli import main

raise SystemExit(main())
