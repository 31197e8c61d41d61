"""From words on the command line to options with values, config files included."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from ase_finetune.cli.options import Group, Option
from ase_finetune.cli.terminal import say
from ase_finetune.cli.verbs import Verb
from ase_finetune.config_files import ConfigFile

PROGRAM = "ase-finetune"

#: That can be given completion.
SHELLS = ("bash", "zsh", "tcsh")

CONFIG = Option("config", str, None, "YAML file with any of these options; those on the line come first.", "FILE")
PRINT_CONFIG = Option("print_config", bool, False, "Print all options as a commented YAML file for --config, and exit.")
COMMON = Group(
    "common",
    (
        CONFIG,
        PRINT_CONFIG,
        Option("verbose", bool, False, "Tell more: model, device, versions, times.", short="-v", in_files=False),
        Option("quiet", bool, False, "Tell results only; no notes, no progress bars.", short="-q"),
        Option("debug", bool, False, "Show the full trace of an error.", in_files=False),
        Option("help", bool, False, "Show this help.", short="-h", in_files=False),
    ),
)

#: Of :data:`COMMON`, those that may also stand before the verb.
_ANYWHERE = ("verbose", "quiet", "debug")


class UsageError(Exception):
    """A command line that cannot be understood."""


def usage_error(message: str, verb: str = "") -> NoReturn:
    """Tell what is wrong with the command line, and exit with 2."""
    command = f"{PROGRAM} {verb}".strip()
    say(f"{command}: {message}\n(all options: {command} --help)")
    raise SystemExit(2)


def nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion for an unknown word, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def dashed(word: str) -> str:
    """An option with underscores in the place of dashes: both may be written."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if len(name) > 2 else word


def split_verb(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The verb, and all other words; options that stand before it come to those behind it.

    Raises
    ------
    UsageError
        If another option stands before the verb.
    """
    before: list[str] = []
    known = {f"--{name}": name for name in _ANYWHERE} | {o.short: o.name for o in COMMON.options if o.short}
    for position, word in enumerate(words):
        if not word.startswith("-"):
            return word, [*before, *words[position + 1 :]]
        if dashed(word) not in known and word not in known:
            return None, list(words)
        before.append(word)
    return None, list(words)


class VerbParser:
    """The parser of one verb.

    Parameters
    ----------
    name
        The verb.
    verb
        Its options.
    """

    def __init__(self, name: str, verb: Verb) -> None:
        self.name, self.verb = name, verb
        self.groups = (*verb.groups, COMMON)
        self.options = {option.name: option for group in self.groups for option in group.options}
        self._shorts = {option.short: option for option in self.options.values() if option.short}
        self._positions = [option for option in verb.options if option.position]

    def parse(self, words: Sequence[str]) -> Namespace:
        """All options with their values; exits with 2 if that is not possible.

        What is needed is not checked yet, since a template can do without.
        """
        try:
            given = self._sort(words)
            return self._values(given)
        except UsageError as error:
            usage_error(str(error), self.name)

    def check_needed(self, values: Namespace) -> None:
        """Exit with 2 if something that is needed was not given."""
        missing = [option for option in self.options.values() if option.needed and values[option.name] in (None, [])]
        if missing:
            names = ", ".join(option.shown if option.position else f"--{option.name}" for option in missing)
            usage_error(f"{names} {'is' if len(missing) == 1 else 'are'} missing", self.name)

    def _sort(self, words: Sequence[str]) -> dict[str, list[str]]:
        """The words that belong to each option, in the order of the line."""
        given: dict[str, list[str]] = {}
        bare: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                bare += rest
                break
            if not self._is_option(word):
                bare.append(word)
                continue
            option, value = self._option(word)
            if option.is_switch:
                if value is None and rest and rest[0] in ("true", "false"):
                    value = rest.pop(0)
                given[option.name] = [value or "true"]
            else:
                given[option.name] = [value] if value is not None else self._take(option, rest)
        return given | self._place(bare)

    def _is_option(self, word: str) -> bool:
        return word.startswith("--") or (word.startswith("-") and len(word) > 1 and word[1].isalpha())

    def _option(self, word: str) -> tuple[Option, str | None]:
        if not word.startswith("--"):
            if word not in self._shorts:
                raise UsageError(f"there is no option {word}")
            return self._shorts[word], None
        name, equals, value = dashed(word)[2:].partition("=")
        if name not in self.options:
            offered = nearest(f"--{name}", [f"--{known}" for known in self.options])
            raise UsageError(f"there is no option {word.partition('=')[0]}{offered}")
        return self.options[name], value if equals else None

    def _take(self, option: Option, rest: list[str]) -> list[str]:
        """The values behind an option."""
        found: list[str] = []
        most = (option.count or len(rest)) if option.takes_list else 1
        while rest and len(found) < most and not self._is_option(rest[0]):
            found.append(rest.pop(0))
        if not found:
            raise UsageError(f"--{option.name} takes {option.wanted}, and nothing follows")
        return found

    def _place(self, bare: list[str]) -> dict[str, list[str]]:
        """Words without an option, as the arguments they are."""
        placed: dict[str, list[str]] = {}
        left = list(bare)
        for option in self._positions:
            if left:
                count = len(left) if option.takes_list else 1
                placed[option.name], left = left[:count], left[count:]
        if left:
            takes = " ".join(option.shown for option in self._positions) or "no arguments"
            raise UsageError(f"{' '.join(left)!r} is one too many: {self.name} takes {takes}")
        return placed

    def _values(self, given: dict[str, list[str]]) -> Namespace:
        # The config file first, wherever it stood: what is on the line overrides it.
        names = sorted(given, key=lambda name: name != CONFIG.name)
        line = [f"--{name}={self._text(self.options[name], given[name])}" for name in names]
        parsed = self._parser().parse_args(line)
        assert isinstance(parsed, Namespace)
        return parsed

    def _text(self, option: Option, values: list[str]) -> str:
        if not option.takes_list:
            return values[0]
        first = values[0]
        if len(values) == 1 and (option.takes_one or first == "null" or (first[0:1] == "[" and first[-1:] == "]")):
            return first
        if option.count is not None and len(values) != option.count:
            raise UsageError(f"--{option.name} takes {option.count} values, got {' '.join(values)}")
        return json.dumps(values) if str in option.items else f"[{', '.join(values)}]"

    def _parser(self) -> ArgumentParser:
        """The parser of jsonargparse, which brings values to their types and reads config files."""
        parser = _Typed(self)
        for option in self.options.values():
            if option.name == CONFIG.name:
                parser.add_argument("--config", action=ConfigFile)
            else:
                parser.add_argument(f"--{option.name}", type=option.kind, default=option.default)
        return parser


class _Typed(ArgumentParser):
    """Tells which option has the wrong value in one line."""

    def __init__(self, owner: VerbParser) -> None:
        # An abbreviated option would come to mean another one with the next option that is added.
        super().__init__(prog=PROGRAM, add_help=False, allow_abbrev=False, print_config=None)
        self._owner = owner
        self.option_names = tuple(owner.options)  # for ConfigFile

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002  # as jsonargparse calls it
        found = re.search(r'key "([\w.]+)"', message)
        option = None if found is None else self._owner.options.get(found[1])
        value = re.search(r"(?:Given value|Got value): (.*)", message)
        if option is None or value is None:
            usage_error(" ".join(message.split()), self._owner.name)
        offered = nearest(value[1], option.values)
        usage_error(f"--{option.name} takes {option.wanted}, got {value[1]!r}{offered}", self._owner.name)


def as_dict(values: Namespace) -> dict[str, Any]:
    """Options by name, nested."""
    found: dict[str, Any] = values.as_dict()
    return found
