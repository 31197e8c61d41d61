"""Training on frames that stay in a database."""

from __future__ import annotations

import pytest
from ase.db import connect

from ase_finetune import finetune
from ase_finetune.errors import DataError, InputError
from tests import morse

OPTIONS = {"epochs": 2, "batch_size": 3, "monitor_size": 4, "verbose": False, "device": "cpu", "dtype": "float64"}


@pytest.fixture(scope="module")
def frames():
    return morse.labelled([*morse.silicon(10, 1), *(atoms * (2, 1, 1) for atoms in morse.silicon(4, 2))])


@pytest.fixture(scope="module")
def database(frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("db") / "frames.db"
    with connect(path) as db:
        for atoms in frames:
            db.write(atoms)
    return path


@pytest.mark.parametrize("method", ["naive", "reewc"])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_same_run_from_disk_and_from_memory(frames, database, method, workers):
    shared = OPTIONS | {"method": method, "replay": morse.oxide(8, 3)}
    in_memory = finetune(morse.pretrained(), frames, 0.3, **shared)
    streamed = finetune(morse.pretrained(), database, 0.3, stream=True, num_workers=workers, **shared)
    for one, other in zip(in_memory.history, streamed.history, strict=True):
        told = {"stage", "seconds", "peak_memory_gb", "outcome"}
        first, second = ({k: v for k, v in row.items() if k not in told} for row in (one, other))
        assert first == pytest.approx(second, rel=1e-12, nan_ok=True)
        assert one.get("outcome") == other.get("outcome")
    assert morse.same_weights(in_memory.potential, streamed.potential)
    assert in_memory.metadata["data"] == streamed.metadata["data"]
    assert in_memory.metadata["reference_offsets"] == pytest.approx(streamed.metadata["reference_offsets"], rel=1e-9)
    assert in_memory.metadata["errors"] == streamed.metadata["errors"]


def test_what_cannot_be_streamed(frames):
    with pytest.raises(InputError, match="stream"):
        finetune(morse.pretrained(), frames, stream=True, method="naive", replay=None, **OPTIONS)


def test_workers_need_something_to_read(frames):
    with pytest.raises(InputError, match="num_workers=2, but workers have nothing to read ahead"):
        finetune(morse.pretrained(), frames, num_workers=2, method="naive", replay=None, **OPTIONS)


def test_an_unknown_element_is_named(tmp_path):
    (frame,) = morse.labelled(morse.silicon(1, 1))
    strange = morse.attach(frame, **frame.calc.results)
    strange.numbers[3] = 79
    path = tmp_path / "frames.db"
    with connect(path) as db:
        for atoms in (frame, frame, strange):
            db.write(atoms)
    with pytest.raises(DataError, match=r"frame 2 of train \(frames.db\): atom 3 is Au"):
        finetune(morse.pretrained(), path, None, stream=True, method="naive", replay=None, **OPTIONS)
