"""From words on the command line to options with values, config files included."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from ase_finetune.cli.options import Group, Option, nearest
from ase_finetune.cli.terminal import say
from ase_finetune.cli.values import SWITCHED, ValueKindError, check_value, value_of_words
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
    known = {f"--{name}" for name in _ANYWHERE} | {option.short for option in COMMON.options}
    for position, word in enumerate(words):
        if not word.startswith("-"):
            return word, [*before, *words[position + 1 :]]
        if not all(part in known for part in separate(word.partition("=")[0])):
            return None, list(words)
        before.append(word)
    return None, list(words)


def separate(word: str) -> list[str]:
    """Short switches that are written together: -vq is -v -q."""
    letters = [f"-{letter}" for letter in word[1:]]
    shorts = {option.short for option in COMMON.options}
    return letters if len(letters) > 1 and word[0] == "-" and shorts.issuperset(letters) else [word]


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
        self._given: dict[str, list[str]] = {}

    def parse(self, words: Sequence[str]) -> Namespace:
        """All options with their values; exits with 2 if that is not possible.

        What is needed is not checked yet, since a template can do without.
        """
        try:
            given, bare = self._sort(words)
            parser = self._parser()
            values = parser.parse_args([f"--config={given[CONFIG.name][0]}"] if CONFIG.name in given else [])
            assert isinstance(values, Namespace)
            placed = self._place(
                bare, given, [name for name, value in parser.in_file.items() if value not in (None, [])]
            )
            # Those of the file are there already: what is on the line overrides them.
            for name, found in (given | placed).items():
                if name != CONFIG.name:
                    values[name] = self._value(self.options[name], found)
        except UsageError as error:
            usage_error(str(error), self.name)
        self._given = given
        return values

    def check_needed(self, values: Namespace) -> None:
        """Exit with 2 if something that is needed was not given."""
        missing = [option for option in self.options.values() if option.needed and values[option.name] in (None, [])]
        if not missing:
            return
        names = ", ".join(option.shown if option.position else f"--{option.name}" for option in missing)
        text = f"{names} {'is' if len(missing) == 1 else 'are'} missing"
        for name, words in self._given.items():
            if missing[0].position and self.options[name].takes_list and len(words) > 1:
                text += f"; --{name} has taken {' '.join(words)}, so write {missing[0].shown} before it"
                break
        usage_error(text, self.name)

    def _sort(self, words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
        """The words that belong to each option, in the order of the line, and those without one."""
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
            word, *others = separate(word)
            rest = [*others, *rest]
            option, value = self._option(word)
            if option.name in given and option.name not in _ANYWHERE:
                raise UsageError(f"--{option.name} is given twice")
            if option.is_switch:
                if value is None and rest and rest[0].lower() in SWITCHED:
                    value = rest.pop(0)
                given[option.name] = ["true" if value is None else value]
            else:
                given[option.name] = [value] if value is not None else self._take(option, rest)
        return given, bare

    def _is_option(self, word: str) -> bool:
        return word.startswith("--") or (word.startswith("-") and len(word) > 1 and word[1].isalpha())

    def _option(self, word: str) -> tuple[Option, str | None]:
        if not word.startswith("--"):
            if word not in self._shorts:
                offered = nearest(f"-{word}", [f"--{known}" for known in self.options])
                raise UsageError(f"there is no option {word}{offered}")
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

    def _place(self, bare: list[str], given: dict[str, list[str]], in_file: Sequence[str]) -> dict[str, list[str]]:
        """Words without an option, as the arguments they are; those that the line or the file names are not."""
        free = [option for option in self._positions if option.name not in given]
        if 0 < len(bare) < len(free):
            unnamed = [option for option in free if option.name not in in_file]
            if not unnamed:
                names = " or ".join(f"--{option.name}" for option in free)
                raise UsageError(f"what is {bare[0]!r}? The config file has all arguments: write {names} before it")
            free = unnamed
        placed: dict[str, list[str]] = {}
        left = list(bare)
        for option in free:
            if left:
                count = len(left) if option.takes_list else 1
                placed[option.name], left = left[:count], left[count:]
        if left:
            takes = " ".join(option.shown for option in self._positions) or "no arguments"
            named = [f"--{option.name}" for option in self._positions if option.name in given]
            why = f", and {' and '.join(named)} is given by name" if named else ""
            raise UsageError(f"{' '.join(left)!r} is one too many: {self.name} takes {takes}{why}")
        return placed

    def _value(self, option: Option, words: list[str]) -> Any:
        try:
            return value_of_words(option, words)
        except ValueKindError as error:
            name = option.shown if option.position else f"--{option.name}"
            raise UsageError(f"{name} {error}") from error

    def _parser(self) -> _Typed:
        """The parser of jsonargparse, which has the defaults and reads config files."""
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
        # For ConfigFile: what a file may hold, and what it held.
        self.option_names = tuple(owner.options)
        self.in_file: dict[str, Any] = {}

    def checked(self, name: str, value: Any) -> Any:
        """The value of an option in a config file.

        Raises
        ------
        ValueError
            If the option takes something else.
        """
        try:
            return check_value(self._owner.options[name], value)
        except ValueKindError as error:
            raise ValueError(f"{name} {error}") from error

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
