"""Files that are written whole or not at all, and that notice when they were damaged.

Every file of this package is written here: beside its place, flushed to the disk, and then put in place at once.
Whatever happens meanwhile, an earlier file stays as it was.

A *sealed* file holds tensors and JSON as safetensors, with a SHA-256 over all of it. Reading one executes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ase_finetune.errors import CheckpointError, FinetuneError, InputError, OutputError

_HEADER = "ase_finetune"


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, or leave the earlier one untouched.

    Parameters
    ----------
    path
        Its folder must exist.
    data
        The content.

    Raises
    ------
    OutputError
        If the disk is full or the place cannot be written to.
    """
    write_chunks(path, [data])


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """As :func:`write_bytes`, of content that comes piece by piece; a file is only made of all of them.

    Errors of this package that the pieces raise are passed on.
    """
    # Processes on several machines may write the same file at once.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        with part.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _flush_folder(path.parent)
    except FinetuneError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        kept = "; the earlier file is as it was" if is_there(path) else ""
        raise OutputError(f"{path} cannot be written: {reason}{kept}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def make_folder(path: Path) -> None:
    """Make a folder and its parents if need be.

    Raises
    ------
    OutputError
        If that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {path} cannot be made: {error.strerror}") from error


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove what killed writes of a file (by default of all) left behind, where nobody else writes it."""
    for part in folder.glob(f".{name}.*.part"):
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def is_there(path: Path) -> bool:
    """Whether something has this name; ``False`` also where nothing can have it (a name that is too long)."""
    try:
        return path.exists() or path.is_symlink()
    except (OSError, ValueError):
        return False


def require_file(path: Path) -> None:
    """Refuse what is no file; reading a pipe or a device might never end.

    Raises
    ------
    CheckpointError
        If there is nothing, a folder, a pipe or a device.
    """
    if not is_there(path):
        raise CheckpointError(f"{path} does not exist")
    if not path.is_file():
        raise CheckpointError(f"{path} is damaged: it is not a file, but a folder, a link to nothing or the like")


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def to_json(content: Any, what: str) -> str:
    """Content as JSON; arrays and tensors become lists, paths become strings.

    Parameters
    ----------
    content
        To be written.
    what
        Its name in the error message.

    Raises
    ------
    InputError
        If it holds something that JSON cannot.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic, Tensor)):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise InputError(f"{what} holds a {type(value).__name__}, which JSON cannot: {value!r}")

    try:
        return json.dumps(content, indent=1, default=plain)
    except (TypeError, ValueError, RecursionError) as error:  # keys that are no strings, content that holds itself
        raise InputError(f"{what} cannot be written as JSON: {error}") from error


def parse_json(text: str, origin: Path | str) -> dict[str, Any]:
    """A JSON object.

    Raises
    ------
    CheckpointError
        If the text is not one; the message names ``origin``.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{origin} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{origin} is damaged: it holds a {type(content).__name__} instead of named values")
    return content


def write_sealed(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any], *, kind: str) -> None:
    """Write tensors and JSON-able content as one file that notices damage.

    Parameters
    ----------
    path
        The file.
    tensors
        On any device.
    content
        JSON-able.
    kind
        What the file is, with the version of its format, for example ``"fisher-2"``.

    Raises
    ------
    OutputError
        If it cannot be written.
    InputError
        If the content is not JSON-able.
    """
    # Copies: safetensors refuses tensors that share memory.
    stored = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    text = to_json(content, f"the content of {path.name}")
    header = {"format": f"ase_finetune-{kind}", "json": text, "sha256": _seal(kind, text, stored)}
    # One entry: safetensors writes several in random order, and equal content should make equal files.
    write_bytes(path, save(stored, metadata={_HEADER: json.dumps(header)}))


def read_sealed(path: Path, *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_sealed` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, torn, changed or of another kind; the message names it.
    """
    entries, tensors = read_safetensors(path)
    header = parse_json(entries.get(_HEADER, "{}"), path)
    found = header.get("format", entries.get("format"))
    if found != f"ase_finetune-{kind}":
        raise CheckpointError(f"{path} is not a {kind} file of this package, but {str(found or 'another')[:80]!r}")
    text = str(header.get("json"))
    if header.get("sha256") != _seal(kind, text, tensors):
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one it was written with")
    return tensors, parse_json(text, path)


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file; a file cannot claim tensors that are larger than itself.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    """
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, AttributeError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _seal(kind: str, text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{kind}|{len(text)}|{text}".encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"|{name}|{value.dtype}|{tuple(value.shape)}|".encode("utf-8", "surrogatepass"))
        # A copy: one number that was expanded has a stride of 0, which cannot be seen as bytes.
        flat = value.reshape(-1).clone(memory_format=torch.contiguous_format)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Let the new name outlive a power failure, where folders can be flushed."""
    if os.name == "nt":
        return
    # Some file systems cannot; the file is in place all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
