from __future__ import annotations

import pytest
import torch

from ase_finetune import Loss
from ase_finetune.cli import main
from ase_finetune.continual import load_fisher
from ase_finetune.data import read_frames
from ase_finetune.finetuning.fisher import fisher_information
from ase_finetune.potentials.storage import potential_hash
from tests import morse
from tests.cli.running import fit, weights


def fisher(folder, *options, structures="replay.extxyz", output="fisher.safetensors"):
    words = ["fisher", str(folder / "model"), "--structures", str(folder / structures), "--device", "cpu"]
    return main([*words, "--monitor_size", "1", "--output", str(folder / output), *options])


@pytest.mark.parametrize(
    ("method", "options", "own"),
    [
        ("ewc", (), ()),
        ("reewc", ("--draws", "3", "--seed", "5"), ("--fisher_draws", "3", "--seed", "5")),
        ("ewc", ("--size", "2", "--freeze", "shift"), ("--fisher_size", "2", "--freeze", "shift")),
        ("ewc", ("--dtype", "float64"), ("--dtype", "float64")),
    ],
)
def test_a_fit_with_the_file_is_a_fit_without(folder, method, options, own):
    """The same weights, bit for bit, as of a fit that estimates the Fisher information itself."""
    assert fisher(folder, *options) == 0
    shared = ["--method", method, "--epochs", "2", "--monitor_size", "1", "--ewc_lambda", "1.0", "--quiet"]
    shared += ["--valid", "null", "--learning_rate", "0.02", *own]
    assert fit(folder, *shared, output="own") == 0
    assert fit(folder, *shared, "--fisher", str(folder / "fisher.safetensors"), output="file") == 0
    assert fit(folder, *("0" if word == "1.0" else word for word in shared), output="without") == 0
    one, two, without = (weights(folder / name / "model") for name in ("own", "file", "without"))
    assert morse.same_weights(one, two)
    assert not morse.same_weights(one, without)
    assert not morse.same_weights(one, weights(folder / "model"))


def test_empirical(folder):
    """With labels of its own, and the loss it is for; another one is refused."""
    options = ["--kind", "empirical", "--probes", "2", "--loss.kind", "mse", "--loss.stress_weight", "0.1"]
    assert fisher(folder, *options, structures="train.extxyz") == 0
    replay = ["--replay", str(folder / "train.extxyz"), "--fisher_probes", "2"]
    shared = ["--method", "ewc", "--epochs", "1", "--monitor_size", "1", "--quiet", *replay, "--learning_rate", "0.02"]
    loss = ["--loss.kind", "mse", "--loss.stress_weight", "0.1"]
    file = ["--fisher", str(folder / "fisher.safetensors")]
    assert fit(folder, *shared, *loss, "--fisher", "empirical", output="own") == 0
    assert fit(folder, *shared, *loss, *file, output="file") == 0
    assert morse.same_weights(*(weights(folder / name / "model") for name in ("own", "file")))
    assert fit(folder, *shared, *file, output="other") == 1


def test_shares_are_told(folder, capsys):
    assert fisher(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    found = load_fisher(folder / "fisher.safetensors", model_hash=potential_hash(weights(folder / "model")))
    assert found.metadata["kind"] == "gaussian"
    assert found.metadata["structures"] == 3
    shares = found.shares()
    assert [line.split()[-1] for line in lines[1:]] == list(shares)
    assert float(lines[1].split()[0].rstrip("%")) == pytest.approx(100 * next(iter(shares.values())), abs=0.06)
    assert fisher(folder, "-q") == 1
    assert "exists; choose another name or give --overwrite" in capsys.readouterr().err
    assert fisher(folder, "-q", "--overwrite") == 0


def test_from_python(folder):
    """The function behind it: a potential is not changed, structures may be a list, and the loss a dictionary."""
    potential = morse.pretrained()
    before = morse.weights(potential)
    structures = morse.labelled(morse.silicon(5, 4))
    options = {"monitor_size": 0, "device": "cpu", "verbose": False, "kind": "empirical", "freeze": ["shift"]}
    found = fisher_information(potential, structures, loss={"kind": "mse"}, output=folder / "f.safetensors", **options)
    again = fisher_information(potential, structures, loss=Loss("mse"), **options)
    assert "shift" not in found.values
    assert all(torch.equal(value, again.values[name]) for name, value in found.values.items())
    assert all(torch.equal(value, before[name]) for name, value in morse.weights(potential).items())
    assert all(parameter.requires_grad for _, parameter in potential.native_parameters())
    kept = load_fisher(folder / "f.safetensors", loss=Loss("mse"))
    assert kept.metadata["data_hash"] == read_frames(structures, name="replay").digest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "published"}, "kind must be"),
        ({"kind": "empirical"}, "labels of their own"),
        ({"size": 0}, "fisher_size must be positive"),
        ({"loss": {"kid": "mse"}}, "'kid' of loss"),
    ],
)
def test_arguments_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        fisher_information(morse.pretrained(), morse.oxide(4, 1), device="cpu", verbose=False, **options)
