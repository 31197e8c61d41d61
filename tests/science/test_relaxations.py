"""The study of relaxations: which pairs are held out, how changes are told, and one run in a small Morse world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from ase_finetune.data import read_pairs
from benchmarks.science.pairs import at_rest, folds_by_formula, frame_set, phosphates, read_sets, trajectory_frames
from benchmarks.science.pictures import draw
from benchmarks.science.plans import Case, Plan, read_plan
from benchmarks.science.relaxed import by_pair, changed, relaxations_table
from benchmarks.science.relaxing import relax_case
from tests import morse

FORMS = ("quick", "narrow", "hour", "full", "argyrodites")


def distances(error):
    return {"rmsd": error, "strain": error / 2, "delta_q": 10 * error, "log_volume": -error / 4, "failure": None}


def run(structures, *, right=True, **more):
    """A result in which the RMSD of each pair is this and the strain half of it, wherever the relaxation begins."""
    pairs = [
        {"name": name, "own": distances(error), "right_basin": right} | distances(error)
        for name, error in structures.items()
    ]
    sets = {"mptrj": {"energy_mae": 15.0, "forces_mae": 36.0}}
    return {"pairs": pairs, "sets": sets, "seconds": 60.0, "machine": "2 cores, no GPU", "train_pairs": 8} | more


@pytest.mark.parametrize("form", FORMS)
def test_every_form_can_be_read(form):
    plan = read_plan("relaxations", form)
    assert plan.kind == "relaxations"
    names = [case.name for case in plan.cases]
    assert len(set(names)) == len(names)
    assert [case.name for case in plan.cases if not case.options] == ["untouched"]
    for case in plan.cases:
        # A method that trains on frames needs some.
        assert not case.options or case.options["method"].startswith("bptt") or case.labelled


def test_formulas_are_not_torn_apart():
    formulas = ["A"] * 4 + ["B"] * 3 + ["C"] * 2 + ["D"]
    folds = folds_by_formula(formulas, 3)
    assert sorted(folds.count(k) for k in range(3)) == [3, 3, 4]
    assert all(len({fold for name, fold in zip(formulas, folds, strict=True) if name == one}) == 1 for one in formulas)


@pytest.fixture
def data(tmp_path) -> Path:
    """Research data of a Morse world: three relaxations of three frames, one restarted, of two formulas."""
    frames = []
    for number, (symbols, stages) in enumerate({"Si2": 2, "SiO": 1, "OSi": 1}.items()):
        for stage in range(stages):
            for step in range(3):
                atoms = bulk("NaCl", "rocksalt", a=3.9 - 0.03 * (step + stage))
                atoms.symbols = symbols
                atoms.rattle(0.02 / (1 + step), seed=number)
                atoms.info |= {"run": f"flow/optimization-{number}/relax{stage}", "step": step}
                frames.append(atoms)
    write(tmp_path / "relax_trajectories.extxyz", morse.labelled(frames))
    return tmp_path


def test_folds_hold_out_every_pair_once(data):
    held_out = []
    for seed in range(2):
        train, own = phosphates(data, seed=seed, folds=2)
        held_out += [pair.name for pair in own]
        formulas = [{pair.initial.symbols.formula.reduce()[0].format("hill") for pair in part} for part in (train, own)]
        assert not formulas[0] & formulas[1]
        assert all(pair.energy is not None for pair in own)
    assert sorted(held_out) == ["pair 0", "pair 1", "pair 2"]


def test_a_restarted_relaxation_is_one_pair(data):
    train, _ = phosphates(data, seed=0, folds=2)
    other, _ = phosphates(data, seed=1, folds=2)
    (restarted,) = (pair for part in (train, other) for pair in part if set(pair.initial.numbers) == {14})
    assert restarted.initial.cell[0, 1] == pytest.approx(3.9 / 2)
    assert restarted.relaxed.cell[0, 1] == pytest.approx(3.81 / 2)
    frames = trajectory_frames(data, read_pairs([(restarted.initial, restarted.relaxed)]), 4)
    assert [atoms.info["step"] for atoms in frames] == [0, 1]
    assert all("forces" in atoms.calc.results for atoms in frames)


def test_a_count_of_pairs_is_spread_over_the_set(data):
    train, _ = read_sets(data, {"set": "phosphates", "folds": 2}, 1, seed=0)
    assert len(train) == 1


def test_minima_are_at_rest():
    start, end = morse.silicon(2, 1)
    end.set_cell(1.01 * end.cell[:], scale_atoms=True)
    pairs = read_pairs([(start, morse.attach(end, energy=-3.0))])
    (bare,), (known,) = at_rest(pairs), at_rest(pairs, energies=True)
    assert set(bare.calc.results) == {"forces", "stress"}
    assert not bare.calc.results["forces"].any()
    assert not bare.calc.results["stress"].any()
    assert known.calc.results["energy"] == -3.0
    assert len(frame_set([bare, known], "both")) == 2
    end.set_cell(start.cell[:], scale_atoms=True)
    # The stress of a cell that is held is not known.
    (held,) = at_rest(read_pairs([(start, end)]))
    assert set(held.calc.results) == {"forces"}


def test_a_change_from_the_start_counts_pairs_that_both_relax_into_the_right_basin():
    before = [run({"a": 0.1, "b": 0.2, "c": 0.4})]
    after = [run({"a": 0.05, "b": 0.1}), run({"d": 0.001}), run({"c": 9.0}, right=False)]
    found = changed(after, before, "rmsd", "start")
    assert found is not None
    assert found.pairs == 2
    assert (found.old, found.new, found.percent, found.typical) == pytest.approx((0.15, 0.075, -50, -50))
    assert (found.low, found.high) == pytest.approx((-50, -50))
    assert changed([run({"a": 1.0}, right=False)], before, "rmsd", "start") is None
    own = changed(after, before, "rmsd")
    assert own is not None
    assert own.pairs == 3


def test_the_typical_change_does_not_jump_as_a_median_does():
    before = [run({"a": 0.01, "b": 0.02, "c": 0.1, "d": 0.11})]
    after = [run({"a": 0.01, "b": 0.02, "c": 0.02, "d": 0.55})]
    found = changed(after, before, "structure")
    assert found is not None
    assert found.percent < -60  # the middle of two kinds of pairs
    assert found.typical == pytest.approx(0, abs=1e-9)
    assert (found.better, found.worse) == (1, 1)
    # What is right to 0.01 Å cannot get worse by a factor of a hundred within that.
    right = changed([run({"a": 1e-3, "b": 0.1})], [run({"a": 1e-5, "b": 0.1})], "rmsd")
    assert right is not None
    assert right.typical == pytest.approx(0, abs=1e-9)
    assert (right.better, right.worse) == (0, 0)


def test_seeds_give_one_error_per_pair():
    runs = [run({"a": 0.1}), run({"a": 0.3}), run({"a": 0.2}), run({"b": 1.0}), run({"b": 1.0}, right=False)]
    assert set(by_pair(runs)) == {"a", "b"}
    found = by_pair(runs, "start")
    assert set(found) == {"a"}
    assert found["a"]["rmsd"] == 0.2
    assert found["a"]["volume"] == pytest.approx(100 * (1 - np.exp(-0.05)))


def plan(**more):
    content = {
        "study": "relaxations",
        "form": "test",
        "title": "Relaxations",
        "kind": "relaxations",
        "model": "7net-0",
        "train": {"set": "phosphates", "folds": 2},
        "judged": {},
        "options": {},
        "cases": [],
        "picture": {"kind": "relaxations"},
    }
    return Plan(**content | more)


def test_table_and_picture(tmp_path):
    some = {"a": 0.1, "b": 0.2, "c": 0.4}
    cases = [
        Case("untouched"),
        Case("8 pairs", {"method": "bptt"}, group="bptt"),
        Case("zero force", {"method": "ewc"}),
    ]
    runs = [run(some), run({name: error / 2 for name, error in some.items()}), run(some)]
    results = {case: [result] for case, result in zip(cases, runs, strict=True)}
    text = relaxations_table(plan(), results)
    lines = text.splitlines()
    assert "| untouched | 8 | 3/3 | 0.300 | 0.300 | 0.200 | 0.1000 |" in text
    assert lines[5].count("0.150 (-50 % [-50, -50])") == 2
    assert "| -50 % | 3, 0 | 15.0 | 36.0 | 1.0 | 1 |" in lines[5]
    picture = draw(plan(), results, tmp_path)
    assert picture is not None
    assert picture.stat().st_size > 10_000


def test_what_was_measured_stays_readable():
    folder = Path(__file__).parents[2] / "benchmarks" / "science" / "results" / "relaxations-hour"
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    assert set(results) == {"untouched-s0", "bptt-s0", "bptt+reewc-s0", "zero-force-s0"}
    found = changed([results["bptt+reewc-s0"]], [results["untouched-s0"]], "rmsd", "start")
    assert found is not None
    assert (round(found.percent), found.pairs) == (-39, 48)


class NoSets:
    """Judges nothing but the held-out pairs."""

    def __call__(self, potential):
        del potential
        return {}


@pytest.mark.parametrize(("method", "labelled"), [("bptt", ""), ("naive", "minima"), ("bptt", "trajectories")])
def test_a_case_in_a_morse_world(data, tmp_path, monkeypatch, method, labelled):
    monkeypatch.setattr("benchmarks.science.relaxing.EVERY", 2)
    options = {"replay": None, "epochs": 1, "device": "cpu", "dtype": "float64", "verbose": False}
    options["bptt"] = {"steps": 2, "epochs": 5}
    case = Case("some", {"method": method, "bptt": {"epochs": 1}}, labelled=labelled)
    model = morse.pretrained().double()
    own = plan(model=model, options=options, relaxed={"steps": 5})
    result = relax_case(own, case, 1, data, tmp_path / "work", NoSets())
    stages = {"": ["relaxations"], "minima": ["frames"], "trajectories": ["frames", "relaxations"]}[labelled]
    assert [row["stage"] for row in result["history"]] == stages
    for pair in result["pairs"]:
        assert pair["name"] in {"pair 0", "pair 1", "pair 2"}
        assert pair["own"]["steps"] <= 5
        # The start and the minimum of a pair are apart, so both are relaxed on their own.
        assert pair["rmsd"] != pair["own"]["rmsd"]
    assert result["options"]["bptt"] == {"steps": 2, "epochs": 1}
    assert result["train_pairs"] + len(result["pairs"]) == 3
    assert result["sets"]["minima"]["forces_mae"] > 0
    assert result["sets"]["trajectories"]["energy_mae"] > 0
