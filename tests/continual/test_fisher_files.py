from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from ase_finetune.continual import (
    EWCPenalty,
    FisherInformation,
    empirical_fisher,
    gaussian_fisher,
    load_anchor,
    load_fisher,
    save_fisher,
)
from ase_finetune.errors import CheckpointError, OutputExistsError
from ase_finetune.losses import Loss
from ase_finetune.potentials.storage import potential_hash
from tests import helpers, morse

BESSEL = "edge_embedding.basis_function.coeffs"


@pytest.fixture
def potential():
    return morse.pretrained()


@pytest.fixture
def labelled(potential):
    return morse.graphs(morse.labelled(morse.silicon(2, 1)), potential)


@pytest.fixture
def saved(potential, labelled, tmp_path):
    """An empirical Fisher information and its file."""
    fisher = empirical_fisher(potential, labelled, Loss("l1"))
    path = tmp_path / "fisher.safetensors"
    save_fisher(fisher, path, model_hash=potential_hash(potential), data_hash="data")
    return fisher, path


def test_round_trip(potential, saved):
    fisher, path = saved
    loaded = load_fisher(path, model_hash=potential_hash(potential), loss=Loss("l1"))
    assert loaded.values.keys() == fisher.values.keys()
    assert all(torch.equal(value, fisher.values[name]) for name, value in loaded.values.items())
    assert loaded.metadata == fisher.metadata | {"model_hash": potential_hash(potential), "data_hash": "data"}
    assert [item.name for item in path.parent.iterdir()] == ["fisher.safetensors"]


def test_another_model(saved):
    other = morse.truth()
    with pytest.raises(CheckpointError, match="made with another model") as caught:
        load_fisher(saved[1], model_hash=potential_hash(other))
    assert potential_hash(morse.pretrained())[:12] in str(caught.value)
    assert potential_hash(other)[:12] in str(caught.value)
    assert str(saved[1]) in str(caught.value)


def test_another_loss(saved):
    with pytest.raises(CheckpointError, match="made with another loss") as caught:
        load_fisher(saved[1], loss=Loss("huber", huber_delta=0.02))
    assert "'kind': 'l1'" in str(caught.value)
    assert "'huber_delta': 0.02" in str(caught.value)


def test_another_weight_is_another_loss(saved):
    with pytest.raises(CheckpointError, match="another loss"):
        load_fisher(saved[1], loss=Loss("l1", stress_weight=0.1))


def test_the_label_free_form_serves_every_loss(potential, labelled, tmp_path):
    path = tmp_path / "fisher.safetensors"
    save_fisher(gaussian_fisher(potential, labelled), path, model_hash="x", data_hash="y")
    assert load_fisher(path, model_hash="x", loss=Loss("mse")).metadata["kind"] == "gaussian"


def test_nothing_is_overwritten(saved):
    fisher, path = saved
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match=re.escape(str(path))):
        save_fisher(fisher, path, model_hash="x", data_hash="y")
    assert path.read_bytes() == before
    save_fisher(fisher, path, model_hash="x", data_hash="y", overwrite=True)
    assert load_fisher(path).metadata["model_hash"] == "x"


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pt"])
def test_missing_file(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"{name} does not exist"):
        load_fisher(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", b"\x10" + bytes(100)])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_corrupt_file(tmp_path, content, suffix):
    path = tmp_path / f"fisher{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(path)) + " is (not a readable|damaged)"):
        load_fisher(path)


@pytest.mark.parametrize("length", [0.5, 0.99])
def test_file_that_was_cut_off(saved, length):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(length * len(content))])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_fisher(path)


@pytest.mark.parametrize("value", [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.tensor([1])])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_values_that_are_no_finite_numbers(tmp_path, value, suffix):
    path = tmp_path / f"fisher{suffix}"
    if suffix == ".pt":
        torch.save({"depth": value}, path)
    else:
        save_fisher(FisherInformation({"depth": value}, {}), path, model_hash="", data_hash="")
    with pytest.raises(CheckpointError, match=rf"{path} is damaged: 'depth' is not a tensor of finite numbers"):
        load_fisher(path)


def test_changed_byte(saved):
    _, path = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{path} is damaged: its SHA-256"):
        load_fisher(path)


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not a fisher-2 file of this package"):
        load_fisher(path)


def test_dictionary_of_tensors(tmp_path):
    """In the style of the published files, with the prefix of DistributedDataParallel."""
    path = tmp_path / "fisher.pt"
    torch.save({"module.depth": torch.ones(2), "width": torch.zeros(2)}, path)
    fisher = load_fisher(path, model_hash="whatever", loss=Loss("mse"))
    assert list(fisher.values) == ["depth", "width"]
    assert fisher.values["depth"].tolist() == [1, 1]
    assert fisher.metadata == {"kind": "published", "file": "fisher.pt"}
    assert list(load_anchor(path)) == ["depth", "width"]


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 1.0}, torch.ones(2), {"state": {"a": torch.ones(2)}}])
def test_pt_file_of_something_else(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    for load in (load_fisher, load_anchor):
        with pytest.raises(CheckpointError, match="does not hold a dictionary of tensors"):
            load(path)


class Pickled:
    """Something that only unpickles by importing this module."""


def test_no_code_is_run(tmp_path):
    path = tmp_path / "code.pt"
    torch.save({"a": Pickled()}, path)
    with pytest.raises(CheckpointError, match="not a readable file of tensors"):
        load_fisher(path)


@pytest.mark.data
@pytest.mark.sevenn
@pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")
def test_published_files(data_folder, record_property):
    from ase_finetune.potentials import load_potential

    folder = data_folder / "published_reewc"
    potential, _ = load_potential("7net-0")
    parameters = dict(potential.native_parameters())  # some are frozen, the published ones are all
    trainable = dict(potential.native_parameters(trainable_only=True))
    fisher = load_fisher(folder / "fisher_sevenn.pt", model_hash=potential_hash(potential), loss=Loss())
    assert fisher.metadata["kind"] == "published"
    assert set(fisher.values) == set(parameters)
    assert len(fisher.values) == 41
    assert sum(value.numel() for value in fisher.values.values()) == 842_623
    assert all(float(value.min()) >= 0 for value in fisher.values.values())
    assert fisher.mean == pytest.approx(9e-10, rel=0.1)
    assert next(iter(fisher.shares())) == BESSEL
    assert fisher.shares()[BESSEL] == pytest.approx(0.95, abs=0.02)

    anchor = load_anchor(folder / "opt_params_sevenn.pt")
    assert set(anchor) == set(parameters)
    difference = max(float((anchor[name] - parameter.detach()).abs().max()) for name, parameter in parameters.items())
    record_property("anchor_difference", difference)
    assert difference == 0.0

    assert 0 < len(trainable) < len(parameters)
    penalty = EWCPenalty(trainable.items(), fisher, 1e5, anchor=anchor, known=parameters)
    assert penalty.value() < 1e-9
    with torch.no_grad():
        trainable[BESSEL].add_(0.01)
    expected = 0.5e5 * 1e-4 * float(fisher.values[BESSEL].double().sum())
    assert penalty.value() == pytest.approx(expected, rel=1e-3)
