"""Files written by ``torch.save``, read without executing code from them."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ase_finetune.errors import CheckpointError
from ase_finetune.files import require_file, write_bytes
from ase_finetune.potentials.imports import LOAD_ERRORS, safe_globals

#: The pickle inside is small, the tensors are stored beside it; this is 100 times what models have.
_LARGEST_PICKLE = 1 << 28


def load_torch_file(path: Path, what: str, allowed: Sequence[Any] = ()) -> Any:
    """What ``torch.save`` wrote, as far as it is tensors, containers, numbers and ``allowed``.

    Parameters
    ----------
    path
        The file.
    what
        What it should be, for messages, such as ``"SevenNet checkpoint"``.
    allowed
        Classes and functions that are known to be harmless.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, holds anything else, or would unpack to more than it is.
    """
    require_file(path)
    try:
        records = _check_archive(path) if zipfile.is_zipfile(path) else None
        with safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_storages(content, records)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a readable {what}: {error}") from error
    except Exception as error:  # torch's unpickler raises whatever the bytes make it stumble over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is not a readable {what}: {reason}") from error
    return content


def write_torch_file(path: Path, content: Any) -> None:
    """``torch.save``, of a whole file or none.

    Raises
    ------
    OutputError
        If it cannot be written; an earlier file is as it was.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def read_pickle_bytes(path: Path) -> tuple[list[str], bytes]:
    """Names in a zip archive, and its ``data.pkl`` (empty if it has none) without unpickling it.

    Raises
    ------
    CheckpointError
        If the archive is damaged or would unpack to more than it is.
    """
    try:
        _check_archive(path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl")]
            return names, archive.read(pickles[0]) if pickles else b""
    except CheckpointError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    except (zipfile.BadZipFile, zlib.error, MemoryError, NotImplementedError, *LOAD_ERRORS) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _check_archive(path: Path) -> list[int]:
    """Refuse archives that are damaged or unpack to more than they are; returns the sizes of the tensors in it."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # torch stores without compression, so whatever is compressed here is somebody's doing.
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise CheckpointError("it would unpack to more than it is (a zip bomb?)")
        if any(member.filename.endswith("/data.pkl") and member.file_size > _LARGEST_PICKLE for member in members):
            raise CheckpointError("its data.pkl is far larger than that of a model")
        torn = archive.testzip()  # torch itself does not look at the checksums
        if torn is not None:
            raise CheckpointError(f"the checksum of {torn} in it is wrong")
    return [member.file_size for member in members if member.filename.split("/")[-2:-1] == ["data"]]


def _check_storages(content: Any, records: Iterable[int] | None) -> None:
    """Refuse tensors that claim more numbers than the file holds for them."""
    for tensor in _tensors(content):
        # One number can be made to look like any number of them, each of which is made when they are worked on.
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"a tensor of shape {tuple(tensor.shape)} has fewer numbers than that")
    if records is None:
        return
    # Older torch versions do not compare the sizes themselves.
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(content)}
    beyond = Counter(size for size in storages.values() if size) - Counter(records)
    if beyond:
        raise CheckpointError(f"a tensor of {max(beyond)} bytes is not in it")


def _tensors(content: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        if content.layout is torch.strided:
            yield content
    elif isinstance(content, (dict, list, tuple)) and depth < 100:
        for item in content.values() if isinstance(content, dict) else content:
            yield from _tensors(item, depth + 1)
