"""Lines of the shell on the pages: those of ours run, others are checked for what they name."""

from __future__ import annotations

import configparser
import importlib.util
import re
import shlex

from ase_finetune.cli import build_parser, main
from tests.docs import pages


def commands(text: str) -> list[list[str]]:
    """The commands of a block, split into words; comments and continued lines are understood."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def check_ours(words: list[str]) -> None:
    """A line of our own command: run for real."""
    try:
        code = main(words)
    except SystemExit as end:  # of --help and --print_config
        code = int(end.code or 0)
    # Checks of a small potential need not pass: that is 3, and told.
    assert code == 0 or (code == 3 and words[0] == "validate"), words


def parse_ours(words: list[str]) -> None:
    """A line of our own command that is started by another one: its options exist."""
    build_parser().parse_args(words)


def check_make(words: list[str]) -> None:
    text = (pages.ROOT / "Makefile").read_text()
    targets = [word for word in words if "=" not in word]
    assert targets
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", text, re.MULTILINE), target


def check_pip(words: list[str]) -> None:
    assert words[0] in ("install", "download", "wheel")
    config = configparser.ConfigParser()
    config.read(pages.ROOT / "setup.cfg")
    extras = set(config["options.extras_require"])
    for word in words:
        for names in re.findall(r"^(?:\.|ase_finetune)\[([\w,]+)\]$", word):
            assert extras.issuperset(names.split(",")), word


def check_torchrun(words: list[str]) -> None:
    if "-m" in words:
        rest = words[words.index("-m") + 1 :]
        assert rest[0] == "ase_finetune"
        parse_ours(rest[1:])
    else:
        assert words[-1].endswith(".py")


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None, words
    else:
        assert (pages.ROOT / words[0]).is_file() or words[0].startswith("my_"), words


def check_sbatch(words: list[str]) -> None:
    assert (pages.ROOT / "docs" / words[0]).is_file()


def check_srun(words: list[str]) -> None:
    parse_ours(words[words.index("ase-finetune") + 1 :])


CHECKED = {
    "ase-finetune": check_ours,
    "make": check_make,
    "pip": check_pip,
    "torchrun": check_torchrun,
    "python": check_python,
    "sbatch": check_sbatch,
    "srun": check_srun,
}
#: Commands of the shell itself.
PLAIN = {"cd", "source", "export"}


def run(block: pages.Block) -> None:
    """Every line of a block."""
    for words in commands(block.text):
        assert words[0] in {*CHECKED, *PLAIN}, f"{block}: {words[0]}"
        if words[0] in CHECKED:
            CHECKED[words[0]](words[1:])
