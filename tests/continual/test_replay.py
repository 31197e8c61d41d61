from __future__ import annotations

import pytest
import torch
from ase.build import molecule

from ase_finetune.continual import pseudo_label, replay
from ase_finetune.files import read_sealed, write_sealed
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.batched import predict_many
from ase_finetune.potentials.mace import MACEPotential
from tests import helpers, morse


@pytest.fixture
def counted(monkeypatch):
    """Numbers of structures that were evaluated, one entry per evaluation."""
    calls = []

    def predict(potential, graphs, **options):
        calls.append(len(graphs))
        return predict_many(potential, graphs, **options)

    monkeypatch.setattr(replay, "predict_many", predict)
    return calls


def bare(structures, potential):
    return [AtomGraph.from_atoms(atoms, potential.cutoff) for atoms in structures]


def same_labels(one, two):
    names = ("energy", "forces", "stress", "energy_mask", "forces_mask", "stress_mask")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(one, two, strict=True) for name in names)


@pytest.fixture
def potential():
    return morse.pretrained()


@pytest.fixture
def structures():
    """Of different sizes, not in the order of their size."""
    return [morse.oxide(1, 1)[0][:3], *morse.silicon(2, 2), morse.oxide(1, 3)[0][:5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_are_the_predictions(potential, structures, dtype):
    potential = potential.to(dtype)
    graphs = bare(structures, potential)
    calls = []
    made = pseudo_label(potential, graphs, on_structure=lambda: calls.append(1))
    assert len(calls) == len(made) == len(graphs)
    for graph, labelled in zip(graphs, made, strict=True):
        prediction = potential.predict(graph)
        assert torch.equal(labelled.positions, graph.positions)
        for name in ("energy", "forces", "stress"):
            label = getattr(labelled, name)
            assert label.dtype == torch.float64
            torch.testing.assert_close(label, getattr(prediction, name).double(), rtol=1e-5, atol=1e-6)
            assert getattr(labelled, f"{name}_mask").all()
        assert float(labelled.forces.abs().max()) > 0.1
    assert graphs[0].energy is None


def test_molecule_has_no_stress_label(potential):
    atoms = molecule("O2")
    (labelled,) = pseudo_label(potential, bare([atoms], potential))
    assert labelled.energy_mask.all()
    assert labelled.forces_mask.all()
    assert not labelled.stress_mask.any()


def test_cache_is_used_the_second_time(potential, structures, counted, tmp_path):
    graphs = bare(structures, potential)
    first = pseudo_label(potential, graphs, cache=tmp_path / "deep" / "cache")
    second = pseudo_label(potential, graphs, cache=tmp_path / "deep" / "cache")
    assert counted == [4]
    assert same_labels(first, second)
    assert [path.suffix for path in (tmp_path / "deep" / "cache").iterdir()] == [".safetensors"]


def test_without_cache_nothing_is_kept(potential, structures, counted, own_cache):
    graphs = bare(structures, potential)
    pseudo_label(potential, graphs)
    pseudo_label(potential, graphs)
    assert counted == [4, 4]
    assert not list(own_cache.rglob("*"))


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_torn_file_is_only_a_miss(potential, structures, counted, tmp_path, content):
    graphs = bare(structures, potential)
    first = pseudo_label(potential, graphs, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    second = pseudo_label(potential, graphs, cache=tmp_path)
    assert counted == [4, 4]
    assert same_labels(first, second)
    assert file.read_bytes() == whole


def changed_labels(labels):
    """Whole files that are not the labels of these structures."""
    yield {name: value for name, value in labels.items() if name != "stress"}
    yield labels | {"charges": torch.zeros(2)}
    yield labels | {"forces": labels["forces"][:-1]}
    yield labels | {"energy": labels["energy"].repeat(2)}
    yield labels | {"stress": labels["stress"][:, :3]}
    yield labels | {"energy": torch.full_like(labels["energy"], float("nan"))}
    yield labels | {"forces": labels["forces"].long()}


def test_labels_of_something_else_are_a_miss(potential, structures, counted, tmp_path):
    graphs = bare(structures, potential)
    first = pseudo_label(potential, graphs, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    labels, _ = read_sealed(file, kind="labels-1")
    for number, changed in enumerate(changed_labels(labels), start=2):
        write_sealed(file, changed, {}, kind="labels-1")
        assert same_labels(pseudo_label(potential, graphs, cache=tmp_path), first)
        assert len(counted) == number
    assert same_labels(pseudo_label(potential, graphs, cache=tmp_path), first)
    assert len(counted) == number


def test_cache_that_cannot_be_written_costs_only_time(potential, structures, counted, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    made = pseudo_label(potential, bare(structures, potential), cache=blocker / "cache")
    assert len(made) == 4
    assert counted == [4]
    assert blocker.read_text() == "in the way"


def changed_position(atoms):
    atoms.positions[0, 0] += 1e-3


def changed_cell(atoms):
    atoms.cell[0, 0] += 1e-3


def changed_element(atoms):
    atoms.numbers[0] = 8 if atoms.numbers[0] == 14 else 14


def changed_periodicity(atoms):
    atoms.pbc = [True, True, False]


@pytest.mark.parametrize("change", [changed_position, changed_cell, changed_element, changed_periodicity])
def test_another_structure_misses(potential, structures, counted, tmp_path, change):
    pseudo_label(potential, bare(structures, potential), cache=tmp_path)
    change(structures[1])
    made = pseudo_label(potential, bare(structures, potential), cache=tmp_path)
    assert counted == [4, 4]
    assert same_labels(made, pseudo_label(potential, bare(structures, potential)))


def test_another_model_misses(potential, structures, counted, tmp_path):
    pseudo_label(potential, bare(structures, potential), cache=tmp_path)
    pseudo_label(morse.truth(), bare(structures, potential), cache=tmp_path)
    shorter = morse.pretrained()
    shorter.cutoff = 3.5
    made = pseudo_label(shorter, bare(structures, shorter), cache=tmp_path)
    assert counted == [4, 4, 4]
    assert same_labels(made, pseudo_label(shorter, bare(structures, shorter)))


def test_another_dtype_misses(structures, counted, tmp_path):
    for dtype in (torch.float32, torch.float64):
        potential = morse.pretrained().to(dtype)
        pseudo_label(potential, bare(structures, potential), cache=tmp_path)
    assert counted == [4, 4]


@pytest.mark.mace
@pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")
def test_another_head_or_reference_energy_misses(counted, tmp_path):
    """MACE keeps its reference energies in buffers, and its heads share the parameters."""
    potential = MACEPotential(helpers.build_mace(heads=["a", "b"]), "a")
    graphs = bare(morse.silicon(1, 1), potential)
    energies = [float(pseudo_label(potential, graphs, cache=tmp_path)[0].energy)]
    potential.shift_energies({14: 1.0})
    energies.append(float(pseudo_label(potential, graphs, cache=tmp_path)[0].energy))
    assert energies[1] - energies[0] == pytest.approx(8.0, abs=1e-3)
    other = MACEPotential(helpers.build_mace(heads=["a", "b"]), "b")
    pseudo_label(other, graphs, cache=tmp_path)
    assert counted == [1, 1, 1]
