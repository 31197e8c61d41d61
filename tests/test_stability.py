"""What long work stands on: flat memory, right results in threads, forces that stay the slope of the energy.

The large forms are in benchmarks/reliability.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.potentials import load_potential, save_potential
from ase_finetune.potentials.imports import safe_globals, unchanged_environment
from benchmarks.reliability import md, memory, versions
from benchmarks.reliability.common import Check
from tests import helpers, morse

T = TypeVar("T")
NEEDS_SEVENN = [pytest.mark.sevenn, pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")]


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Threads take turns five hundred times as often, so that a race is met."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(works: Sequence[Callable[[], T]]) -> list[T]:
    """All at once; what one raises is raised."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], T]) -> T:
        barrier.wait(timeout=60)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def trajectory(calculator: FinetunedCalculator, start: Atoms, seed: int, calls: int) -> list[np.ndarray]:
    """Results along a random walk."""
    random, atoms, found = np.random.default_rng(seed), start.copy(), []
    atoms.calc = calculator
    for _ in range(calls):
        atoms.positions += random.normal(scale=0.03, size=atoms.positions.shape)
        found.append(np.append(atoms.get_forces(), [*atoms.get_stress(), atoms.get_potential_energy()]))
    return found


def test_calculators_in_threads():
    starts = [*morse.silicon(2, 1), *morse.oxide(2, 2)]
    make = [lambda: FinetunedCalculator(morse.pretrained(), device="cpu")] * 4
    together = in_threads(
        [lambda i=i: trajectory(make[i](), starts[i], i, 100) for i in range(4)]  # type: ignore[misc]
    )
    for index, found in enumerate(together):
        alone = trajectory(make[index](), starts[index], index, 100)
        assert all(np.array_equal(one, two) for one, two in zip(found, alone, strict=True))


def test_one_potential_in_two_threads():
    """Calculators of their own may share a potential: nothing of a structure is kept in it."""
    potential = morse.pretrained()
    starts = [morse.silicon(1, 1)[0], morse.oxide(1, 2)[0]]
    make = lambda: FinetunedCalculator(potential, device="cpu")  # noqa: E731
    works = [lambda i=i: trajectory(make(), starts[i], i, 100) for i in range(2)]  # type: ignore[misc]
    for index, found in enumerate(in_threads(works)):
        alone = trajectory(make(), starts[index], index, 100)
        assert all(np.array_equal(one, two) for one, two in zip(found, alone, strict=True))


def test_finetuning_in_two_threads():
    frames = morse.labelled(morse.silicon(4, 1))
    options = {"replay": morse.oxide(3, 2), "epochs": 2, "monitor_size": 1, "fisher_size": 2, "device": "cpu"}

    def work(rate: float) -> FinetunedCalculator:
        return finetune(morse.pretrained(), frames, None, learning_rate=rate, verbose=False, **options)

    rates = [1e-3, 3e-3]
    together = in_threads([lambda rate=rate: work(rate) for rate in rates])  # type: ignore[misc]
    for rate, found in zip(rates, together, strict=True):
        assert morse.same_weights(found.potential, work(rate).potential)
    assert not morse.same_weights(together[0].potential, together[1].potential)


@pytest.mark.parametrize("guard", [lambda: safe_globals([slice]), unchanged_environment])
def test_guards_in_threads(guard):
    """What they change belongs to the process: one thread must not undo what another relies on, nor keep it."""
    before = dict(os.environ), set(torch.serialization.get_safe_globals())

    def work(name: str) -> None:
        for _ in range(200):
            with guard():
                if guard is unchanged_environment:
                    os.environ[name] = "1"
                    assert name in os.environ
                assert guard is unchanged_environment or slice in torch.serialization.get_safe_globals()

    in_threads([lambda k=k: work(f"GUARD_{k}") for k in range(4)])  # type: ignore[misc]
    assert dict(os.environ) == before[0]
    assert set(torch.serialization.get_safe_globals()) == before[1]


@pytest.mark.parametrize("backend", [pytest.param("sevenn", marks=NEEDS_SEVENN)])
def test_models_loaded_in_threads(tmp_path, backend):
    """e3nn compiles what it builds, which two threads must not do at once."""
    potential = helpers.build_sevennet()
    save_potential(potential, tmp_path / backend, metadata={})
    start = morse.silicon(1, 3)[0]

    def work() -> list[np.ndarray]:
        loaded, _ = load_potential(tmp_path / backend)
        return trajectory(FinetunedCalculator(loaded, device="cpu"), start, 0, 5)

    expected = trajectory(FinetunedCalculator(potential, device="cpu"), start, 0, 5)
    for found in in_threads([work] * 3):
        assert np.allclose(found, expected, rtol=0, atol=1e-6)


def test_memory_of_evaluations_is_flat():
    found = memory.evaluations(FinetunedCalculator(morse.pretrained(), device="cpu"), 160, 20)
    assert found.new_tensors <= 0
    assert found.growth < 2


def test_memory_of_training_is_flat():
    found = memory.training(morse.pretrained(), 64, 8)
    assert found.new_tensors <= 0
    assert found.growth < 2


def test_a_leak_is_seen():
    kept = []
    found = memory.watch(lambda _: kept.append(torch.ones(1 << 10)), 40, 5)
    assert found.new_tensors >= 20
    # Of figures made up: what the other tests have left behind would hide a small leak.
    assert memory.Samples([1, 2, 3, 4], [100, 100, 101, 103], [5, 5, 6, 7]).growth == pytest.approx(3)


@pytest.fixture(scope="module")
def tuned() -> FinetunedCalculator:
    frames = morse.labelled(morse.silicon(6, 1))
    single = finetune(
        morse.pretrained(), frames, None, replay=morse.oxide(4, 2), epochs=3, monitor_size=1, learning_rate=0.01,
        device="cpu", verbose=False,
    )  # fmt: skip
    return FinetunedCalculator(single.potential.to(dtype=torch.float64), dtype="float64")


@pytest.mark.parametrize("structure", [morse.silicon(1, 8)[0], morse.oxide(1, 9)[0]])
def test_forces_and_stress_are_slopes_after_finetuning(tuned, structure):
    assert md.force_difference(tuned, structure, 24) < 1e-6
    assert md.stress_difference(tuned, structure) < 1e-8


def test_dynamics_keep_energy_and_momentum(tuned):
    found = md.dynamics(morse.silicon(1, 8)[0], tuned, 0.1)
    assert abs(found["drift"]) < 1.0
    assert found["fluctuation"] < 1.0
    assert found["momentum"] < 1e-12


def test_perturbed_structures_stay_finite(tuned):
    structures = [atoms for atoms in md.perturbed(morse.silicon(3, 1), 40) if set(atoms.numbers) <= {8, 14}]
    assert md.not_finite(tuned, structures) == 0
    tuned_results = tuned.calculate_many(structures[:1])[0]
    assert np.isfinite(tuned_results["stress"]).all()


def test_a_nan_is_no_pass():
    assert not Check("a", float("nan"), "", 1.0).passed
    assert not Check("a", -2.0, "", 1.0).passed
    assert Check("a", -0.5, "", 1.0).passed
    assert Check("a", 5.0).passed


def test_lowest_versions_are_read_from_the_metadata():
    found = versions.required()
    assert {"ase", "torch", "numpy", "jsonargparse", "sevenn", "mace-torch", "PyYAML"} <= set(found)
    assert found["sevenn"] == "0.10.4"
