"""The batch script of the pages."""

from __future__ import annotations

import os
import subprocess

from ase_finetune.cli import build_parser
from tests.docs.pages import ROOT


def test_slurm_script_is_valid_and_passes_its_arguments(tmp_path):
    """Run by bash with an srun that prints what it is asked to start."""
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    (tmp_path / "bin" / "activate").touch()
    answer = subprocess.run(  # noqa: S603  # our own script
        ["/bin/bash", str(ROOT / "docs" / "slurm_finetune.sh"), "my frames.extxyz", "runs/mine"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VENV": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    words = answer.stdout.splitlines()
    start = words.index("ase-finetune")
    # Every option exists: the command line parses them.
    options = build_parser().parse_args(words[start + 1 :])
    assert options.fit.train == "my frames.extxyz"
    assert options.fit.output == "runs/mine"
