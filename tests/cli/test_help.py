from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from ase_finetune.cli import build_parser, main
from ase_finetune.cli.help import described, spelled
from ase_finetune.cli.options import documented, options_of
from ase_finetune.cli.parsing import VerbParser
from ase_finetune.cli.verbs import VERBS, load_verb
from ase_finetune.finetuning.config import FinetuneConfig


def helped(capsys, monkeypatch, *words, columns=80):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as caught:
        main([*words])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_of_the_program(capsys, monkeypatch):
    text = helped(capsys, monkeypatch, "--help")
    for name, (summary, _) in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", text, re.MULTILINE)
    for code in ("0", "1", "2", "3", "70", r"128 \+ n"):
        assert re.search(rf"^  {code}  ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80
    assert helped(capsys, monkeypatch) == text


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_of_a_verb(capsys, monkeypatch, verb, columns):
    text = helped(capsys, monkeypatch, verb, "--help", columns=columns)
    assert text.startswith(f"usage: ase-finetune {verb} [options]")
    options, rest = text.split("\narguments:", 1)[-1] if "\narguments:" in text else text, text
    width = max(len(line) for line in options.splitlines() if not line.startswith("  ase-finetune"))
    assert width <= max(columns, 80)
    for option in VerbParser(verb, load_verb(verb)).options.values():
        assert (option.shown if option.position else f"--{spelled(option)}") in rest
        assert option.help, option.name
        assert described(option).replace(" ", "") in re.sub(r"\s", "", rest)


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_understood(verb):
    examples = load_verb(verb).examples
    assert 1 <= len(examples) <= 5
    for _, line in examples:
        if "--config" not in line:
            words = shlex.split(line)
            assert build_parser().parse_args(words).command == words[0]


def test_every_option_of_the_config_is_described():
    for option in options_of(FinetuneConfig):
        assert option.help, option.name
        assert "``" not in option.help
        assert ":class:" not in option.help


def test_descriptions_come_from_docstrings():
    class Thing:
        """A thing.

        Parameters
        ----------
        one, two
            Both of them; ``None`` is ``"auto"``, see :class:`ase_finetune.losses.Loss`.
        *three
            Other.

            More of it.

        Returns
        -------
        four
            Not this.
        """

    both = "Both of them; null is auto, see Loss."
    assert documented(Thing) == {"one": both, "two": both, "three": "Other. More of it."}


def test_the_help_of_the_program_imports_no_verb():
    code = (
        "import sys; from ase_finetune.cli.main import CommandLine\n"
        "try: CommandLine().parse_args(['--help'])\n"
        "except SystemExit: print(sorted(name for name in sys.modules if name.startswith('ase_finetune.cli')))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    loaded = answer.stdout.splitlines()[-1]
    assert "ase_finetune.cli.help" in loaded
    assert "ase_finetune.cli.fitting" not in loaded
    assert "ase_finetune.cli.completion" not in loaded
