from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.errors import CheckpointError, InputError
from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.potentials import load_potential
from ase_finetune.potentials.sevennet import SevenNetPotential, sorts_weights
from tests import helpers
from tests.pretrained import path_or_skip, pretrained, sevennet_calculator

pytest.importorskip("sevenn", reason="needs sevenn")
pytestmark = pytest.mark.sevenn

MODELS = ["7net-0", pytest.param("7net-0_22may2024", marks=pytest.mark.slow), "7net-l3i5"]
ONCE = ["7net-0", *(pytest.param(name, marks=pytest.mark.slow) for name in ("7net-0_22may2024", "7net-l3i5"))]
ENERGY, FORCES, STRESS = 1e-5, 1e-4, 1e-5  # eV/atom, eV/Å, eV/Å³: float32


def structures() -> dict[str, Atoms]:
    rng = np.random.default_rng(5)
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    sheared = bulk("MgO", "rocksalt", a=4.2).repeat(2)
    sheared.cell[1] += 2 * sheared.cell[0]  # the same crystal in a long, skewed cell
    sheared.cell[2] -= 2 * sheared.cell[1]
    boxed = molecule("CH3CH2OH", vacuum=8.0)
    boxed.pbc = True
    slab = fcc111("Al", (2, 2, 2), vacuum=6.0)
    found = {"bulk": salt, "slab": slab, "molecule": molecule("CH3CH2OH"), "boxed": boxed, "skewed": sheared}
    for atoms in found.values():
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
    one_atom = Atoms("Si", cell=[[0, 1.9, 1.9], [1.9, 0, 1.9], [1.9, 1.9, 0.1]], pbc=True)
    return found | {"one atom": one_atom, "isolated": Atoms("O", positions=[(0, 0, 0)])}


STRUCTURES = structures()


def predict(potential, atoms, cutoff=None):
    return potential.predict(AtomGraph.from_atoms(atoms, cutoff or potential.cutoff))


def assert_same_physics(potential, peer, names=tuple(STRUCTURES)):
    largest = 0.0
    for name in names:
        atoms = STRUCTURES[name].copy()
        atoms.calc = peer
        ours = predict(potential, atoms)
        assert abs(ours.energy.item() - atoms.get_potential_energy()) < ENERGY * len(atoms), name
        np.testing.assert_allclose(ours.energies, peer.results["energies"], rtol=0, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(ours.forces, atoms.get_forces(), rtol=0, atol=FORCES, err_msg=name)
        if atoms.cell.rank == 3:  # elsewhere sevenn divides by a volume that it makes up
            np.testing.assert_allclose(ours.stress[0], atoms.get_stress(), rtol=0, atol=STRESS, err_msg=name)
            largest = max(largest, np.abs(atoms.get_stress()).max())
    return largest


@pytest.mark.parametrize("name", MODELS)
def test_same_numbers_as_sevennet_calculator(name):
    largest = assert_same_physics(pretrained(name), sevennet_calculator(path_or_skip(name)))
    assert largest > 100 * STRESS, "a test on zeros"


def test_same_numbers_with_random_weights(tiny_sevennet, tmp_path):
    potential = tiny_sevennet(seed=2, numbers=[1, 6, 8, 11, 12, 13, 14, 17], scale=200.0)
    potential.save_native(tmp_path / "tiny.pth")
    assert_same_physics(potential, sevennet_calculator(tmp_path / "tiny.pth"))


@pytest.mark.parametrize("name", ["bulk", "slab", "molecule", "one atom"])
def test_edges_beyond_the_cutoff_change_nothing(name):
    """SevenNet's cutoff function is not clamped: 6 Å edges on the 5 Å model gave NaN."""
    potential = pretrained("7net-0")
    exact, skinned = (predict(potential, STRUCTURES[name], cutoff) for cutoff in (5.0, 6.0))
    torch.testing.assert_close(skinned.energies, exact.energies, rtol=0, atol=1e-5)
    torch.testing.assert_close(skinned.forces, exact.forces, rtol=0, atol=1e-5)
    torch.testing.assert_close(skinned.stress, exact.stress, rtol=0, atol=1e-6)


def test_batch_of_sevennet_0():
    potential = pretrained("7net-0", torch.float64)
    names = ["skewed", "isolated", "molecule", "one atom"]
    graphs = [AtomGraph.from_atoms(STRUCTURES[name], 5.0) for name in names]
    together, alone = potential.predict(collate(graphs)), [potential.predict(graph) for graph in graphs]
    for field in ("energies", "energy", "forces", "stress"):
        expected = torch.cat([getattr(prediction, field) for prediction in alone])
        torch.testing.assert_close(getattr(together, field), expected, rtol=0, atol=1e-10)


def test_float64_is_double_throughout():
    single, double = pretrained("7net-0"), pretrained("7net-0", torch.float64)
    one, two = predict(single, STRUCTURES["bulk"]), predict(double, STRUCTURES["bulk"])
    assert {value.dtype for value in vars(two).values()} == {torch.float64}
    torch.testing.assert_close(one.energies.double(), two.energies, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.forces.double(), two.forces, rtol=0, atol=1e-4)
    # Rounded somewhere to float32, the energies would not change by this little.
    moved = STRUCTURES["bulk"].copy()
    moved.positions[0, 0] += 1e-9
    change = (predict(double, moved).energies.sum() - two.energies.sum()).item()
    assert change == pytest.approx(-1e-9 * two.forces[0, 0].item(), rel=1e-3)


def test_properties_of_sevennet_0():
    potential = pretrained("7net-0")
    assert potential.cutoff == 5.0
    assert potential.numbers == tuple(sorted(potential.numbers))
    assert {1, 3, 14, 94} < set(potential.numbers)
    assert 84 not in potential.numbers  # Po
    assert (potential.heads, potential.head) == ((), None)
    assert sum(p.numel() for p in potential.parameters() if p.requires_grad) == 842_440


def test_native_checkpoint_round_trip(tmp_path):
    potential = copy.deepcopy(pretrained("7net-0"))
    with torch.no_grad():
        for _, parameter in potential.native_parameters(trainable_only=True):
            parameter.mul_(1.01)
    path = tmp_path / "tuned.pth"
    potential.save_native(path)
    again = SevenNetPotential.from_checkpoint(path)
    for name in ("bulk", "molecule"):
        ours, theirs = predict(potential, STRUCTURES[name]), predict(again, STRUCTURES[name])
        assert torch.equal(ours.energies, theirs.energies)
        assert torch.equal(ours.forces, theirs.forces)
    assert abs(ours.energy.item() - predict(pretrained("7net-0"), STRUCTURES["molecule"]).energy.item()) > 1e-3
    assert_same_physics(again, sevennet_calculator(path), ["bulk", "slab"])
    assert load_potential(path)[0].backend == "sevenn"


def test_native_checkpoint_of_float64_is_rounded(tiny_sevennet, tmp_path):
    potential = tiny_sevennet().double()
    potential.save_native(tmp_path / "tiny.pth")
    assert potential.dtype == torch.float64
    again = SevenNetPotential.from_checkpoint(tmp_path / "tiny.pth")
    assert again.dtype == torch.float32
    for (name, ours), (_, theirs) in zip(potential.native_parameters(), again.native_parameters(), strict=True):
        assert torch.equal(ours.float(), theirs), name


@pytest.mark.parametrize("name", [*ONCE, "tiny"])
def test_architecture_rebuilds_the_module_bit_for_bit(name, tiny_sevennet):
    potential = tiny_sevennet(numbers=[11, 17]) if name == "tiny" else pretrained(name)
    description = json.loads(json.dumps(potential.architecture()))
    rebuilt = SevenNetPotential.from_architecture(description, potential.head)
    rebuilt.native.load_state_dict(potential.native.state_dict(), strict=True)
    ours, theirs = predict(potential, STRUCTURES["bulk"]), predict(rebuilt, STRUCTURES["bulk"])
    assert torch.equal(ours.energies, theirs.energies)
    assert torch.equal(ours.forces, theirs.forces)
    assert rebuilt.architecture() == potential.architecture()


@pytest.mark.parametrize("name", MODELS)
def test_architecture_says_nothing_about_the_training(name):
    potential = pretrained(name)
    description = potential.architecture()
    for word in "path epoch optim schedul batch_size seed device rank csv loss dataset save continue".split():
        assert not [key for key in description if word in key], word
    texts = list(_texts(description))
    assert not [text for text in texts if "/" in text or os.sep in text or text.endswith((".pth", ".pt", ".yaml"))]
    assert "load_dataset_path" in potential.config or name != "7net-0", "the checkpoint itself does tell"


def _texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_independent(tiny_sevennet, how):
    potential = tiny_sevennet(numbers=[11, 17])
    twin = copy.deepcopy(potential) if how == "deepcopy" else pickle.loads(pickle.dumps(potential))  # noqa: S301
    assert list(twin.native.state_dict()) == list(potential.native.state_dict())
    before = predict(potential, STRUCTURES["bulk"])
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    after = predict(potential, STRUCTURES["bulk"])
    assert torch.equal(before.forces, after.forces)
    assert not torch.equal(before.forces, predict(twin, STRUCTURES["bulk"]).forces)


class TestShiftedEnergies:
    def test_by_element(self):
        potential = copy.deepcopy(pretrained("7net-0", torch.float64))
        ethanol = STRUCTURES["molecule"]
        before = predict(potential, ethanol)
        potential.shift_energies({1: 0.5, 8: -2.0})  # 6 H, 1 O
        after = predict(potential, ethanol)
        assert after.energy.item() == pytest.approx(before.energy.item() + 6 * 0.5 - 2.0, abs=1e-9)
        torch.testing.assert_close(after.forces, before.forces, rtol=0, atol=1e-12)
        salt = predict(potential, STRUCTURES["bulk"]).energy.item()
        assert salt == predict(pretrained("7net-0", torch.float64), STRUCTURES["bulk"]).energy.item()

    def test_of_a_model_with_one_shift(self, tiny_sevennet):
        with pytest.raises(InputError, match="one energy shift for all elements; use reference='align'"):
            tiny_sevennet().shift_energies({14: 1.0})


@pytest.mark.skipif(not sorts_weights(importlib.metadata.version("sevenn")), reason="sevenn < 0.11 has no modalities")
class TestModalities:
    @pytest.fixture
    def options(self):
        numbers = [11, 17]
        return {
            "numbers": numbers,
            "use_modality": True,
            "_modal_map": {"pbe": 0, "r2scan": 1},
            "_number_of_modalities": 2,
            "use_modal_node_embedding": False,
            "use_modal_self_inter_intro": True,
            "use_modal_self_inter_outro": True,
            "use_modal_output_block": True,
            "use_modal_wise_shift": True,
            "use_modal_wise_scale": False,
            "use_species_wise_shift_scale": True,
            "shift": [[-1.0, -2.0], [-3.0, -4.0]],
            "scale": [200.0, 200.0],
        }

    def build(self, options, head):
        options = dict(options)
        numbers = options.pop("numbers")
        architecture = helpers.build_sevennet(numbers=numbers).architecture() | options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return SevenNetPotential.from_architecture(architecture, head)

    def test_heads_differ(self, options):
        potentials = {head: self.build(options, head) for head in ("pbe", "r2scan")}
        assert potentials["pbe"].heads == ("pbe", "r2scan")
        energies = [predict(p, STRUCTURES["bulk"]).energy.item() for p in potentials.values()]
        assert energies[0] != pytest.approx(energies[1], abs=1e-2)

    def test_head_must_be_named_and_known(self, options):
        with pytest.raises(InputError, match="'pbe', 'r2scan'; head=None"):
            self.build(options, None)
        with pytest.raises(InputError, match="head='mp'"):
            self.build(options, "mp")

    def test_one_head_is_shifted_alone(self, options):
        potential = self.build(options, "r2scan").double()
        other = self.build(options, "pbe").double()
        other.native.load_state_dict(potential.native.state_dict())
        before = predict(potential, STRUCTURES["bulk"]).energy.item(), predict(other, STRUCTURES["bulk"]).energy.item()
        potential.shift_energies({11: 0.5})
        other.native.load_state_dict(potential.native.state_dict())
        after = predict(potential, STRUCTURES["bulk"]).energy.item(), predict(other, STRUCTURES["bulk"]).energy.item()
        assert after[0] == pytest.approx(before[0] + 4 * 0.5, abs=1e-9)
        assert after[1] == before[1]


class Bomb:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestFilesThatAreNone:
    @pytest.mark.parametrize("place", ["config", "model_state_dict", "beside"])
    def test_code_in_a_checkpoint_is_not_run(self, tiny_sevennet, tmp_path, place):
        path, trace = tmp_path / "evil.pth", tmp_path / "was-here"
        tiny_sevennet().save_native(path)
        content = torch.load(path, weights_only=False)
        if place == "beside":
            content["epoch"] = Bomb(trace)
        else:
            content[place]["innocent"] = Bomb(trace)
        torch.save(content, path)
        for load in (SevenNetPotential.from_checkpoint, load_potential, FinetunedCalculator):
            with pytest.raises(CheckpointError, match=r"evil\.pth"):
                load(path)
        assert not trace.exists()
        torch.load(path, weights_only=False)
        assert trace.exists(), "the bomb of this test does not work"

    def test_plain_pickle_is_not_run(self, tmp_path):
        path, trace = tmp_path / "evil.pth", tmp_path / "was-here"
        path.write_bytes(pickle.dumps({"config": {}, "model_state_dict": Bomb(trace)}, protocol=2))
        with pytest.raises(CheckpointError, match=r"evil\.pth"):
            SevenNetPotential.from_checkpoint(path)
        assert not trace.exists()

    @pytest.mark.parametrize("length", [0, 100, 5000, -1000])
    def test_torn(self, tiny_sevennet, tmp_path, length):
        path = tmp_path / "torn.pth"
        tiny_sevennet().save_native(path)
        path.write_bytes(path.read_bytes()[:length])
        for load in (SevenNetPotential.from_checkpoint, load_potential):
            with pytest.raises(CheckpointError, match=r"torn\.pth"):
                load(path)

    def test_foreign(self, tmp_path):
        path = tmp_path / "foreign.pth"
        torch.save({"state_dict": {"weight": torch.ones(3)}}, path)
        with pytest.raises(CheckpointError, match="it lacks config"):
            SevenNetPotential.from_checkpoint(path)
        torch.save([1, 2], path)
        with pytest.raises(CheckpointError, match="it holds a list"):
            SevenNetPotential.from_checkpoint(path)
        path.write_text("no checkpoint")
        with pytest.raises(CheckpointError, match=r"foreign\.pth is not a readable SevenNet checkpoint"):
            SevenNetPotential.from_checkpoint(path)

    def test_weights_of_another_model(self, tiny_sevennet, tmp_path):
        path = tmp_path / "mixed.pth"
        tiny_sevennet().save_native(path)
        content = torch.load(path, weights_only=True)
        tiny_sevennet(channel=8).save_native(path)
        other = torch.load(path, weights_only=True)
        torch.save(content | {"model_state_dict": other["model_state_dict"]}, path)
        with pytest.raises(CheckpointError, match=r"mixed\.pth"):
            load_potential(path)

    def test_loading_leaves_the_safe_globals_alone(self, tiny_sevennet, tmp_path):
        tiny_sevennet().save_native(tmp_path / "tiny.pth")
        before = set(torch.serialization.get_safe_globals())
        SevenNetPotential.from_checkpoint(tmp_path / "tiny.pth")
        assert set(torch.serialization.get_safe_globals()) == before


def test_whether_weights_may_be_in_another_order():
    calculator = FinetunedCalculator("7net-0", device="cpu")
    assert calculator.potential.several_orders == sorts_weights(importlib.metadata.version("sevenn"))
