"""The studies of benchmarks/science: their plans can be run, and what they compute is right."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ase.io import write

from ase_finetune import FinetuneConfig
from ase_finetune.continual import load_fisher
from ase_finetune.data import embedded_replay
from ase_finetune.potentials import load_potential, save_potential
from benchmarks.science.curvature import make_fisher
from benchmarks.science.fitting import fit_case
from benchmarks.science.judging import FILES, Judge, read_set
from benchmarks.science.measures import area, gained, minutes, with_averages
from benchmarks.science.pictures import draw
from benchmarks.science.plans import Case, Plan, read_plan, studies
from benchmarks.science.storing import Store, claimed
from benchmarks.science.tables import table
from tests import morse

FRAMES_STUDIES = [
    (study, form) for study in studies() for form in ("quick", "full") if read_plan(study, form).kind == "frames"
]

#: What `finetune()` takes beside the options of the config.
ARGUMENTS = {"valid", "replay"}


def test_there_are_the_studies_of_the_page() -> None:
    names = {"retention", "few_frames", "references_lips", "references_crystals", "bundled"}
    assert names <= set(studies())


@pytest.mark.parametrize(("study", "form"), FRAMES_STUDIES)
def test_plans_have_options_that_exist_sets_that_exist_and_one_file_per_case(study: str, form: str) -> None:
    plan = read_plan(study, form)
    assert plan.cases
    for case in plan.cases:
        options = {k: v for k, v in (plan.options | case.options).items() if k not in ARGUMENTS}
        FinetuneConfig.from_options(options)
    assert set(plan.judged) <= set(FILES)
    assert plan.picture["target"] in plan.judged
    names = [case.result(0) for case in plan.cases]
    assert len(set(names)) == len(names)
    assert [case.name for case in plan.cases if not case.options] == ["untouched"]


def test_cases_by_name() -> None:
    plan = read_plan("retention", "quick")
    assert [case.name for case in plan.only(["naive"]).cases] == ["naive"]
    with pytest.raises(SystemExit, match="no case 'nothing'"):
        plan.only(["nothing"])
    with pytest.raises(SystemExit, match="no slow form"):
        read_plan("retention", "slow")


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0.0),
        ([(0.0, 0.4)], 0.4),  # nothing forgotten: the whole width
        ([(0.1, 0.4)], 0.2),  # only from the middle on
        ([(-0.05, 0.4)], 0.4),
        ([(0.0, 0.2), (0.1, 0.4)], 0.3),
        ([(0.0, 0.2), (0.1, 0.1)], 0.2),  # beaten by the first
        ([(0.3, 0.9)], 0.0),  # forgets too much to count
        ([(0.0, -0.1)], 0.0),
    ],
)
def test_area_under_a_front(points: list[tuple[float, float]], expected: float) -> None:
    assert area(points, most_forgotten=0.2) == pytest.approx(expected)


@pytest.fixture
def world(tmp_path: Path) -> Plan:
    """A plan in the world of Morse crystals: its model and data are in ``tmp_path``."""
    model = tmp_path / "model"
    save_potential(morse.pretrained(), model)
    write(tmp_path / "lgps_train.extxyz", morse.labelled(morse.silicon(8, seed=0)))
    write(tmp_path / "lgps_valid.extxyz", morse.labelled(morse.silicon(4, seed=1)))
    old = morse.labelled(morse.oxide(4, seed=2))
    write(tmp_path / "mptrj_retention.extxyz", old)
    write(tmp_path / "old.extxyz", old)
    options = {"epochs": 2, "learning_rate": 1e-2, "valid": None, "replay": "data:old.extxyz", "monitor_size": 2}
    return Plan(
        study="world",
        form="quick",
        title="Morse crystals",
        kind="frames",
        model=str(model),
        train={"set": "lgps_train", "frames": 6},
        judged={"lgps": None, "mptrj": 3},
        options=options | {"verbose": False, "device": "cpu", "fisher_size": 2, "replay_labels": "pseudo"},
        cases=[
            Case("untouched"),
            Case("naive", {"method": "naive"}, averages=[0.0, 0.5, 1.0], seeds=[0, 1]),
            Case("L2-SP", {"method": "ewc"}, fisher={"kind": "uniform"}),
        ],
        picture={"kind": "pareto", "target": "lgps"},
    )


def test_a_study_from_plan_to_picture(world: Plan, tmp_path: Path) -> None:
    store, judge = Store(tmp_path / "results", world), Judge(tmp_path, world.judged)
    for case in world.cases:
        for seed in case.seeds:
            assert not store.has(case, seed)
            work = tmp_path / "work" / case.result(seed)
            work.parent.mkdir(exist_ok=True)
            store.write(case, seed, fit_case(world, case, seed, tmp_path, work, judge))
            assert store.has(case, seed)

    results = store.read()
    untouched, naive = results[world.cases[0]][0], results[world.cases[1]]
    assert [run["seed"] for run in naive] == [0, 1]
    assert naive[0]["train_frames"] == 6
    assert naive[0]["sets"]["mptrj"]["frames"] == 3
    assert naive[0]["sets"]["lgps"]["forces_mae"] < untouched["sets"]["lgps"]["forces_mae"]
    assert naive[0]["options"]["method"] == "naive"
    assert naive[0]["commit"]
    assert minutes(naive[0]) > 0

    averages = {case.name: runs[0]["sets"] for case, runs in with_averages(results).items() if "way" in case.name}
    assert averages["naive, 0 % of the way"]["lgps"] == pytest.approx(
        untouched["sets"]["lgps"]
        | {"energy_mae_target": averages["naive, 0 % of the way"]["lgps"]["energy_mae_target"]},
        rel=1e-4,
    )
    assert averages["naive, 100 % of the way"]["lgps"] == pytest.approx(naive[0]["sets"]["lgps"], rel=1e-4)

    only_second = with_averages({world.cases[1]: naive[1:]})
    assert [case.name for case in only_second] == ["naive"]

    text = table(world, results)
    assert "| naive |" in text
    assert "| L2-SP |" in text
    assert " ± " in text
    assert "area under the front" in text
    picture = draw(world, results, tmp_path / "pictures")
    assert picture is not None
    assert picture.stat().st_size > 10_000


def test_without_forces_the_gain_is_that_of_energies() -> None:
    def result(forces: float | None, energy: float) -> dict[str, Any]:
        return {"sets": {"crystals": {"forces_mae": forces, "energy_mae_aligned": energy}}}

    assert gained(result(8.0, 9.0), result(10.0, 10.0), "crystals") == pytest.approx(0.2)
    assert gained(result(None, 9.0), result(None, 10.0), "crystals") == pytest.approx(0.1)


def test_replay_structures_of_the_package_are_not_judged_on(tmp_path: Path) -> None:
    frames = morse.labelled(morse.silicon(3, seed=0))
    for atoms, name in zip(frames, ["own-1", embedded_replay()[-1].info["source_id"], "own-2"], strict=True):
        atoms.info["material_id"] = name
    write(tmp_path / "crystals.extxyz", frames)
    found = [frame.atoms.info["material_id"] for frame in read_set(tmp_path, "crystals")]
    assert found == ["own-1", "own-2"]


def test_offsets_are_part_of_the_energies_in_the_reference_of_the_target(world: Plan, tmp_path: Path) -> None:
    judge = Judge(tmp_path, {"lgps": None})
    potential = morse.truth()
    assert judge(potential)["lgps"]["energy_mae_target"] == pytest.approx(0, abs=1e-3)
    moved = judge(potential, {"Si": 0.1})["lgps"]
    assert moved["energy_mae_target"] == pytest.approx(100, rel=1e-3)
    assert moved["energy_mae"] == pytest.approx(0, abs=1e-3)


def test_a_result_is_of_one_case_and_seed_and_numbers_are_plain(world: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path / "results", world)
    store.write(world.cases[1], 1, {"sets": {"lgps": {"forces_mae": math.nan}}, "seconds": 1 / 3})
    assert store.has(world.cases[1], 1)
    assert not store.has(world.cases[1], 0)
    assert not Store(tmp_path / "results", replace(world, form="full")).has(world.cases[1], 1)
    (path,) = store.folder.glob("*.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["sets"] == {"lgps": {"forces_mae": None}}
    assert content["seconds"] == 0.333333


def test_two_processes_do_not_work_on_the_same(tmp_path: Path) -> None:
    with claimed(tmp_path / "a.claim") as first:
        with claimed(tmp_path / "a.claim") as second:
            assert (first, second) == (True, False)
        with claimed(tmp_path / "b.claim") as other:
            assert other
    with claimed(tmp_path / "a.claim") as again:
        assert again


@pytest.mark.parametrize("kind", ["uniform", "forces", "energies", "per-tensor", "per-tensor-mean", "power"])
def test_curvatures(kind: str, world: Plan, tmp_path: Path) -> None:
    replay = morse.oxide(3, seed=3)
    path = make_fisher(world.model, {"kind": kind, "size": 3, "exponent": 0.5}, tmp_path / "f.safetensors", replay)
    values = load_fisher(path).values
    names = [name for name, _ in load_potential(world.model)[0].native_parameters(trainable_only=True)]
    assert list(values) == names
    plain = load_fisher(
        make_fisher(world.model, {"kind": "all", "size": 3}, tmp_path / "all.safetensors", replay)
    ).values
    for name, value in values.items():
        expected = {
            "uniform": plain[name] * 0 + 1,
            "per-tensor": plain[name] / max(float(plain[name].mean()), 1e-30),
            "per-tensor-mean": plain[name] * 0 + plain[name].mean(),
            "power": plain[name] ** 0.5,
        }.get(kind)
        if expected is not None:
            assert value.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    if kind in ("forces", "energies"):
        # An energy shift moves no force.
        assert bool((values["shift"] > 1e-9).any()) == (kind == "energies")
