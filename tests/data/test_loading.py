from __future__ import annotations

import itertools
import os

import pytest
import torch
from ase.db import connect

from ase_finetune.data import FrameSet, GraphLoader, read_frames
from ase_finetune.data import loading as module
from ase_finetune.errors import DataError, InputError
from tests.data.conftest import labelled
from tests.data.test_lazy_graphs import same

ORDER = [[3, 1, 2], [0], [], [9, 8, 7, 6], [5, 4], [3, 3]]


@pytest.fixture(params=["db", "aselmdb"])
def frames(request, tmp_path, trajectory) -> FrameSet:
    if request.param == "aselmdb":
        pytest.importorskip("ase_db_backends", reason="needs ase-db-backends")
    del trajectory[4].calc.results["energy"]
    path = tmp_path / f"set.{request.param}"
    with connect(str(path)) as db:
        for atoms in trajectory:
            db.write(atoms)
    return read_frames(path, stream=True)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_come_in_the_order_asked_for(frames, num_workers, dtype):
    expected = FrameSet("train", list(frames)).graphs(4.0)
    loader = GraphLoader(frames.graphs(4.0), num_workers=num_workers)
    for order in (ORDER, ORDER[::-1]):
        batches = list(loader.batches(order))
        assert [len(batch) for batch in batches] == [len(batch) for batch in order]
        for indices, graphs in zip(order, batches, strict=True):
            assert all(same(graph, expected[index]) for index, graph in zip(indices, graphs, strict=True))


def test_workers_build_the_graphs(frames, monkeypatch):
    build = FrameSet.graph

    def marked(self, *arguments):
        return build(self, *arguments).replace(energy=torch.tensor([float(os.getpid())]))

    monkeypatch.setattr(FrameSet, "graph", marked)
    monkeypatch.setattr(module, "_context", lambda: "fork")
    loader = GraphLoader(frames.graphs(4.0), num_workers=2)
    epochs = [{int(graph.energy) for batch in loader.batches(ORDER) for graph in batch} for _ in range(2)]
    assert len(epochs[0]) == 2
    assert os.getpid() not in epochs[0]
    assert epochs[0] == epochs[1]


@pytest.mark.parametrize("frames", ["db"], indirect=True)
def test_spawned_workers(frames, monkeypatch):
    monkeypatch.setattr(module, "_context", lambda: "spawn")
    graphs = frames.graphs(4.0)
    first, second = GraphLoader(graphs, num_workers=1).batches(ORDER[:2])
    assert all(same(graph, graphs[index]) for graph, index in zip(first + second, [3, 1, 2, 0], strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_frames_that_cannot_be_evaluated_are_named(tmp_path, num_workers):
    bad = labelled(1)
    bad.positions[2] = bad.positions[5]
    with connect(str(tmp_path / "a.db")) as db:
        for atoms in (labelled(0), bad, labelled(2)):
            db.write(atoms)
    graphs = read_frames(tmp_path / "a.db", stream=True).graphs(4.0)
    loader = GraphLoader(graphs, num_workers=num_workers)
    with pytest.raises(DataError, match=r"^frame 1 of train \(a.db\): atoms 2 \(.*\) and 5 \(.*\) coincide"):
        list(loader.batches([[0], [2, 1], [0]]))
    assert len(list(loader.batches([[0], [2]]))) == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_endless_orders_and_new_starts(frames, num_workers):
    loader = GraphLoader(frames.graphs(4.0), num_workers=num_workers)
    first = list(itertools.islice(loader.batches(itertools.cycle(ORDER)), 7))
    assert [len(batch) for batch in first] == [3, 1, 0, 4, 2, 2, 3]
    assert [len(batch) for batch in loader.batches(ORDER)] == [3, 1, 0, 4, 2, 2]


def test_random_numbers_are_left_alone(frames):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(GraphLoader(frames.graphs(4.0), num_workers=1).batches(ORDER))
    assert torch.equal(torch.rand(1), expected)


def test_lists_are_handed_over(trajectory):
    graphs = read_frames(trajectory).graphs(4.0)
    loader = GraphLoader(graphs, num_workers=3)
    assert loader.num_workers == 0
    assert [batch[0] for batch in loader.batches([[2], [1]])] == [graphs[2], graphs[1]]


def test_number_of_workers_is_checked(trajectory):
    with pytest.raises(InputError, match="num_workers must not be negative, got -1"):
        GraphLoader(read_frames(trajectory).graphs(4.0), num_workers=-1)
