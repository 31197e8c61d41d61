"""What was found before the first step, kept for when the run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.files import read_sealed, write_sealed

_KIND = "prepared-1"


class Prepared:
    """Results that are computed once in the life of a run, however often it is resumed.

    Computing them again would take time, and on another machine give other last digits.

    Parameters
    ----------
    tensors, values
        What an earlier start of the run found; nothing if it is new.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, values: Mapping[str, Any] | None = None) -> None:
        self._tensors = dict(tensors or {})
        self._values = dict(values or {})

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Note what makes this run the same run, or compare it.

        Parameters
        ----------
        identity
            JSON-able, nested.

        Raises
        ------
        InputError
            If something differs from what the run was started with; all differences are listed.
        """
        now = _flat(identity)
        before = self._values.setdefault("identity", now)
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        changes = [_change(name, before.get(name), now.get(name)) for name in changed if not _follows(name, changed)]
        if changes:
            raise InputError(
                f"this is not the run that was started in the output folder: {'; '.join(changes)}; resume it as it "
                "was, or start anew in another folder"
            )

    def value(self, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON-able result, computed unless it is known."""
        if name not in self._values:
            self._values[name] = compute()
        return self._values[name]

    def tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors by name, computed unless they are known."""
        start = f"{name}/"
        if name not in self._values:
            found = compute()
            self._values[name] = list(found)
            self._tensors |= {start + key: value for key, value in found.items()}
        return {key: self._tensors[start + key] for key in self._values[name]}

    def write(self, path: Path) -> None:
        """Write all results to a file.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        write_sealed(path, self._tensors, self._values, kind=_KIND)

    @classmethod
    def read(cls, path: Path) -> Prepared:
        """Results that were written.

        Raises
        ------
        CheckpointError
            If the file is missing or damaged.
        """
        return cls(*read_sealed(path, kind=_KIND))


#: What is known by a hash, which says nothing to a reader.
_HASHED = {
    "base_hash": "other model",
    "base_state": "other constants of the model, such as reference energies",
    "data.train": "other frames: train",
    "data.valid": "other frames: valid",
    "data.replay": "other replay structures",
    "data.relaxations": "other relaxations: train",
    "data.valid_relaxations": "other relaxations: valid",
    "files.fisher": "other content of the file fisher",
    "files.fisher_anchor": "other content of the file fisher_anchor",
}
_WORDS = {"head": "head", "split": "split of the frames", "split_relaxations": "split of the relaxations"}


def _follows(name: str, changed: Sequence[str]) -> bool:
    """Whether a change is only the consequence of another one."""
    if name == "base_state":  # the hash of all there is
        return any(other in changed for other in ("base_hash", "head", "config.dtype"))
    return name.startswith("files.") and name.replace("files.", "config.") in changed


def _change(name: str, then: Any, now: Any) -> str:
    """What is not as it was when the run was started."""
    if name in _HASHED:
        given = " (none then)" if then is None else " (none now)" if now is None else ""
        return _HASHED[name] + given
    kind, _, option = name.partition("config.")
    what = _WORDS.get(name, name) if kind else f"option {option}"
    return f"other {what}: {_shown(then)} then, {_shown(now)} now"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _flat(content: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Nested names joined by dots; sequences as JSON gives them back."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{start}{name}.")
        else:
            flat[start + name] = list(value) if isinstance(value, tuple) else value
    return flat
