"""Files that a stranger could send, really built."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ase_finetune.files import file_hash
from ase_finetune.potentials.formats import CONFIG_FILE, write_description


class System:
    """Its pickle runs a command that makes the file ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


class GraphModule:
    """Its pickle has torch.fx execute source text that makes the file ``marker``, as a MACE model's does."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        code = f"eval(\"open('{self.marker}', 'w')\")\ndef forward(self):\n    return None\n"
        return torch.fx.graph_module.reduce_graph_module, ({"_code": code, "code": code}, "")


def payload(kind: str, marker: Path) -> Any:
    """What a SevenNet checkpoint, a MACE model or a file of tensors would hold, with code in it."""
    evil = {"system": System, "fx": GraphModule}[kind](marker)
    return {"model_state_dict": {"mace.modules": evil}, "config": evil, "depth": evil}


def write_pickled(path: Path, content: Any, form: str) -> Path:
    """As a bare pickle, as a torch file, or as one of torch's old format."""
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    return path


def write_archive(path: Path, records: dict[str, bytes], *, compressed: bool = False) -> Path:
    """A zip archive like torch's."""
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    return path


def write_bomb(path: Path, size: int) -> Path:
    """A torch file of a few MB whose ``data.pkl`` is far larger."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as record:
            record.write(b"\x80\x02X" + b"model_state_dict")
            for _ in range(size >> 20):
                record.write(bytes(1 << 20))
        archive.writestr("archive/version", "3")
    return path


def write_lying_storage(path: Path, content: Any, numel: int) -> Path:
    """A torch file whose pickle claims more numbers than its first tensor's record holds."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    found = records["data.pkl"].index(b"X\x03\x00\x00\x00cpu") + 8
    start = records["data.pkl"].index(b"K", found)
    records["data.pkl"] = (
        records["data.pkl"][:start] + b"\x8a\x08" + struct.pack("<q", numel) + records["data.pkl"][start + 2 :]
    )
    return write_archive(path, records)


def safetensors(header: dict[str, Any] | bytes, data: bytes = bytes(64), length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


#: Headers that claim what cannot be.
HEADERS: dict[str, bytes] = {
    "huge shape": safetensors({"depth": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}),
    "huge shape, small data": safetensors({"depth": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 64]}}),
    "overflowing shape": safetensors({"depth": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 64]}}),
    "empty but huge": safetensors({"depth": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}, b""),
    "overlapping": safetensors(
        {
            "depth": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
            "width": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
        }
    ),
    "negative": safetensors(b'{"depth": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 64]}}'),
    "long header": safetensors({}, length=2**62),
    "header of 99 MB": safetensors({}, length=99_000_000),
    "deep header": safetensors(b'{"a":' * 100_000),
    "unknown dtype": safetensors({"depth": {"dtype": "PY", "shape": [16], "data_offsets": [0, 64]}}),
}


def write_potential(
    folder: Path, architecture: Any, *, backend: str = "morse", weights: bytes | None = None, **changes: Any
) -> Path:
    """A saved potential whose checksums are all right, by somebody who means harm."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "weights-000000000000.safetensors"
    target.write_bytes(save({"depth": torch.ones(2)}) if weights is None else weights)
    content = {
        "backend": backend,
        "head": None,
        "dtype": "float32",
        "architecture": architecture,
        "metadata": {},
        "versions": {},
        "weights_file": target.name,
        "weights_sha256": file_hash(target),
    }
    (folder / CONFIG_FILE).write_text(write_description(content | changes))
    return folder
