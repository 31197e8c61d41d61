from __future__ import annotations

import bz2
import gzip
import lzma

import pytest
from ase.build import bulk, molecule
from ase.io import write

from ase_finetune.data import read_frames
from ase_finetune.errors import DataError


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "frames.extxyz", [bulk("Si", cubic=True), molecule("H2O"), molecule("CH4")])
    return tmp_path / "frames.extxyz"


def change(path, line, text):
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")


def read(path, selection=""):
    return read_frames(f"{path}{selection}", require_labels=False)


def test_whole_file(path):
    assert read(path).sizes == [8, 3, 5]


@pytest.mark.parametrize("count", ["99999999999", "6"])
def test_more_atoms_than_lines(path, count):
    change(path, 15, count)
    message = rf"train: '{path}': frame 2 \(line 16\) says that it has {count} atoms, but the file ends after 5 of"
    with pytest.raises(DataError, match=message):
        read(path)
    assert read(path, "@:1").sizes == [8]
    with pytest.raises(DataError, match="ends after 5"):
        read(path, "@-1")


def test_nothing_behind_a_count(tmp_path):
    (tmp_path / "a.xyz").write_text("99999999999\n")
    with pytest.raises(DataError, match="the file ends after 0 of them"):
        read(tmp_path / "a.xyz")


@pytest.mark.parametrize(("module", "suffix"), [(gzip, "gz"), (bz2, "bz2"), (lzma, "xz")])
def test_compressed(path, module, suffix):
    packed = path.with_name(f"frames.extxyz.{suffix}")
    packed.write_bytes(module.compress(path.read_bytes()))
    assert read(packed).sizes == [8, 3, 5]
    packed.write_bytes(module.compress(path.read_bytes().replace(b"\n5\n", b"\n99999999999\n")))
    with pytest.raises(DataError, match=r"frame 2 \(line 16\)"):
        read(packed)
    packed.write_bytes(module.compress(bytes(100 << 20)))
    with pytest.raises(DataError, match=r"line 1 is longer than 16 MB"):
        read(packed)
    packed.write_bytes(packed.read_bytes()[:50])
    with pytest.raises(DataError, match=packed.name):
        read(packed)


def test_cell_vectors_behind_a_frame(tmp_path):
    text = "1\ncomment\nSi 0 0 0\nVEC1 3 0 0\nVEC2 0 3 0\nVEC3 0 0 3\n"
    (tmp_path / "a.xyz").write_text(text + text)
    assert read(tmp_path / "a.xyz").sizes == [1, 1]
