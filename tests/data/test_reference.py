from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_finetune.data import FrameSet, ReferenceOffsets, align, fit_reference
from ase_finetune.errors import InputError

VARIED = ["Na4Cl4", "Na2Cl6", "Li4Cl4", "Li3Na1Cl4", "Li2Cl2"]
CONSTANT = ["Li2NaCl3", "Li4Na2Cl6", "Li2NaCl3"]
shifts = st.fixed_dictionaries({z: st.floats(-50, 50) for z in (3, 11, 17)})


def make(formulas: list[str], energies: list[float | None]) -> FrameSet:
    structures = [
        Atoms(formula, positions=2.0 * np.arange(len(Atoms(formula)))[:, None] * [1, 0, 0]) for formula in formulas
    ]
    return FrameSet.from_atoms(structures, name="train", energies=energies)


def shifted(frames: FrameSet, shift: dict[int, float]) -> FrameSet:
    return frames.with_energies(
        [None if f.energy is None else f.energy + sum(shift[z] for z in f.atoms.numbers) for f in frames]
    )


@settings(max_examples=40, deadline=None)
@given(shifts, st.sampled_from([VARIED, CONSTANT]))
def test_aligned_energies_do_not_depend_on_the_reference(shift, formulas):
    energies = [-3.0 * len(Atoms(formula)) + 0.1 * i for i, formula in enumerate(formulas)]
    predicted = [-3.1 * len(Atoms(formula)) for formula in formulas]
    frames = make(formulas, energies)
    aligned = align(frames, fit_reference(frames, predicted))
    other = shifted(frames, shift)
    realigned = align(other, fit_reference(other, predicted))
    np.testing.assert_allclose([f.energy for f in realigned], [f.energy for f in aligned], atol=1e-9)


def test_exact_offsets_are_recovered():
    true = {3: 1.0, 11: -2.0, 17: 0.5}
    predicted = [-10.0, -11, -12, -13, -14]
    offsets = fit_reference(shifted(make(VARIED, list(predicted)), true), predicted)
    assert dict(offsets.offsets) == pytest.approx(true, abs=1e-12)
    assert offsets.rank == 3
    assert offsets.mae_after == pytest.approx(0, abs=1e-12)
    assert offsets.energy([3, 3, 17, 99]) == pytest.approx(2.5)
    assert "rank" not in offsets.describe()


def test_one_composition_is_spread_by_minimum_norm_and_told():
    frames = make(CONSTANT, [6.0, 12.0, 6.0])
    offsets = fit_reference(frames, [0.0, 0.0, 0.0])
    composition = np.array([2, 1, 3]) / 6
    np.testing.assert_allclose(list(offsets.offsets.values()), composition / (composition @ composition), rtol=1e-12)
    assert offsets.rank == 1
    assert offsets.mae_before == pytest.approx(1.0)
    assert "rank 1 of 3 elements: the composition never varies" in offsets.describe()
    assert "1.0000 before" in offsets.describe()


def test_partly_determined_compositions_are_told():
    offsets = fit_reference(make(["LiNaCl", "LiNaCl2"], [1.0, 2.0]), [0.0, 0.0])
    assert "rank 2 of 3 elements: the compositions do not tell the elements apart" in offsets.describe()


def test_frames_without_energy_are_skipped():
    frames = make(["Na4Cl4", "Li4Cl4"], [8.0, None])
    offsets = fit_reference(frames, [0.0, float("nan")])
    assert set(offsets.offsets) == {11, 17}
    assert [f.energy for f in align(frames, offsets)] == [pytest.approx(0.0), None]


def test_no_energies_no_offsets():
    frames = make(["NaCl"], [None])
    offsets = fit_reference(frames, [0.0])
    assert dict(offsets.offsets) == {}
    assert "nothing fitted" in offsets.describe()
    assert align(frames, offsets)[0].energy is None


def test_json_round_trip():
    offsets = ReferenceOffsets({3: 0.25, 16: -1.5}, 1, 0.3, 0.1)
    data = json.loads(json.dumps(offsets.to_dict()))
    assert data["offsets"] == {"Li": 0.25, "S": -1.5}
    assert ReferenceOffsets.from_dict(data) == offsets
    for broken in ({"offsets": {}}, {**data, "offsets": {"Xx": 0.0}}):
        with pytest.raises(InputError, match="reference offsets"):
            ReferenceOffsets.from_dict(broken)


def test_predictions_must_fit():
    frames = make(["NaCl"], [1.0])
    with pytest.raises(InputError, match="2 predicted energies for the 1 frames of train"):
        fit_reference(frames, [0.0, 0.0])
    with pytest.raises(InputError, match=r"frame 0 of train \(list\): the predicted energy is nan"):
        fit_reference(frames, [float("nan")])


def test_several_sets_are_fitted_together():
    structures = [Atoms(formula) for formula in ("Si2", "SiO2", "Si3O")]
    predicted, offsets = [1.0, 2.0, 3.0], {"Si": 0.5, "O": -2.0}
    energies = [e + sum(offsets[s] for s in atoms.symbols) for e, atoms in zip(predicted, structures, strict=True)]
    one, two = (FrameSet.from_atoms(structures[k], energies=energies[k]) for k in (slice(1), slice(1, 3)))
    found = fit_reference(one, predicted[:1], more=[(two, predicted[1:])])
    assert found == fit_reference(FrameSet.from_atoms(structures, energies=energies), predicted)
    assert found.to_dict()["offsets"] == pytest.approx(offsets)
    with pytest.raises(InputError, match="1 predicted energies for the 2 frames"):
        fit_reference(one, predicted[:1], more=[(two, [0.0])])


def test_undetermined_offsets_stay_near_those_of_before():
    frames = FrameSet.from_atoms([Atoms("SiO")], energies=[3.0])
    found = fit_reference(frames, [0.0], start={14: 2.0, 6: 7.0})
    assert found.offsets == pytest.approx({6: 7.0, 8: 0.5, 14: 2.5})
    assert found.mae_before == pytest.approx(1.5)
    assert found.mae_after == pytest.approx(0.0)
