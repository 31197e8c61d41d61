"""Downloads of official models, and whether a file is one.

A MACE model can only be loaded by executing code from it, so it matters whose it is. It is official if its SHA-256 is
the one known of it. Where none is known, the first download over https from the official address is trusted, and its
SHA-256 is kept beside the file, so that the file stays the one that was downloaded.
"""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase_finetune.errors import CheckpointError, ModelNotAvailableError, UntrustedFileError
from ase_finetune.files import file_hash, make_folder, parse_json, write_chunks, write_text
from ase_finetune.potentials.catalog import ModelInfo

_TIMEOUT = 30  # seconds without an answer: compute nodes often have no way out, and say nothing


def download(info: ModelInfo, target: Path) -> None:
    """Download a model to its place and keep its SHA-256 beside it.

    Raises
    ------
    OSError
        If the server does not give it, or it cannot be written.
    ModelNotAvailableError
        If what came is not the official file.
    """
    assert info.url is not None
    make_folder(target.parent)
    with urllib.request.urlopen(info.url, timeout=_TIMEOUT) as answer:  # noqa: S310  # our URLs
        _check_address(info.url, answer)
        write_chunks(target, _official_chunks(info, answer, target))


def check_official(info: ModelInfo, path: Path) -> None:
    """Refuse a pickle that is not known to be the official one.

    Raises
    ------
    UntrustedFileError
        With its SHA-256, and what to do.
    """
    found = file_hash(path)
    recorded = _recorded(path)
    if found == (info.sha256 or recorded):
        return
    if info.sha256 is not None:
        reason = f"its SHA-256 is {found}, that of the official file is {info.sha256}"
    elif recorded is not None:
        reason = f"its SHA-256 is {found}, that of the file downloaded here was {recorded}"
    else:
        reason = (
            f"it was not downloaded by this package, and no SHA-256 is known of the official file; its own is {found}"
        )
    raise UntrustedFileError(
        f"{path} may not be the official {info.name}: {reason}. Loading it can run any code: remove it to download it "
        "again, or pass trust_pickle=True if you know where it comes from"
    )


def record_path(path: Path) -> Path:
    """Where the SHA-256 of a download is kept."""
    return path.with_name(f"{path.name}.sha256.json")


def _recorded(path: Path) -> str | None:
    record = record_path(path)
    try:
        found = parse_json(record.read_text(encoding="utf-8"), record).get("sha256")
    except (OSError, ValueError, CheckpointError):
        return None
    return found if isinstance(found, str) else None


def _check_address(url: str, answer: Any) -> None:
    final = answer.geturl() if hasattr(answer, "geturl") else url
    if url.startswith("https:") and not final.startswith("https:"):
        raise OSError(f"the server sent us on to {final}, which is not encrypted")


def _official_chunks(info: ModelInfo, answer: Any, target: Path) -> Iterator[bytes]:
    """The content; at its end, and so before the file is in place, its SHA-256 is checked and recorded."""
    digest = hashlib.sha256()
    chunk = answer.read(1 << 20)
    # Proxies that want a login answer with a page of theirs, as if it were the file.
    if chunk.lstrip()[:1] == b"<":
        raise ModelNotAvailableError("the server sent a web page instead: is there a proxy or a login in between?")
    while chunk:
        digest.update(chunk)
        yield chunk
        chunk = answer.read(1 << 20)
    found = digest.hexdigest()
    if info.sha256 not in (None, found):
        raise ModelNotAvailableError(f"its SHA-256 is {found} instead of {info.sha256}, so it is not kept")
    write_text(record_path(target), json.dumps({"url": info.url, "sha256": found}) + "\n")
