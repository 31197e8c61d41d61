from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.potentials import MorsePotential
from ase_finetune.potentials.base import choose_head
from ase_finetune.potentials.batched import batches_by_edges, predict_many
from tests import helpers
from tests.pretrained import pretrained

STRUCTURES = helpers.structures()
VOIGT = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]


def build_morse():
    return MorsePotential(
        [1, 6, 8, 14],
        depth=[0.2, 0.5, 0.7, 1.0],
        width=[1.4, 1.3, 1.6, 1.5],
        distance=[1.0, 1.5, 1.4, 2.4],
        shift=[-0.3, -0.1, 0.2, 0.5],
        cutoff=4.5,
    ).double()


def build_mace():
    from ase_finetune.potentials.mace import MACEPotential

    return MACEPotential(helpers.build_mace(seed=3)).double()


def build_sevennet():
    # Random weights make small energies: the scale brings forces to 0.1-1 eV/Å.
    return helpers.build_sevennet(seed=3, scale=200.0).double()


BUILD = {"morse": build_morse, "sevenn": build_sevennet, "mace": build_mace}
BACKENDS = [
    "morse",
    pytest.param("sevenn", marks=pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")),
    pytest.param("mace", marks=[pytest.mark.mace, pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")]),
]
_built: dict[str, object] = {}


def build(name):
    """A float64 potential, made once."""
    if name not in _built:
        _built[name] = BUILD[name]()
    return _built[name]


@pytest.fixture(params=BACKENDS)
def potential(request):
    return build(request.param)


def graph_of(atoms, potential):
    return AtomGraph.from_atoms(atoms, potential.cutoff)


def predict(atoms, potential, **options):
    return potential.predict(graph_of(atoms, potential), **options)


def derivative(change, potential, step=1e-3):
    """dE/dh of ``change(h)``, by central differences of fourth order."""
    graphs = [graph_of(change(h), potential) for h in (step, -step, 2 * step, -2 * step)]
    near, near_back, far, far_back = (p.energy.item() for p in predict_many(potential, graphs, forces=False))
    return (8 * (near - near_back) - (far - far_back)) / (12 * step)


def moved(atoms, index, axis, h):
    atoms = atoms.copy()
    atoms.positions[index, axis] += h
    return atoms


def strained(atoms, component, h):
    strain = np.zeros((3, 3))
    i, j = VOIGT[component]
    strain[i, j] += h / 2
    strain[j, i] += h / 2
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


def assert_equals_finite_differences(atoms, potential, components, tolerance, step=1e-3):
    prediction = predict(atoms, potential)
    forces = prediction.forces.numpy()
    scale = np.abs(forces).max()
    assert scale > 1e-3, "a test on zeros"
    for index, axis in components:
        expected = -derivative(lambda h, at=(index, axis): moved(atoms, *at, h), potential, step)
        assert forces[index, axis] == pytest.approx(expected, rel=0, abs=tolerance * max(1, scale)), (index, axis)
    if atoms.cell.rank < 3:
        assert prediction.stress.tolist() == [[0.0] * 6]
        return
    stress = prediction.stress[0].numpy()
    assert np.abs(stress).max() > 1e-5, "a test on zeros"
    for component in range(6):
        expected = derivative(lambda h, c=component: strained(atoms, c, h), potential, step) / atoms.get_volume()
        assert stress[component] == pytest.approx(expected, rel=0, abs=tolerance * max(1, scale)), VOIGT[component]


@pytest.mark.parametrize("name", ["bulk", "skewed", "slab", "molecule"])
def test_forces_and_stress_are_derivatives_of_the_energy(potential, name):
    atoms = STRUCTURES[name]
    everything = [(index, axis) for index in range(len(atoms)) for axis in range(3)]
    chosen = everything if isinstance(potential, MorsePotential) else everything[::4]
    assert_equals_finite_differences(atoms, potential, chosen, tolerance=1e-8)


def test_stress_of_a_cell_with_one_atom(potential):
    """Its edges end at its own images: no force, but a stress."""
    atoms = STRUCTURES["one_atom"]
    prediction = predict(atoms, potential)
    assert prediction.forces.abs().max() < 1e-10
    for component in range(6):
        expected = derivative(lambda h, c=component: strained(atoms, c, h), potential) / atoms.get_volume()
        assert prediction.stress[0, component].item() == pytest.approx(expected, rel=0, abs=1e-8)


@pytest.mark.sevenn
@pytest.mark.parametrize("name", ["bulk", "skewed", "slab", "molecule"])
def test_forces_and_stress_of_sevennet_0(name):
    potential = pretrained("7net-0", torch.float64)
    atoms = away_from(4.5, 5.0, STRUCTURES[name])
    assert_equals_finite_differences(atoms, potential, [(0, 0), (1, 2), (3, 1)], tolerance=1e-9, step=2e-4)


def away_from(*radii_and_atoms):
    """The structure, a little larger, so that a step carries no pair over a radius.

    SevenNet-0's cutoff function (XPLOR) jumps in its second derivative at 4.5 and 5 Å, where finite
    differences of the energy are only good to first order.
    """
    *radii, original = radii_and_atoms
    for growth in range(100):
        atoms = original.copy()
        factor = 1 + 0.001 * growth
        atoms.set_cell(atoms.cell[:] * factor)
        atoms.positions *= factor
        distances = AtomGraph.from_atoms(atoms, 6.0).edge_vectors().norm(dim=1)
        if min((distances - radius).abs().min() for radius in radii) > 0.0025:
            return atoms
    raise AssertionError("no such size")


def test_energies_are_differentiable_in_positions_and_cell(potential):
    graph = graph_of(STRUCTURES["skewed"], potential)
    positions, cell = graph.positions.clone().requires_grad_(), graph.cell.clone().requires_grad_()
    energy = potential(graph.replace(positions=positions, cell=cell)).sum()
    by_positions, by_cell = torch.autograd.grad(energy, (positions, cell))
    prediction = potential.predict(graph)
    torch.testing.assert_close(-by_positions, prediction.forces, rtol=0, atol=1e-10)
    # dE/d(strain) = sum_x x dE/dx + sum_a a dE/da over atoms and lattice vectors.
    virial = graph.positions.T @ by_positions + graph.cell[0].T @ by_cell[0]
    torch.testing.assert_close(virial, virial.T, rtol=0, atol=1e-9)
    expected = torch.stack([virial[i, j] for i, j in VOIGT]) / graph.volume
    torch.testing.assert_close(expected[None], prediction.stress, rtol=0, atol=1e-10)


def test_energy_is_the_sum_of_the_energies(potential):
    prediction = predict(STRUCTURES["bulk"], potential)
    assert prediction.energies.shape == (8,)
    torch.testing.assert_close(prediction.energy, prediction.energies.sum()[None])
    alone = predict(STRUCTURES["bulk"], potential, forces=False, stress=False)
    assert torch.equal(alone.energies, prediction.energies)
    assert torch.equal(alone.energy, prediction.energy)
    assert alone.forces is None
    assert alone.stress is None


def test_only_what_is_asked_for(potential):
    atoms = STRUCTURES["skewed"]
    full = predict(atoms, potential)
    forces, stress = predict(atoms, potential, stress=False), predict(atoms, potential, forces=False)
    assert forces.stress is None
    assert torch.equal(forces.forces, full.forces)
    assert stress.forces is None
    assert torch.equal(stress.stress, full.stress)


@pytest.mark.parametrize("max_edges", [1, 300, 10**6])
def test_batch_equals_one_by_one(potential, max_edges):
    graphs = [graph_of(atoms, potential) for atoms in STRUCTURES.values()]
    calls = []
    many = predict_many(potential, graphs, max_edges=max_edges, on_structure=lambda: calls.append(1))
    assert len(many) == len(calls) == len(graphs)
    for graph, one in zip(graphs, many, strict=True):
        alone = potential.predict(graph)
        for field in ("energies", "energy", "forces", "stress"):
            torch.testing.assert_close(getattr(one, field), getattr(alone, field), rtol=0, atol=1e-10)


def test_batches_are_bounded_by_edges():
    graphs = [graph_of(atoms, build("morse")) for atoms in STRUCTURES.values()] * 3
    batches = batches_by_edges(graphs, 500)
    assert sorted(index for batch in batches for index in batch) == list(range(len(graphs)))
    sizes = [sum(graphs[index].num_edges for index in batch) for batch in batches]
    assert all(size <= 500 or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
    assert len(batches) < len(graphs)
    with pytest.raises(InputError, match="max_edges must be positive, got 0"):
        batches_by_edges(graphs, 0)
    assert predict_many(build("morse"), []) == []


def test_isolated_atom(potential):
    prediction = predict(STRUCTURES["isolated"], potential)
    assert torch.isfinite(prediction.energy).all()
    assert prediction.forces.tolist() == [[0.0] * 3]
    assert prediction.stress.tolist() == [[0.0] * 6]
    # In a box it has a stress, and that is zero.
    atoms = Atoms("O", positions=[(0, 0, 0)], cell=[20, 20, 20], pbc=True)
    assert predict(atoms, potential).energy.item() == pytest.approx(prediction.energy.item(), abs=1e-12)
    assert predict(atoms, potential).stress.tolist() == [[0.0] * 6]


def test_isolated_atom_keeps_a_graph_when_asked(potential):
    graph = collate([graph_of(STRUCTURES[name], potential) for name in ("isolated", "skewed")])
    prediction = potential.predict(graph, create_graph=True)
    assert prediction.energy.requires_grad
    assert prediction.forces[0].tolist() == [0.0] * 3


class TestSecondDerivatives:
    def loss(self, potential, graph, **options):
        prediction = potential.predict(graph, **options)
        return prediction.forces.square().sum() + 10 * prediction.stress.square().sum() + 0.1 * prediction.energy.sum()

    def test_parameters(self, potential):
        graph = graph_of(STRUCTURES["skewed"], potential)
        loss = self.loss(potential, graph, create_graph=True)
        names = [name for name, _ in potential.native_parameters(trainable_only=True)]
        parameters = [parameter for _, parameter in potential.native_parameters(trainable_only=True)]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        rng = np.random.default_rng(0)
        checked = 0
        for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
            if gradient is None or gradient.abs().max() == 0:
                continue
            at = int(rng.choice(np.flatnonzero(gradient.numpy())))
            expected = self.difference(potential, graph, parameter, at)
            assert gradient.flatten()[at].item() == pytest.approx(expected, rel=1e-6, abs=1e-7), name
            checked += 1
        assert checked >= 4

    def difference(self, potential, graph, parameter, at, step=1e-4):
        values = []
        flat = parameter.detach().view(-1)
        original = flat[at].item()
        for h in (step, -step, 2 * step, -2 * step):
            flat[at] = original + h
            values.append(self.loss(potential, graph).item())
        flat[at] = original
        return (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step)

    def test_positions(self, potential):
        """Gradients through forces reach the positions: what trajectories need."""
        graph = graph_of(STRUCTURES["skewed"], potential)
        positions = graph.positions.clone().requires_grad_()
        forces = potential.predict(graph.replace(positions=positions), create_graph=True).forces
        direction = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3)))
        (product,) = torch.autograd.grad((forces * direction).sum(), positions)
        step = 1e-4
        ahead, back = (
            potential.predict(graph.replace(positions=graph.positions + sign * step * direction)).forces
            for sign in (1, -1)
        )
        # The Hessian is symmetric, so J^T v = J v.
        expected = (ahead - back) / (2 * step)
        torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))

    def test_without_create_graph_nothing_is_kept(self, potential):
        graph = graph_of(STRUCTURES["skewed"], potential)
        free, attached = (
            potential.predict(g) for g in (graph, graph.replace(positions=graph.positions.clone().requires_grad_()))
        )
        for prediction in (free, attached):
            fields = (prediction.energies, prediction.energy, prediction.forces, prediction.stress)
            assert not any(value.requires_grad for value in fields)
        assert torch.equal(free.forces, attached.forces)

    def test_training_flag_does_not_matter(self, potential):
        graph = graph_of(STRUCTURES["skewed"], potential)
        was = potential.training
        try:
            one, two = (potential.train(mode).predict(graph) for mode in (True, False))
        finally:
            potential.train(was)
        assert not one.forces.requires_grad
        assert torch.equal(one.forces, two.forces)

    def test_inside_no_grad(self, potential):
        graph = graph_of(STRUCTURES["skewed"], potential)
        with torch.no_grad():
            inside = potential.predict(graph).forces
            assert not torch.is_grad_enabled()
        assert torch.equal(inside, potential.predict(graph).forces)


class TestParametersAreLeftAlone:
    def test_frozen_and_trainable_stay_so(self):
        potential = build_morse()
        potential.native["depth"].requires_grad_(False)
        predict(STRUCTURES["bulk"], potential)
        assert {n: p.requires_grad for n, p in potential.native_parameters()} == {
            "depth": False,
            "width": True,
            "distance": True,
            "shift": True,
        }
        assert [name for name, _ in potential.native_parameters(trainable_only=True)] == ["distance", "shift", "width"]
        assert all(parameter.grad is None for parameter in potential.parameters())

    def test_after_an_exception_too(self):
        class Broken(MorsePotential):
            def atomic_energies(self, *_):
                assert not any(parameter.requires_grad for parameter in self.parameters())
                raise RuntimeError("out of memory")

        potential = Broken([14]).double()
        with pytest.raises(RuntimeError, match="out of memory"):
            predict(STRUCTURES["bulk"], potential)
        assert all(parameter.requires_grad for parameter in potential.parameters())

    def test_gradients_already_there_are_kept(self, potential):
        potential.zero_grad()
        graph = graph_of(STRUCTURES["skewed"], potential)
        potential(graph).sum().backward()
        before = {n: p.grad.clone() for n, p in potential.named_parameters() if p.grad is not None}
        potential.predict(graph)
        assert before
        assert all(torch.equal(p.grad, before[n]) for n, p in potential.named_parameters() if n in before)
        potential.zero_grad()


def test_unknown_element_is_named():
    potential = build("morse")
    with pytest.raises(InputError, match=r"atom 1 is Ge, an element this model does not know; it knows H, C, O, Si"):
        potential.check_numbers([14, 32, 33])
    graph = AtomGraph.from_atoms(Atoms("SiHeO", positions=np.eye(3)), 4.0)
    with pytest.raises(InputError, match="atom 1 is He"):
        potential.check_numbers(graph)
    potential.check_numbers(graph_of(STRUCTURES["molecule"], potential))
    potential.check_numbers([])


def test_choice_of_a_head():
    assert choose_head((), None) is None
    assert choose_head(("one",), None) == "one"
    assert choose_head(("one", "two"), "two") == "two"
    with pytest.raises(InputError, match="heads are 'one', 'two'; head=None"):
        choose_head(("one", "two"), None)
    with pytest.raises(InputError, match="heads are none; head='x'"):
        choose_head((), "x")


class TestMorse:
    def test_energy_of_a_pair(self):
        potential = MorsePotential([8, 14], depth=[0.5, 2.0], width=[1.0, 2.0], distance=[1.0, 2.0], shift=[0.1, 0.2])
        atoms = Atoms("SiO", positions=[(0, 0, 0), (0, 0, 1.8)])
        x = 1.8 / 5.0
        smooth = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
        pair = ((1 - np.exp(-1.5 * (1.8 - 1.5))) ** 2 - 1) * smooth  # depth sqrt(0.5 * 2)
        prediction = predict(atoms, potential.double())
        assert prediction.energy.item() == pytest.approx(pair + 0.3, abs=1e-7)
        assert prediction.energies.tolist() == pytest.approx([pair / 2 + 0.2, pair / 2 + 0.1], abs=1e-7)

    def test_smooth_at_the_cutoff(self):
        potential = MorsePotential([14], cutoff=5.0).double()
        for r in (4.999, 5.001):
            prediction = predict(Atoms("Si2", positions=[(0, 0, 0), (0, 0, r)]), potential)
            assert abs(prediction.energy.item()) < 1e-9
            assert prediction.forces.abs().max() < 1e-6

    def test_shifted_energies(self):
        potential = build_morse()
        before = predict(STRUCTURES["molecule"], potential).energy.item()
        potential.shift_energies({1: 0.5, 8: -2.0})  # ethanol: 6 H, 1 O
        assert predict(STRUCTURES["molecule"], potential).energy.item() == pytest.approx(before + 1.0, abs=1e-10)

    def test_wrong_arguments(self):
        with pytest.raises(InputError, match="cutoff must be positive and finite, got 0"):
            MorsePotential([14], cutoff=0)
        with pytest.raises(InputError, match="width has 3 values for 2 elements"):
            MorsePotential([8, 14], width=[1, 2, 3])


# Symmetries, on random structures. The seed stands for everything random in an example.

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=6, deadline=None, derandomize=True, database=None)
KNOWN = [1, 6, 8, 14]


def random_structure(rng):
    """4 to 6 atoms at least 0.8 Å apart in a random triclinic cell, periodic in any directions."""
    cell = np.diag(rng.uniform(4.0, 5.5, size=3)) + rng.uniform(-1.0, 1.0, size=(3, 3))
    grid = np.array([(i, j, k) for i in range(2) for j in range(2) for k in range(2)])
    sites = grid[rng.choice(8, size=rng.integers(4, 7), replace=False)] / 2
    scaled = sites + rng.uniform(-0.08, 0.08, size=sites.shape)
    pbc = rng.random(3) < 0.7
    return Atoms(rng.choice(KNOWN, size=len(sites)), scaled_positions=scaled, cell=cell, pbc=pbc)


def physics(atoms, potential):
    prediction = predict(atoms, potential)
    stress = voigt_6_to_full_3x3_stress(prediction.stress[0].numpy())
    return prediction.energies.numpy(), prediction.forces.numpy(), stress


def assert_same(found, expected):
    for name, one, other in zip(("energies", "forces", "stress"), found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * max(1, np.abs(other).max()), err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@FEW
@given(seed=SEEDS)
def test_rotation(backend, seed):
    rng, potential = np.random.default_rng(seed), build(backend)
    atoms = random_structure(rng)
    rotation = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    energies, forces, stress = physics(atoms, potential)
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ rotation.T)
    turned.positions = atoms.positions @ rotation.T
    assert_same(physics(turned, potential), (energies, forces @ rotation.T, rotation @ stress @ rotation.T))


@pytest.mark.parametrize("backend", BACKENDS)
@FEW
@given(seed=SEEDS)
def test_translation_and_periodic_images(backend, seed):
    rng, potential = np.random.default_rng(seed), build(backend)
    atoms = random_structure(rng)
    expected = physics(atoms, potential)
    moved = atoms.copy()
    moved.positions += rng.normal(scale=5.0, size=3)
    moved.positions += (rng.integers(-3, 4, size=(len(atoms), 3)) * atoms.pbc) @ atoms.cell[:]
    assert_same(physics(moved, potential), expected)
    moved.wrap()
    assert_same(physics(moved, potential), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@FEW
@given(seed=SEEDS)
def test_permutation(backend, seed):
    rng, potential = np.random.default_rng(seed), build(backend)
    atoms = random_structure(rng)
    energies, forces, stress = physics(atoms, potential)
    order = rng.permutation(len(atoms))
    assert_same(physics(atoms[order], potential), (energies[order], forces[order], stress))


@pytest.mark.parametrize("backend", BACKENDS)
@FEW
@given(seed=SEEDS)
def test_supercell(backend, seed):
    rng, potential = np.random.default_rng(seed), build(backend)
    atoms = random_structure(rng)
    atoms.pbc = True
    energies, forces, stress = physics(atoms, potential)
    axis = int(rng.integers(3))
    repeats = [1, 1, 1]
    repeats[axis] = 2
    assert_same(physics(atoms.repeat(repeats), potential), (np.tile(energies, 2), np.tile(forces, (2, 1)), stress))


@pytest.mark.parametrize("backend", BACKENDS)
@FEW
@given(seed=SEEDS)
def test_forces_add_up_to_nothing(backend, seed):
    rng, potential = np.random.default_rng(seed), build(backend)
    _, forces, stress = physics(random_structure(rng), potential)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-10 * max(1, np.abs(forces).max()))
    np.testing.assert_allclose(full_3x3_to_voigt_6_stress(stress), full_3x3_to_voigt_6_stress(stress.T), atol=1e-12)


def test_another_choice_of_lattice_vectors(potential):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    sheared = atoms.copy()
    sheared.cell[1] += 2 * sheared.cell[0]
    sheared.cell[2] -= sheared.cell[1]
    assert_same(physics(sheared, potential), physics(atoms, potential))
