from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ase_finetune.losses import Loss
from ase_finetune.metrics import evaluate
from ase_finetune.potentials import MorsePotential
from ase_finetune.potentials.batched import predict_many
from ase_finetune.potentials.memory import CPU_EDGES, EdgeBudget, halve_if_out_of_memory, is_out_of_memory, probe_edges
from tests import morse

ROOT = Path(__file__).parents[2]


class Greedy(MorsePotential):
    """Needs far more memory than there is for more than a few atoms at once."""

    largest: int
    sizes: list[int]

    def atomic_energies(self, graph, edges):
        self.sizes.append(graph.num_graphs)
        if graph.num_graphs > self.largest:
            torch.empty(2**58)  # what the allocator itself says
        return super().atomic_energies(graph, edges)


def greedy(largest):
    potential = Greedy([8, 14], **morse.PRETRAINED)
    potential.largest, potential.sizes = largest, []
    return potential


def test_predictions_and_errors_do_not_change():
    graphs = morse.graphs(morse.labelled(morse.silicon(7, 1)), morse.pretrained())
    small, large = greedy(2), greedy(100)
    for one, other in zip(predict_many(small, graphs), predict_many(large, graphs), strict=True):
        torch.testing.assert_close(one.energy, other.energy)
        torch.testing.assert_close(one.forces, other.forces)
    assert small.sizes == [7, 4, 2, 2, 3, 2, 1]
    assert large.sizes == [7]
    told = []
    first = evaluate(small, graphs, Loss(), on_structure=lambda: told.append(1))
    assert len(told) == 7
    assert first.to_dict() == pytest.approx(evaluate(large, graphs, Loss()).to_dict(), rel=1e-5)


def test_one_that_does_not_fit_is_an_error():
    graphs = morse.graphs(morse.labelled(morse.silicon(2, 1)), morse.pretrained())
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        predict_many(greedy(0), graphs)


def test_what_counts_as_lack_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    # As TorchScript passes on what the allocator of a GPU raised.
    scripted = "The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory."
    assert is_out_of_memory(RuntimeError(scripted))
    assert not is_out_of_memory(RuntimeError("out of range"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert is_out_of_memory(caught.value)


def test_halves_come_in_order():
    done = []

    def work(batch):
        if len(batch) > 2:
            raise MemoryError
        done.append(batch)

    halve_if_out_of_memory(work, range(5))
    assert done == [[0, 1], [2], [3, 4]]


def test_budget_is_halved_and_told_once():
    told = []
    budget = EdgeBudget(3000, told.append)
    budget.lower(2800)
    budget.lower(2900)  # a piece that was cut before
    assert budget.edges == 1400
    budget.lower(1300)
    assert budget.edges == 650
    assert len(told) == 1
    assert "memory ran out with 2800 edges at once; batches are worked off in pieces of at most 1400" in told[0]
    EdgeBudget(1).lower(1)  # nobody to tell, and nothing left to halve


def test_budget_of_a_cpu():
    potential = morse.pretrained()
    (graph,) = morse.graphs(morse.labelled(morse.silicon(1, 1)), potential)
    assert probe_edges(potential, graph, lambda _: pytest.fail("nothing to measure")) == CPU_EDGES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_budget_of_a_gpu_fits():
    potential = morse.pretrained().to("cuda")
    (graph,) = morse.graphs(morse.labelled(morse.silicon(1, 1)), morse.pretrained())

    def loss(batch):
        return Loss()(potential.predict(batch, create_graph=True), batch)

    assert probe_edges(potential, graph, loss) > graph.num_edges


LIMITED = """
import resource, sys
from ase_finetune import finetune
from tests import helpers, morse

model, limited = helpers.build_sevennet(channel=64, lmax=2), sys.argv[1] == "limited"
frames = morse.labelled([atoms * (3, 3, 3) for atoms in morse.silicon(4, 1)])
options = dict(method="naive", epochs=1, batch_size=4, max_edges=10**6, device="cpu", dtype="float64", replay=None)
if limited:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20,) * 2)
calc = finetune(model, frames, None, **options)
total = sum(float(p.detach().sum()) for p in calc.potential.parameters())
print("loss", repr(calc.history[-1]["train_loss"]), repr(total))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_training_in_too_little_memory():
    """A real limit: the batch does not fit, its halves do, the result is the same, and it is told once."""
    free = _run("free")
    for megabytes in (550, 350, 800, 1200):
        limited = _run("limited", str(megabytes))
        if limited is not None and "memory ran out" in limited:
            break
    else:
        pytest.fail("no limit was both too small for the batch and enough for its halves")
    assert limited.count("memory ran out") == 1
    results = [output.split("loss ")[-1].split() for output in (free, limited)]
    for one, other in zip(*results, strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-9)


def _run(*arguments):
    command = [sys.executable, "-c", LIMITED, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    return done.stdout if done.returncode == 0 else None
