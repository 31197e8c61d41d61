from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ase_finetune.errors import CheckpointError
from ase_finetune.files import read_sealed, write_sealed
from ase_finetune.reporting import RunRecord
from tests.reporting import records

KIND = "record-1"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("record") / "record.safetensors"
    frames = [records.frame_record(structures=3, atoms=4), records.frame_record("replay", 2, 3, own_labels=True)]
    records.relaxation_run(2, 2, frames=frames).write(path)
    return path


def changed(written, tmp_path, change):
    tensors, content = read_sealed(written, kind=KIND)
    change(tensors, content)
    path = tmp_path / "record.safetensors"
    write_sealed(path, tensors, content, kind=KIND)
    return path


def test_what_is_whole_is_read(written, tmp_path):
    record = RunRecord.read(changed(written, tmp_path, lambda *_: None))
    assert [frames.name for frames in record.frames] == ["valid", "replay"]
    assert not record.frames[0].other_reference
    other = dataclasses.replace(record, frames=[dataclasses.replace(record.frames[0], other_reference=True)])
    other.write(tmp_path / "other")
    assert RunRecord.read(tmp_path / "other").frames[0].other_reference


def tensor(name, value):
    return lambda tensors, _: tensors.__setitem__(name, torch.as_tensor(value))


def plain(*path, value):
    def change(tensors, content):
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = value

    return change


DAMAGE = {
    "counts that claim much": (tensor("frames 0 counts", [4, 4, 10**12]), "set 0: counts are not those of 12 atoms"),
    "counts that overflow": (
        tensor("frames 0 counts", [2**62, 2**62, 12 - 2**63]), "set 0: counts are not those of 12 atoms",
    ),
    "negative counts": (tensor("frames 0 counts", [20, -12, 4]), "set 0: counts are not those of 12 atoms"),
    "counts of another type": (tensor("frames 0 counts", [4.0, 4.0, 4.0]), "set 0: counts is no list of whole"),
    "no such element": (tensor("frames 1 numbers", [1, 2, 3, 4, 5, 119]), "set 1: an atomic number is none"),
    "element zero": (tensor("frames 1 numbers", [1, 2, 3, 4, 5, 0]), "set 1: an atomic number is none"),
    "forces of another shape": (tensor("frames 0 forces", np.zeros((11, 3, 3))), r"set 0: forces has the shape \(11"),
    "energies of another type": (
        tensor("frames 0 energy", np.zeros((3, 3), np.float32)), "set 0: energy has the shape .*float32, not",
    ),
    "a description is missing": (plain("frames", 0, "descriptions", value=["a"]), "one description for each"),
    "fewer available": (plain("frames", 0, "available", value=1), "available is 1"),
    "no metadata": (plain("metadata", value=[]), "metadata is no dict"),
    "metadata of another type": (plain("metadata", "config", value=3), "metadata: config is no dict"),
    "a stage that is none": (plain("metadata", "stages", value=["x"]), "metadata: a stage is no dict"),
    "a kept epoch that is none": (
        plain("metadata", "stages", value=[{"kept": {"epoch": "x"}}]), "metadata: a number of epochs is no number",
    ),
    "what was kept is none": (plain("metadata", "stages", value=[{"kept": [1]}]), "what a stage kept is no dict"),
    "unchanged as a text": (plain("metadata", "unchanged", value="no"), "metadata: unchanged is no bool"),
    "offsets that are none": (plain("metadata", "reference_offsets", value={"Li": "x"}), "something else than numbers"),
    "a row that is none": (plain("history", 0, value="x"), "a row of the history is no dict"),
    "a nested value": (plain("history", 0, "seconds", value=[1]), "a value of the history is nested"),
    "no log": (plain("log", value="x"), "log is no list"),
    "drift without numbers": (plain("drift", 0, "change", value="x"), "change of the parameter tensor .* is no number"),
    "pairs of another length": (plain("pairs", "before", value=[]), "before has not one entry for each pair"),
    "shown positions": (plain("pairs", "shown", 0, value=99), "shown holds positions that are none"),
    "a structure with more": (
        plain("pairs", "targets", 0, "calculator", value="x"), "a structure of targets has other parts",
    ),
    "a structure of another shape": (plain("pairs", "targets", 0, "positions", value=[[0, 0, 0]]), "has positions of"),
    "gradient norms": (tensor("gradient norms", [1.0]), "the gradient norms are no table"),
    "a missing array": (lambda tensors, _: tensors.pop("frames 0 stress"), "frames 0 stress"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_does_not_fit_is_named(name, written, tmp_path):
    change, message = DAMAGE[name]
    path = changed(written, tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as error:
        RunRecord.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
