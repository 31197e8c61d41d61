"""The MACE of the studies: how it is made, LoRA in it, and how a plan names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ase_finetune import FinetunedCalculator
from ase_finetune.data import FrameSet, read_frames
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials import load_potential
from benchmarks.science import universal_mace
from benchmarks.science.fitting import fit_case
from benchmarks.science.judging import Judge
from benchmarks.science.lora import inject, merge
from benchmarks.science.plans import Case, Plan, read_plan
from benchmarks.science.universal_mace import (
    NAME,
    NUMBERS,
    Form,
    atomic_energies,
    mean_neighbours,
    rms_force,
    with_trained_model,
)
from tests import morse

TINY = Form(4, 0, 1, 2, 3.0, (4,), epochs=1, batch_size=2, learning_rate=1e-3)


def labelled(symbols: str, energy: float, forces: float = 0.5) -> Atoms:
    count = len(Atoms(symbols))
    atoms = Atoms(symbols, positions=[(0, 0, 1.2 * k) for k in range(count)], cell=[6, 6, 6], pbc=True)
    results = {"energy": energy, "forces": np.full((count, 3), forces), "stress": np.full(6, 1e-3)}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def frames(*atoms: Atoms) -> FrameSet:
    return read_frames(list(atoms), name="few")


def test_it_knows_the_elements_of_mptrj():
    assert len(NUMBERS) == 89
    assert {1, 83, 89, 94} <= set(NUMBERS)
    assert not {84, 85, 86, 87, 88} & set(NUMBERS)


def test_energies_of_atoms_fit_the_frames_and_others_have_the_mean():
    # Per atom -1, -3 and -2 eV in the mean; H and O are told apart.
    energies = atomic_energies(frames(labelled("H2", -2.0), labelled("O2", -6.0), labelled("HO", -4.0)))
    by_number = dict(zip(NUMBERS, energies, strict=True))
    assert by_number[1] == pytest.approx(-1.0)
    assert by_number[8] == pytest.approx(-3.0)
    assert by_number[89] == pytest.approx(-2.0)


def test_sizes_of_neighbourhoods_and_forces():
    few = frames(labelled("H2", -2.0, forces=0.3), labelled("H2", -2.0, forces=-0.4))
    assert mean_neighbours(few, 1.5) == pytest.approx(1.0)
    assert mean_neighbours(few, 1.0) == 0
    assert rms_force(few) == pytest.approx(np.sqrt((0.3**2 + 0.4**2) / 2))


@pytest.mark.parametrize("study", ["mace", "mace_relaxations"])
@pytest.mark.parametrize("form", ["quick", "full"])
def test_plans_name_it(study, form, tmp_path, monkeypatch):
    plan = read_plan(study, form)
    assert plan.model == NAME
    monkeypatch.setattr(universal_mace, "universal_mace", lambda _, work, form: work / f"made-{form}")
    assert with_trained_model(plan, tmp_path, tmp_path).model == str(tmp_path / f"made-{form}")
    other = replace(plan, model="7net-0")
    assert with_trained_model(other, tmp_path, tmp_path) is other


def test_lora_is_for_mace_alone():
    with pytest.raises(SystemExit, match="MACE alone"):
        inject(morse.pretrained(), rank=2, alpha=2.0, seed=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Research data of three tiny frames."""
    pytest.importorskip("mace", reason="needs mace-torch")
    folder = tmp_path_factory.mktemp("data")
    few = [labelled("H2", -2.0, 0.2), labelled("O2", -6.0, 0.3), labelled("HO", -4.5, 0.1)]
    for name in ("mptrj_replay", "mptrj_retention", "lgps_train", "lgps_valid"):
        write(folder / f"{name}.extxyz", few)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """The folder of a tiny one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(universal_mace.FORMS, "quick", TINY)
        return universal_mace.universal_mace(data, tmp_path_factory.mktemp("work"), "quick")


@pytest.mark.mace
def test_it_is_trained_once_and_loads_without_pickle(trained, data, monkeypatch):
    calculator = FinetunedCalculator(trained)
    assert calculator.potential.numbers == NUMBERS
    assert calculator.metadata["form"]["channels"] == 4
    assert len(calculator.metadata["history"]) == TINY.epochs
    monkeypatch.setattr(universal_mace, "train", lambda *_, **__: pytest.fail("trained again"))
    assert universal_mace.universal_mace(data, trained.parent, "quick") == trained


@pytest.mark.mace
def test_lora_starts_from_the_model_trains_few_parameters_and_merges_into_its_names(trained):
    plain, _ = load_potential(trained, dtype=torch.float64)
    potential, _ = load_potential(trained, dtype=torch.float64)
    graph = AtomGraph.from_atoms(labelled("HO", 0.0), plain.cutoff)
    inject(potential, rank=2, alpha=2.0, seed=0)
    torch.testing.assert_close(potential.predict(graph).energy, plain.predict(graph).energy)
    adapted = dict(potential.native_parameters(trainable_only=True))
    assert adapted
    assert all("lora_A" in name or "lora_B" in name for name in adapted)

    with torch.no_grad():
        for parameter in adapted.values():
            parameter.add_(0.1)
    before = potential.predict(graph)
    merge(potential)
    after = potential.predict(graph)
    torch.testing.assert_close(after.energy, before.energy)
    torch.testing.assert_close(after.forces, before.forces)
    assert abs(after.energy.item() - plain.predict(graph).energy.item()) > 1e-6
    assert [name for name, _ in potential.native_parameters()] == [name for name, _ in plain.native_parameters()]


@pytest.mark.mace
def test_a_case_with_lora_moves_the_linear_layers_alone(trained, data, tmp_path):
    plan = Plan(
        study="tiny",
        form="quick",
        title="",
        kind="frames",
        model=str(trained),
        train={"set": "lgps_train"},
        judged={"lgps": None, "mptrj": None},
        options={"epochs": 1, "valid": None, "replay": None, "device": "cpu", "verbose": False},
        cases=[],
        picture={"kind": "pareto", "target": "lgps"},
    )
    case = Case("LoRA", {"method": "naive", "learning_rate": 0.1}, lora={"rank": 2, "alpha": 2})
    judge = Judge(data, plan.judged)
    result = fit_case(plan, case, 0, data, tmp_path / "work", judge)
    untouched = fit_case(plan, Case("untouched"), 0, data, tmp_path / "untouched", judge)
    assert result["train_frames"] == 3
    change = result["sets"]["lgps"]["energy_mae"] - untouched["sets"]["lgps"]["energy_mae"]
    assert abs(change) > 1e-3  # meV/atom; the frames are tiny and the step is large
