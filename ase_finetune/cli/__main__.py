"""``python -m ase_finetune.cli``."""

from ase_finetune.cli.main import main

raise SystemExit(main())
