from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase import Atoms

from ase_finetune.continual import FisherInformation, empirical_fisher, gaussian_fisher, pseudo_label
from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph
from ase_finetune.losses import Loss
from ase_finetune.potentials.mace import MACEPotential
from tests import helpers, morse

needs_mace = pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")
needs_sevenn = pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")
EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
TINY = [
    "morse",
    pytest.param("sevennet", marks=[pytest.mark.sevenn, needs_sevenn]),
    pytest.param("mace", marks=[pytest.mark.mace, needs_mace]),
]


def build(name):
    if name == "sevennet":
        return helpers.build_sevennet()
    return MACEPotential(helpers.build_mace()) if name == "mace" else morse.pretrained()


def labelled_graphs(potential):
    """Four structures of Si and O with labels that no potential here gives, one without stress."""
    structures = morse.labelled([*morse.silicon(2, 1), *morse.oxide(1, 2)])
    made = morse.graphs(structures, potential)
    return [*made, *morse.graphs(morse.labelled(morse.silicon(1, 3)), potential, labels=("energy", "forces"))]


def reference_loop(potential, graphs, loss):
    """The definition: one backward pass per structure, squared, averaged."""
    sums = {
        name: torch.zeros_like(p, dtype=torch.float64) for name, p in potential.native_parameters(trainable_only=True)
    }
    for graph in graphs:
        potential.zero_grad(set_to_none=True)
        loss(potential.predict(graph, create_graph=True), graph).backward()
        for name, parameter in potential.native_parameters(trainable_only=True):
            if parameter.grad is not None:
                sums[name] += parameter.grad.double() ** 2
    potential.zero_grad(set_to_none=True)
    return {name: value / len(graphs) for name, value in sums.items()}


def exact_gaussian(potential, graphs, energy_scale, forces_scale):
    """The diagonal from the full Jacobian, averaged over the structures."""
    names = [name for name, _ in potential.native_parameters()]
    parameters = [parameter for _, parameter in potential.native_parameters()]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for graph in graphs:
        count = len(graph.numbers)
        prediction = potential.predict(graph, create_graph=True)
        scaled = torch.cat(
            [
                prediction.energy / (count * energy_scale),
                prediction.forces.flatten() / (forces_scale * (3 * count) ** 0.5),
            ]
        )
        for value in scaled:
            rows = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            total = [t if row is None else t + row**2 for t, row in zip(total, rows, strict=True)]
    return dict(zip(names, [t / len(graphs) for t in total], strict=True))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_empirical_equals_a_plain_loop(name, dtype, tolerance):
    potential = build(name).to(dtype)
    graphs = labelled_graphs(potential)
    loss = Loss("mse", stress_weight=0.1)
    calls = []
    fisher = empirical_fisher(potential, graphs, loss, on_structure=lambda: calls.append(1))
    assert len(calls) == len(graphs)
    expected = reference_loop(potential, graphs, loss)
    assert fisher.values.keys() == expected.keys()
    largest = max(float(value.max()) for value in expected.values())
    assert largest > 0
    for key, value in expected.items():
        floor = tolerance * float(value.max()) + 1e-14 * largest
        torch.testing.assert_close(fisher.values[key].double(), value, rtol=tolerance, atol=floor)
    assert fisher.metadata == {"kind": "empirical", "loss": loss.describe(), "structures": 4}


def test_empirical_default_is_the_published_loss():
    potential = morse.pretrained()
    graphs = labelled_graphs(potential)
    default, published = empirical_fisher(potential, graphs), empirical_fisher(potential, graphs, Loss())
    assert all(torch.equal(default.values[name], published.values[name]) for name in published.values)
    assert default.metadata["loss"] == Loss().describe()


def test_empirical_is_a_mean_not_a_square_of_the_mean():
    """Two structures with opposite residuals: the gradients cancel, their squares do not."""
    potential = morse.pretrained().double()
    graph = AtomGraph.from_atoms(morse.silicon(1, 1)[0], potential.cutoff)
    energy = float(potential.predict(graph).energy[0])
    loss = Loss("mse", forces_weight=0, stress_weight=0)
    pair = empirical_fisher(potential, [graph.with_labels(energy=energy + sign) for sign in (1, -1)], loss)
    single = empirical_fisher(potential, [graph.with_labels(energy=energy + 1)], loss)
    for name, value in single.values.items():
        torch.testing.assert_close(pair.values[name], value, rtol=1e-10, atol=0)
    # dL/ds = 2 * (-1/8) * 1 for the energy shift of silicon: 8 atoms, residual -1/8 eV/atom
    assert single.values["shift"].tolist() == pytest.approx([0.0, (2 / 8) ** 2], rel=1e-9)


def test_empirical_leaves_the_potential_as_it_was():
    potential = morse.pretrained()
    before = morse.weights(potential)
    empirical_fisher(potential, labelled_graphs(potential))
    assert all(torch.equal(value, before[name]) for name, value in morse.weights(potential).items())
    assert all(parameter.grad is None for parameter in potential.parameters())


def test_frozen_parameters_have_none():
    potential = morse.pretrained()
    potential.native["shift"].requires_grad_(False)
    graphs = labelled_graphs(potential)
    assert set(empirical_fisher(potential, graphs).values) == {"depth", "width", "distance"}
    assert set(gaussian_fisher(potential, graphs).values) == {"depth", "width", "distance"}
    for parameter in potential.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameters"):
        gaussian_fisher(potential, graphs)


def four_graphs(potential):
    graphs = labelled_graphs(potential)
    return [
        graphs[index % len(graphs)].replace(energy=graphs[index % len(graphs)].energy + index) for index in range(4)
    ]


@pytest.mark.parametrize("probes", [4, 5, 7, 20])
def test_as_many_probes_as_structures_or_more_leave_no_cross_terms(probes):
    potential = morse.pretrained().double()
    graphs = four_graphs(potential)
    exact, probed = empirical_fisher(potential, graphs), empirical_fisher(potential, graphs, probes=probes, seed=3)
    for name, value in exact.values.items():
        torch.testing.assert_close(probed.values[name], value, rtol=1e-10, atol=1e-14 * float(value.max()))
    assert probed.metadata["probes"] == probes
    assert "probes" not in exact.metadata


@pytest.mark.parametrize("probes", [1, 2])
def test_random_signs_are_unbiased(probes):
    """The mean over seeds comes to the exact diagonal; a single one, or a sum without signs, is off."""
    potential = morse.pretrained().double()
    graphs = four_graphs(potential)
    exact = flat(empirical_fisher(potential, graphs))
    runs = torch.stack([flat(empirical_fisher(potential, graphs, probes=probes, seed=seed)) for seed in range(300)])
    error = runs.std(dim=0) / 300**0.5
    assert ((runs.mean(dim=0) - exact).abs() <= 4 * error + 1e-10 * exact).all()
    noisy = runs.std(dim=0) > 1e-3 * exact
    assert noisy.any()  # there are cross terms to get rid of
    assert error[noisy].max() < exact.max()


def test_probes_in_batches_of_one_are_exact():
    potential = morse.pretrained().double()
    graphs = four_graphs(potential)
    alone = empirical_fisher(potential, graphs, probes=1, max_edges=1)
    torch.testing.assert_close(flat(alone), flat(empirical_fisher(potential, graphs)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("probes", [0, -1])
def test_probes_must_be_positive(probes):
    potential = morse.pretrained()
    with pytest.raises(InputError, match="probes must be positive"):
        empirical_fisher(potential, labelled_graphs(potential), probes=probes)


def flat_values(values):
    return torch.cat([value.flatten() for value in values.values()])


def flat(fisher):
    return flat_values(fisher.values)


@pytest.mark.parametrize("max_edges", [1, 10_000])
def test_gaussian_is_unbiased(max_edges):
    """Every entry within a few standard errors of the exact diagonal, alone and two in a batch."""
    potential = morse.pretrained().double()
    structures = [morse.silicon(1, 1)[0][:3], morse.oxide(1, 2)[0][:4]]
    graphs = [AtomGraph.from_atoms(atoms, potential.cutoff) for atoms in structures]
    exact = exact_gaussian(potential, graphs, 0.05, 0.2)
    draws = 1000
    fisher = gaussian_fisher(potential, graphs, energy_scale=0.05, forces_scale=0.2, draws=draws, max_edges=max_edges)
    for name, value in exact.items():
        # (dq/dtheta)^2 is the square of a normal number: its variance is twice its mean squared. A batch
        # adds the cross terms of its two structures, and one with half the weight of two counts double.
        error = value * (2 / draws) ** 0.5 * 2
        deviation = (fisher.values[name] - value).abs()
        assert (deviation <= 4 * error + 1e-12).all(), (name, deviation / error)
        assert (deviation <= 0.3 * value + 1e-12).all(), name
    assert fisher.metadata["structures"] == 2
    assert fisher.metadata["draws"] == draws


def test_gaussian_forces_alone():
    """Two atoms on a line: all parameters share the random numbers, so one ratio tells the factor of the forces."""
    potential = morse.pretrained().double()
    dimer = AtomGraph.from_atoms(Atoms("Si2", positions=[(0, 0, 0), (0, 0, 2.2)]), potential.cutoff)
    exact = flat_values(exact_gaussian(potential, [dimer], 1e6, 0.1))
    draws = 600
    found = flat(gaussian_fisher(potential, [dimer], energy_scale=1e6, forces_scale=0.1, draws=draws))
    matter = exact > 1e-6 * exact.max()
    assert matter.sum() == 3
    ratio = (found / exact)[matter]
    torch.testing.assert_close(ratio, ratio[0].expand(3), rtol=1e-6, atol=0)
    assert float(ratio[0]) == pytest.approx(1, abs=3.5 * (2 / draws) ** 0.5)


def test_gaussian_scales():
    """Energy alone: the shift of an element has (n_z / (N s_E))^2, exactly known in the mean."""
    potential = morse.pretrained().double()
    graph = AtomGraph.from_atoms(morse.oxide(1, 2)[0], potential.cutoff)
    exact = exact_gaussian(potential, [graph], 0.02, 0.1)
    assert exact["shift"].tolist() == pytest.approx([(0.5 / 0.02) ** 2] * 2, rel=1e-10)
    small, large = (
        gaussian_fisher(potential, [graph], energy_scale=scale, forces_scale=scale * 5, draws=3)
        for scale in (0.02, 0.2)
    )
    for name, value in small.values.items():
        torch.testing.assert_close(large.values[name] * 100, value, rtol=1e-9, atol=0)


def test_gaussian_needs_no_labels_and_ignores_them():
    potential = morse.pretrained()
    graphs = labelled_graphs(potential)
    bare = gaussian_fisher(potential, [graph.without_labels() for graph in graphs], draws=2)
    labelled = gaussian_fisher(potential, graphs, draws=2)
    assert all(torch.equal(bare.values[name], labelled.values[name]) for name in bare.values)


def test_gaussian_seed():
    potential = morse.pretrained()
    graphs = labelled_graphs(potential)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = gaussian_fisher(potential, graphs, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global random numbers were moved"
    torch.manual_seed(2)
    two, other = gaussian_fisher(potential, graphs, seed=5), gaussian_fisher(potential, graphs, seed=6)
    assert all(torch.equal(one.values[name], two.values[name]) for name in one.values)
    assert not torch.equal(one.values["depth"], other.values["depth"])
    assert one.metadata["seed"] == 5


def test_gaussian_progress():
    potential = morse.pretrained()
    calls = []
    gaussian_fisher(potential, labelled_graphs(potential), draws=3, on_structure=lambda: calls.append(1))
    assert len(calls) == 12


def test_gaussian_defaults():
    potential = morse.pretrained()
    graphs = labelled_graphs(potential)
    default, given = (
        gaussian_fisher(potential, graphs),
        gaussian_fisher(potential, graphs, energy_scale=0.02, forces_scale=0.1, draws=1, seed=0),
    )
    assert all(torch.equal(value, given.values[name]) for name, value in default.values.items())
    assert default.metadata == given.metadata
    scales = {"energy_scale": 0.02, "forces_scale": 0.1}
    assert default.metadata == {"kind": "gaussian", **scales, "draws": 1, "seed": 0, "structures": 4}


@pytest.mark.parametrize(
    "options",
    [{"energy_scale": 0.0}, {"energy_scale": -0.1}, {"forces_scale": 0.0}, {"forces_scale": -1.0}, {"draws": 0}],
)
def test_gaussian_invalid_options(options):
    with pytest.raises(InputError, match="must be positive"):
        gaussian_fisher(morse.pretrained(), labelled_graphs(morse.pretrained()), **options)


@pytest.mark.parametrize("estimate", [empirical_fisher, gaussian_fisher])
def test_no_structures(estimate):
    with pytest.raises(InputError, match="at least one structure"):
        estimate(morse.pretrained(), [])


def test_empirical_without_labels():
    potential = morse.pretrained()
    with pytest.raises(InputError, match="no labels"):
        empirical_fisher(potential, [graph.without_labels() for graph in labelled_graphs(potential)])


def test_normalized():
    fisher = FisherInformation({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[6.0]])}, {"kind": "gaussian"})
    assert fisher.mean == pytest.approx(3.0)
    normalized = fisher.normalized()
    assert normalized.mean == pytest.approx(1.0)
    assert normalized.values["b"].tolist() == [[2.0]]
    assert normalized.metadata == {"kind": "gaussian", "divided_by_mean": 3.0}
    assert fisher.values["b"].tolist() == [[6.0]]


def test_zero_on_pseudo_labels_suggests_the_label_free_form():
    potential = morse.pretrained()
    graphs = [AtomGraph.from_atoms(atoms, potential.cutoff) for atoms in morse.silicon(2, 1)]
    fisher = empirical_fisher(potential, pseudo_label(potential, graphs))
    # The labels were made in one batch, so the residuals may be of the order of rounding.
    assert fisher.mean < 1e-10 * gaussian_fisher(potential, graphs).mean
    zero = FisherInformation({name: torch.zeros_like(value) for name, value in fisher.values.items()})
    with pytest.raises(InputError, match=r"zero everywhere.*label-free"):
        zero.normalized()


def test_shares():
    fisher = FisherInformation({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([9.0]), "c": torch.zeros(4)})
    assert list(fisher.shares()) == ["b", "a", "c"]
    assert fisher.shares() == pytest.approx({"b": 0.75, "a": 0.25, "c": 0.0})
    assert FisherInformation({"a": torch.zeros(2)}).shares() == {"a": 0.0}


@pytest.mark.sevenn
@needs_sevenn
def test_the_bessel_frequencies_rule_sevennet0(record_property):
    """The published pattern, from a handful of DFT frames and the published loss."""
    from ase_finetune.data import read_frames
    from ase_finetune.potentials import load_potential

    potential, _ = load_potential("7net-0")
    frames = read_frames(EXAMPLES / "mptrj_replay.extxyz")
    small = frames.select([index for index, frame in enumerate(frames) if len(frame.atoms) <= 6][:8])
    shares = empirical_fisher(potential, small.graphs(potential.cutoff)).shares()
    record_property("bessel_share", shares["edge_embedding.basis_function.coeffs"])
    assert next(iter(shares)) == "edge_embedding.basis_function.coeffs"
    assert shares["edge_embedding.basis_function.coeffs"] > 0.8
