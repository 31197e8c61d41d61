"""YAML files of options for the command line: options and nothing else, since they may come from somebody else."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # a public one

_LARGEST = 1 << 20

#: What leads to other files or to modules, or is asked of the command line only.
_NEVER = ("config", "class_path", "init_args", "print_config", "help", "verbose", "debug")


class _Loader(yaml.SafeLoader):
    """Without aliases, by which a few lines can stand for more values than fit into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases (*name) are not read")
        return super().compose_node(parent, index)


class ConfigFile(ActionConfigFile):
    """The ``--config`` option: checks the file before jsonargparse reads it.

    The parser says in ``option_names`` which options there are and by ``checked`` which values they take, and keeps
    in ``in_file`` what the file holds.
    """

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            parser.in_file = check_config_file(Path(values), parser.option_names, parser.checked)
        except (OSError, TypeError, ValueError, yaml.YAMLError, RecursionError) as error:
            parser.error(f"the config file {values} cannot be used: {' '.join(str(error).split())}")
        super().__call__(parser, namespace, values, option_string)  # type: ignore[no-untyped-call]


def check_config_file(
    path: Path, known: Collection[str], checked: Callable[[str, Any], Any] = lambda _, value: value
) -> dict[str, Any]:
    """Refuse whatever is no plain option, and values that an option does not take.

    jsonargparse imports, and so runs, modules that are named in the place of options (``class_path``), in files that
    options name, and in texts that it parses once more.

    Parameters
    ----------
    path
        The file.
    known
        Names of the options there are, with dots where they are in groups.
    checked
        Of a name and a value: the value, or a ``ValueError``.

    Returns
    -------
    Values by such names.

    Raises
    ------
    OSError, TypeError, ValueError, yaml.YAMLError
        Telling what is wrong.
    """
    if not str(path).strip(".") or path.is_dir():
        raise OSError("it is a folder")
    if path.exists() and not path.is_file():
        raise OSError("it is a pipe or a device, and must be a regular file")
    if not path.is_file():
        raise OSError("there is no such file")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST >> 20} MB")
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  # a safe one
    if not isinstance(content, dict):
        raise TypeError("it holds no options by name")
    # Those of a template are false, which allows nothing.
    for name, does in (("trust_pickle", "allows files to run code"), ("overwrite", "replaces files")):
        if name in known and content.get(name, False) is not False:
            raise ValueError(f"{name} {does}, and is an option of the command line only")
    if not isinstance(content.get("relaxations"), list | None):
        raise TypeError("relaxations takes a list of two files")
    return {name: checked(name, value) for name, value in _options(content, known, "")}


def _options(content: Mapping[Any, Any], known: Collection[str], group: str) -> Iterator[tuple[str, Any]]:
    """Full names and values, if they are plain ones of options that there are."""
    groups = {
        name[len(group) :].split(".")[0] for name in known if name.startswith(group) and "." in name[len(group) :]
    }
    plain = {name[len(group) :] for name in known if name.startswith(group)} - set(_NEVER)
    for name, value in content.items():
        if name in groups:
            if not isinstance(value, dict):
                raise TypeError(f"{name} takes options by name")
            yield from _options(value, known, f"{group}{name}.")
        elif not isinstance(name, str) or not name.isidentifier() or name not in plain:
            near = difflib.get_close_matches(str(name), [*groups, *plain], n=1)
            raise ValueError(f"{str(name)[:80]!r} is no option here" + (f"; did you mean {near[0]}?" if near else ""))
        elif not _is_plain(value):
            raise TypeError(f"{name} takes a value or a list of values")
        else:
            yield f"{group}{name}", value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return not any(isinstance(item, (dict, list)) for item in value)
    return not isinstance(value, dict)
