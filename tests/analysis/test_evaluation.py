from __future__ import annotations

import math

import pytest
from ase import Atoms

from ase_finetune import FinetunedCalculator
from ase_finetune.analysis import evaluate_calculator
from ase_finetune.analysis.evaluation import before_after_table, evaluation_table
from ase_finetune.data import read_frames
from ase_finetune.errors import DataError, InputError
from ase_finetune.metrics import evaluate
from ase_finetune.potentials import save_potential
from tests import morse


def frames(structures, name="set"):
    return read_frames(structures, name=name)


def moved(structures, **offsets):
    """Labels in another energy reference, eV per atom of each element."""
    return [
        morse.attach(
            atoms,
            **(
                atoms.calc.results
                | {
                    "energy": atoms.calc.results["energy"]
                    + sum(offsets.get(s, 0) for s in atoms.get_chemical_symbols())
                }
            ),
        )
        for atoms in structures
    ]


@pytest.fixture
def labels():
    return morse.labelled([*morse.silicon(4, 1), *morse.oxide(3, 2)])


@pytest.fixture
def calculator():
    return FinetunedCalculator(morse.pretrained(), device="cpu")


def test_raw_errors_are_those_of_the_potential(calculator, labels):
    item = evaluate_calculator(calculator, frames(labels, "mixed"))
    expected = evaluate(calculator.potential, morse.graphs(labels, calculator.potential))
    assert (item.name, item.frames) == ("mixed", 7)
    assert item.raw.to_dict() == pytest.approx(expected.to_dict(), rel=1e-5)
    assert item.raw.forces_mae > 50


def test_raw_errors_by_hand(calculator):
    """Labels that the model gives itself, 0.1 eV/atom higher, forces 20 per cent larger."""
    (atoms,) = morse.labelled(morse.silicon(1, 1), calculator.potential)
    results = atoms.calc.results
    changed = morse.attach(atoms, energy=results["energy"] + 0.8, forces=1.25 * results["forces"])
    assert math.isnan(evaluate_calculator(calculator, frames([changed])).aligned_energy_mae)  # one frame: no measure
    item = evaluate_calculator(calculator, frames([changed, changed]))
    assert item.raw.energy_mae == pytest.approx(100, abs=1e-2)
    assert item.aligned_energy_mae == pytest.approx(0, abs=1e-2)
    assert item.raw.forces_mae == pytest.approx(250 * abs(results["forces"]).mean(), rel=1e-4)
    assert item.raw.slope == pytest.approx(0.8, rel=1e-5)
    assert item.raw.stress_mae != item.raw.stress_mae  # no label: nan


def test_alignment_takes_out_a_shift_of_elements(calculator, labels):
    plain = evaluate_calculator(calculator, frames(labels))
    shifted = evaluate_calculator(calculator, frames(moved(labels, Si=1.0, O=-2.0)))
    assert shifted.aligned_energy_mae == pytest.approx(plain.aligned_energy_mae, abs=1e-2)
    assert shifted.raw.energy_mae > 400
    assert shifted.raw.forces_mae == pytest.approx(plain.raw.forces_mae, rel=1e-6)
    assert plain.aligned_energy_mae < plain.raw.energy_mae


def test_energies_in_the_reference_of_the_target(tmp_path, labels):
    """A calculator that adds offsets back is judged on what it then says."""
    save_potential(morse.truth(), tmp_path / "model", metadata={"reference_offsets": {"Si": 1.0, "O": -2.0}})
    model, target = (
        FinetunedCalculator(tmp_path / "model", reference=name, device="cpu") for name in ("model", "target")
    )
    raw, shifted = frames(labels), frames(moved(labels, Si=1.0, O=-2.0))
    errors = [evaluate_calculator(c, s).raw.energy_mae for c in (model, target) for s in (raw, shifted)]
    mean = (4 * 1000 + 3 * 500) / 7  # 1 eV/atom in silicon, (1 - 2)/2 in the oxide
    assert errors == pytest.approx([0, mean, mean, 0], abs=1e-2)


def test_frames_without_energies(calculator):
    item = evaluate_calculator(calculator, frames(morse.labelled(morse.silicon(2, 1), labels=("forces",))))
    assert item.raw.energy_mae != item.raw.energy_mae
    assert item.aligned_energy_mae != item.aligned_energy_mae
    assert item.raw.forces_mae > 50


def test_unknown_element_names_the_frame(calculator, labels):
    atoms = morse.attach(Atoms("SiGe", positions=[(0, 0, 0), (0, 0, 2)]), energy=0.0)
    with pytest.raises(DataError, match=r"frame 7 of set \(list\): atom 1 is Ge"):
        evaluate_calculator(calculator, frames([*labels, atoms]))


def test_ensemble(labels):
    ensemble = FinetunedCalculator([morse.pretrained(), morse.truth()], device="cpu")
    with pytest.raises(InputError, match="ensemble"):
        evaluate_calculator(ensemble, frames(labels))


def test_table(calculator, labels):
    one = evaluate_calculator(calculator, frames(labels, "all of it"))
    two = evaluate_calculator(calculator, frames(morse.labelled(morse.silicon(2, 1), labels=("energy",)), "si"))
    lines = evaluation_table([one, two]).splitlines()
    assert len(lines) == 4
    assert "meV/atom" in lines[1]
    values = lines[2].split()
    assert values[3] == "7"
    assert [float(value) for value in values[4:]] == pytest.approx(
        [one.raw.energy_mae, one.aligned_energy_mae, one.raw.forces_mae, one.raw.stress_mae, one.raw.slope], abs=6e-3
    )
    assert lines[3].split()[-3:] == ["-", "-", "-"]
    assert "nan" not in lines[3]


def test_before_and_after(labels):
    before, after = (
        [evaluate_calculator(FinetunedCalculator(potential, device="cpu"), frames(labels, "mixed"))]
        for potential in (morse.pretrained(), morse.truth())
    )
    lines = before_after_table(before, after).splitlines()
    assert len(lines) == 6
    (forces,) = [line for line in lines if "force MAE" in line]
    assert float(forces.split()[-3]) == pytest.approx(before[0].raw.forces_mae, abs=1e-3)
    assert forces.split()[-1] == "-100.0%"
    # from nothing there is no change in per cent
    (again,) = [line for line in before_after_table(after, before).splitlines() if "force MAE" in line]
    assert float(again.split()[5 - 1]) == pytest.approx(0, abs=1e-2)


def test_before_and_after_from_zero(calculator):
    own = morse.labelled(morse.silicon(1, 1), calculator.potential, labels=("energy",))
    own[0].calc.results["energy"] = float(calculator.calculate_many(own)[0]["energy"])
    item = evaluate_calculator(calculator, frames(own))
    zero = type(item)(item.name, item.frames, type(item.raw)(*[0.0] * 8), 0.0)
    text = before_after_table([zero], [item])
    assert "%" not in text
    assert len(text.splitlines()) == 6
