from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ase_finetune.errors import CheckpointError, InputError, UntrustedFileError
from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.potentials.imports import import_backend
from ase_finetune.potentials.mace import MACEPotential
from tests import helpers

pytest.importorskip("mace", reason="needs mace-torch")
pytestmark = pytest.mark.mace

STRUCTURES = helpers.structures()
TOLERANCES = {"float32": (1e-5, 1e-4, 1e-5), "float64": (1e-9, 1e-8, 1e-9)}  # eV/atom, eV/Å, eV/Å³

RICH = {
    "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
    "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
    "pair_repulsion": True,
    "distance_transform": "Agnesi",
    "heads": ["pbe", "Default"],
}
EMBEDDED = {
    "embedding_specs": {
        "total_charge": {"type": "continuous", "in_dim": 1, "emb_dim": 4, "per": "graph"},
        "total_spin": {"type": "categorical", "num_classes": 10, "emb_dim": 4, "per": "graph"},
    },
    "use_embedding_readout": True,
}
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
OPTIONS = [
    pytest.param(RICH, id="rich"),
    pytest.param(
        {"scale_shift": False, "num_interactions": 1, "interaction_cls_first": "RealAgnosticInteractionBlock"}
    ),
    *(
        pytest.param(options, marks=pytest.mark.slow)
        for options in (
            {},
            {"correlation": 3},
            {"num_interactions": 3, "correlation": [3, 2, 1]},
            {"distance_transform": "Soft", "apply_cutoff": False},
            {"interaction_cls_first": NONLINEAR, "interaction_cls": NONLINEAR, "edge_irreps": "4x0e+4x1o"},
            {"use_last_readout_only": True, "gate": torch.tanh},
            {"keep_last_layer_irreps": True, "gate": None},
            {"hidden_irreps": "4x0e+4x0o+4x1o", "use_agnostic_product": True},
            EMBEDDED,
        )
    ),
]


def predict(potential, name):
    return potential.predict(AtomGraph.from_atoms(STRUCTURES[name], potential.cutoff))


def calculator(**options):
    return import_backend("mace.calculators", "mace-torch").MACECalculator(device="cpu", **options)


def assert_same_physics(potential, calc, names=tuple(STRUCTURES)):
    dtype = str(potential.dtype).removeprefix("torch.")
    energy, forces, stress = TOLERANCES[dtype]
    for name in names:
        atoms = STRUCTURES[name].copy()
        atoms.calc = calc
        ours = predict(potential, name)
        assert abs(ours.energy.item() - atoms.get_potential_energy()) < energy * len(atoms), name
        np.testing.assert_allclose(ours.forces, atoms.get_forces(), rtol=0, atol=forces, err_msg=name)
        if atoms.pbc.all():  # elsewhere MACECalculator divides by the volume of a cell it made up
            np.testing.assert_allclose(ours.stress[0], atoms.get_stress(), rtol=0, atol=stress, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, RICH], ids=["plain", "rich"])
def test_same_numbers_as_mace_calculator(tiny_mace, options, dtype):
    native = tiny_mace(seed=1, **options)
    calc = calculator(models=copy.deepcopy(native), default_dtype=dtype)
    potential = MACEPotential(native).to(getattr(torch, dtype))
    assert_same_physics(potential, calc)
    assert all(parameter.requires_grad for parameter in potential.parameters())


def test_embedded_charge_and_spin_are_those_of_mace_calculator(tiny_mace):
    native = tiny_mace(**EMBEDDED).double()
    calc = calculator(models=copy.deepcopy(native), default_dtype="float64")
    assert_same_physics(MACEPotential(native), calc, ["molecule", "skewed"])


def test_every_head_is_the_one_of_mace_calculator(tiny_mace):
    native = tiny_mace(**RICH).double()
    energies = []
    for head in ("pbe", "Default"):
        calc = calculator(models=copy.deepcopy(native), default_dtype="float64", head=head)
        potential = MACEPotential(native, head)
        assert_same_physics(potential, calc, ["skewed"])
        energies.append(predict(potential, "skewed").energy.item())
    assert abs(energies[0] - energies[1]) > 1e-3
    assert MACEPotential(native).head == "Default"


def test_batch_is_the_sum_of_its_structures(tiny_mace):
    potential = MACEPotential(tiny_mace().double())
    graphs = [AtomGraph.from_atoms(a, potential.cutoff) for a in STRUCTURES.values()]
    together = potential.predict(collate(graphs))
    alone = [potential.predict(graph) for graph in graphs]
    torch.testing.assert_close(together.energy, torch.cat([p.energy for p in alone]), rtol=0, atol=1e-10)
    torch.testing.assert_close(together.forces, torch.cat([p.forces for p in alone]), rtol=0, atol=1e-10)


def test_second_derivatives_reach_the_parameters(tiny_mace):
    potential = MACEPotential(tiny_mace())
    graph = AtomGraph.from_atoms(STRUCTURES["skewed"], potential.cutoff)
    potential.predict(graph, create_graph=True).forces.square().sum().backward()
    gradients = [p.grad for p in potential.parameters() if p.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("options", OPTIONS)
def test_rebuilt_from_json_bit_for_bit(tiny_mace, options):
    for dtype in (torch.float32, torch.float64):
        potential = MACEPotential(tiny_mace(**options).to(dtype))
        rebuilt = rebuild(potential)
        assert rebuilt.head == potential.head
        for name in ("bulk", "skewed"):
            ours, theirs = predict(potential, name), predict(rebuilt, name)
            assert torch.equal(ours.energies, theirs.energies)
            assert torch.equal(ours.forces, theirs.forces)


def rebuild(potential):
    description = json.loads(json.dumps(potential.architecture()))
    rebuilt = MACEPotential.from_architecture(description, potential.head)
    rebuilt.native.to(potential.dtype).load_state_dict(potential.native.state_dict(), strict=True)
    return rebuilt


@pytest.mark.data
def test_model_of_the_mace_tutorial(data_folder):
    from ase.build import molecule

    file = data_folder / "mace_tutorial" / "solvent_mace_swa.model"
    potential = MACEPotential.from_checkpoint(file, trust_pickle=True)
    assert all(parameter.requires_grad for parameter in potential.parameters())
    graph = AtomGraph.from_atoms(molecule("CH3CH2OH"), potential.cutoff)
    ours, theirs = potential.predict(graph), rebuild(potential).predict(graph)
    assert torch.equal(ours.energies, theirs.energies)
    # The pickle carries the order of contractions of an older MACE: the same up to rounding.
    torch.testing.assert_close(ours.forces, theirs.forces, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning")
def test_exported_model_is_read_by_mace_calculator(tiny_mace, tmp_path, monkeypatch):
    potential = MACEPotential(tiny_mace(**RICH).double(), head="pbe")
    before = {name: value.clone() for name, value in potential.native.state_dict().items()}
    potential.save_native(tmp_path / "exported.model")
    assert all(torch.equal(value, before[name]) for name, value in potential.native.state_dict().items())
    # What `import mace` sets; our import guard has taken it back.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    calc = calculator(model_paths=tmp_path / "exported.model", default_dtype="float64", head="pbe")
    assert_same_physics(potential, calc, ["slab", "skewed"])
    monkeypatch.undo()
    again = MACEPotential.from_checkpoint(tmp_path / "exported.model", "pbe", trust_pickle=True)
    assert torch.equal(predict(again, "slab").energies, predict(potential, "slab").energies)


def test_shifted_energies(tiny_mace):
    potential = MACEPotential(tiny_mace(**RICH).double(), head="pbe")
    before = predict(potential, "molecule").energy.item()
    potential.shift_energies({1: 0.5, 8: -2.0})  # ethanol: 6 H, 1 O
    assert predict(potential, "molecule").energy.item() == pytest.approx(before + 6 * 0.5 - 2.0, abs=1e-10)
    other = MACEPotential(potential.native, head="Default")
    unshifted = MACEPotential(tiny_mace(**RICH).double(), head="Default")
    assert torch.equal(predict(other, "molecule").energies, predict(unshifted, "molecule").energies)


def test_frozen_pickles_become_trainable(tiny_mace, tmp_path):
    native = tiny_mace().requires_grad_(requires_grad=False)
    MACEPotential(native).save_native(tmp_path / "frozen.model")
    potential = MACEPotential.from_checkpoint(tmp_path / "frozen.model", trust_pickle=True)
    assert all(parameter.requires_grad for parameter in potential.parameters())


def test_elements_in_any_order(tiny_mace):
    potential = MACEPotential(tiny_mace(atomic_numbers=[14, 1, 8, 6]))
    assert potential.numbers == (1, 6, 8, 14)
    calc = calculator(models=copy.deepcopy(potential.native), default_dtype="float32")
    assert_same_physics(potential, calc, ["molecule"])


@pytest.mark.parametrize(
    "options", [{}, {"hidden_irreps": "4x0e+4x0o", "correlation": 1}], ids=["plain", "empty paths"]
)
def test_copies_are_independent(tiny_mace, options):
    potential = MACEPotential(tiny_mace(**options))
    twin = copy.deepcopy(potential)
    potential.shift_energies({14: 1.0})
    assert predict(twin, "bulk").energy.item() == pytest.approx(predict(potential, "bulk").energy.item() - 8, abs=1e-4)


def test_pickle_needs_trust(tiny_mace, tmp_path):
    path = tmp_path / "some.model"
    MACEPotential(tiny_mace()).save_native(path)
    with pytest.raises(UntrustedFileError, match=r"some\.model.*trust_pickle=True"):
        MACEPotential.from_checkpoint(path)


def test_torn_pickle(tiny_mace, tmp_path):
    path = tmp_path / "torn.model"
    MACEPotential(tiny_mace()).save_native(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"torn\.model is not a readable MACE model"):
        MACEPotential.from_checkpoint(path, trust_pickle=True)


def test_training_checkpoint_is_no_model(tmp_path):
    torch.save({"model": {}, "optimizer": {}}, tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=r"run\.pt holds a dict"):
        MACEPotential.from_checkpoint(tmp_path / "run.pt", trust_pickle=True)


def test_head_must_be_named_and_known(tiny_mace):
    native = tiny_mace(heads=["pbe", "r2scan"])
    with pytest.raises(InputError, match="'pbe', 'r2scan'; head=None"):
        MACEPotential(native)
    with pytest.raises(InputError, match="head='mp'"):
        MACEPotential(native, "mp")
    assert MACEPotential(native, "r2scan").head == "r2scan"


def test_other_classes_are_refused(tiny_mace):
    with pytest.raises(CheckpointError, match="class Linear is not supported"):
        MACEPotential(torch.nn.Linear(1, 1))

    class Dipoles(type(tiny_mace())):
        pass

    native = tiny_mace()
    native.__class__ = Dipoles
    with pytest.raises(CheckpointError, match="class Dipoles is not supported"):
        MACEPotential(native)


def test_unknown_embedding_is_refused(tiny_mace):
    specs = {"elec_temp": {"type": "continuous", "in_dim": 1, "emb_dim": 4, "per": "graph"}}
    with pytest.raises(CheckpointError, match="embeds 'elec_temp' per graph"):
        MACEPotential(tiny_mace(embedding_specs=specs))


def test_what_mace_cannot_describe(tiny_mace):
    with pytest.raises(CheckpointError, match=r"cannot describe.*export\(\)"):
        MACEPotential(tiny_mace(radial_type="gaussian")).architecture()
    with pytest.raises(CheckpointError, match=r"no name for this model's gate"):
        MACEPotential(tiny_mace(gate=torch.nn.functional.gelu)).architecture()


def test_import_leaves_the_process_as_it_was():
    code = """
import os, torch
safe = torch.serialization.get_safe_globals
before, allowed = (dict(os.environ), torch.get_default_dtype(), torch.load), set(safe())
from tests.helpers import build_mace
from ase_finetune.potentials.mace import MACEPotential
MACEPotential(build_mace()).architecture()
assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
assert before == (dict(os.environ), torch.get_default_dtype(), torch.load)
assert allowed <= set(safe())
assert slice not in safe()
assert all(getattr(item, "__module__", "").startswith("torch") for item in set(safe()) - allowed)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_FORCE")}
    root = Path(__file__).parents[2]
    done = subprocess.run(  # noqa: S603  # our own code
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
