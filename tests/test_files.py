"""Files are written whole or not at all, and notice damage."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ase_finetune import files
from ase_finetune.errors import CheckpointError, InputError, OutputError
from tests.hostile.failing import CODES, Failing, fail_at_every_write, no_parts


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("earlier", [None, b"earlier"])
def test_write_bytes(tmp_path, monkeypatch, code, earlier):
    path = tmp_path / "file"
    if earlier is not None:
        path.write_bytes(earlier)

    def check():
        # The folder is flushed last: then the new file is in place already.
        assert (path.read_bytes() if path.exists() else None) in (earlier, b"new content")
        assert no_parts(tmp_path)

    assert fail_at_every_write(monkeypatch, code, lambda: files.write_bytes(path, b"new content"), check) == 4
    assert path.read_bytes() == b"new content"


def test_message_says_what_became_of_the_earlier_file(tmp_path, monkeypatch):
    Failing(monkeypatch, 1, errno.ENOSPC)
    with pytest.raises(OutputError, match=rf"{tmp_path}/new cannot be written: No space left on device$"):
        files.write_bytes(tmp_path / "new", b"a")
    (tmp_path / "old").write_bytes(b"b")
    Failing(monkeypatch, 1, errno.ENOSPC)
    with pytest.raises(OutputError, match="the earlier file is as it was"):
        files.write_bytes(tmp_path / "old", b"a")


def test_pieces_that_fail_leave_nothing(tmp_path):
    def pieces():
        yield b"half"
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        files.write_chunks(tmp_path / "file", pieces())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/file", "x" * 300, "file/below"])
def test_impossible_names(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        files.write_text(tmp_path / name, "a")
    assert not files.is_there(tmp_path / name)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be made"):
        files.make_folder(tmp_path / "file" / "below")


def test_parts_of_killed_writes(tmp_path):
    for name in (".a.0123.part", ".b.0123.part", "c.part", ".a"):
        (tmp_path / name).write_text("")
    files.remove_parts(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a", ".b.0123.part", "c.part"]
    files.remove_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a", "c.part"]


TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1, dtype=torch.int64), "c": torch.ones(0)}


def test_sealed_round_trip(tmp_path):
    path = tmp_path / "file"
    content = {"x": [1, 2.5, None], "y": np.arange(2), "ü": Path("p")}
    files.write_sealed(path, TENSORS, content, kind="test-1")
    tensors, read = files.read_sealed(path, kind="test-1")
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
    )
    assert read == {"x": [1, 2.5, None], "y": [0, 1], "ü": "p"}
    first = path.read_bytes()
    files.write_sealed(path, TENSORS, content, kind="test-1")
    assert path.read_bytes() == first


def test_sealed_notices_every_changed_byte(tmp_path):
    path = tmp_path / "file"
    files.write_sealed(path, {"a": torch.ones(3)}, {"x": 1}, kind="test-1")
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        try:
            tensors, content = files.read_sealed(path, kind="test-1")
        except CheckpointError as error:
            told = str(error)
        else:  # spaces between the entries of the header say nothing
            assert (tensors["a"].tolist(), content) == ([1, 1, 1], {"x": 1})
            continue
        assert str(path) in told


def test_sealed_of_another_kind(tmp_path):
    files.write_sealed(tmp_path / "file", {}, {}, kind="test-1")
    with pytest.raises(CheckpointError, match="not a test-2 file of this package, but 'ase_finetune-test-1'"):
        files.read_sealed(tmp_path / "file", kind="test-2")
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="not a test-2 file of this package, but 'another'"):
        files.read_sealed(tmp_path / "other", kind="test-2")


def test_seal_without_its_header_is_none(tmp_path):
    """Somebody copies tensors under our header."""
    files.write_sealed(tmp_path / "file", {"a": torch.ones(1)}, {}, kind="test-1")
    with safe_open(tmp_path / "file", framework="pt") as file:
        header = file.metadata()
    save_file({"a": torch.zeros(1)}, tmp_path / "other", metadata=header)
    with pytest.raises(CheckpointError, match="its SHA-256 is not the one"):
        files.read_sealed(tmp_path / "other", kind="test-1")


@pytest.mark.parametrize("content", [{"a": object()}, {(1,): 2}])
def test_what_json_cannot_hold(tmp_path, content):
    with pytest.raises(InputError, match="content of file"):
        files.write_sealed(tmp_path / "file", {}, content, kind="test-1")
    assert list(tmp_path.iterdir()) == []


def test_content_that_holds_itself():
    loop: dict[str, object] = {}
    loop["loop"] = loop
    with pytest.raises(InputError, match="the loop cannot be written as JSON"):
        files.to_json(loop, "the loop")


def test_the_failing_file_is_a_file(tmp_path, monkeypatch):
    """The harness of these tests: without a failure all is written."""
    failing = Failing(monkeypatch, 1000, errno.EIO)
    files.write_bytes(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert failing.calls == 4


def test_texts_that_are_no_unicode(tmp_path):
    header = json.dumps({"format": "ase_finetune-test-1", "json": "\ud800", "sha256": ""})
    save_file({"a": torch.ones(1)}, tmp_path / "file", metadata={"ase_finetune": header})
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256"):
        files.read_sealed(tmp_path / "file", kind="test-1")


def test_folders_that_cannot_be_flushed(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_text(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"
