"""Evaluations that are recorded and replayed. What is recorded is proved on a CPU; a CUDA graph needs a GPU."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from ase_finetune import FinetunedCalculator
from ase_finetune.analysis.velocities import thermalize
from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.optimize import pool, relax
from ase_finetune.potentials import MorsePotential
from ase_finetune.potentials.base import on_host
from ase_finetune.potentials.capture import Evaluator, check_accelerate
from ase_finetune.potentials.mace import MACEPotential
from tests import helpers, morse

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Recorder:
    """Repeats an evaluation as a CUDA graph does: the same tensors are read, and the same ones written, each time."""

    def __init__(self):
        self.recorded = 0

    def __call__(self, evaluate, _):
        self.recorded += 1
        results = evaluate()

        def replay():
            for old, new in zip(results, evaluate(), strict=True):
                for name in ("energies", "energy", "forces", "stress"):
                    getattr(old, name).copy_(getattr(new, name))
            return results

        return replay


def recorded(potentials, accelerate="graph"):
    recorder = Recorder()
    return Evaluator(potentials, accelerate, record=recorder, possible=True), recorder


def graph_of(atoms, potential, skin=0.5):
    return AtomGraph.from_atoms(atoms, potential.cutoff + skin).arranged()


def assert_same(one, other, tolerance=1e-11):
    for a, b in zip(one, other, strict=True):
        for name in ("energies", "energy", "forces", "stress"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=tolerance)


def trajectory(calculator, steps=60):
    """Hot silicon: neighbour lists are made anew and grow."""
    atoms = bulk("Si", cubic=True).repeat((2, 1, 1))
    atoms.calc = calculator
    thermalize(atoms, 3000, np.random.default_rng(0), fix_center=True)
    found = []
    with VelocityVerlet(atoms, 2 * units.fs) as dynamics:
        dynamics.attach(lambda: found.append(np.vstack([atoms.get_forces(), [[0, 0, atoms.get_potential_energy()]]])))
        dynamics.run(steps)
    return np.array(found)


@pytest.mark.parametrize(
    "build",
    [
        lambda: MorsePotential([14]),
        pytest.param(lambda: helpers.build_sevennet(), marks=pytest.mark.sevenn),
        pytest.param(lambda: MACEPotential(helpers.build_mace()), marks=pytest.mark.mace),
    ],
    ids=["pair", "sevennet", "mace"],
)
def test_dynamics_with_rebuilds(build):
    potential = build().double()
    plain = FinetunedCalculator(potential, dtype="float64", skin=0.3)
    replaying = FinetunedCalculator(potential, dtype="float64", skin=0.3)
    replaying._evaluator, recorder = recorded([potential])
    np.testing.assert_allclose(trajectory(replaying), trajectory(plain), rtol=0, atol=1e-8)
    assert replaying._graph.neighbors.rebuilds > 3
    assert 1 <= recorder.recorded < replaying._graph.neighbors.rebuilds


def test_only_what_has_changed_is_copied():
    potential = MorsePotential([14]).double()
    evaluator, recorder = recorded([potential])
    atoms = bulk("Si", cubic=True)
    first = graph_of(atoms, potential)
    evaluator(first)
    moved = first.replace(positions=first.positions + 0.1 * torch.rand_like(first.positions))
    found = evaluator(moved)
    assert_same(found, [potential.predict(moved)])
    kept = found[0].forces.clone()
    sheared = moved.replace(cell=1.01 * moved.cell)
    assert_same(evaluator(sheared), [potential.predict(sheared)])
    assert torch.equal(found[0].forces, kept), "results are the caller's"
    assert recorder.recorded == 1


def test_a_recording_is_made_anew_when_a_graph_has_no_room_or_far_too_much():
    potential = MorsePotential([14]).double()
    evaluator, recorder = recorded([potential])
    sizes = (2, 2, 3, 1)
    for size in sizes:
        graph = graph_of(bulk("Si", cubic=True).repeat((size, 1, 1)), potential)
        assert_same(evaluator(graph), [potential.predict(graph)])
    assert recorder.recorded == 3


def test_batches_that_structures_leave():
    potential = morse.pretrained().double()
    graphs = [graph_of(atoms, potential) for atoms in morse.oxide(6, 1)]
    evaluator, recorder = recorded([potential])
    for count in (6, 5, 4):
        batch = collate(graphs[:count])
        assert_same(evaluator(batch), [potential.predict(batch)])
    assert recorder.recorded == 1


def test_weights_that_change():
    potential = MorsePotential([14]).double()
    evaluator, recorder = recorded([potential])
    graph = graph_of(bulk("Si"), potential)
    evaluator(graph)
    with torch.no_grad():
        potential.native["depth"] *= 2
    assert_same(evaluator(graph), [potential.predict(graph)])
    assert recorder.recorded == 1, "in place"
    potential.native["depth"] = torch.nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    assert_same(evaluator(graph), [potential.predict(graph)])
    assert recorder.recorded == 2, "elsewhere"


def test_members_of_an_ensemble_together():
    potentials = [MorsePotential([14], depth=depth).double() for depth in (0.5, 0.7)]
    evaluator, recorder = recorded(potentials)
    graph = graph_of(bulk("Si"), potentials[0])
    assert_same(evaluator(graph), [potential.predict(graph) for potential in potentials])
    assert recorder.recorded == 1


def refuse(evaluate, device):
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def wrong(evaluate, device):
    def replay():
        return [type(p)(p.energies, p.energy, 1.001 * p.forces + 0.01, p.stress) for p in evaluate()]

    return replay


def frozen(evaluate, device):
    """As a CUDA graph on another GPU than the one that is current: nothing is in it."""
    results = evaluate()
    return lambda: results


def exhausted(evaluate, device):
    raise RuntimeError("CUDA out of memory. Tried to allocate")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (refuse, "cannot be recorded as a CUDA graph, for it waits: operation not"),
        (exhausted, "does not fit into memory twice"),
        (wrong, "gives other numbers"),
        (frozen, "gives other numbers"),
    ],
)
def test_what_cannot_be_recorded(record, reason):
    potential = MorsePotential([14]).double()
    graph = graph_of(bulk("Si", cubic=True), potential)
    evaluator = Evaluator([potential], "auto", record=record, possible=True)
    evaluator(graph)
    with pytest.warns(UserWarning, match=f"{reason}.*; it goes on without"):
        assert_same(evaluator(graph), [potential.predict(graph)])
    assert_same(evaluator(graph), [potential.predict(graph)])  # and warns once
    insisting = Evaluator([potential], "graph", record=record, possible=True)
    with pytest.raises(InputError, match=f"accelerate='graph': .*{reason}.*use accelerate='none'"):
        insisting(graph)


def test_on_a_cpu_nothing_is_recorded():
    potential = MorsePotential([14])
    recorder = Recorder()
    Evaluator([potential], "auto", record=recorder)(graph_of(bulk("Si"), potential))
    assert recorder.recorded == 0
    with pytest.raises(InputError, match=r"accelerate='graph' records CUDA graphs, which need a GPU, .* on cpu; use"):
        FinetunedCalculator(potential, accelerate="graph")
    with pytest.raises(InputError, match="accelerate must be one of 'auto', 'graph', 'none', got 'fast'"):
        FinetunedCalculator(potential, accelerate="fast")


def test_unlike_members_are_named(monkeypatch):
    monkeypatch.setattr(MorsePotential, "device", torch.device("cuda"))
    potentials = [MorsePotential([14], cutoff=cutoff) for cutoff in (4.0, 5.0)]
    with pytest.raises(InputError, match=r"unlike \(morse with a cutoff of 4 Å, morse with a cutoff of 5 Å\)"):
        check_accelerate("graph", potentials)


def test_only_what_is_evaluated_again_is_recorded():
    """Structures that take turns, each with edges of its own, are not worth recording."""
    potential = MorsePotential([14]).double()
    calculator = FinetunedCalculator(potential, dtype="float64")
    calculator._evaluator, recorder = recorded([potential], "auto")
    structures = [bulk("Si", cubic=True), bulk("Si", cubic=True).repeat((2, 1, 1))]
    for _ in range(3):
        for atoms in structures:
            calculator.get_forces(atoms)
    assert recorder.recorded == 0
    for _ in range(3):
        structures[0].rattle(0.01)
        calculator.get_forces(structures[0])
    assert recorder.recorded == 1
    calculator.calculate_many(structures)
    assert calculator._evaluator._recording is None, "its memory may be needed"


def test_inference_mode_leaves_nothing_behind():
    atoms = bulk("Si", cubic=True)
    atoms.calc = FinetunedCalculator(MorsePotential([14]))
    with torch.inference_mode():
        atoms.get_forces()
    atoms.rattle(0.01)
    assert np.isfinite(atoms.get_forces()).all()


def test_calculators_that_have_recorded_are_copied_and_pickled():
    calculator = FinetunedCalculator(MorsePotential([14]).double(), dtype="float64")
    calculator._evaluator, _ = recorded([calculator.potential])
    atoms = bulk("Si")
    expected = calculator.get_potential_energy(atoms)
    for other in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):  # noqa: S301
        assert other.get_potential_energy(atoms.copy()) == pytest.approx(expected, abs=1e-12)


def test_predictions_come_from_a_device_in_one_copy():
    potential = MorsePotential([14])
    predictions = [potential.predict(graph_of(bulk("Si"), potential), stress=stress) for stress in (True, False)]
    assert_same(on_host(predictions[:1]), predictions[:1], 0.0)
    assert on_host(predictions)[1].stress is None


@GPU
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: helpers.build_sevennet(), marks=pytest.mark.sevenn, id="sevennet"),
        pytest.param(
            lambda: MACEPotential(helpers.build_mace()),
            marks=pytest.mark.mace,
            id="mace",
        ),
    ],
)
def test_cuda_graphs(build, dtype):
    potential = build().to(device="cuda", dtype=getattr(torch, dtype))
    steps = {
        kind: trajectory(FinetunedCalculator(potential, dtype=dtype, accelerate=kind), 5) for kind in ("graph", "none")
    }
    np.testing.assert_allclose(steps["graph"], steps["none"], rtol=0, atol={"float32": 1e-3, "float64": 1e-8}[dtype])


def test_relaxations_in_batches(monkeypatch):
    """Structures leave, others join: the same steps with recordings of what there is."""
    potential = morse.pretrained().double()
    calculator = FinetunedCalculator(potential, dtype="float64")
    structures = morse.oxide(7, 3)
    plain = relax(structures, calculator, "fire", cell=True, fmax=0.02, steps=60, max_edges=4000)
    recorder = Recorder()
    monkeypatch.setattr(pool, "Evaluator", functools.partial(Evaluator, record=recorder, possible=True))
    replayed = relax(structures, calculator, "fire", cell=True, fmax=0.02, steps=60, max_edges=4000, accelerate="auto")
    assert 1 <= recorder.recorded < 60
    for one, other in zip(replayed, plain, strict=True):
        assert (one.steps, one.converged) == (other.steps, other.converged)
        np.testing.assert_allclose(one.atoms.positions, other.atoms.positions, rtol=0, atol=1e-7)
    with pytest.raises(InputError, match=r"accelerate='graph' .* need a GPU"):
        relax(structures, calculator, accelerate="graph")
