from __future__ import annotations

import multiprocessing
import pickle
import sqlite3
import sys

import numpy as np
import pytest
from ase.db import connect
from ase.io import read, write

from ase_finetune.data import read_frames, sources, split_frames
from ase_finetune.data.databases import DatabaseOrigins, Origin
from ase_finetune.errors import DataError, InputError
from tests.data.conftest import labelled, salt


def database(path, structures, **pairs):
    with connect(str(path)) as db:
        for index, atoms in enumerate(structures):
            db.write(atoms, **{key: values[index] for key, values in pairs.items()})
    return path


@pytest.fixture(params=["db", "aselmdb"])
def path(request, tmp_path, trajectory):
    if request.param == "aselmdb":
        pytest.importorskip("ase_db_backends", reason="needs ase-db-backends")
    return database(tmp_path / f"set.{request.param}", trajectory)


def test_rows_are_those_that_were_written(path, trajectory):
    origins = DatabaseOrigins(path, ":", path.name, "train")
    assert len(origins) == 10
    for index, (origin, atoms) in enumerate(zip(origins, trajectory, strict=True)):
        assert (origin.index, origin.source) == (index, path.name)
        np.testing.assert_array_equal(origin.atoms.positions, atoms.positions)
        np.testing.assert_array_equal(origin.atoms.calc.results["forces"], atoms.calc.results["forces"])
    assert origins[-1].index == 9
    with pytest.raises(IndexError):
        origins[10]


@pytest.mark.parametrize("stream", [True, False])
def test_parts(path, stream):
    for part, expected in (("2:5", [2, 3, 4]), ("-1", [9]), ("0", [0]), ("::4", [0, 4, 8])):
        frames = read_frames(f"{path}@{part}", stream=stream)
        whole = read_frames(path, stream=stream)
        assert frames.digest() == whole.select(expected).digest()
        assert [frame.index for frame in frames] == list(range(len(expected)))
        assert frames[0].source == f"{path.name}@{part}"
    with pytest.raises(DataError, match="holds no structures"):
        read_frames(f"{path}@20:", stream=stream)


@pytest.mark.parametrize("stream", [True, False])
def test_queries(path, stream):
    with connect(str(path)) as db:
        db.write(labelled(77, "Li4Cl4"))
    frames = read_frames(f"{path}@Li>3", stream=stream)
    assert frames.elements == (3, 17)
    assert len(frames) == 1


def test_rows_are_in_the_order_of_ase(tmp_path, trajectory):
    path = database(tmp_path / "a.db", trajectory)
    with connect(str(path)) as db:
        db.delete([1, 4])
        # A later time of creation: an index that SQLite may read ids from is in another order.
        db.update(2, atoms=trajectory[1], note="changed")
    for atoms, frame in zip(read(path, ":"), read_frames(path, stream=True), strict=True):
        np.testing.assert_array_equal(atoms.positions, frame.atoms.positions)


@pytest.mark.parametrize("stream", [True, False])
def test_key_value_pairs_become_info(tmp_path, trajectory, stream):
    runs = [f"run {index // 5}" for index in range(10)]
    path = database(tmp_path / "a.db", [salt(seed) for seed in range(10)], traj_id=runs, dft=[1.5] * 10)
    frames = read_frames(path, energy_key="dft", stream=stream)
    assert {frame.energy for frame in frames} == {1.5}
    assert frames.groups == [f"traj_id={run}" for run in runs]
    by_key = split_frames(frames, 0.5, group_by="traj_id")
    assert {frame.atoms.info["traj_id"] for frame in by_key.valid} in ({"run 0"}, {"run 1"})
    with pytest.raises(DataError, match=r"energy_key='nope'; the keys seen are info: dft, traj_id; arrays: none"):
        read_frames(path, energy_key="nope", stream=stream)


def test_several_files(tmp_path, trajectory):
    a, b = database(tmp_path / "a.db", trajectory[:4]), database(tmp_path / "b.db", trajectory[4:7])
    write(tmp_path / "c.traj", trajectory[7:])
    streamed = read_frames([a, tmp_path / "c.traj", b], stream=True)
    in_memory = read_frames([a, tmp_path / "c.traj", b])
    assert streamed.is_streamed
    assert not in_memory.is_streamed
    assert streamed.digest() == in_memory.digest()
    assert [(frame.source, frame.index) for frame in streamed] == [(frame.source, frame.index) for frame in in_memory]
    assert streamed.groups == in_memory.groups


def test_large_databases_stream_by_default(path, trajectory, monkeypatch):
    assert not read_frames(path).is_streamed
    monkeypatch.setattr(sources, "STREAM_FROM", 9)
    assert read_frames(path).is_streamed
    assert not read_frames(path, stream=False).is_streamed
    assert not read_frames(trajectory).is_streamed


def test_what_cannot_be_streamed(tmp_path, trajectory):
    write(tmp_path / "a.extxyz", trajectory)
    for source in (tmp_path / "a.extxyz", trajectory):
        with pytest.raises(InputError, match=r"stream=True needs an ASE database.*'ase convert in.extxyz out.db'"):
            read_frames(source, stream=True)


def test_frame_sets_stay_as_they_are(path):
    for stream in (True, False):
        frames = read_frames(path, stream=stream)
        assert read_frames(frames, name="valid", stream=stream).is_streamed == stream
        with pytest.raises(InputError, match=f"stream={not stream} has no effect on a FrameSet"):
            read_frames(frames, stream=not stream)


def test_broken_rows_are_named(path):
    bad = salt(1)
    bad.positions[3, 0] = np.nan
    with connect(str(path)) as db:
        db.write(bad)
    with pytest.raises(DataError, match=r"frame 10 of train \(set.*\): position of atom 3 \(.*\) is not finite"):
        read_frames(path, stream=True)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.db").write_bytes(b"SQLite format 3\x00 and nothing else")
    (tmp_path / "text.db").write_text("nothing to see")
    for name in ("empty.db", "text.db"):
        with pytest.raises(DataError, match=f"train: ASE cannot read '.*{name}'"):
            read_frames(tmp_path / name)


def test_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.aselmdb").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "ase_db_backends", None)
    monkeypatch.setitem(sys.modules, "ase_db_backends.aselmdb", None)
    with pytest.raises(DataError, match=r"ase_db_backends.* is missing: pip install 'ase_finetune\[lmdb\]'"):
        read_frames(tmp_path / "a.aselmdb")


def test_rows_that_go_away_are_named(tmp_path, trajectory):
    path = database(tmp_path / "a.db", trajectory)
    frames = read_frames(path, stream=True)
    with connect(str(path)) as db:
        db.delete([3])
    with pytest.raises(DataError, match=r"frame 2 of train \(a.db\): ASE cannot read row 3 .*changed meanwhile"):
        list(frames)


def test_the_same_file_twice(path):
    first, second = read_frames(path, stream=True), read_frames(path, name="valid", stream=True)
    assert first.digest() == second.digest()


def position(origins: DatabaseOrigins) -> float:
    origin = origins[4]
    assert isinstance(origin, Origin)
    return float(origin.atoms.positions[1, 1])


@pytest.mark.parametrize(("path", "method"), [("db", "fork"), ("aselmdb", "fork"), ("db", "spawn")], indirect=["path"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_other_processes(path, trajectory, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    origins = DatabaseOrigins(path, ":", path.name, "train")
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(position, (origins,)) == trajectory[4].positions[1, 1]
    assert position(pickle.loads(pickle.dumps(origins))) == position(origins)  # noqa: S301


def test_connections_are_closed(tmp_path, trajectory):
    path = database(tmp_path / "a.db", trajectory)
    origins = DatabaseOrigins(path, ":", "a.db", "train")
    connection = origins._connect().database.connection
    assert connection.execute("SELECT COUNT(*) FROM systems").fetchone() == (10,)
    del origins
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        connection.execute("SELECT 1")
