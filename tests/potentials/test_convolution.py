from __future__ import annotations

import copy
import warnings

import pytest
import torch
from ase.build import bulk

from ase_finetune.graphs import AtomGraph, Edges
from ase_finetune.graphs.edges import GROUP, by_receiver
from ase_finetune.potentials import arrangement
from ase_finetune.potentials.arrangement import Arrangement
from ase_finetune.potentials.convolution import Convolution, FusedConvolutions, find_convolution
from ase_finetune.potentials.imports import import_backend
from ase_finetune.potentials.mace import MACEPotential

#: What SevenNet, MACE and others make: in, harmonics, out, and instructions as (in, harmonics, out).
PRODUCTS = {
    "scalars": ("6x0e", "1x0e+1x1o", "6x0e+6x1o", [(0, 0, 0), (0, 1, 1)]),
    "vectors": ("3x0e+2x1o", "1x0e+1x1o", "3x0e+2x0e+3x1o+2x1o", [(0, 0, 0), (1, 1, 1), (0, 1, 2), (1, 0, 3)]),
    "outputs out of order": ("3x0e+2x1e", "1x0e+1x1e", "2x1e+3x1e+2x0e", [(0, 1, 1), (1, 1, 2), (1, 1, 0)]),
    "one input unused": ("3x0e+2x1o+4x2e", "1x0e+1x1o+1x2e", "4x2e+3x0e", [(2, 0, 0), (0, 0, 1)]),
}


def build(name: str, dtype: torch.dtype = torch.float64, **options):
    first, second, out, paths = PRODUCTS[name]
    instructions = [(*path, options.pop("mode", "uvu"), True) for path in paths]
    options = {"shared_weights": False, "internal_weights": False} | options
    return product(first, second, out, instructions, **options).to(dtype)


def product(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e3nn's use of torch.jit
        return import_backend("e3nn.o3", "e3nn").TensorProduct(*arguments, **options)


def inputs(module, atoms: int = 5, edges: int = 23, seed: int = 0):
    """Features, harmonics, weights, senders and receivers; the last atom receives nothing."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(module.buffers()).dtype

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=dtype).requires_grad_()

    senders = torch.randint(atoms, (edges,), generator=generator)
    receivers = torch.randint(atoms - 1, (edges,), generator=generator)
    sizes = module.irreps_in1.dim, module.irreps_in2.dim, module.weight_numel
    return random(atoms, sizes[0]), random(edges, sizes[1]), random(edges, sizes[2]), senders, receivers


def by_messages(module, features, harmonics, weights, senders, receivers):
    messages = module(features[senders], harmonics, weights)
    return features.new_zeros(len(features), messages.shape[1]).index_add(0, receivers, messages)


def by_groups(convolution, features, harmonics, weights, senders, receivers):
    order, filled = by_receiver(receivers, len(features))
    edges = in_slots(senders, receivers, len(features))
    return convolution(features, harmonics[order] * filled[:, None], weights[order], edges)


def in_slots(senders, receivers, num_atoms):
    edges = Edges(torch.stack([receivers, senders]), torch.zeros(len(senders), 3), 4.0)
    return Arrangement.of(edges.in_slots(num_atoms), num_atoms)


@pytest.mark.parametrize("name", PRODUCTS)
def test_same_sums_and_derivatives_as_e3nn(name):
    module = build(name)
    convolution = find_convolution(module)
    assert convolution is not None
    *tensors, senders, receivers = inputs(module)
    expected = by_messages(module, *tensors, senders, receivers)
    found = by_groups(convolution, *tensors, senders, receivers)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.sin(torch.arange(expected.numel(), dtype=torch.float64)).reshape(expected.shape)
    first = [torch.autograd.grad((s * weight).sum(), tensors, create_graph=True) for s in (found, expected)]
    for ours, theirs in zip(*first, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    # What a loss on forces needs.
    second = [torch.autograd.grad(sum(g.sin().sum() for g in gradients), tensors) for gradients in first]
    for ours, theirs in zip(*second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_other_kinds_are_left_to_e3nn():
    for mode in ("uuu", "uvw"):
        other = "2x0e" if mode == "uuu" else "1x0e"
        options = {"shared_weights": False, "internal_weights": False}
        assert find_convolution(product("2x0e", other, "2x0e", [(0, 0, 0, mode, True)], **options)) is None
    # Weights of its own, weights shared by all edges, several channels of harmonics, results added up.
    assert find_convolution(build("vectors", internal_weights=True, shared_weights=True)) is None
    assert find_convolution(build("vectors", shared_weights=True)) is None
    paths = [(0, 0, 0, "uvu", True)]
    assert find_convolution(product("2x0e", "2x0e", "2x0e", paths, shared_weights=False)) is None
    paths = [(0, 0, 0, "uvu", True), (1, 0, 0, "uvu", True)]
    assert find_convolution(product("2x0e+2x0e", "1x0e", "2x0e", paths, shared_weights=False)) is None
    assert find_convolution(torch.nn.Linear(2, 2)) is None


def test_one_unknown_convolution_rules_out_all():
    known, unknown = build("scalars"), build("scalars", shared_weights=True)
    assert FusedConvolutions({"known": known}).usable()
    assert not FusedConvolutions({"known": known, "unknown": unknown}).usable()
    assert not FusedConvolutions({}).usable()


def test_arrangement_holds_every_edge_once():
    receivers = torch.tensor([3, 0, 3, 3, 1, 3, 3, 0])
    senders = torch.tensor([1, 1, 2, 0, 2, 4, 1, 3])
    order, taken = by_receiver(receivers, 5)
    edges = in_slots(senders, receivers, 5)
    assert sorted(order[taken].tolist()) == list(range(8))
    assert len(order) == GROUP * len(edges.receivers)
    assert edges.receivers.tolist() == [0, 1, 3, 3]  # five edges of atom 3 need two groups
    assert torch.equal(receivers[order[taken]], edges.receivers.repeat_interleave(GROUP)[taken])
    assert torch.equal(senders[order[taken]], edges.senders[taken])


def test_coefficients_follow_the_dtype():
    module = build("vectors", torch.float32)
    convolutions = FusedConvolutions({"it": module})
    assert convolutions.usable()
    assert by_groups(convolutions["it"], *inputs(module)).dtype == torch.float32
    module.double()
    assert convolutions.usable()
    arguments = inputs(module)
    found, expected = by_groups(convolutions["it"], *arguments), by_messages(module, *arguments)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.fixture(params=["sevenn", pytest.param("mace", marks=pytest.mark.mace)])
def potential(request):
    if request.param == "sevenn":
        return request.getfixturevalue("tiny_sevennet")().double()
    return MACEPotential(request.getfixturevalue("tiny_mace")()).double()


def test_potentials_use_it_and_say_the_same(potential, monkeypatch):
    """Energies, forces and gradients of a loss on forces, with and without; also beside atoms without neighbours."""
    graph = AtomGraph.from_atoms(structure(), potential.cutoff)
    assert potential._convolutions.usable()
    results, calls = [], []
    original = Convolution.__call__
    monkeypatch.setattr(Convolution, "__call__", lambda *inputs: calls.append(1) or original(*inputs))
    for fused in (True, False):
        if not fused:
            assert len(calls) == 2  # its layers
            monkeypatch.setattr(FusedConvolutions, "usable", lambda _: False)
        prediction = potential.predict(graph, create_graph=True)
        parameters = [parameter for _, parameter in potential.native_parameters(trainable_only=True)]
        loss = prediction.forces.square().sum() + prediction.stress.square().sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        results.append((prediction, [g for g in gradients if g is not None]))
    assert len(calls) == 2
    (ours, our_gradients), (theirs, their_gradients) = results
    assert len(our_gradients) == len(their_gradients) > 5
    for name in ("energies", "forces", "stress"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-11, atol=1e-11)
    for mine, native in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, native, rtol=1e-9, atol=1e-11 * float(native.abs().max() + 1))


def test_large_structures_in_chunks_say_the_same(tiny_sevennet, monkeypatch):
    """Also derivatives of forces, whose first backward pass makes again what was not kept."""
    potential = tiny_sevennet().double()
    graph = AtomGraph.from_atoms(structure(), potential.cutoff)
    results = []
    for largest in (10_000, 24):
        monkeypatch.setattr(arrangement, "LARGEST_CHUNK", largest)
        prediction = potential.predict(graph, create_graph=True)
        parameters = [parameter for _, parameter in potential.native_parameters(trainable_only=True)]
        gradients = torch.autograd.grad(prediction.forces.square().sum(), parameters, allow_unused=True)
        results.append([prediction.energies, prediction.forces, *(g for g in gradients if g is not None)])
        plain = potential.predict(graph)
        torch.testing.assert_close(plain.forces, prediction.forces, rtol=1e-12, atol=1e-12)
    for whole, chunks in zip(*results, strict=True):
        torch.testing.assert_close(chunks, whole, rtol=1e-10, atol=1e-12)


def test_chunks_are_whole_atoms():
    generator = torch.Generator().manual_seed(1)
    receivers = torch.randint(9, (60,), generator=generator)
    receivers = receivers[receivers != 4]  # one without neighbours
    edges = in_slots(torch.randint(9, (len(receivers),), generator=generator), receivers, 9)
    for slots in (1, 20, 33, 1000):
        parts = edges.chunks(slots)
        assert sum(part.atoms for _, part in parts) == 9
        assert torch.equal(torch.cat([part.senders for _, part in parts]), edges.senders)
        first = 0
        for where, part in parts:
            assert part.atoms == 1 or where.stop - where.start <= slots
            assert torch.equal(part.receivers + first, edges.receivers[where.start // GROUP : where.stop // GROUP])
            assert torch.equal(part.senders, edges.senders[where])
            first += part.atoms


def test_native_module_stays_as_it_was(potential, tmp_path):
    """Nothing of ours in what is exported."""
    before = {name: value.clone() for name, value in potential.native.state_dict().items()}
    graph = AtomGraph.from_atoms(structure(), potential.cutoff)
    energies = potential.predict(graph).energies
    after = potential.native.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    classes = {type(module).__module__.split(".")[0] for module in potential.native.modules()}
    assert "ase_finetune" not in classes
    again = copy.deepcopy(potential)
    assert torch.equal(again.predict(graph).energies, energies)
    potential.float()
    assert potential.predict(graph).energies.dtype == torch.float32
    assert torch.equal(again.predict(graph).energies, energies)


def structure():
    """A slab of three elements, one atom of it far from all others."""
    atoms = bulk("Si", cubic=True)
    atoms.numbers[:3] = (8, 8, 1)
    atoms.rattle(0.1, seed=3)
    atoms.pbc = (True, True, False)
    atoms.cell[2, 2] = 30.0
    atoms.positions[-1, 2] += 12.0  # no neighbours
    return atoms
