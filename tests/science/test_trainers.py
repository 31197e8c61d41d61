"""Both trainers of reEWC in the smallest form, and what the study of them is made of."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt

from ase_finetune.data import read_frames
from ase_finetune.errors import CheckpointError, DataError
from ase_finetune.finetuning.sampling import epoch_batches
from ase_finetune.potentials import load_potential
from benchmarks import sevenn_reewc_worker
from benchmarks.inputs import LIPS, MODEL, MPTRJ
from benchmarks.science import trainers, trainers_shown, trainers_sides
from benchmarks.suite import EXAMPLES, Setting
from tests import helpers

NEWEST_SEVENN = Path(os.environ.get("ASE_FINETUNE_NEWEST_SEVENN", Setting.newest_sevenn)).absolute()

TINY = trainers.Form(frames=2, batch=1, epochs=2, replay=3, old=2, valid=1, largest=6, every=2)


def arguments(**values) -> argparse.Namespace:
    given = {
        "device": "cpu",
        "newest_sevenn": NEWEST_SEVENN,
        "seed": 0,
        "all_parameters": False,
        "sides": ["ours", "sevenn"],
    }
    return argparse.Namespace(**{**given, **values})


@pytest.fixture
def sources(tmp_path) -> trainers.Sources:
    """Bundled frames (small crystals as target, too), and Fisher information that is felt."""
    potential, _ = load_potential(MODEL)
    named = {name: value.detach().clone() for name, value in potential.native_parameters()}
    fisher, anchor = tmp_path / "fisher.pt", tmp_path / "anchor.pt"
    torch.save({name: torch.full_like(value, 1e-2) for name, value in named.items()}, fisher)
    torch.save(named, anchor)
    return trainers.Sources(MPTRJ, MPTRJ, MPTRJ, EXAMPLES / "mptrj_retention.extxyz", fisher, anchor)


def result(name: str, shift: float = 0.0) -> dict:
    def errors(value):
        return {"forces_mae": value + shift, "energy_mae": 0.1 * value + shift}

    curve = [{"pairs": 0, "sets": {"target": errors(100.0), "old": errors(36.0)}}]
    for pairs in (5, 10):
        sets = {"target": errors(100.0 - pairs), "old": errors(36.0 + 0.1 * pairs)}
        curve.append({"pairs": pairs, "sets": sets, "seconds": 20.0, "cpu_seconds": 10.0 + shift})
    found = {"side": name, "machine": "x86, no GPU", "trained": ["a", "b"], "curve": curve}
    return found if name == "ours" else found | {"apart": [0.001, 0.02]}


def test_frames_are_spread_over_a_file():
    frames = read_frames(MPTRJ)
    chosen = trainers_sides.choose(MPTRJ, 10, largest=8)
    assert len(chosen.frames) == 10
    assert max(chosen.frames.sizes) <= 8
    assert chosen.numbers == sorted(set(chosen.numbers))
    assert chosen.numbers[-1] > len(frames) / 2
    assert [frames.sizes[number] for number in chosen.numbers] == chosen.frames.sizes
    assert len(trainers_sides.choose(MPTRJ, 10**6).numbers) == len(frames)


def test_steps_are_those_of_our_trainer():
    config = trainers.published(TINY, seed=3)
    parts = trainers_sides.plan_steps(config, 5, 3, every=4)
    target = [batch for part in parts for batch in part.target]
    replay = [batch for part in parts for batch in part.replay]
    rates = [rate for part in parts for rate in part.rates]
    assert [len(part.target) for part in parts] == [4, 4, 2]
    assert target == epoch_batches(5, 1, 3, 1) + epoch_batches(5, 1, 3, 2)
    assert sorted(batch[0] for batch in replay[:3]) == [0, 1, 2]
    assert len(target) == len(replay) == len(rates)
    assert max(rates) == pytest.approx(1e-4)
    assert rates[0] < rates[1] > rates[-1] > 0


def test_settings_are_those_that_were_published():
    config = trainers.published(trainers.FORMS["full"], seed=0)
    assert (config.batch_size, config.replay_batch_size, config.epochs) == (8, 8, 10)
    assert (config.learning_rate, config.ewc_lambda, config.clip_norm) == (1e-4, 1e5, None)
    assert (config.reference, config.replay_schedule, config.optimizer) == ("none", "alternate", "adam")
    loss = config.loss.describe()
    assert (loss["kind"], loss["huber_delta"]) == ("huber", 0.01)
    assert (loss["energy_weight"], loss["forces_weight"], loss["stress_weight"]) == (1.0, 1.0, 0.01)


def test_other_labels_are_refused():
    chosen = trainers_sides.choose(LIPS, 2)
    right = [[len(frame.atoms), frame.energy] for frame in chosen.frames]
    trainers_sides._check_same(chosen, right)
    for wrong in ([84, right[1][1]], [83, right[1][1] + 0.1]):
        with pytest.raises(DataError, match=f"frame {chosen.numbers[1]} of .*lips_train"):
            trainers_sides._check_same(chosen, [right[0], wrong])


def test_table():
    text = trainers_shown.table({"ours": result("ours"), "sevenn": result("sevenn", 0.25)})
    assert "| 5 | ase_finetune | 95.00 | 9.500 | 36.50 | 3.650 |  |" in text
    assert "| 10 | sevenn's own trainer | 90.25 | 9.250 | 37.25 | 3.950 | 2 % |" in text
    assert "largest difference from ours | 0.25 | 0.25 | 0.25 | 0.25 |" in text
    assert "ase_finetune: 2 s per pair of steps; 2 tensors" in text
    assert "sevenn's own trainer: 2.05 s" in text
    assert trainers_shown.table({}) == "no results yet"


def test_time_on_a_gpu_is_that_of_the_clock():
    assert trainers_shown.time_of_pair(result("ours") | {"machine": "x86, NVIDIA"}) == 4.0


def test_picture(tmp_path):
    path = trainers_shown.draw({"ours": result("ours"), "sevenn": result("sevenn", 0.25)}, tmp_path / "deep" / "a.png")
    assert min(plt.imread(path).shape[:2]) > 300


def test_distance_of_weights(tmp_path):
    for side, values in {"a": [0.0, 1.0, 2.0], "b": [0.0, 2.0, 2.0]}.items():
        (tmp_path / side).mkdir()
        for part, value in enumerate(values):
            torch.save({"w": torch.full((4,), value)}, trainers_sides.weights(tmp_path / side, part))
    assert trainers.distances(tmp_path / "a", tmp_path / "b", 2) == [0.5, 0.0]


def test_columns_there_and_back():
    orders = {"conv": torch.tensor([3.0, -1.0, 2.0])}
    values = {"conv": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "other": torch.ones(2)}
    there = sevenn_reewc_worker.to_sevenn(values, orders)
    assert there["conv"].tolist() == [[3.0, -1.0, 2.0], [6.0, -4.0, 5.0]]
    back = sevenn_reewc_worker.from_sevenn(there, orders)
    assert back["conv"].tolist() == values["conv"].tolist()
    assert back["other"] is values["other"]


@pytest.mark.sevenn
@pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")
def test_an_anchor_of_other_weights_is_refused(tmp_path, sources):
    anchor = torch.load(sources.anchor, weights_only=True)
    torch.save({name: value.flip(0) for name, value in anchor.items()}, sources.anchor)
    work = trainers.plan(TINY, sources, 0, False, Setting())
    with pytest.raises(CheckpointError, match=r"anchor\.pt is not 7net-0"):
        next(trainers_sides.ours(work, tmp_path / "ours"))


def test_what_is_missing_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("ASE_FINETUNE_DATA", raising=False)
    with pytest.raises(SystemExit):
        trainers.main(["--quick"])
    assert "needs the research data" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        trainers.main(["--quick", "--data", str(tmp_path), "--newest-sevenn", str(tmp_path / "no-python")])
    assert "make .venv-newest-sevenn" in capsys.readouterr().err


def needs_both_environments(test):
    """Sevenn here, and the newest one in an environment of its own."""
    reason = f"{NEWEST_SEVENN} does not exist (make .venv-newest-sevenn/ready, or ASE_FINETUNE_NEWEST_SEVENN=PYTHON)"
    marks = [
        pytest.mark.slow,
        pytest.mark.sevenn,
        pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn"),
        pytest.mark.skipif(not NEWEST_SEVENN.exists(), reason=reason),
    ]
    for mark in marks:
        test = mark(test)
    return test


@needs_both_environments
def test_sevenn_holds_the_published_files_in_another_order(tmp_path, sources):
    work = trainers.plan(TINY, sources, 0, False, Setting(newest_sevenn=NEWEST_SEVENN))
    for side, at_rest in ((trainers_sides.sevenns, True), (trainers_sides.sevenns_as_it_comes, False)):
        steps = side(work, tmp_path / side.__name__)
        about = next(steps)
        steps.close()
        assert about["reordered"] == [f"{layer}_convolution.weight_nn.layer2.weight" for layer in (1, 2, 3)]
        assert (about["penalty"] == 0.0) == at_rest


@needs_both_environments
@pytest.mark.parametrize("all_parameters", [False, True])
def test_both_trainers_end_at_the_same_weights(tmp_path, monkeypatch, sources, all_parameters):
    results, work = tmp_path / "results", tmp_path / "work"
    given = arguments(all_parameters=all_parameters)
    trainers.run(TINY, sources, given, results, work)
    found = trainers.read(results, seed=0)
    assert list(found) == ["ours", "sevenn"]
    assert found["ours"]["trained"] == found["sevenn"]["trained"]
    assert len(found["ours"]["trained"]) == (41 if all_parameters else 34)
    assert [point["pairs"] for point in found["ours"]["curve"]] == [0, 2, 4]
    assert found["ours"]["curve"][0]["sets"] == found["sevenn"]["curve"][0]["sets"]
    # Adam's first steps are as long for a gradient that is nothing but rounding as for any other.
    assert 0 < max(found["sevenn"]["apart"]) < 0.05
    for of, measure in (("target", "forces_mae"), ("old", "energy_mae")):
        before, after = (found["ours"]["curve"][k]["sets"][of][measure] for k in (0, -1))
        assert abs(after - before) > 1e-3
        assert trainers_shown.apart(found, "sevenn", of, measure) < 0.05 * abs(after - before) + 1e-3
    assert found["sevenn"]["penalty"] == 0.0
    assert found["sevenn"]["versions"]["sevenn"] >= "0.13"
    assert json.loads((results / "ours-s0.json").read_text())["seed"] == 0

    def again(work, folder):
        raise AssertionError("a finished side was run again")

    monkeypatch.setattr(trainers, "SIDES", dict.fromkeys(trainers.SIDES, again))
    trainers.run(TINY, sources, given, results, work)
