"""How often a program waits for a GPU, step by step, and that all it computes with is on it; without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.md.verlet import VelocityVerlet

from ase_finetune import FinetuneConfig, FinetunedCalculator, finetune
from ase_finetune.continual import EWCPenalty, FisherInformation, empirical_fisher, gaussian_fisher
from ase_finetune.data import read_pairs
from ase_finetune.errors import InputError
from ase_finetune.finetuning.frame_task import FrameBatches, FrameTask, Replay
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.relaxation_config import RelaxationConfig
from ase_finetune.finetuning.relaxation_task import RelaxationTask
from ase_finetune.finetuning.training import Trainer
from ase_finetune.graphs import AtomGraph, batched_lists
from ase_finetune.metrics import evaluate
from ase_finetune.optimize import relax
from ase_finetune.optimize.pool import Relaxed
from ase_finetune.potentials.base import Potential, Prediction
from ase_finetune.potentials.capture import Evaluator
from ase_finetune.potentials.memory import EdgeBudget
from tests import morse
from tests.devices import PretendedGPU, Waits
from tests.optimize.runs import cluster, small_cell

#: What has to wait: a step of the optimizer is only made if loss and gradient are finite, and ASE gets what MD finds.
NEEDED: dict[str, dict[str, int]] = {
    "naive": {"finetuning/updating.py update: to the host": 1},
    "average": {"finetuning/updating.py update: to the host": 1},
    "alternate": {"finetuning/updating.py update: to the host": 2},
    "joint": {"finetuning/updating.py update: to the host": 1},
    "relaxations": {
        "finetuning/updating.py update: to the host": 1,
        "finetuning/relaxation_task.py _distances: to the host": 1,
    },
    "penalty": {"continual/ewc.py value: aten._local_scalar_dense": 1},
    "fisher": {},
    "evaluate": {},
    "md": {"potentials/base.py on_host: to the host": 1},
    "relax": {"optimize/pool.py _step: to the host": 1},
}

#: What a step of training on relaxations waits for besides: in setting up the relaxations of its pairs and finding
#: their first neighbour lists, once per recorded step of a relaxation, and in comparing where they end. None may grow.
ALLOWED: dict[str, dict[str, int]] = {
    "relaxations": {
        "optimize/coordinates.py of: to the device": 4,
        "optimize/relaxation.py __init__: to the device": 1,
        "trajectories/structures.py _tensor: to the device": 12,
        "optimize/method.py as_tensor: to the device": 1,
        "trajectories/rollout.py _step: aten._local_scalar_dense": 3,
        "trajectories/rollout.py result: to the host": 1,
        "trajectories/structures.py num_atoms: aten.bincount": 10,
        "trajectories/structures.py check_match: to the host": 8,
        "trajectories/structures.py check_match: aten.equal": 4,
        "trajectories/structures.py check_match: aten._local_scalar_dense": 4,
        "trajectories/structures.py complete_cells: aten._local_scalar_dense": 8,
        "trajectories/structures.py _fractional: aten._linalg_check_errors": 4,
        "trajectories/structures.py _lattice_shifts: aten._local_scalar_dense": 2,
        "trajectories/structures.py _reduced_basis: to the host": 4,
        "trajectories/structures.py _lattice_shifts: aten._linalg_check_errors": 2,
        "trajectories/structures.py _nearest: to the device": 6,
        "trajectories/losses.py cell_strain: aten._linalg_check_errors": 2,
        "optimize/adjoint.py _clipped: aten._local_scalar_dense": 3,
        "optimize/adjoint.py backward: aten._local_scalar_dense": 3,
        "optimize/relaxation.py graph: to the host": 4,
        "graphs/moving.py _renew: to the device": 2,
        "graphs/moving.py _renew: aten.nonzero": 2,
        "graphs/batched_lists.py structures_on_cpu: to the host": 4,
        "graphs/batched_lists.py neighbor_lists_in_turn: to the device": 2,
        "graphs/edges.py by_receiver: aten.bincount": 1,
        "graphs/edges.py by_receiver: aten._local_scalar_dense": 1,
    },
}


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    with PretendedGPU() as pretended:
        yield pretended


MODELS = ["morse", pytest.param("sevenn", marks=pytest.mark.sevenn), pytest.param("mace", marks=pytest.mark.mace)]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Potential:
    """A tiny potential that knows Si and O."""
    if request.param == "morse":
        return morse.pretrained()
    if request.param == "sevenn":
        potential: Potential = request.getfixturevalue("tiny_sevennet")()
        return potential
    from ase_finetune.potentials.mace import MACEPotential

    return MACEPotential(request.getfixturevalue("tiny_mace")())


@pytest.fixture(scope="module")
def there(model: Potential) -> Potential:
    """The same on the GPU. One for all tests: TorchScript takes its time with each copy."""
    with PretendedGPU() as gpu:
        moved = copy.deepcopy(model).to(gpu.device)
        graph = labelled(morse.oxide(1, 0), morse.pretrained())[0].to(gpu.device)
        for _ in range(2):
            moved.predict(graph, create_graph=True).energy.sum().backward()
    return moved


def labelled(structures: list[Atoms], potential: Potential) -> list[AtomGraph]:
    return morse.graphs(morse.labelled(structures), potential)


def penalty(potential: Potential) -> EWCPenalty:
    named = list(potential.native_parameters(trainable_only=True))
    fisher = FisherInformation({name: torch.ones(parameter.shape) for name, parameter in named})
    return EWCPenalty(named, fisher, 1e-3)


def training(potential: Potential, kind: str) -> Callable[[], None]:
    """An iteration of training on frames."""
    replayed = kind in ("alternate", "joint")
    config = FinetuneConfig(
        epochs=1,
        batch_size=2,
        replay_schedule="joint" if kind == "joint" else "alternate",
        ema_decay=0.9 if kind == "average" else None,
    )
    reference, budget = morse.pretrained(), EdgeBudget(10**6)
    new, old = (labelled(made, reference) for made in (morse.silicon(2, 1), morse.oxide(2, 2)))
    task = FrameTask(FrameBatches(potential, new, config.loss, budget), [], config)
    replay = Replay(FrameBatches(potential, old, config.loss, budget)) if replayed else Replay()
    trainer = Trainer(potential, task, replay, config, penalty(potential) if replayed else None, Log(0))
    return lambda: trainer.train([[0, 1]])


def watched(gpu: PretendedGPU, step: Callable[[], object]) -> Waits:
    """What the second call waits for: the first one makes what is kept."""
    step()
    with gpu.watched() as waits:
        step()
    return waits


def excess(kind: str, waits: Waits) -> str:
    return waits.beyond(NEEDED[kind] | ALLOWED.get(kind, {}))


@pytest.mark.parametrize("kind", ["naive", "alternate", "joint"])
def test_training(gpu, there, kind):
    waits = watched(gpu, training(there, kind))
    assert not excess(kind, waits), f"{excess(kind, waits)}\n\n{waits}"


def test_training_with_a_moving_average(gpu):
    waits = watched(gpu, training(morse.pretrained().to(gpu.device), "average"))
    assert not excess("average", waits), f"{excess('average', waits)}\n\n{waits}"


def pairs(count: int) -> list[tuple[Atoms, Atoms]]:
    """Structures and where they are to end, a little off."""
    made = []
    for seed in range(count):
        initial = morse.oxide(1, seed)[0]
        relaxed = initial.copy()
        relaxed.rattle(0.02, rng=np.random.default_rng(seed))
        initial.info["structure_id"] = f"structure {seed}"
        made.append((initial, relaxed))
    return made


BPTT: dict[str, Any] = {"epochs": 1, "batch_size": 2, "steps": 3, "optimizer": "fire", "gradient": "adjoint"}


def test_training_on_relaxations(gpu):
    potential = morse.pretrained().double().to(gpu.device)
    task = RelaxationTask(potential, read_pairs(pairs(2)), None, RelaxationConfig.from_options(BPTT), Log(0))
    trainer = Trainer(potential, task, Replay(), FinetuneConfig(), None, Log(0))
    waits = watched(gpu, lambda: trainer.train([[0, 1]]))
    assert not excess("relaxations", waits), f"{excess('relaxations', waits)}\n\n{waits}"


def test_penalty(gpu):
    held = penalty(morse.pretrained().to(gpu.device))
    with gpu.watched() as waits:
        held.add_gradient()
        held.strength = 2.0
        held.value()
    assert waits.counts() == NEEDED["penalty"]


FISHERS: dict[str, Callable[..., object]] = {
    "exact": empirical_fisher,
    "probes": lambda potential, graphs: empirical_fisher(potential, graphs, probes=2, max_edges=1),
    "gaussian": lambda potential, graphs: gaussian_fisher(potential, graphs, draws=2, max_edges=1),
}


@pytest.mark.parametrize("fisher", FISHERS)
def test_fisher(gpu, fisher):
    """Of each further batch."""
    potential = morse.pretrained().to(gpu.device)
    graphs = labelled(morse.oxide(3, 1), morse.pretrained())
    one, more = (watched(gpu, lambda k=k: FISHERS[fisher](potential, graphs[:k])) for k in (1, 3))
    further = more.besides(one)
    assert not excess("fisher", halved(further)), str(further)


def test_evaluate(gpu, there):
    """Of each further batch."""
    graphs = labelled(morse.oxide(3, 1), morse.pretrained())
    one, more = (watched(gpu, lambda k=k: evaluate(there, graphs[:k], max_edges=1)) for k in (1, 3))
    further = more.besides(one)
    assert not excess("evaluate", halved(further)), str(further)


def halved(waits: Waits) -> Waits:
    """Every second one of each name."""
    kept, seen = Waits(), dict.fromkeys(waits.counts(), 0)
    for wait in waits.found:
        seen[wait.name] += 1
        if seen[wait.name] % 2:
            kept.found.append(wait)
    return kept


def test_molecular_dynamics(gpu, there):
    """A step within the skin."""
    atoms = morse.oxide(1, 1)[0]
    atoms.calc = FinetunedCalculator(there, device="cuda", accelerate="none")

    def step() -> None:
        atoms.positions[0, 0] += 0.001
        atoms.get_forces()

    waits = watched(gpu, step)
    assert not excess("md", waits), f"{excess('md', waits)}\n\n{waits}"


def test_an_evaluation_can_be_recorded(gpu, there):
    """A CUDA graph can hold nothing that waits."""

    def record(evaluate: Callable[[], list[Prediction]], _: torch.device) -> Callable[[], list[Prediction]]:
        with gpu.watched() as waits:
            evaluate()
        assert not waits.found, str(waits)
        return evaluate

    graph = AtomGraph.from_atoms(morse.oxide(1, 1)[0], there.cutoff).to(gpu.device)
    evaluator = Evaluator([there], "graph", record=record)
    with torch.no_grad():
        expected = there.predict(graph)
    torch.testing.assert_close(evaluator(graph)[0].forces.cpu(), expected.forces.cpu())


def test_molecular_dynamics_with_neighbours_found_on_the_device(gpu, there, monkeypatch):
    plain = FinetunedCalculator(there, device="cuda", accelerate="none")
    monkeypatch.setattr(batched_lists, "has_device_library", lambda: True)
    monkeypatch.setattr(batched_lists, "neighbor_lists", batched_lists.neighbor_lists_in_turn)
    atoms = morse.oxide(1, 1)[0]
    calculator = FinetunedCalculator(there, device="cuda", accelerate="none")
    assert isinstance(calculator._graph.neighbors._find, batched_lists.OnDevice)
    atoms.calc = calculator
    other = atoms.copy()
    other.calc = plain
    for step in (0.0, 0.1, 0.4):
        for each in (atoms, other):
            each.positions[0, 0] += step
        np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), rtol=0, atol=1e-5)
    assert calculator._graph.neighbors.rebuilds == 2
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(InputError, match=r"^atoms .* coincide"):
        atoms.get_forces()


def test_relax(gpu, there):
    """Each further step of a batch."""
    calc = FinetunedCalculator(there, device="cuda", accelerate="none")

    def relaxed(steps: int) -> list[Relaxed]:
        return relax(morse.oxide(2, 1), calc, "fire", fmax=1e-9, steps=steps, progress=False)

    few, more = (watched(gpu, lambda k=k: relaxed(k)) for k in (1, 3))
    further = more.besides(few)
    assert not excess("relax", halved(further)), str(further)


@pytest.mark.parametrize("cell", [False, True])
def test_calculations_there_and_here(gpu, cell):
    """Moving structures: the numbers are those of the CPU."""
    here = FinetunedCalculator(morse.pretrained().double(), device="cpu", dtype="float64")
    there = FinetunedCalculator(
        morse.pretrained().double().to(gpu.device), device="cuda", dtype="float64", accelerate="none"
    )
    both = []
    for calc in (here, there):
        atoms = morse.oxide(1, 2)[0]
        atoms.calc = calc
        VelocityVerlet(atoms, timestep=1.0).run(3)
        structures = [atoms, cluster(), small_cell()] if not cell else [atoms, small_cell()]
        both.append([atoms, *(end.atoms for end in relax(structures, calc, "lbfgs", cell=cell, steps=4))])
    for one, two in zip(*both, strict=True):
        np.testing.assert_allclose(one.positions, two.positions, atol=1e-10)
        np.testing.assert_allclose(one.get_forces(), two.get_forces(), atol=1e-9)
        np.testing.assert_allclose(one.cell, two.cell, atol=1e-10)


WHOLE: dict[str, dict[str, Any]] = {
    "naive": {"method": "naive", "ema_decay": 0.9, "epochs": 2, "batch_size": 2},
    "reewc": {"method": "reewc", "max_forgetting": 0.5, "epochs": 2, "batch_size": 2},
    "relaxations": {
        "method": "bptt+reewc",
        "relaxations": pairs(2),
        "valid_relaxations": None,
        "early_stopping": None,
        "bptt": BPTT | {"train_step_size": True, "cell": True},
    },
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_fine_tuning(tmp_path, kind):
    """Nothing is left on the wrong device, from the data to the saved model, and the numbers are those of the CPU."""

    frames = [] if "relaxations" in WHOLE[kind] else [morse.labelled(morse.silicon(n, n)) for n in (4, 2)]
    options = {"dtype": "float64", "monitor_size": 2, "max_edges": 10_000, "replay": morse.oxide(4, 3)}
    options |= {"verbose": False, "report": False} | WHOLE[kind]

    def tuned(device: str) -> FinetunedCalculator:
        potential, output = morse.pretrained().double().to(device), tmp_path / device.partition(":")[0]
        return finetune(potential, *frames, device=device, output=output, **options)

    here = tuned("cpu")
    with PretendedGPU():
        there = tuned("cuda:0")
        weights = morse.weights(there.potential.to("cpu"))
    for name, value in morse.weights(here.potential).items():
        torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=0)
    for one, two in zip(there.history, here.history, strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kind", ["naive", "alternate"])
def test_training_on_a_real_gpu(model, monkeypatch, kind):
    """PyTorch itself watches: no other wait than the reads of loss and norm."""
    step = training(copy.deepcopy(model).to("cuda"), kind)
    for _ in range(3):
        step()
    tolist, reads = torch.Tensor.tolist, []

    def read(tensor: torch.Tensor) -> Any:
        if not tensor.is_cuda:
            return tolist(tensor)
        reads.append(tensor)
        torch.cuda.set_sync_debug_mode("default")
        try:
            return tolist(tensor)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(torch.Tensor, "tolist", read)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(reads) == sum(NEEDED[kind].values())
