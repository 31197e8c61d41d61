"""Ensembles made in one call."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.data import FrameSet
from ase_finetune.errors import InputError
from tests import morse

# One trajectory, so that blocks are held out.
TRAIN = morse.labelled(morse.silicon(16, 1))
OPTIONS = {"epochs": 2, "learning_rate": 0.01, "batch_size": 4, "method": "naive", "replay": None, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ensemble") / "run"


@pytest.fixture(scope="module")
def ensemble(folder):
    return finetune(
        morse.pretrained(), TRAIN, 0.25, members=3, seed=1, output=folder, report=False, verbose=False, **OPTIONS
    )


def test_members_hold_out_other_frames_and_have_all_moved(ensemble):
    metadata = ensemble.metadata["members"]
    assert len({item["data"]["valid"] for item in metadata}) == 3
    assert [item["config"]["seed"] for item in metadata] == [1, 2, 3]
    assert not any(item["unchanged"] for item in metadata)
    assert all(not morse.same_weights(one, morse.pretrained()) for one in ensemble.potentials)
    assert {row["member"] for row in ensemble.history} == {0, 1, 2}


def test_members_share_one_fit_of_the_offsets(ensemble):
    """On all frames, which is that of a run whose validation frames are trained on, too."""
    offsets = [item["reference_offsets"]["Si"] for item in ensemble.metadata["members"]]
    np.testing.assert_allclose(offsets, offsets[0], rtol=0, atol=1e-12)
    alone = finetune(morse.pretrained(), TRAIN, None, verbose=False, **OPTIONS)
    np.testing.assert_allclose(offsets[0], alone.metadata["reference_offsets"]["Si"], rtol=0, atol=1e-12)
    own = finetune(morse.pretrained(), TRAIN, 0.25, seed=1, verbose=False, **OPTIONS)
    assert abs(own.metadata["reference_offsets"]["Si"] - offsets[0]) > 1e-6


def test_the_ensemble_is_that_of_its_folders(ensemble, folder):
    again = FinetunedCalculator(folder, device="cpu")
    assert len(again.potentials) == 3
    atoms = FrameSet.from_atoms(TRAIN)[0].atoms.copy()
    atoms.calc, other = ensemble, atoms.copy()
    other.calc = again
    assert atoms.get_potential_energy() == other.get_potential_energy()
    assert ensemble.spread["energy"] == again.spread["energy"] > 0


def test_unchanged_members_are_warned_about():
    """A learning rate far too high."""
    options = OPTIONS | {"learning_rate": 50.0, "members": 2, "verbose": False, "max_skipped_steps": 100}
    with pytest.warns(UserWarning, match="unchanged by training: member 0, 1 of 2; the spread") as record:
        calc = finetune(morse.pretrained(), TRAIN, 0.5, **options)
    assert record[0].filename == __file__
    assert calc.metadata["unchanged"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "unchanged" in repr(calc)


@pytest.mark.parametrize("members", [0, -1])
def test_too_few_members(members):
    with pytest.raises(InputError, match=f"members={members}: an ensemble has at least 2"):
        finetune(morse.pretrained(), TRAIN, members=members, **OPTIONS)
