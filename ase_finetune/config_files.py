"""YAML files of options for the command line: options and nothing else, since they may come from somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # a public one

_LARGEST = 1 << 20

#: Options that hold others, by name.
_GROUPS: Mapping[str, Any] = {"loss": {}, "bptt": {"loss": {}}}


class _Loader(yaml.SafeLoader):
    """Without aliases, by which a few lines can stand for more values than fit into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases (*name) are not read")
        return super().compose_node(parent, index)


class ConfigFile(ActionConfigFile):
    """The ``--config`` option: checks the file before jsonargparse reads it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            check_config_file(Path(values))
        except (OSError, TypeError, ValueError, yaml.YAMLError, RecursionError) as error:
            parser.error(f"the config file {values} cannot be used: {' '.join(str(error).split())}")
        super().__call__(parser, namespace, values, option_string)  # type: ignore[no-untyped-call]


def check_config_file(path: Path) -> None:
    """Refuse whatever is no plain option.

    jsonargparse imports, and so runs, modules that are named in the place of options (``class_path``), in files that
    options name, and in texts that it parses once more.

    Raises
    ------
    OSError, TypeError, ValueError, yaml.YAMLError
        Telling what is wrong.
    """
    if not path.is_file():
        raise OSError("there is no such file")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST >> 20} MB")
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  # a safe one
    if not isinstance(content, dict):
        raise TypeError("it holds no options by name")
    if "trust_pickle" in content:
        raise ValueError("trust_pickle allows files to run code, and is an option of the command line only")
    if not isinstance(content.get("relaxations"), list | None):
        raise TypeError("relaxations takes a list of two files")
    _check_options(content, _GROUPS)


def _check_options(content: Mapping[Any, Any], groups: Mapping[str, Any]) -> None:
    for name, value in content.items():
        if not isinstance(name, str) or not name.isidentifier() or name in ("config", "class_path", "init_args"):
            raise ValueError(f"{str(name)[:80]!r} is no option here")
        if name in groups:
            if not isinstance(value, dict):
                raise TypeError(f"{name} takes options by name")
            _check_options(value, groups[name])
        elif not _is_plain(value):
            raise TypeError(f"{name} takes a value or a list of values")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return not any(isinstance(item, (dict, list)) for item in value)
    return not isinstance(value, dict)
