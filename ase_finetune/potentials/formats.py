"""The description in a saved potential's folder, ``potential.json``, in all the versions there have been.

Version 1 (until 0.1): beside ``weights.safetensors``, whose SHA-256 it holds.
Version 2: names the file with the weights, which is called after its content, and holds a SHA-256 of itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ase_finetune.errors import CheckpointError
from ase_finetune.files import parse_json, to_json
from ase_finetune.version import __version__

CONFIG_FILE = "potential.json"
FORMAT_VERSION = 2

#: Names in the output folder of a run: where its model is, and what makes it such a folder.
RUN_MODEL, RUN_FILE = "model", "run.json"

#: Folder of a member in the output folder of an ensemble, by its number.
RUN_MEMBER = "member-{}"

#: Names of weights in all versions: plain ones, so nothing outside the folder is ever read or removed.
_WEIGHTS = re.compile(r"weights(-[0-9a-f]{12})?\.safetensors")
_PARTS = re.compile(r"\.(potential\.json|weights(-[0-9a-f]{12})?\.safetensors)\.[0-9a-f]{12}\.part")

_TYPES: dict[str, type | tuple[type, ...]] = {
    "backend": str,
    "head": (str, type(None)),
    "dtype": str,
    "architecture": dict,
    "metadata": dict,
    "versions": dict,
    "weights_file": str,
    "weights_sha256": str,
}
_DTYPES = ("float32", "float64")


def weights_name(digest: str) -> str:
    """Name of the file whose content has this SHA-256."""
    return f"weights-{digest[:12]}.safetensors"


def find_saved(path: Path) -> Path | None:
    """The folder of a saved potential.

    Parameters
    ----------
    path
        That folder itself, or the output folder of a run, whose model is in a folder of its own.

    Returns
    -------
    ``None`` if ``path`` is neither.

    Raises
    ------
    CheckpointError
        If the run has not ended, so that its model is not the final one.
    """
    if (path / CONFIG_FILE).is_file():
        return path
    model = path / RUN_MODEL
    has_model = (model / CONFIG_FILE).is_file()
    if not (path / RUN_FILE).is_file():
        return model if has_model else None
    # The errors of the result are entered when a run ends.
    if has_model and "errors" in read_description(model / CONFIG_FILE)["metadata"]:
        return model
    so_far = f"; its best model so far is {model}" if has_model else ""
    raise CheckpointError(f"the run in {path} has not ended: go on with it by resume=True{so_far}")


def members_in(path: Path) -> list[Path]:
    """The folders of the members of an ensemble in its output folder, by number; empty if it is none.

    Parameters
    ----------
    path
        Any path.
    """
    members: list[Path] = []
    while (folder := path / RUN_MEMBER.format(len(members))).is_dir():
        members.append(folder)
    return members


def is_weights(path: Path) -> bool:
    """Whether a file is called as weights are."""
    return _WEIGHTS.fullmatch(path.name) is not None


def is_leftover(path: Path) -> bool:
    """Whether a file is what a save leaves behind that was killed before the description was in place."""
    return is_weights(path) or _PARTS.fullmatch(path.name) is not None


def write_description(content: dict[str, Any]) -> str:
    """The text of ``potential.json``.

    Raises
    ------
    InputError
        If the content is not JSON-able.
    """
    content = content | {"format_version": FORMAT_VERSION}
    plain = json.loads(to_json(content, "metadata"))  # as it will be read
    return to_json(plain | {"sha256": _digest(plain)}, "metadata")


def read_description(path: Path) -> dict[str, Any]:
    """Read ``potential.json`` of any version, checked, as the current version has it.

    Raises
    ------
    CheckpointError
        If it is missing, damaged, of a newer version, or names files outside its folder.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not a saved potential: it lacks {path.name}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    content = parse_json(text, path)
    content = _upgrade(content, path)
    _check(content, path)
    return content


def _upgrade(content: dict[str, Any], path: Path) -> dict[str, Any]:
    version = content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        lacks = "lacks its format_version" if version is None else f"has the format version {version!r}"
        raise CheckpointError(f"{path} is damaged: it {lacks}")
    if version > FORMAT_VERSION:
        versions = content.get("versions")
        writer = versions.get("ase_finetune", "?") if isinstance(versions, dict) else "?"
        raise CheckpointError(
            f"{path} has format version {version}, this ase_finetune ({__version__}) reads up to {FORMAT_VERSION}; "
            f"it was written by ase_finetune {writer}: install that version or a newer one"
        )
    if version == FORMAT_VERSION:
        expected = content.pop("sha256", None)
        if expected != _digest(content):
            raise CheckpointError(f"{path} is damaged: its content was changed after it was written")
    for step in range(version, FORMAT_VERSION):
        content = _UPGRADES[step](content)
    return content


def _upgrade_from_1(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"format_version": 2, "weights_file": "weights.safetensors"}


#: For each version, how its description becomes one of the next version.
_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _upgrade_from_1}


def _check(content: dict[str, Any], path: Path) -> None:
    missing = sorted(set(_TYPES) - set(content))
    if missing:
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(missing)}")
    for name, kind in _TYPES.items():
        if not isinstance(content[name], kind):
            raise CheckpointError(f"{path} is damaged: its {name} is {str(content[name])[:80]!r}")
    if content["dtype"] not in _DTYPES:
        raise CheckpointError(f"{path} is damaged: unknown dtype {content['dtype'][:80]!r}")
    name = content["weights_file"]
    if _WEIGHTS.fullmatch(name) is None:
        raise CheckpointError(f"{path} is damaged or malicious: {name[:80]!r} is not the name of weights in its folder")


def _digest(content: dict[str, Any]) -> str:
    # Of the values: spaces and the order of names do not matter.
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
