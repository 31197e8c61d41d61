from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ase_finetune.errors import CheckpointError, InputError, OutputError, OutputExistsError
from ase_finetune.files import file_hash
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials import MorsePotential, save_potential
from ase_finetune.potentials.backends import backend_class
from ase_finetune.potentials.formats import _UPGRADES, CONFIG_FILE, FORMAT_VERSION, write_description
from ase_finetune.potentials.mace import MACEPotential
from ase_finetune.potentials.storage import load_potential_dir, potential_hash
from tests import helpers

METADATA = {"base_model": "x", "reference_offsets": {"Si": 0.1}, "errors": [1, 2.5, None]}


@pytest.fixture(scope="module")
def morse():
    return MorsePotential([1, 14], depth=[0.3, 1.1])


@pytest.fixture
def saved(morse, tmp_path):
    save_potential(morse, tmp_path / "saved", metadata=METADATA)
    return tmp_path / "saved"


def assert_equal_potentials(one, two):
    assert type(one) is type(two)
    assert (one.head, one.dtype, one.cutoff, one.numbers) == (two.head, two.dtype, two.cutoff, two.numbers)
    theirs = two.native.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in one.native.state_dict().items())
    graph = AtomGraph.from_atoms(helpers.structures()["bulk"], one.cutoff)
    assert torch.equal(one.energies(graph), two.energies(graph))


def edit(path: Path, **changes):
    """Change the description as somebody would who also makes its own SHA-256 right."""
    content = json.loads((path / CONFIG_FILE).read_text()) | changes
    text = write_description({name: value for name, value in content.items() if name != "sha256"})
    (path / CONFIG_FILE).write_text(text)


def weights_of(path: Path) -> Path:
    return path / json.loads((path / CONFIG_FILE).read_text())["weights_file"]


def test_round_trip(morse, saved):
    potential, metadata = load_potential_dir(saved)
    assert_equal_potentials(potential, morse)
    assert metadata == METADATA
    assert {path.name for path in saved.iterdir()} == {CONFIG_FILE, weights_of(saved).name}
    assert weights_of(saved).name == f"weights-{file_hash(weights_of(saved))[:12]}.safetensors"
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


@pytest.mark.mace
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_of_mace(tiny_mace, tmp_path, dtype):
    potential = MACEPotential(tiny_mace(heads=["pbe", "r2scan"]).to(dtype), head="r2scan")
    save_potential(potential, tmp_path / "saved")
    loaded, _ = load_potential_dir(tmp_path / "saved")
    assert_equal_potentials(loaded, potential)
    assert load_potential_dir(tmp_path / "saved", head="pbe")[0].head == "pbe"


@pytest.mark.sevenn
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_of_sevennet(tiny_sevennet, tmp_path, dtype):
    potential = tiny_sevennet().to(dtype)
    save_potential(potential, tmp_path / "saved")
    loaded, _ = load_potential_dir(tmp_path / "saved")
    assert_equal_potentials(loaded, potential)


def test_files_hold_no_code(saved):
    assert json.loads((saved / CONFIG_FILE).read_text())["backend"] == "morse"
    assert load_file(weights_of(saved))["depth"].tolist() == pytest.approx([0.3, 1.1])


def test_existing_output_stays(morse, saved):
    before = (saved / CONFIG_FILE).read_bytes()
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        save_potential(morse, saved)
    assert (saved / CONFIG_FILE).read_bytes() == before


def test_overwrite_keeps_other_files(saved):
    (saved / "notes.txt").write_text("mine")
    (saved / "plots").mkdir()
    (saved / "plots" / "one.txt").write_text("also mine")
    other = MorsePotential([8])
    save_potential(other, saved, overwrite=True)
    assert load_potential_dir(saved)[0].numbers == (8,)
    assert (saved / "notes.txt").read_text() == "mine"
    assert (saved / "plots" / "one.txt").read_text() == "also mine"
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


def test_overwrite_spares_what_is_no_potential(morse, tmp_path):
    (tmp_path / "thesis.tex").write_text("five years")
    with pytest.raises(OutputExistsError, match="not a saved potential"):
        save_potential(morse, tmp_path, overwrite=True)
    with pytest.raises(OutputExistsError, match="not a saved potential"):
        save_potential(morse, tmp_path / "thesis.tex", overwrite=True)


def test_unwritable_place(morse, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        save_potential(morse, tmp_path / "file" / "saved")


def test_earlier_weights_and_leftovers_go(saved):
    before = weights_of(saved)
    (saved / f".{CONFIG_FILE}.{'0' * 12}.part").write_text("{")
    save_potential(MorsePotential([8]), saved, overwrite=True)
    assert not before.exists()
    assert {path.name for path in saved.iterdir()} == {CONFIG_FILE, weights_of(saved).name}


@pytest.mark.parametrize(
    "leftovers", [(), ("weights-0123456789ab.safetensors",), (".potential.json.0123456789ab.part",)]
)
def test_what_a_killed_save_left_is_no_obstacle(morse, tmp_path, leftovers):
    for name in leftovers:
        (tmp_path / name).write_text("torn")
    save_potential(morse, tmp_path)
    assert load_potential_dir(tmp_path)[0].numbers == (1, 14)
    assert len(list(tmp_path.iterdir())) == 2


def test_metadata_of_numpy_and_torch(morse, tmp_path):
    metadata = {"a": np.float64(0.5), "b": np.arange(2), "c": torch.tensor([1.5]), "d": Path("x")}
    save_potential(morse, tmp_path / "saved", metadata=metadata)
    assert load_potential_dir(tmp_path / "saved")[1] == {"a": 0.5, "b": [0, 1], "c": [1.5], "d": "x"}


@pytest.mark.parametrize("metadata", [{"a": object()}, {(1, 2): "a"}])
def test_metadata_that_json_cannot_hold(morse, tmp_path, metadata):
    with pytest.raises(InputError, match="metadata"):
        save_potential(morse, tmp_path / "saved", metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_saving_does_not_move_random_numbers(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    save_potential(MorsePotential([3, 5]), tmp_path / "saved")
    load_potential_dir(tmp_path / "saved")
    assert torch.equal(torch.rand(1), expected)


def test_undescribed_potential_is_refused(tmp_path):
    class Hidden(MorsePotential):
        def atomic_energies(self, graph, edges):
            return super().atomic_energies(graph, edges) + 1

    with pytest.raises(CheckpointError, match=r"cannot be described .* export\(\)"):
        save_potential(Hidden([2]), tmp_path / "saved")


def test_unregistered_backend_is_refused(tmp_path):
    class Other(MorsePotential):
        backend = "other"

    with pytest.raises(InputError, match="'other' is not registered"):
        save_potential(Other(), tmp_path / "saved")
    with pytest.raises(CheckpointError, match="unknown backend 'other'; there are mace, morse, sevenn"):
        backend_class("other")


def test_half_precision_is_refused(tmp_path):
    with pytest.raises(InputError, match="bfloat16 cannot be saved"):
        save_potential(MorsePotential().bfloat16(), tmp_path / "saved")


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks potential\.json"):
        load_potential_dir(tmp_path)


def test_no_weights(saved):
    weights_of(saved).unlink()
    with pytest.raises(CheckpointError, match=r"lacks weights-\w+\.safetensors"):
        load_potential_dir(saved)


def test_flipped_bit(saved):
    content = bytearray(weights_of(saved).read_bytes())
    content[-1] ^= 1
    weights_of(saved).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights-\w+\.safetensors is damaged: its SHA-256"):
        load_potential_dir(saved)


def test_torn_description(saved):
    (saved / CONFIG_FILE).write_text((saved / CONFIG_FILE).read_text()[:50])
    with pytest.raises(CheckpointError, match=r"potential\.json is damaged"):
        load_potential_dir(saved)
    (saved / CONFIG_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"potential\.json is damaged: it lacks its format_version"):
        load_potential_dir(saved)
    (saved / CONFIG_FILE).write_text('{"format_version": 1}')
    with pytest.raises(CheckpointError, match=r"potential\.json is damaged: it lacks architecture, backend"):
        load_potential_dir(saved)


def test_changed_byte_in_the_description(saved):
    text = (saved / CONFIG_FILE).read_text()
    (saved / CONFIG_FILE).write_text(text.replace("2.5", "2.6"))
    with pytest.raises(CheckpointError, match=r"potential\.json is damaged: its content was changed"):
        load_potential_dir(saved)


def test_description_without_an_upgrade_in_between():
    assert sorted(_UPGRADES) == list(range(1, FORMAT_VERSION))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"backend": "gap"}, "unknown backend 'gap'"),
        ({"architecture": {"numbers": [1, 14]}}, r"does not rebuild here \('cutoff'\); written with ase_finetune"),
    ],
)
def test_description_that_does_not_fit(saved, changes, message):
    edit(saved, **changes)
    if "format_version" in changes:  # which is not ours to seal
        (saved / CONFIG_FILE).write_text(json.dumps(json.loads((saved / CONFIG_FILE).read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        load_potential_dir(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": None}, "lacks depth"),
        ({"extra": torch.zeros(2)}, "has extra, which the model does not"),
        ({"depth": torch.zeros(3)}, r"has depth of shape \(3,\) instead of \(2,\)"),
    ],
)
def test_tensors_that_do_not_fit(saved, changes, message):
    state = {name: value for name, value in (load_file(weights_of(saved)) | changes).items() if value is not None}
    save_file(state, weights_of(saved))
    edit(saved, weights_sha256=file_hash(weights_of(saved)))
    with pytest.raises(CheckpointError, match=rf"weights-\w+\.safetensors does not fit the model: it {message}"):
        load_potential_dir(saved)


def test_hash_is_of_the_values_alone(morse, saved):
    expected = potential_hash(morse)
    loaded, _ = load_potential_dir(saved)
    assert potential_hash(loaded) == expected
    assert potential_hash(loaded.double()) == expected
    with torch.no_grad():
        loaded.native["depth"][0] += 1e-6
    assert potential_hash(loaded) != expected


@pytest.mark.mace
def test_hash_is_the_same_for_every_head(tiny_mace):
    native = tiny_mace(heads=["pbe", "r2scan"])
    assert potential_hash(MACEPotential(native, "pbe")) == potential_hash(MACEPotential(native, "r2scan"))
