from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import write

from ase_finetune import FinetuneConfig, FinetunedCalculator, Loss, finetune
from ase_finetune.continual import gaussian_fisher, save_fisher
from ase_finetune.errors import (
    CheckpointError,
    DataError,
    InputError,
    ModelNotAvailableError,
    OutputError,
    OutputExistsError,
    TrainingError,
    UnknownModelError,
)
from ase_finetune.finetuning import training
from ase_finetune.finetuning.frame_task import FrameBatches, FrameTask, Replay
from ase_finetune.finetuning.history import Log
from ase_finetune.metrics import Errors
from ase_finetune.potentials import MorsePotential, save_potential
from ase_finetune.potentials.mace import MACEPotential
from ase_finetune.potentials.memory import EdgeBudget
from ase_finetune.potentials.storage import potential_hash
from tests import helpers, morse

METHODS = ("naive", "replay", "ewc", "reewc")
SETS = ("train", "valid", "replay")
MEASURES = ("loss", "energy_mae", "forces_mae", "stress_mae", "slope")
TRAIN = morse.labelled(morse.silicon(16, 1))
VALID = morse.labelled(morse.silicon(6, 2))
OLD = morse.oxide(12, 3)
LONG = {"epochs": 10, "learning_rate": 0.03, "monitor_size": 4, "verbose": False, "device": "cpu"}
SHORT = LONG | {"epochs": 2}

needs_mace = pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")
needs_sevenn = pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")


def run(train=TRAIN, valid=VALID, *, model=None, replay=OLD, **options):
    return finetune(model or morse.pretrained(), train, valid, replay=replay, **(SHORT | options))


def moved(calculator):
    """Largest change of any parameter."""
    start = morse.weights(morse.pretrained())
    now = morse.weights(calculator.potential)
    return max(float((now[name] - start[name]).abs().max()) for name in start)


def shifted(frames, offsets):
    """The same labels in another energy reference."""
    made = []
    for atoms in frames:
        results = atoms.calc.results
        energy = results["energy"] + sum(offsets[symbol] for symbol in atoms.get_chemical_symbols())
        made.append(morse.attach(atoms, **(results | {"energy": energy})))
    return made


# What the methods do


@pytest.fixture(scope="module")
def last():
    """The last epoch of every method, not the best one."""
    # Draws enough for the outcome not to hang on their seed.
    options = LONG | {"ewc_lambda": 0.08, "fisher_draws": 100, "keep": "last"}
    return {
        method: finetune(morse.pretrained(), TRAIN, None, replay=OLD, method=method, **options) for method in METHODS
    }


def test_naive_learns_and_forgets():
    calculator = run(method="naive", epochs=10)
    before, after = calculator.metadata["errors"]["before"], calculator.metadata["errors"]["after"]
    assert after["valid"]["forces_mae"] < 0.2 * before["valid"]["forces_mae"]
    assert abs(after["valid"]["slope"] - 1) < 0.2 * abs(before["valid"]["slope"] - 1)
    assert before["replay"]["forces_mae"] == pytest.approx(0, abs=1e-3)
    assert after["replay"]["forces_mae"] > 50


@pytest.mark.parametrize("method", ["replay", "ewc", "reewc"])
def test_what_fights_forgetting_does(last, method):
    forgotten = {name: last[name].history[-1]["replay_forces_mae"] for name in ("naive", method)}
    assert forgotten[method] < 0.6 * forgotten["naive"]
    # ... and learns all the same
    assert last[method].history[-1]["train_forces_mae"] < 0.9 * last[method].history[0]["train_forces_mae"]


def test_the_methods_differ(last):
    found = [morse.weights(last[method].potential)["depth"].tolist() for method in METHODS]
    assert len({tuple(values) for values in found}) == len(METHODS)


def test_huge_lambda_holds_everything(last):
    held = finetune(morse.pretrained(), TRAIN, None, replay=OLD, method="ewc", ewc_lambda=1e8, keep="last", **LONG)
    assert moved(last["naive"]) > 0.05
    assert moved(held) < 0.1 * moved(last["naive"])


def test_lambda_zero_is_naive(last):
    free = finetune(morse.pretrained(), TRAIN, None, replay=OLD, method="ewc", ewc_lambda=0.0, keep="last", **LONG)
    assert morse.same_weights(free.potential, last["naive"].potential)
    assert free.history[-1]["penalty"] == 0


def test_schedules_differ():
    alternate, joint = (run(method="replay", replay_schedule=name) for name in ("alternate", "joint"))
    assert not morse.same_weights(alternate.potential, joint.potential)


def test_joint_without_replay_weight_is_naive():
    naive, joint = (
        run(valid=None, method="naive"),
        run(valid=None, method="replay", replay_schedule="joint", replay_weight=0.0, keep="last"),
    )
    theirs = morse.weights(joint.potential)
    for name, value in morse.weights(naive.potential).items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-6)


def test_pieces_of_a_batch_make_the_same_step():
    """With max_edges every structure is worked off alone; the gradients still are those of the batch."""
    whole, pieces = (
        run(valid=None, method="replay", dtype="float64", keep="last", max_edges=edges) for edges in (100_000, 1)
    )
    theirs = morse.weights(pieces.potential)
    assert moved(whole) > 1e-3
    for name, value in morse.weights(whole.potential).items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-8, atol=1e-10)


def test_replay_with_labels_of_its_own():
    """Labels of the file are used where there are some, unless pseudo-labels are asked for."""
    replay = morse.labelled(OLD, morse.truth())
    own, pseudo = (run(replay=replay, replay_labels=kind, method="replay") for kind in ("auto", "pseudo"))
    assert own.metadata["errors"]["before"]["replay"]["forces_mae"] > 10
    assert pseudo.metadata["errors"]["before"]["replay"]["forces_mae"] < 1e-3
    with pytest.raises(DataError, match="replay_labels='data', but the replay structures carry no labels"):
        run(replay_labels="data", method="replay")


def test_embedded_replay_keeps_to_known_elements(capsys):
    calculator = run(
        replay="embedded", method="replay", replay_size=2, monitor_size=1, model=everything(), verbose=True
    )
    assert "labelled by the pretrained model" in capsys.readouterr().out
    assert calculator.history[-1]["replay_energy_mae"] >= 0
    with pytest.raises(DataError, match="usable structures"):
        run(replay="embedded", method="replay", model=MorsePotential([14]))


def everything():
    return MorsePotential(range(1, 95), cutoff=4.0)


# What is left alone


def test_the_given_potential_is_not_changed():
    potential = morse.pretrained()
    before = morse.weights(potential)
    calculator = finetune(potential, TRAIN, VALID, replay=OLD, freeze=["shift"], reference="shift", **SHORT)
    assert calculator.potential is not potential
    assert all(torch.equal(value, before[name]) for name, value in morse.weights(potential).items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in potential.parameters())


def test_frames_are_not_changed():
    frames = [atoms.copy() for atoms in TRAIN[:4]]
    for copy, atoms in zip(frames, TRAIN, strict=False):
        copy.calc = atoms.calc
    run(frames, method="naive")
    for copy, atoms in zip(frames, TRAIN, strict=False):
        assert copy == atoms
        assert copy.calc is atoms.calc


@pytest.mark.parametrize("method", ["naive", "reewc"])
def test_frozen_parameters_keep_every_bit(method):
    calculator = run(valid=None, method=method, freeze=["shift", "wid*"], weight_decay=0.1, keep="last")
    start, now = morse.weights(morse.pretrained()), morse.weights(calculator.potential)
    assert {name for name in start if torch.equal(start[name], now[name])} == {"width", "shift"}
    assert sorted(calculator.metadata["frozen"]) == ["shift", "width"]


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002


# Seeds, types, inputs


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_weights(method):
    one, two, other = (run(method=method, seed=seed, valid=None) for seed in (3, 3, 4))
    assert morse.same_weights(one.potential, two.potential)
    assert not morse.same_weights(one.potential, other.potential)


def test_config_or_options():
    options = {name: value for name, value in SHORT.items() if name != "verbose"} | {"method": "naive"}
    by_config = finetune(
        morse.pretrained(), TRAIN, VALID, replay=OLD, verbose=False, config=FinetuneConfig.from_options(options)
    )
    assert morse.same_weights(by_config.potential, run(method="naive").potential)
    with pytest.raises(InputError, match=r"either config or single options.*epochs"):
        finetune(morse.pretrained(), TRAIN, config=FinetuneConfig(), epochs=2)


def test_float64_is_float64():
    calculator = run(dtype="float64")
    assert calculator.potential.dtype == torch.float64
    assert calculator.parameters["dtype"] == "float64"


def test_default_dtype_is_float32_whatever_is_given():
    calculator = run(model=morse.pretrained().double())
    assert calculator.potential.dtype == torch.float32
    assert calculator.parameters["dtype"] == "float32"


def test_files(tmp_path):
    files = {name: tmp_path / f"{name}.extxyz" for name in ("train", "valid", "replay")}
    for (_, path), frames in zip(files.items(), (TRAIN, VALID, OLD), strict=True):
        write(path, frames)
    save_potential(morse.pretrained(), tmp_path / "model")
    calculator = finetune(
        tmp_path / "model",
        str(files["train"]),
        files["valid"],
        replay=files["replay"],
        **(SHORT | {"method": "replay"}),
    )
    expected = run(method="replay")
    theirs = morse.weights(expected.potential)
    for name, value in morse.weights(calculator.potential).items():  # files have 8 digits
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-4)
    assert calculator.metadata["base_hash"] == potential_hash(morse.pretrained())


def test_named_keys():
    frames = []
    for atoms in TRAIN:
        bare = atoms.copy()
        bare.info["my_energy"] = atoms.calc.results["energy"]
        bare.arrays["my_forces"] = atoms.calc.results["forces"]
        frames.append(bare)
    options = {"energy_key": "my_energy", "forces_key": "my_forces"}
    calculator = run(frames, 0.25, method="naive", loss={"stress_weight": 0.0}, **options)
    assert calculator.history[-1]["train_energy_mae"] > 0
    with pytest.raises(DataError, match="my_energy"):
        run(frames, 0.25)


def test_validation_frames_are_held_out():
    calculator = run(TRAIN, 0.25, method="naive")
    assert calculator.metadata["split"].startswith("validation: 4 of 16 frames of train")
    assert calculator.metadata["data"].keys() == {"train", "valid", "replay"}


@pytest.mark.parametrize("labels", [("energy",), ("forces",), ("stress",), ("energy", "forces"), ("forces", "stress")])
def test_missing_labels_train(labels):
    train, valid = (morse.labelled(frames, labels=labels) for frames in (TRAIN, VALID))
    for held_out, name in ((valid, "valid"), (None, "train")):
        calculator = run(train, held_out, method="naive")
        for row in calculator.history:
            for label in ("energy", "forces", "stress"):
                assert math.isnan(row[f"{name}_{label}_mae"]) == (label not in labels)
            assert row[f"{name}_loss"] > 0
    assert moved(calculator) > 1e-3  # without validation the last epoch is kept, better or not


def test_frames_with_different_labels_train_together():
    parts = [morse.labelled(TRAIN[i : i + 2], labels=kinds) for i, kinds in ((0, ("energy",)), (2, ("forces",)))]
    parts.append(morse.labelled(TRAIN[4:8]))
    calculator = run([atoms for part in parts for atoms in part], VALID, batch_size=1, epochs=4)
    assert all(row["train_loss"] > 0 for row in calculator.history)


@pytest.mark.parametrize("loss", ["mse", "l1", {"kind": "huber", "energy_weight": 0}, Loss(forces_weight=0)])
def test_losses(loss):
    calculator = run(loss=loss, epochs=4)
    assert calculator.metadata["config"]["loss"] == FinetuneConfig.from_options({"loss": loss}).to_dict()["loss"]
    assert moved(calculator) > 1e-3


# History, metadata and files


@pytest.mark.parametrize(("method", "replay"), [("reewc", OLD), ("naive", OLD), ("naive", None)])
def test_history(method, replay):
    calculator = run(method=method, replay=replay, epochs=3)
    assert [row["epoch"] for row in calculator.history] == [1, 2, 3]
    columns = {f"{name}_{measure}" for name in SETS for measure in MEASURES}
    columns |= {"stage", "epoch", "learning_rate", "penalty", "skipped_steps", "seconds", "peak_memory_gb", "best"}
    columns |= {"ewc_lambda", "score", "forgetting"}
    of_replay = {name for name in columns if name.startswith("replay")} | {"forgetting"}
    for row in calculator.history:
        assert set(row) - {"outcome"} == columns
        assert (row["penalty"] > 0) == (method == "reewc")
        assert all(math.isfinite(row[name]) for name in columns - {"stage"} - (set() if replay else of_replay))
        assert math.isnan(row["replay_loss"]) == (replay is None)


def test_history_is_the_error_of_the_weights():
    """The last row of a run without validation describes the weights that are kept."""
    calculator = run(valid=None, method="naive")
    assert calculator.metadata["errors"]["after"]["replay"]["forces_mae"] == pytest.approx(
        calculator.history[-1]["replay_forces_mae"], rel=1e-6
    )


def test_output_folder(tmp_path):
    output = tmp_path / "deep" / "run"
    calculator = run(output=output)
    written = {"model", "last", "history.csv", "run.json", "log.txt", "checkpoints", ".lock"}
    written |= {"record.safetensors", "report.html", "report"}
    assert {path.name for path in output.iterdir()} == written
    with (output / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert list(rows[0]) == list(calculator.history[-1])
    assert [row["outcome"] for row in rows] == ["", "kept epoch 2 drawn back to 27%"]
    for name in ("train_loss", "valid_forces_mae", "replay_energy_mae", "penalty", "learning_rate"):
        assert float(rows[1][name]) == pytest.approx(calculator.history[1][name], rel=1e-12)
    assert json.loads((output / "run.json").read_text()) == json.loads(json.dumps(calculator.metadata))
    log = (output / "log.txt").read_text()
    for part in ("reference energies", "Fisher information", "forgetting: bound", "softening slope", "elements"):
        assert part in log
    assert log.splitlines()[-1] == calculator.metadata["outcome"]
    assert calculator.parameters["model"] == str(output / "model")


def test_saved_model_is_the_same_to_the_last_bit(tmp_path):
    calculator = run(output=tmp_path / "run")
    loaded = FinetunedCalculator(tmp_path / "run" / "model", device="cpu")
    assert morse.same_weights(loaded.potential, calculator.potential)
    assert loaded.metadata == json.loads(json.dumps(calculator.metadata))
    for one, two in zip(calculator.calculate_many(VALID), loaded.calculate_many(VALID), strict=True):
        assert one["energy"] == two["energy"]
        assert (one["forces"] == two["forces"]).all()
        assert (one["stress"] == two["stress"]).all()


def test_fine_tuned_models_are_fine_tuned_again(tmp_path):
    run(output=tmp_path / "first")
    second = run(model=str(tmp_path / "first"), original=morse.pretrained())  # the folder of the run will do
    assert second.metadata["base_model"] == str(tmp_path / "first")
    assert second.metadata["base_metadata"]["base_hash"] == potential_hash(morse.pretrained())
    assert second.metadata["base_hash"] != second.metadata["base_metadata"]["base_hash"]


def test_metadata():
    calculator = run()
    metadata = json.loads(json.dumps(calculator.metadata))
    assert metadata["base_hash"] == potential_hash(morse.pretrained())
    assert metadata["base_model"] == "a morse potential"
    assert FinetuneConfig.from_options(metadata["config"]) == FinetuneConfig.from_options(
        {name: value for name, value in SHORT.items() if name != "verbose"}
    )
    assert {"ase_finetune", "python", "torch", "ase"} <= set(metadata["versions"])
    assert all(len(digest) == 64 for digest in metadata["data"].values())
    assert set(metadata["errors"]) == {"stage", "best_epoch", "kept", "before", "after"}
    assert set(metadata["errors"]["before"]) == {"train", "valid", "replay"}
    assert metadata["fisher"]["kind"] == "gaussian"
    assert metadata["fisher"]["divided_by_mean"] > 0
    assert set(metadata["reference_offsets"]) == {"Si"}
    other = run(train=TRAIN[:-1])
    assert other.metadata["data"]["train"] != metadata["data"]["train"]
    assert other.metadata["data"]["valid"] == metadata["data"]["valid"]


def test_quiet_and_verbose(capsys):
    run()
    assert capsys.readouterr() == ("", "")
    run(verbose=True)
    out = capsys.readouterr().out
    for part in ("train  16", "1 of 1 target elements occur in the replay set", "trained", "kept: epoch", "before"):
        assert part in out


# Reference energies

SHIFTS = {"Si": 3.0, "O": -5.0}
BOTH = [*TRAIN[:10], *morse.labelled(morse.oxide(6, 7))]
BOTH_VALID = [*VALID[:4], *morse.labelled(morse.oxide(3, 8))]


@pytest.fixture(scope="module")
def references():
    """Fine-tuning on labels as they are, and in another energy reference, float64."""
    options = LONG | {"method": "replay", "dtype": "float64", "epochs": 6}
    other = shifted(BOTH, SHIFTS), shifted(BOTH_VALID, SHIFTS)
    return {
        "plain": finetune(morse.pretrained(), BOTH, BOTH_VALID, replay=OLD, **options),
        **{
            name: finetune(morse.pretrained(), *other, replay=OLD, reference=name, **options)
            for name in ("align", "shift", "none")
        },
    }


def test_another_reference_changes_nothing(references):
    plain, aligned = references["plain"], references["align"]
    theirs = morse.weights(aligned.potential)
    for name, value in morse.weights(plain.potential).items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-7)
    offsets = [calculator.metadata["reference_offsets"] for calculator in (plain, aligned)]
    for symbol, value in SHIFTS.items():
        assert offsets[1][symbol] - offsets[0][symbol] == pytest.approx(value, abs=1e-8)


def test_target_reference_gives_the_energies_of_the_labels(references, tmp_path):
    references["align"].save(tmp_path / "model")
    model, target = (
        FinetunedCalculator(tmp_path / "model", reference=name, dtype="float64") for name in ("model", "target")
    )
    labels = shifted(BOTH_VALID, SHIFTS)
    for atoms, low, high in zip(labels, model.calculate_many(labels), target.calculate_many(labels), strict=True):
        assert abs(high["energy"] - atoms.calc.results["energy"]) / 8 < 0.1
        assert abs(low["energy"] - atoms.calc.results["energy"]) / 8 > 0.5
        assert (low["forces"] == high["forces"]).all()


def test_shift_moves_the_model(references):
    calculator = references["shift"]
    labels = shifted(BOTH_VALID, SHIFTS)
    for atoms, result in zip(labels, calculator.calculate_many(labels), strict=True):
        assert abs(result["energy"] - atoms.calc.results["energy"]) / 8 < 0.1
    assert "reference_offsets" not in calculator.metadata
    assert calculator.metadata["shifted_by"]["Si"] == pytest.approx(
        references["align"].metadata["reference_offsets"]["Si"], abs=1e-8
    )


def test_shift_is_no_forgetting(references):
    """Replay labels move with the model: nothing pulls it back to where it was."""
    before = references["shift"].metadata["errors"]["before"]["replay"]
    assert before["energy_mae"] == pytest.approx(0, abs=1e-6)
    forgotten = [references[name].metadata["errors"]["after"]["replay"] for name in ("shift", "align")]
    assert forgotten[0]["forces_mae"] == pytest.approx(forgotten[1]["forces_mae"], rel=1e-3)


def test_none_trains_on_raw_energies(references):
    calculator = references["none"]
    assert calculator.metadata["errors"]["before"]["valid"]["energy_mae"] > 900
    assert "reference_offsets" not in calculator.metadata
    forgotten = [references[name].history[-1]["replay_energy_mae"] for name in ("none", "align")]
    assert forgotten[0] > 2 * forgotten[1], forgotten


def test_target_reference_needs_offsets(references, tmp_path):
    references["none"].save(tmp_path / "model")
    with pytest.raises(InputError, match="reference='target' needs"):
        FinetunedCalculator(tmp_path / "model", reference="target")


@pytest.mark.parametrize("reference", ["align", "shift"])
def test_fisher_file_goes_with_every_reference(reference, tmp_path):
    potential = morse.pretrained()
    fisher = gaussian_fisher(potential, morse.graphs(OLD, potential))
    save_fisher(fisher, tmp_path / "f.safetensors", model_hash=potential_hash(potential), data_hash="")
    calculator = run(method="ewc", fisher=str(tmp_path / "f.safetensors"), reference=reference)
    assert calculator.metadata["fisher"]["model_hash"] == potential_hash(potential)
    assert calculator.history[-1]["penalty"] > 0


# The choice of the weights


def scripted(monkeypatch, valid, moves, *, epochs=None, **options):
    """A run whose validation losses and moves on old structures (meV/atom) are given; and the weights of each epoch."""
    epoch, weights = iter(range(100)), []

    def errors(trainer, potential):
        now = next(epoch)
        weights.append(morse.weights(potential))
        return {"valid": losses(valid[now]), "replay": replace(BLANK, energy_mae=moves[now])}

    monkeypatch.setattr(training.Trainer, "_errors", errors)
    monkeypatch.setattr(training.Trainer, "_errors_on_old", lambda *_: replace(BLANK, energy_mae=99.0))
    calculator = run(epochs=epochs or len(valid) - 1, **options)
    return calculator, weights


BLANK = Errors(*[0.0] * 8)


def losses(each):
    """Errors of a validation set: a loss that all examples have, or that of each."""
    each = [each] * 6 if isinstance(each, float) else each
    return replace(BLANK, loss=sum(each) / len(each), losses=tuple(each))


def is_of_epoch(calculator, weights, epoch):
    now = morse.weights(calculator.potential)
    assert calculator.metadata["errors"]["best_epoch"] == epoch
    return [all(torch.equal(value, now[name]) for name, value in item.items()) for item in weights].index(True) == epoch


@pytest.mark.parametrize(("method", "best"), [("naive", 3), ("replay", 2), ("ewc", 2), ("reewc", 2)])
def test_lowest_validation_loss_within_the_bound(monkeypatch, method, best):
    """Validation falls further, but the later epochs forget more than 5 %, and drawn back they forget still more."""
    valid, moves = [1.0, 0.5, 0.4, 0.3, 0.35], [0.0, 1.0, 3.0, 3.5, 9.0]
    calculator, weights = scripted(monkeypatch, valid, moves, method=method)
    assert is_of_epoch(calculator, weights, best)
    assert [row["best"] for row in calculator.history] == [True, True, best == 3, False]
    kept = calculator.metadata["errors"]["kept"]
    assert (kept["bound"], kept["unchanged"]) == (None if method == "naive" else 0.05, False)
    assert ("given up for the bound: epoch 3" in kept["sentence"]) == (method != "naive")


def test_a_target_with_small_errors_is_learnt_all_the_same(monkeypatch):
    """The replay loss starts at zero on the model's own labels: its rise must not outweigh what is gained."""
    calculator, weights = scripted(monkeypatch, [0.01, 0.009, 0.008], [0.0, 1.0, 2.0], method="reewc")
    assert is_of_epoch(calculator, weights, 2)


@pytest.mark.parametrize("method", ["naive", "reewc"])
def test_the_last_epoch_on_demand(monkeypatch, method):
    calculator, weights = scripted(monkeypatch, [1.0, 0.5, 1.7], [0.0, 1.0, 90.0], method=method, keep="last")
    assert is_of_epoch(calculator, weights, 2)


@pytest.mark.parametrize(
    ("valid", "best"),
    [
        # a single frame: the last epoch that is better than the untouched model
        ([[1.0], [0.5], [0.6], [0.7]], 3),
        ([[1.0], [0.5], [0.6], [1.1]], 2),
        ([[1.0], [1.1], [1.2], [1.3]], 0),
        # four frames: 0.1 +- 0.12 is no reason to go back, 0.1 +- 0.01 is
        ([[1.0] * 4, [0.5] * 4, [0.4, 0.4, 0.7, 0.9]], 2),
        ([[1.0] * 4, [0.5] * 4, [0.62, 0.58, 0.6, 0.6]], 1),
        # five frames: the lowest one
        ([[1.0] * 5, [0.5] * 5, [0.4, 0.4, 0.4, 0.7, 0.7]], 1),
        # ... of those that are clearly better than the untouched model: here 0.2 +- 0.04
        ([[1.0] * 5, [0.9, 0.8, 0.7, 0.8, 0.9], [0.6, 1.2, 1.2, 1.2, 0.6]], 1),
        # If none is, the last one, for training says what 0.02 +- 0.14 cannot,
        ([[1.0] * 5, [0.5, 1.2, 1.2, 1.2, 0.8], [0.5, 1.3, 1.2, 1.2, 0.9]], 2),
        # ... unless it certainly gains nothing to speak of.
        ([[1.0] * 5, [1.001, 0.999, 1.0, 1.001, 0.998]], 0),
        ([[1.0] * 5, [0.5, 1.2, 1.2, 1.2, 0.8], [1.1, 1.2, 1.3, 1.2, 1.1]], 0),
        ([[1.0] * 5, [1.1, 1.2, 1.3, 1.2, 1.1], [0.5, 1.3, 1.2, 1.2, 0.9]], 2),
    ],
)
def test_few_validation_frames(monkeypatch, valid, best):
    calculator, weights = scripted(monkeypatch, valid, [0.0] * len(valid), method="reewc")
    assert is_of_epoch(calculator, weights, best)


def test_unchanged_is_said_everywhere(monkeypatch, tmp_path, capsys):
    calculator, weights = scripted(
        monkeypatch, [1.0, 1.5, 1.2], [0.0] * 3, method="replay", output=tmp_path / "run", verbose=True
    )
    assert is_of_epoch(calculator, weights, 0)
    assert morse.same_weights(calculator.potential, morse.pretrained())
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line.startswith("unchanged: no epoch was clearly better on validation than the model it started from")
    assert "(validation loss: epoch 2 +20 %, the last one +20 %)" in last_line
    assert (tmp_path / "run" / "log.txt").read_text(encoding="utf-8").splitlines()[-1] == last_line
    assert calculator.metadata["unchanged"] is True
    assert calculator.history[-1]["outcome"] == "unchanged"
    assert "(unchanged" in repr(calculator)
    loaded = FinetunedCalculator(tmp_path / "run" / "model", device="cpu")
    assert "(unchanged" in repr(loaded)
    # ... and the last epoch is not lost.
    last = FinetunedCalculator(tmp_path / "run" / "last", device="cpu")
    assert torch.equal(morse.weights(last.potential)["depth"], weights[2]["depth"])
    assert "(unchanged" not in repr(last)


def test_nan_is_never_the_best(monkeypatch):
    calculator, weights = scripted(monkeypatch, [1.0, math.nan, 0.5, math.nan], [0.0] * 4, method="replay")
    assert is_of_epoch(calculator, weights, 2)


def test_nan_before_training_is_an_error(monkeypatch):
    with pytest.raises(TrainingError, match="the loss of the untouched model on the valid structures is nan"):
        scripted(monkeypatch, [math.nan, 0.5], [0.0] * 2, method="replay")


def test_a_run_that_dies_leaves_its_best_model(monkeypatch, tmp_path):
    """The second epoch fails: the folder holds the model and the history of the first."""
    original = training.Trainer._epoch

    def epoch(self):
        if self.progress.epoch == 2:
            raise TrainingError("the loss is nan")
        original(self)

    monkeypatch.setattr(training.Trainer, "_epoch", epoch)
    with pytest.raises(TrainingError, match=r"the loss is nan; the best model so far is in .*model"):
        run(method="naive", epochs=3, schedule="constant", output=tmp_path / "run")
    monkeypatch.undo()
    kept = FinetunedCalculator(tmp_path / "run" / "model", device="cpu")
    assert not morse.same_weights(kept.potential, morse.pretrained())
    with (tmp_path / "run" / "history.csv").open(encoding="utf-8") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["config"]["method"] == "naive"


def test_frozen_parameters_train_again_in_the_next_run():
    first = run(method="naive", freeze=["shift"])
    assert all(parameter.requires_grad for parameter in first.potential.parameters())
    second = run(model=first.potential, method="naive")
    assert not torch.equal(second.potential.native["shift"], first.potential.native["shift"])


def test_without_validation_the_last_epoch_is_kept():
    short, long = (run(valid=None, method="naive", epochs=epochs, schedule="constant") for epochs in (2, 3))
    assert (short.metadata["errors"]["best_epoch"], long.metadata["errors"]["best_epoch"]) == (2, 3)
    assert not morse.same_weights(short.potential, long.potential)


def test_early_stopping(monkeypatch):
    valid = [1.0, 0.5, 0.6, 0.55, 0.1, 0.1]
    calculator, weights = scripted(monkeypatch, valid, [0.0] * 6, method="naive", early_stopping=2, epochs=5)
    assert [row["epoch"] for row in calculator.history] == [1, 2, 3]
    assert is_of_epoch(calculator, weights, 1)


def test_early_stopping_does_not_stop_progress(monkeypatch):
    valid = [1.0, 0.5, 0.6, 0.4, 0.5, 0.3]
    calculator, _ = scripted(monkeypatch, valid, [0.0] * 6, method="naive", early_stopping=2, epochs=5)
    assert len(calculator.history) == 5


def test_early_stopping_needs_validation():
    with pytest.raises(InputError, match="early_stopping needs validation frames"):
        run(valid=None, early_stopping=2)


def test_ema_by_hand(monkeypatch):
    """Decay 0.5 over every iteration, which begins at the weights after the first one."""
    steps = []
    original = training.Trainer._iteration

    def iteration(trainer, *arguments):
        original(trainer, *arguments)
        steps.append(morse.weights(trainer.potential))

    monkeypatch.setattr(training.Trainer, "_iteration", iteration)
    calculator = run(valid=None, method="replay", ema_decay=0.5, dtype="float64", keep="last")
    assert len(steps) == 8
    for name, value in morse.weights(calculator.potential).items():
        average = steps[0][name]
        for step in steps[1:]:
            average = 0.5 * average + 0.5 * step[name]
        torch.testing.assert_close(value, average, rtol=1e-12, atol=1e-14)
        assert not torch.equal(value, steps[-1][name])


def test_loss_that_blows_up():
    potential = morse.pretrained()
    options = {"learning_rate": 1e6, "clip_norm": None, "method": "reewc", "max_skipped_steps": 2, "epochs": 5}
    with pytest.raises(TrainingError, match=r"^2 steps in a row could not be made .*the loss is nan because of frame "):
        run(model=potential, **options)
    assert morse.same_weights(potential, morse.pretrained())


def test_the_best_weights_survive_a_loss_that_blows_up(monkeypatch):
    """A trainer that fails holds the best weights it saw."""
    potential = morse.pretrained()
    config = FinetuneConfig(method="naive", learning_rate=0.03)
    train, valid = (morse.graphs(frames, potential) for frames in (TRAIN, VALID))
    task = FrameTask(FrameBatches(potential, train, config.loss, EdgeBudget(1000)), valid, config)
    trainer = training.Trainer(potential, task, Replay(), config, None, Log(False))
    first = []
    original = training.Trainer._epoch

    def epoch(self):
        if self.progress.epoch == 2:
            raise TrainingError("the loss is nan")
        original(self)
        first.append(morse.weights(potential))
        with torch.no_grad():
            potential.native["depth"].fill_(math.nan)

    monkeypatch.setattr(training.Trainer, "_epoch", epoch)
    with pytest.raises(TrainingError):
        trainer.fit()
    assert trainer.best.epoch == 1
    assert all(torch.equal(value, first[0][name]) for name, value in morse.weights(potential).items())


# Bad input


def bad(frames, position, change):
    """A copy of labelled frames with one of them changed."""
    copies = [morse.attach(atoms, **atoms.calc.results) for atoms in frames]
    atoms = copies[position].copy()
    change(atoms)
    copies[position] = morse.attach(atoms, **frames[position].calc.results)
    return copies


def test_unknown_element_names_the_frame():
    def germanium(atoms):
        atoms.symbols[3] = "Ge"

    with pytest.raises(DataError, match=r"frame 5 of train .*atom 3 is Ge, an element this model does not know"):
        run(bad(TRAIN, 5, germanium))
    with pytest.raises(DataError, match=r"frame 2 of valid .*atom 3 is Ge"):
        run(TRAIN, bad(VALID, 2, germanium))


def test_positions_that_are_not_finite():
    with pytest.raises(DataError, match="frame 1 of train"):
        run(bad(TRAIN, 1, lambda atoms: atoms.positions.__setitem__((0, 0), np.nan)))


def test_no_frames():
    with pytest.raises(DataError, match="train: the list holds no structures"):
        run([])


def test_no_labels():
    with pytest.raises(DataError, match="train: none of 3 frames has an energy, forces or stress label; the keys seen"):
        run(morse.silicon(3, 1))


def test_shared_frames():
    with pytest.raises(DataError, match=r"train and valid share 1 structures: frame 0 of valid .* frame 3 of train"):
        run(TRAIN, [TRAIN[3], *VALID])


def test_stress_in_kbar():
    near = MorsePotential([8, 14], **(morse.PRETRAINED | {"depth": [0.8, 1.2]}))
    frames = [
        morse.attach(atoms, **(atoms.calc.results | {"stress": atoms.calc.results["stress"] * 1602.1766}))
        for atoms in morse.labelled(morse.silicon(4, 1), near)
    ]
    with pytest.raises(DataError, match="stress labels look like kbar"):
        run(frames)


def test_forces_of_the_wrong_sign():
    frames = [morse.attach(a, **(a.calc.results | {"forces": -a.calc.results["forces"]})) for a in TRAIN]
    with pytest.raises(DataError, match="wrong sign"):
        run(frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "reewc"}, "method='reewc' needs replay structures, but replay=None"),
        ({"method": "replay"}, "method='replay' needs replay structures"),
        ({"method": "ewc"}, "estimating the Fisher information needs replay structures, but replay=None"),
        ({"method": "ewc", "fisher": "empirical"}, "needs replay structures"),
    ],
)
def test_no_replay(options, message):
    with pytest.raises(InputError, match=message):
        run(replay=None, **options)


def test_ewc_from_a_file_needs_no_replay(tmp_path):
    potential = morse.pretrained()
    fisher = gaussian_fisher(potential, morse.graphs(OLD, potential))
    save_fisher(fisher, tmp_path / "f.safetensors", model_hash=potential_hash(potential), data_hash="")
    calculator = run(replay=None, method="ewc", fisher=str(tmp_path / "f.safetensors"))
    assert set(calculator.metadata["errors"]["after"]) == {"valid"}


@pytest.mark.parametrize("normalize", [None, False])
def test_empirical_fisher_on_pseudo_labels(normalize):
    with pytest.raises(InputError, match=r"residuals vanish; use the label-free form \(fisher='label-free'\)"):
        run(method="ewc", fisher="empirical", fisher_normalize=normalize)


def test_empirical_fisher_on_labels():
    calculator = run(method="ewc", fisher="empirical", replay=morse.labelled(OLD))
    assert calculator.metadata["fisher"]["kind"] == "empirical"
    assert calculator.history[-1]["penalty"] > 0


def test_fisher_of_another_model(tmp_path):
    fisher = gaussian_fisher(morse.truth(), morse.graphs(OLD, morse.truth()))
    save_fisher(fisher, tmp_path / "f.safetensors", model_hash=potential_hash(morse.truth()), data_hash="")
    with pytest.raises(CheckpointError, match=r"f\.safetensors was made with another model"):
        run(method="reewc", fisher=str(tmp_path / "f.safetensors"))


def test_published_style_fisher_and_anchor(tmp_path):
    potential = morse.pretrained()
    torch.save({f"module.{name}": torch.ones(2) for name in morse.weights(potential)}, tmp_path / "fisher.pt")
    torch.save(morse.weights(potential), tmp_path / "anchor.pt")
    torch.save(morse.weights(morse.truth()), tmp_path / "other.pt")
    files = {"fisher": str(tmp_path / "fisher.pt"), "fisher_anchor": str(tmp_path / "anchor.pt")}
    calculator = run(method="reewc", ewc_lambda=2.0, **files, valid=None, keep="last")
    start, now = morse.weights(potential), morse.weights(calculator.potential)
    expected = sum(float((now[name] - start[name]).square().sum()) for name in start)
    assert calculator.history[-1]["penalty"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(CheckpointError, match=r"other\.pt is the anchor of another model: .* differs by"):
        run(method="reewc", **(files | {"fisher_anchor": str(tmp_path / "other.pt")}))


def test_published_fisher_where_versions_order_weights_differently(tmp_path, monkeypatch):
    monkeypatch.setattr(MorsePotential, "several_orders", True)
    potential = morse.pretrained()
    torch.save({name: torch.ones(2) for name in morse.weights(potential)}, tmp_path / "fisher.pt")
    torch.save(morse.weights(potential), tmp_path / "anchor.pt")
    torch.save(morse.weights(morse.truth()), tmp_path / "other.pt")
    fisher = str(tmp_path / "fisher.pt")
    with pytest.raises(CheckpointError, match=r"fisher\.pt does not say which version .*; give fisher_anchor, too"):
        run(method="ewc", fisher=fisher)
    with pytest.raises(CheckpointError, match=r"other\.pt is the anchor of another model, or of another version of"):
        run(method="ewc", fisher=fisher, fisher_anchor=str(tmp_path / "other.pt"))
    assert run(method="ewc", fisher=fisher, fisher_anchor=str(tmp_path / "anchor.pt")).history[-1]["penalty"] > 0


def test_missing_fisher_file():
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors does not exist"):
        run(method="ewc", fisher="nowhere.safetensors")


@pytest.mark.parametrize("device", ["cuda:99", "quantum"])
def test_device_that_does_not_exist(device):
    with pytest.raises(InputError, match=f"device '{device}' does not exist here; there is cpu"):
        run(device=device)


def test_unknown_model():
    with pytest.raises(UnknownModelError, match="did you mean 7net-0"):
        finetune("7net_00", TRAIN, verbose=False)


def test_model_that_is_not_here(tmp_path):
    with pytest.raises((ModelNotAvailableError, UnknownModelError), match="nothing"):
        finetune(tmp_path / "nothing", TRAIN, verbose=False)


def test_unknown_option():
    with pytest.raises(InputError, match="unknown option 'epoch'; did you mean 'epochs'"):
        finetune(morse.pretrained(), TRAIN, epoch=2)


def test_output_that_holds_another_run(tmp_path, monkeypatch):
    (tmp_path / "precious.txt").write_text("mine")
    monkeypatch.setattr("ase_finetune.finetuning.loading.load_potential", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(OutputExistsError, match=re.escape(f"{tmp_path} exists and is not empty")):
        run(output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(OutputExistsError, match="exists and is not a folder"):
        run(output=tmp_path / "precious.txt")
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_empty_output_folder_is_taken(tmp_path):
    run(output=tmp_path)
    assert (tmp_path / "run.json").is_file()


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"the folder .*run cannot be made: Not a directory"):
        run(output=tmp_path / "file" / "run")


# Real architectures

TINY_TRAIN = [*TRAIN[:3], *morse.labelled(morse.oxide(1, 7))]
TINY = {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3, "monitor_size": 2, "verbose": False, "device": "cpu"}


def check_trained(potential, calculator):
    assert len(calculator.history) == 1
    assert math.isfinite(calculator.history[0]["train_loss"])
    assert math.isfinite(calculator.history[0]["replay_loss"])
    assert not morse.same_weights(potential, calculator.potential)


def check_tiny(potential, calculator, folder):
    """Trained, saved, loaded."""
    check_trained(potential, calculator)
    loaded = FinetunedCalculator(folder / "model", device="cpu")
    assert loaded.potential.head == calculator.potential.head
    atoms = bulk("Si", cubic=True)
    one, two = (c.calculate_many([atoms])[0] for c in (calculator, loaded))
    assert one["energy"] == two["energy"]
    assert (one["forces"] == two["forces"]).all()


@pytest.mark.sevenn
@needs_sevenn
@pytest.mark.parametrize("method", ["naive", "replay", "ewc"])
def test_tiny_sevennet_by_every_method(tiny_sevennet, method):
    potential = tiny_sevennet()
    check_trained(potential, finetune(potential, TINY_TRAIN, None, replay=OLD[:4], method=method, **TINY))


@pytest.mark.sevenn
@needs_sevenn
def test_tiny_sevennet(tiny_sevennet, tmp_path):
    potential = tiny_sevennet()
    calculator = finetune(potential, TINY_TRAIN, None, replay=OLD[:4], output=tmp_path / "run", ema_decay=0.5, **TINY)
    check_tiny(potential, calculator, tmp_path / "run")


@pytest.mark.mace
@needs_mace
def test_tiny_mace(tiny_mace, tmp_path):
    potential = MACEPotential(tiny_mace())
    calculator = finetune(potential, TINY_TRAIN, None, replay=OLD[:4], output=tmp_path / "run", ema_decay=0.5, **TINY)
    check_tiny(potential, calculator, tmp_path / "run")


@pytest.mark.mace
@needs_mace
def test_multi_head_mace(tiny_mace, tmp_path):
    potential = MACEPotential(tiny_mace(heads=["pbe", "scan"]), "pbe")
    save_potential(potential, tmp_path / "model")
    calculator = finetune(
        tmp_path / "model", TINY_TRAIN, None, replay=OLD[:4], head="scan", output=tmp_path / "run", **TINY
    )
    assert calculator.metadata["head"] == calculator.potential.head == "scan"
    check_tiny(potential, calculator, tmp_path / "run")
    with pytest.raises(InputError, match="this model's heads are 'pbe', 'scan'; head='r2scan' is not one of them"):
        finetune(tmp_path / "model", TINY_TRAIN, None, replay=OLD[:4], head="r2scan", **TINY)


@pytest.mark.sevenn
@needs_sevenn
def test_sevennet0_learns_two_atoms():
    from tests.pretrained import pretrained

    potential = pretrained("7net-0")
    train = morse.labelled([atoms[:2] for atoms in morse.silicon(4, 1)], potential)
    for atoms in train:
        atoms.calc.results["forces"] = atoms.calc.results["forces"] * 1.3
    small = morse.silicon(4, 9)
    calculator = finetune(
        potential,
        train,
        None,
        replay=[atoms[:2] for atoms in small],
        loss={"energy_weight": 0, "stress_weight": 0},
        **(TINY | {"epochs": 3, "monitor_size": 2, "learning_rate": 3e-4, "warmup": 0.0}),
    )
    losses = [row["train_forces_mae"] for row in calculator.history]
    assert losses[-1] < 0.9 * losses[0]
