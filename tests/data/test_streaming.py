from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect

from ase_finetune.data import (
    FrameSet,
    PredictionCheck,
    align,
    check_disjoint,
    check_units,
    data_report,
    fit_reference,
    read_frames,
    split_frames,
)
from ase_finetune.errors import DataError, InputError
from tests.data.conftest import labelled

Both = tuple[FrameSet, FrameSet]


@pytest.fixture(params=["db", "aselmdb"])
def both(request, tmp_path) -> Both:
    """A streamed set, and the same set in memory: three trajectories, some labels missing."""
    if request.param == "aselmdb":
        pytest.importorskip("ase_db_backends", reason="needs ase-db-backends")
    path = tmp_path / f"set.{request.param}"
    with connect(str(path)) as db:
        for seed in range(30):
            atoms = labelled(seed, ("Na4Cl4", "Li4Cl4", "Na2Li2Cl4")[seed // 10])
            if seed % 7 == 3:
                del atoms.calc.results["energy"]
            if seed % 7 == 5:
                del atoms.calc.results["stress"]
            db.write(atoms)
    return read_frames(path, stream=True), read_frames(path, stream=False)


def test_frames_are_the_same(both):
    streamed, in_memory = both
    assert streamed.is_streamed
    assert not in_memory.is_streamed
    for one, other in zip(streamed, in_memory, strict=True):
        assert (one.energy, one.group, one.index, one.source) == (other.energy, other.group, other.index, other.source)
        np.testing.assert_array_equal(one.forces, other.forces)
        np.testing.assert_array_equal(one.atoms.positions, other.atoms.positions)
        assert one.atoms.calc is None
    assert streamed.digest() == in_memory.digest()


def test_what_is_told_is_the_same(both):
    streamed, in_memory = both
    for name in ("num_labels", "elements", "sizes", "groups", "label_sources", "notes"):
        assert getattr(streamed, name) == getattr(in_memory, name)
    assert data_report({"train": streamed}) == data_report({"train": in_memory})
    assert repr(streamed) == repr(in_memory)


@pytest.mark.parametrize("valid", [0.3, 5])
def test_splits_are_the_same(both, valid):
    one, other = (split_frames(frames, valid, seed=3) for frames in both)
    assert one.description == other.description
    assert one.train.digest() == other.train.digest()
    assert one.valid.digest() == other.valid.digest()
    assert one.valid.is_streamed
    assert one.valid.name == "valid"


def test_views(both):
    streamed, in_memory = both
    order = [4, 1, 25, -1]
    for view in (lambda s: s.select(order), lambda s: s[3:20:2], lambda s: s[10:].select([2, 5])[1:]):
        assert view(streamed).digest() == view(in_memory).digest()
        assert view(streamed).num_labels == view(in_memory).num_labels
        assert view(streamed).elements == view(in_memory).elements
    assert streamed.renamed("x").name == "x"
    assert len(streamed[:0]) == 0
    assert len(streamed.select([])) == 0
    with pytest.raises(IndexError):
        streamed.select([30])


def test_other_energies(both):
    streamed, in_memory = both
    energies = [None if seed % 3 == 0 else -float(seed) for seed in range(30)]
    one, other = streamed.with_energies(energies), in_memory.with_energies(energies)
    assert one.is_streamed
    assert [frame.energy for frame in one] == energies
    assert one.num_labels == other.num_labels
    assert one.select([1, 0, 5]).digest() == other.select([1, 0, 5]).digest()
    assert one.with_energies([frame.energy for frame in streamed]).digest() == in_memory.digest()
    with pytest.raises(InputError, match="1 energy labels for the 30 frames"):
        streamed.with_energies([0.0])
    with pytest.raises(DataError, match=r"frame 1 of train \(set.*\): energy label is not finite"):
        streamed.with_energies([0.0, np.nan, *energies[2:]])


def test_checks_are_the_same(both):
    streamed, in_memory = both
    rng = np.random.default_rng(0)
    energies = rng.normal(size=30)
    forces = [frame.forces + (8.0 if i == 4 else 0.1) * rng.normal(size=(8, 3)) for i, frame in enumerate(in_memory)]
    stress = [rng.normal(size=6) for _ in range(30)]
    assert fit_reference(streamed, energies) == fit_reference(in_memory, energies)
    offsets = fit_reference(in_memory, energies)
    assert align(streamed, offsets).digest() == align(in_memory, offsets).digest()
    checks = [PredictionCheck(frames) for frames in both]
    for check in checks:
        for position in rng.permutation(30).tolist():
            check.add(position, float(energies[position]), forces[position], stress[position])
    assert checks[0].energies == checks[1].energies == energies.tolist()
    assert checks[0].force_errors == checks[1].force_errors
    assert checks[0].stress_errors == checks[1].stress_errors
    assert np.argmax(checks[0].force_errors) == 4
    first = in_memory[0]
    assert checks[0].stress_errors[0] == pytest.approx(np.abs(first.stress - stress[0]).max())
    assert len(checks[0].notes()) == len(checks[1].notes()) == len(check_units(in_memory, forces, stress))
    messages = []
    for frames in both:
        with pytest.raises(DataError) as caught:
            check_units(frames, [-1.1 * frame.forces for frame in in_memory])
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_shared_structures_are_found(both):
    streamed, _ = both
    check_disjoint(streamed[:10], streamed[10:].renamed("valid"))
    messages = []
    for frames in both:
        with pytest.raises(DataError, match="train and valid share 2 structures") as caught:
            check_disjoint(frames, frames[20:22].renamed("valid"))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_labels_are_needed(tmp_path):
    with connect(str(tmp_path / "a.db")) as db:
        db.write(Atoms("Na"), note="nothing")
    with pytest.raises(DataError, match=r"none of 1 frames has an energy.*keys seen are info: note; arrays: none"):
        read_frames(tmp_path / "a.db", stream=True)
    assert len(read_frames(tmp_path / "a.db", stream=True, require_labels=False)) == 1


def test_pickles(both):
    streamed, in_memory = both
    again = pickle.loads(pickle.dumps(streamed.select([3, 2])))  # noqa: S301
    assert again.is_streamed
    assert again.digest() == in_memory.select([3, 2]).digest()


def test_no_frame_stays(tmp_path):
    with connect(str(tmp_path / "many.db")) as db:
        for seed in range(300):
            db.write(labelled(seed))
    before, most = alive(), 0
    frames = read_frames(tmp_path / "many.db", stream=True)
    split = split_frames(frames, 0.2)
    check_disjoint(split.train, split.valid)
    offsets = fit_reference(frames, [0.0] * 300)
    aligned = align(split.train, offsets)
    for position, frame in enumerate(aligned):
        assert len(frame.atoms) == 8
        if position in (100, 200):
            most = max(most, alive() - before)
    assert most <= 5


def alive() -> int:
    gc.collect()
    return sum(type(thing) is Atoms for thing in gc.get_objects())
