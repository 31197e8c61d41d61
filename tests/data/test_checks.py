from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from ase import units

from ase_finetune.data import Frame, FrameSet, check_units, find_outliers
from ase_finetune.errors import DataError, InputError
from tests.data.conftest import salt


def truth(count: int = 8, force: float = 0.5, stress: float = 0.02, pressure: float = 0.0) -> FrameSet:
    rng = np.random.default_rng(0)
    hydrostatic = pressure * np.array([1, 1, 1, 0, 0, 0])
    return FrameSet(
        "train",
        [
            Frame(
                salt(i),
                energy=-20.0 + 0.01 * rng.normal(),
                forces=force * rng.normal(size=(8, 3)),
                stress=stress * rng.normal(size=6) + hydrostatic,
                index=i,
            )
            for i in range(count)
        ],
    )


def model(frames: FrameSet, slope: float = 0.8, noise: float = 0.2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions as soft and as noisy as those of universal potentials."""
    rng = np.random.default_rng(1)

    def predict(value: np.ndarray | None) -> np.ndarray:
        assert value is not None
        return slope * value + noise * np.abs(value).mean() * rng.normal(size=value.shape)

    return [predict(f.forces) for f in frames], [predict(f.stress) for f in frames]


def change(frames: FrameSet, label: str, how: Callable[[Frame], np.ndarray]) -> FrameSet:
    return FrameSet("train", [dataclasses.replace(frame, **{label: how(frame)}) for frame in frames])


FORCE_MISTAKES = {
    "wrong sign": (-1.0, "forces = -forces"),
    "Hartree/Bohr": (units.Bohr / units.Hartree, "forces = forces * ase.units.Hartree / ase.units.Bohr"),
    "Ry/Bohr": (units.Bohr / units.Rydberg, "forces = forces * ase.units.Rydberg / ase.units.Bohr"),
    "Hartree/Bohr with the wrong sign": (-units.Bohr / units.Hartree, "forces = -forces * ase.units.Hartree"),
    "kcal/mol/Å": (23.0605, "forces = forces * ase.units.kcal / ase.units.mol"),
    "kJ/mol/Å": (96.485, "forces = forces * ase.units.kJ / ase.units.mol"),
    "meV/Å": (1000.0, "forces = forces / 1000"),
}
STRESS_MISTAKES = {
    "wrong sign": (-1.0, "stress = -stress"),
    "kbar": (1602.1766, "stress = stress / 1602.1766"),
    "kbar with the wrong sign": (-1602.1766, "stress = -stress / 1602.1766"),
    "GPa": (160.21766, "stress = stress / 160.21766"),
    "GPa with the wrong sign": (-160.21766, "stress = -stress / 160.21766"),
    "Hartree/Bohr³": (1 / 183.6315, "stress = stress * ase.units.Hartree / ase.units.Bohr**3"),
}


@pytest.mark.parametrize("mistake", FORCE_MISTAKES)
def test_wrong_forces_are_mended_in_one_line(mistake):
    factor, line = FORCE_MISTAKES[mistake]
    frames = truth()
    wrong = change(frames, "forces", lambda f: f.forces * factor)
    with pytest.raises(DataError) as caught:
        check_units(wrong, *model(frames))
    assert mistake in str(caught.value)
    assert f"'{line}" in str(caught.value)


@pytest.mark.parametrize("mistake", STRESS_MISTAKES)
def test_wrong_stress_is_mended_in_one_line(mistake):
    factor, line = STRESS_MISTAKES[mistake]
    frames = truth()
    wrong = change(frames, "stress", lambda f: f.stress * factor)
    with pytest.raises(DataError) as caught:
        check_units(wrong, *model(frames))
    assert mistake in str(caught.value)
    assert f"'{line}'" in str(caught.value)


@pytest.mark.parametrize("sign", [1, -1])
def test_virials_for_stress(sign):
    frames = truth()
    wrong = change(frames, "stress", lambda f: sign * f.stress * f.atoms.get_volume())
    with pytest.raises(DataError, match=r"virials, not divided by the volume.*stress / atoms.get_volume\(\)'"):
        check_units(wrong, *model(frames))


def test_factors_too_near_to_tell_apart_are_both_named():
    frames = truth()  # cells of 176 Å³, and 160 GPa are 1 eV/Å³
    wrong = change(frames, "stress", lambda f: f.stress * 160.2)
    with pytest.raises(DataError) as caught:
        check_units(wrong, *model(frames))
    assert "'stress = stress / 160.21766'" in str(caught.value)
    assert "'stress = stress / atoms.get_volume()'" in str(caught.value)


@pytest.mark.parametrize(("slope", "noise"), [(1.0, 0.0), (0.8, 0.2), (0.4, 0.5), (0.8, 3.0), (0.02, 0.01), (2.5, 0.5)])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_no_alarm_on_good_labels_and_poor_models(slope, noise, count):
    frames = truth(count)
    check_units(frames, *model(frames, slope, noise))


def test_no_alarm_without_signal():
    frames = truth(force=1e-5, stress=1e-6)
    rng = np.random.default_rng(2)
    noise = [1e-4 * rng.normal(size=(8, 3)) for _ in frames], [1e-5 * rng.normal(size=6) for _ in frames]
    assert check_units(frames, *noise) == []


def test_another_equilibrium_volume_is_no_wrong_sign():
    frames = truth(stress=0.002, pressure=0.02)
    moved = [0.9 * f.stress - 0.04 * np.array([1, 1, 1, 0, 0, 0]) for f in frames if f.stress is not None]
    (note,) = check_units(frames, model(frames)[0], moved)
    assert "hardly agree" in note
    assert "no unit or sign explains it" in note


def test_unrelated_labels_are_noted():
    frames = truth()
    notes = check_units(frames, model(frames)[0], model(truth(stress=0.001))[1][::-1])
    assert len(notes) == 1
    assert "stress labels and the pretrained model hardly agree" in notes[0]


def test_missing_labels_are_skipped():
    frames = change(truth(), "stress", lambda _: None)
    assert check_units(frames, *model(truth())) == []
    assert check_units(change(frames, "forces", lambda _: None), *model(truth())) == []


def test_one_prediction_for_each_frame():
    frames = truth()
    with pytest.raises(InputError, match="1 predictions of forces for the 8 frames of train"):
        check_units(frames, [np.zeros((8, 3))])
    with pytest.raises(InputError, match="2 predictions of stress"):
        check_units(frames, model(frames)[0], [np.zeros(6)] * 2)


def test_outliers_are_told():
    frames = truth(20)
    rng = np.random.default_rng(3)
    errors = {name: scale * rng.normal(size=20) for name, scale in (("energy", 0.1), ("forces", 1.0), ("stress", 0.01))}
    assert find_outliers(frames, **errors) == []
    errors["energy"][4] -= 5.0
    errors["forces"][7] += 100.0
    errors["stress"][[7, 9]] += 2.0
    found = find_outliers(frames, **errors)
    assert [outlier.position for outlier in found] == [4, 7, 7, 9]
    assert found[0].text.startswith("frame 4 of train (list): energy -5")
    assert "eV/atom from the median difference, " in found[0].text
    assert found[1].text.startswith("frame 7 of train (list): largest force error +")
    assert found[3].text.startswith("frame 9 of train (list): largest stress error +2")


def test_outliers_need_company():
    assert find_outliers(truth(2), energy=[0.0, 99.0]) == []
    assert find_outliers(truth(4), energy=[0.0, 99.0, np.nan, np.nan]) == []


def test_frames_fitted_all_but_perfectly_are_no_outliers():
    assert find_outliers(truth(5), energy=[0, 0, 0, 0, 0.019], forces=[0, 0, 0, 0, 0.19]) == []
    assert len(find_outliers(truth(5), energy=[0, 0, 0, 0, 0.021], forces=[0, 0, 0, 0, 0.21])) == 2
