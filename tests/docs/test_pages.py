"""Every block of the pages runs as it stands, in order, in a folder with small files and quick potentials."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ase.io import read

from ase_finetune import FinetunedCalculator
from ase_finetune.cli.verbs import VERBS
from tests.docs import pages, shell, small

#: Blocks that are not run, and why: this list grows only on purpose.
NOT_RUN = {
    ("docs/recipes/vasp_to_lammps.md", "bash", "needs a checkpoint of SevenNet; run by the tests with the real 7net-0"),
    ("docs/recipes/vasp_to_lammps.md", "bash", "needs a MACE model"),
    ("docs/workflows.md", "bash", "needs a structure file; run by the tests of workflows"),
    ("docs/workflows.md", "bash", "needs checkpoints; run by the tests of native tools"),
    *(
        ("docs/workflows.md", "python", f"needs {name}; run by the tests where it is installed")
        for name in ("torch-sim", "matcalc", "quacc", "atomate2", "janus-core")
    ),
}

#: Names that the few lines of a page expect from the reader's own script.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": lambda: {"atoms": small.crystals(1)[0]},
}


def run_python(block: pages.Block, names: dict[str, Any]) -> None:
    """The code as it stands; its lines keep their numbers, so an error tells where it is on the page."""
    code = compile("\n" * block.line + block.text, pages.ROOT / block.page, "exec")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(code, names)  # noqa: S102  # our own pages


def check_yaml(block: pages.Block) -> None:
    """A file of options on a page is one that the command line takes."""
    assert isinstance(yaml.safe_load(block.text), dict)
    path = Path("from_page.yaml")
    path.write_text(block.text)
    shell.parse_ours(["fit", "--config", str(path)])


def check_scaling(names: dict[str, Any]) -> None:
    assert len(read("frames.db", ":")) == len(read("frames.extxyz", ":"))
    assert len(read("relaxed_by_us.extxyz", ":")) == len(names["structures"])
    assert torch.equal(*(fisher.values["shift"] > 0 for fisher in (names["exact"], names["close"])))


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {"docs/scaling.md": check_scaling}


def run_page(page: str) -> None:
    """Every block of a page in order, in the present folder, as one script and one shell."""
    names = GIVEN.get(page, dict)()
    for block in pages.blocks(page):
        if block.reason is not None:
            continue
        if block.file is not None:
            Path(block.file).write_text(block.text)
        elif block.language == "python":
            run_python(block, names)
        elif block.language == "bash":
            shell.run(block)
        elif block.language == "yaml":
            check_yaml(block)
    CHECKS.get(page, lambda _: None)(names)


@pytest.mark.parametrize("page", [page for page in pages.PAGES if pages.blocks(page)])
def test_page(page, desk, capsys):
    run_page(page)


def test_blocks_that_are_not_run_are_known():
    skipped = [block for page in pages.PAGES for block in pages.blocks(page) if block.reason is not None]
    assert {(block.page, block.language, block.reason) for block in skipped} == NOT_RUN


@pytest.mark.parametrize(("page", "least"), [("README.md", 5), ("docs/relaxations.md", 6), ("docs/scaling.md", 3)])
def test_no_code_is_lost(page, least):
    """Blocks are found by their fences; a page whose code is no longer found would pass unread."""
    assert sum(block.language == "python" for block in pages.blocks(page)) >= least


def test_every_block_says_its_language():
    known = {"python", "bash", "text", "yaml"}
    for page in pages.PAGES:
        for block in pages.blocks(page):
            # Sphinx's own directives have a name in braces, which is no word.
            assert block.language in known or not block.language, str(block)


def test_every_verb_is_on_the_page_of_the_command_line():
    text = (pages.ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    for verb in VERBS:
        assert f"```{{help}} {verb}\n" in text, verb
        assert f"ase-finetune {verb}" in text, verb


def test_calculators_of_the_pages_are_real(desk):
    """The stand-in is loaded by the name alone: files and folders go their usual way."""
    assert FinetunedCalculator("7net-0", device="cpu").potential.backend == "morse"
    with pytest.raises(ValueError, match="no pretrained model called"):
        FinetunedCalculator("7net-9")
