"""torch-sim runs our potentials and finds what our calculator finds."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk

from ase_finetune import FinetunedCalculator
from ase_finetune.errors import BackendNotInstalledError, InputError
from ase_finetune.optimize import relax
from tests.morse import oxide, pretrained, silicon

HAS_TORCH_SIM = importlib.util.find_spec("torch_sim") is not None

needs_torch_sim = pytest.mark.skipif(not HAS_TORCH_SIM, reason="needs torch-sim-atomistic (Python >= 3.12)")


@pytest.fixture
def ts():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("torch_sim")


def adapted(*arguments, **options):
    from ase_finetune.adapters.torch_sim import TorchSimModel

    return TorchSimModel(*arguments, **options)


@pytest.fixture
def calculator() -> FinetunedCalculator:
    return FinetunedCalculator(pretrained().to(dtype=torch.float64), dtype="float64", device="cpu")


def structures() -> list[Atoms]:
    skewed = bulk("Si")
    skewed.set_cell(
        skewed.cell[:] @ np.array([[1.02, 0.03, 0.0], [0.0, 0.99, 0.01], [0.0, 0.0, 1.0]]), scale_atoms=True
    )
    molecule = Atoms("SiO", positions=[(0.0, 0.0, 0.0), (0.3, 1.1, 1.4)])
    return [*silicon(2, 0), skewed, *oxide(1, 1), molecule]


def test_without_torch_sim_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_sim.models.interface", None)
    monkeypatch.delitem(sys.modules, "ase_finetune.adapters.torch_sim", raising=False)
    with pytest.raises(BackendNotInstalledError, match="pip install torch-sim-atomistic"):
        importlib.import_module("ase_finetune.adapters.torch_sim")


@needs_torch_sim
def test_energies_forces_and_stress_are_those_of_the_calculator(ts, calculator):
    given = structures()
    for batch in ([atoms] for atoms in given[:-1]):
        assert_same(ts, calculator, batch)
    assert_same(ts, calculator, given[:-1])
    assert_same(ts, calculator, given[-1:])  # torch-sim wants one periodicity for all


def assert_same(ts, calculator, batch):
    model = adapted(calculator)
    state = ts.io.atoms_to_state(batch, model.device, model.dtype)
    found = model(state)
    expected = calculator.calculate_many(batch)
    assert found["energy"].numpy() == pytest.approx([result["energy"] for result in expected], abs=1e-8)
    forces = np.concatenate([result["forces"] for result in expected])
    assert np.abs(found["forces"].numpy() - forces).max() < 1e-9
    for tensor, result in zip(found["stress"].numpy(), expected, strict=True):
        if "stress" in result:
            xx, yy, zz, yz, xz, xy = result["stress"]
            assert np.abs(tensor - [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]).max() < 1e-11
        else:
            assert (tensor == 0).all()
    assert not any(value.requires_grad for value in found.values())


@needs_torch_sim
def test_torch_sim_accepts_the_model(ts):
    from ase_finetune.potentials import MorsePotential

    interface = importlib.import_module("torch_sim.models.interface")
    model = adapted(MorsePotential([1, 6, 12, 14, 26], cutoff=4.0).to(dtype=torch.float64))
    interface.validate_model_outputs(model, model.device, model.dtype, check_detached=True)


@needs_torch_sim
def test_what_is_not_asked_for_is_not_found(ts, calculator):
    model = adapted(calculator)
    model.compute_stress = False
    state = ts.io.atoms_to_state(silicon(1, 0), model.device, model.dtype)
    assert set(model(state)) == {"energy", "forces"}
    model.compute_forces = False
    assert set(model(state)) == {"energy"}


@needs_torch_sim
def test_the_reference_of_the_target_data_is_kept(ts, calculator):
    calculator.metadata["reference_offsets"] = {"Si": 1.5, "O": -0.25}
    shifted = FinetunedCalculator(calculator.potential, dtype="float64", device="cpu")
    shifted.metadata = calculator.metadata
    shifted.parameters["reference"] = "target"
    (atoms,) = oxide(1, 0)
    state = ts.io.atoms_to_state([atoms], torch.device("cpu"), torch.float64)
    change = adapted(shifted)(state)["energy"] - adapted(calculator)(state)["energy"]
    assert float(change) == pytest.approx(4 * 1.5 - 4 * 0.25, abs=1e-9)


@needs_torch_sim
def test_relaxations_end_where_ours_end(ts, calculator):
    given = silicon(3, 5)
    model = adapted(calculator)
    state = ts.optimize(
        given,
        model,
        optimizer=ts.Optimizer.fire,
        convergence_fn=ts.generate_force_convergence_fn(force_tol=1e-3, include_cell_forces=False),
        max_steps=500,
        steps_between_swaps=1,
    )
    ours = relax(given, calculator, fmax=1e-3)
    energies = [result.atoms.get_potential_energy() for result in ours]
    assert all(result.converged for result in ours)
    assert state.energy.tolist() == pytest.approx(energies, abs=1e-4)
    assert model.rebuilds < 100


@needs_torch_sim
def test_a_short_run_keeps_its_energy(ts, calculator):
    model = adapted(calculator)
    given = [atoms.repeat((2, 1, 1)) for atoms in silicon(2, 3)]
    state = ts.io.atoms_to_state(given, model.device, model.dtype)
    state.rng = 0
    state = ts.nve_init(state, model, kT=torch.tensor(300 * units.kB))
    start = [result["energy"] for result in calculator.calculate_many(given)]
    assert state.energy.numpy() == pytest.approx(start, abs=1e-9)
    totals = []
    for _ in range(50):
        kinetic = ts.calc_kinetic_energy(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
        totals.append((state.energy + kinetic).numpy())
        state = ts.nve_step(state, model, dt=torch.tensor(1e-3 * ts.units.MetalUnits.time))
    assert np.ptp(totals, axis=0).max() / 16 < 5e-4  # eV/atom, for kinetic energies of 0.04 eV/atom
    assert np.abs(state.energy.numpy() - start).min() > 0.05, "it moves"
    assert model.rebuilds < 50


@needs_torch_sim
def test_unusable_input_is_told(ts, calculator):
    model = adapted(calculator)
    with pytest.raises(InputError, match="an element this model does not know"):
        model(ts.io.atoms_to_state([bulk("Cu")], model.device, model.dtype))
    with pytest.raises(InputError, match="make them alike"):
        model(ts.io.atoms_to_state(silicon(1, 0), model.device, torch.float32))
    with pytest.raises(InputError, match="single potentials"):
        adapted(FinetunedCalculator([pretrained(), pretrained()], device="cpu"))
