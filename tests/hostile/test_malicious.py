"""Files of strangers: none executes, none takes the memory, all end in errors of ours that name the file."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from ase.io.pickletrajectory import PickleTrajectory

from ase_finetune import FinetunedCalculator
from ase_finetune.continual import load_anchor, load_fisher
from ase_finetune.data import read_frames
from ase_finetune.potentials import MorsePotential, load_potential, save_potential
from ase_finetune.potentials.formats import CONFIG_FILE
from ase_finetune.potentials.mace import MACEPotential
from ase_finetune.potentials.sevennet import SevenNetPotential
from tests import helpers
from tests.hostile import payloads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and limits on memory")

MIB = 1 << 20
LOADERS = {
    "potential": load_potential,
    "calculator": FinetunedCalculator,
    "fisher": load_fisher,
    "anchor": load_anchor,
}

needs_mace = pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")
needs_sevenn = pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")


def attempt(action, *, memory=3072 * MIB, seconds=60):
    from benchmarks.reliability.sandbox import attempt as run

    return run(action, memory=memory, seconds=seconds)


def refused(action, path: Path, **limits) -> str:
    """Run what must end in an error of ours that names the file; returns its text."""
    outcome = attempt(action, **limits)
    assert outcome.kind == "refused", outcome
    assert str(path) in outcome.text
    return outcome.text


def outcome_of(path: Path, loader: str = "potential", **limits) -> str:
    return refused(lambda: str(LOADERS[loader](path)), path, **limits)


@pytest.fixture
def marker(tmp_path):
    """A file that must not come into being."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "the payload was executed"


@pytest.mark.parametrize("kind", ["system", "fx"])
def test_the_payloads_are_real(kind, tmp_path):
    content = pickle.dumps(payloads.payload(kind, tmp_path / "executed"))
    assert attempt(lambda: str(type(pickle.loads(content)))).kind in ("result", "error")  # noqa: S301 - that is the point
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch"])
@pytest.mark.parametrize("kind", ["system", "fx"])
@pytest.mark.parametrize(
    ("name", "loader"),
    [("a.pth", "potential"), ("a.model", "calculator"), ("a.pt", "fisher"), ("a.pkl", "fisher"), ("a.pt", "anchor")],
)
def test_pickles_with_code(name, loader, kind, form, tmp_path, marker):
    path = payloads.write_pickled(tmp_path / name, payloads.payload(kind, marker), form)
    outcome_of(path, loader)


@pytest.mark.parametrize(("name", "loader"), [("a.pth", "potential"), ("a.pt", "fisher")])
def test_pickles_where_mace_was_imported_by_others(name, loader, tmp_path, marker, monkeypatch):
    """`import mace` turns the default of torch's safe loading off; what asks for it explicitly still has it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    outcome_of(payloads.write_pickled(tmp_path / name, payloads.payload("system", marker), "torch"), loader)


def test_code_under_a_name_for_tensors(tmp_path, marker):
    path = payloads.write_pickled(tmp_path / "fisher.safetensors", payloads.payload("system", marker), "torch")
    outcome_of(path, "fisher")
    folder = payloads.write_potential(tmp_path / "model", {}, weights=path.read_bytes())
    refused(lambda: load_potential(folder), folder)


def test_trajectory_of_pickles(tmp_path, marker):
    path = tmp_path / "frames.traj"
    path.write_bytes(b"PickleTrajectory" + pickle.dumps(payloads.System(marker)))
    assert PickleTrajectory is not None  # the class that would run it is still in ASE
    assert str(path) in refused(lambda: read_frames(path), path)


@pytest.mark.parametrize("loader", ["fisher", "weights"])
@pytest.mark.parametrize("name", payloads.HEADERS)
def test_absurd_safetensors(name, loader, tmp_path):
    content = payloads.HEADERS[name]
    if loader == "weights":
        folder = payloads.write_potential(tmp_path / "model", {"numbers": [8, 14], "cutoff": 4.0}, weights=content)
        refused(lambda: load_potential(folder), folder, memory=1024 * MIB)
    else:
        (tmp_path / "fisher.safetensors").write_bytes(content)
        outcome_of(tmp_path / "fisher.safetensors", "fisher", memory=1024 * MIB)


@pytest.mark.parametrize(
    "name", ["../secret", "../model/weights.safetensors", "/etc/passwd", "..", "", "a/b", "potential.json"]
)
def test_path_traversal(name, tmp_path):
    save_potential(MorsePotential([8, 14]), tmp_path / "secret")
    folder = payloads.write_potential(tmp_path / "model", {"numbers": [8, 14], "cutoff": 4.0}, weights_file=name)
    assert "not the name of weights in its folder" in refused(lambda: load_potential(folder), folder / CONFIG_FILE)


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**5, '{"format_version": 1' + "0" * 5000 + "}", "1" * 10**5])
def test_absurd_json(text, tmp_path):
    (tmp_path / CONFIG_FILE).write_text(text)
    refused(lambda: load_potential(tmp_path), tmp_path / CONFIG_FILE, memory=1024 * MIB)


@pytest.mark.parametrize(
    "architecture",
    [
        {"numbers": [10**9], "cutoff": 4.0},
        {"numbers": [1.5, "a"], "cutoff": 4.0},
        {"numbers": [-1, 5], "cutoff": 4.0},
        {"numbers": list(range(1, 10**6)), "cutoff": 4.0},
        {"numbers": [8, 14], "cutoff": float("nan")},
        {"numbers": [8, 14], "cutoff": {"a": [[[[[[]]]]]]}},
        {"numbers": [8, 14]},
    ],
)
def test_absurd_pairs(architecture, tmp_path):
    folder = payloads.write_potential(tmp_path / "model", architecture)
    refused(lambda: load_potential(folder), folder / CONFIG_FILE, memory=1024 * MIB)


@pytest.fixture(scope="module")
def sevennet(tiny_sevennet):
    return tiny_sevennet()


@pytest.fixture(scope="module")
def mace(tiny_mace):
    return MACEPotential(tiny_mace())


@needs_sevenn
@pytest.mark.sevenn
@pytest.mark.parametrize(
    "changes",
    [
        {"channel": 10**9},
        {"channel": 9_999_999},
        {"channel": 20_000},
        {"channel": 4096},
        {"channel": -4},
        {"lmax": 50},
        {"num_convolution_layer": 10**6},
        {"weight_nn_hidden_neurons": [100_000, 100_000]},
        {"radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 10**7}},
        {"irreps_manual": ["+".join(["4x0e"] * 10**5)]},
        {"_type_map": [[10**9, 0]]},
        {"act_gate": {"e": "__import__('os').system('touch executed')", "o": "tanh"}},
    ],
)
def test_absurd_sevennet(sevennet, changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    architecture = sevennet.architecture() | changes
    folder = payloads.write_potential(tmp_path / "model", architecture, backend="sevenn")
    refused(lambda: load_potential(folder), folder / CONFIG_FILE)
    assert not (tmp_path / "executed").exists()


@needs_sevenn
@pytest.mark.sevenn
@pytest.mark.parametrize("changes", [{"channel": 10**9}, {"channel": 20_000}, {"num_convolution_layer": 10**6}])
def test_absurd_sevennet_checkpoint(sevennet, changes, tmp_path):
    potential = SevenNetPotential(sevennet.native, sevennet.config | changes)
    potential.save_native(tmp_path / "model.pth")
    outcome_of(tmp_path / "model.pth")


@needs_mace
@pytest.mark.mace
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_irreps": "1000000000x0e"},
        {"hidden_irreps": "20000x0e+20000x1o"},
        {"hidden_irreps": "4096x0e+4096x1o"},
        {"hidden_irreps": "4x0e+4x50o"},
        {"hidden_irreps": "+".join(["4x0e"] * 1000)},
        {"num_interactions": 10**9},
        {"max_ell": 40},
        {"max_ell": 10**9},
        {"correlation": [40, 40]},
        {"correlation": 10**9},
        {"radial_MLP": [100_000, 100_000]},
        {"num_bessel": 10**8},
        {"MLP_irreps": "500000000x0e"},
        {"gate": "__import__('os').system('touch executed')"},
        {"class": "os.system"},
    ],
)
def test_absurd_mace(mace, changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    architecture = mace.architecture() | changes
    folder = payloads.write_potential(tmp_path / "model", architecture, backend="mace", head="Default")
    refused(lambda: load_potential(folder), folder / CONFIG_FILE)
    assert not (tmp_path / "executed").exists()


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    """Half a GB in 2 MB."""
    path = payloads.write_bomb(tmp_path_factory.mktemp("bomb") / "bomb", 512 * MIB)
    assert path.stat().st_size < 8 * MIB
    return path


@pytest.mark.parametrize(
    ("name", "loader"), [("a.pth", "potential"), ("a.model", "potential"), ("a.pt", "fisher"), ("a.pt", "anchor")]
)
def test_zip_bomb(bomb, name, loader, tmp_path):
    path = tmp_path / name
    path.symlink_to(bomb)
    assert "zip bomb" in outcome_of(path, loader, memory=256 * MIB)


@pytest.mark.parametrize("numel", [5, 1000, 2**31, 2**61])
def test_storage_that_is_larger_than_the_file(numel, tmp_path):
    content = {"model_state_dict": {"a": torch.ones(4)}, "config": {}}
    outcome_of(payloads.write_lying_storage(tmp_path / "a.pth", content, numel))
    outcome_of(payloads.write_lying_storage(tmp_path / "a.pt", {"a": torch.ones(4)}, numel), "fisher")


def test_one_number_that_looks_like_many(tmp_path):
    """A few bytes that would be terabytes as soon as somebody looks at all of them."""
    many = torch.ones(1).expand(10**12)
    torch.save({"a": many}, tmp_path / "a.pt")
    torch.save({"model_state_dict": {"a": many}, "config": {}}, tmp_path / "a.pth")
    assert "has fewer numbers than that" in outcome_of(tmp_path / "a.pt", "fisher")
    assert "has fewer numbers than that" in outcome_of(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content",
    [
        b"model_state_dict",
        b"mace.modules",
        b"",
        b"\x80\x02]q\x00.",
        pickle.dumps({"model_state_dict": 1, "config": []}, 2),
        pickle.dumps({"model_state_dict": {"a": "b"}, "config": {}}, 2),
        b"\x80\x02" + b"(" * 10**5 + b"model_state_dict",
        b"\x80\x02r\xff\xff\xff\x7fmodel_state_dict",
    ],
)
def test_archive_that_lies_about_its_kind(content, tmp_path, marker):
    records = {"data.pkl": content, "version": b"3\n", "byteorder": b"little"}
    outcome_of(payloads.write_archive(tmp_path / "a.pth", records), memory=1024 * MIB)
    outcome_of(payloads.write_archive(tmp_path / "a.pt", records), "fisher", memory=1024 * MIB)


def test_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "model.pth")
    refused(lambda: load_potential(tmp_path / "model.pth"), tmp_path / "model.pth", seconds=5)
    os.mkfifo(tmp_path / "fisher.safetensors")
    refused(lambda: load_fisher(tmp_path / "fisher.safetensors"), tmp_path / "fisher.safetensors", seconds=5)
    os.mkfifo(tmp_path / "fisher.pt")
    refused(lambda: load_fisher(tmp_path / "fisher.pt"), tmp_path / "fisher.pt", seconds=5)
    os.mkfifo(tmp_path / "frames.extxyz")
    refused(lambda: read_frames(tmp_path / "frames.extxyz"), tmp_path / "frames.extxyz", seconds=5)


def test_metadata_is_only_data(tmp_path):
    save_potential(MorsePotential([8]), tmp_path / "model", metadata={"__class__": "os.system", "a": ["touch x"]})
    _, metadata = load_potential(tmp_path / "model")
    assert json.loads(json.dumps(metadata)) == {"__class__": "os.system", "a": ["touch x"]}
