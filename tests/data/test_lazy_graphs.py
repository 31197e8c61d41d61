from __future__ import annotations

import gc
import pickle

import pytest
import torch
from ase.db import connect

from ase_finetune.data import FrameSet, LazyGraphs, read_frames
from ase_finetune.errors import DataError, InputError
from ase_finetune.graphs import AtomGraph, collate, edge_counts
from tests.data.conftest import labelled


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> FrameSet:
    """A streamed set of 60 frames, one without an energy."""
    path = tmp_path_factory.mktemp("lazy") / "set.db"
    with connect(str(path)) as db:
        for seed in range(60):
            atoms = labelled(seed)
            if seed == 4:
                del atoms.calc.results["energy"]
            db.write(atoms)
    return read_frames(path, stream=True)


def same(one: AtomGraph, other: AtomGraph) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_graphs_are_those_of_a_set_in_memory(frames):
    lazy = frames.graphs(4.0)
    built = FrameSet("train", list(frames)).graphs(4.0)
    assert isinstance(lazy, LazyGraphs)
    assert isinstance(built, list)
    assert len(lazy) == len(built) == 60
    assert all(same(one, other) for one, other in zip(lazy, built, strict=True))
    assert same(lazy[-1], built[-1])
    assert same(collate(lazy[3:6]), collate(built[3:6]))
    assert edge_counts(lazy) == edge_counts(built)
    with pytest.raises(IndexError):
        lazy[60]


def test_edges_are_counted_once_for_all_views(frames, monkeypatch):
    built = []
    build = FrameSet.graph

    def counting(self, position, *arguments):
        built.append(position)
        return build(self, position, *arguments)

    monkeypatch.setattr(FrameSet, "graph", counting)
    edges = frames.graphs(4.5, cache_bytes=0).edges
    assert sorted(built) == list(range(60))
    changed = frames.with_energies([0.0] * 60).select([7, 2])
    assert changed.graphs(4.5).edges == [edges[7], edges[2]]
    assert len(built) == 60
    assert frames.graphs(3.5).edges != edges


def test_labels_are_those_of_the_view(frames):
    graphs = frames.with_energies([float(index) for index in range(60)]).select([9, 4]).graphs(4.0)
    assert [float(graph.energy) for graph in graphs] == [9.0, 4.0]
    assert bool(graphs[1].energy_mask)
    assert not bool(frames.graphs(4.0)[4].energy_mask)


def test_memory_is_bounded(frames):
    assert most_alive(frames.graphs(4.0, cache_bytes=0)) <= 2
    # A graph of this size counts as some 15 kB.
    assert 5 <= most_alive(frames.graphs(4.0, cache_bytes=150_000)) <= 15
    assert most_alive(frames.graphs(4.0)) == 60


def test_cache_keeps_what_was_used_last(frames):
    graphs = frames.graphs(4.0, cache_bytes=150_000)
    first, second = graphs[0], graphs[1]
    for index in range(2, 60):
        assert graphs[0] is first
        _ = graphs[index]
    assert graphs[1] is not second


def test_pickles_without_its_cache(frames):
    graphs = frames.graphs(4.0)
    assert graphs[5].num_edges == graphs.edges[5]
    assert len(pickle.dumps(graphs)) < graphs[5].num_bytes * 10
    assert same(pickle.loads(pickle.dumps(graphs))[5], graphs[5])  # noqa: S301


def test_structures_that_cannot_be_evaluated_are_named(tmp_path):
    bad = labelled(1)
    bad.positions[2] = bad.positions[5]
    with connect(str(tmp_path / "a.db")) as db:
        db.write(labelled(0))
        db.write(bad, REF_energy=-1.0)
    graphs = read_frames(tmp_path / "a.db", stream=True).renamed("valid").graphs(4.0)
    with pytest.raises(DataError, match=r"frame 1 of valid \(a.db\): atoms 2 \(.*\) and 5 \(.*\) coincide"):
        _ = graphs.edges


def test_only_streamed_sets_are_lazy(trajectory):
    with pytest.raises(InputError, match="needs a streamed set"):
        LazyGraphs(read_frames(trajectory), 4.0)


def most_alive(graphs) -> int:
    most = 0
    before = alive()
    for index, _ in enumerate(graphs):
        if index in (40, 59):
            most = max(most, alive() - before)
    return most


def alive() -> int:
    gc.collect()
    return sum(type(thing) is AtomGraph for thing in gc.get_objects())
