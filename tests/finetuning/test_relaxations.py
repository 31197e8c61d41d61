"""Training through relaxations, on crystals of a Morse world whose true distances differ from the pretrained ones."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms

from ase_finetune import FinetuneConfig, FinetunedCalculator, finetune
from ase_finetune.data import PairSet, read_pairs
from ase_finetune.errors import DataError, InputError
from ase_finetune.finetuning.frame_task import Replay
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.relaxation_config import RelaxationConfig
from ase_finetune.finetuning.relaxation_task import RelaxationTask
from ase_finetune.finetuning.training import Trainer
from ase_finetune.optimize import GradientDescentStep, LBFGSStep, relax, relaxation
from ase_finetune.trajectories import implicit
from tests import morse

FAST = {"device": "cpu", "dtype": "float64", "verbose": False, "early_stopping": None}
BPTT = {
    "epochs": 6,
    "batch_size": 2,
    "learning_rate": 0.006,
    "start": "initial",
    "steps": 20,
    "step_size": 0.1,
    "robust": None,
    "valid_fmax": 0.02,
}


def crystal(seed: int) -> Atoms:
    """Rock salt SiO or fcc silicon, strained and rattled."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        atoms = bulk("NaCl", "rocksalt", a=3.78 + 0.05 * rng.normal())
        atoms.symbols = "SiO"
    else:
        atoms = bulk("Si", "fcc", a=3.12 + 0.05 * rng.normal(), cubic=True)
    atoms.rattle(0.05, rng=rng)
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.01 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.info["structure_id"] = f"crystal {seed}"
    return atoms


def make_pairs(seeds, *, energies=False):
    """Pairs relaxed by the true potential."""
    initial = [crystal(seed) for seed in seeds]
    calc = FinetunedCalculator(morse.truth().double(), device="cpu", dtype="float64")
    ends = relax(initial, calc, cell=True, fmax=0.005, steps=500, progress=False)
    assert all(end.converged for end in ends)
    relaxed = [
        morse.attach(end.atoms, energy=end.atoms.calc.results["energy"]) if energies else end.atoms.copy()
        for end in ends
    ]
    return list(zip(initial, relaxed, strict=True))


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(range(6))


@pytest.fixture(scope="module")
def silicon():
    """Pairs and held-out pairs of silicon alone, where one distance decides."""
    return make_pairs([0, 2, 4, 6]), make_pairs([10, 12])


@pytest.fixture(scope="module")
def held_out():
    return make_pairs(range(10, 14))


def run(pairs, held_out, bptt=None, **options):
    settings = {"method": "bptt", "replay": None, "bptt": BPTT | (bptt or {}), **FAST} | options
    return finetune(morse.pretrained().double(), relaxations=pairs, valid_relaxations=held_out, **settings)


@pytest.mark.parametrize("gradient", ["adjoint", "unrolled", "truncated", "implicit", "guided"])
def test_every_gradient_learns_where_relaxations_end(silicon, gradient):
    steps = 60 if gradient in ("implicit", "guided") else 20
    calc = run(*silicon, {"gradient": gradient, "steps": steps}, freeze=["depth", "width"])
    before, after = (calc.metadata["errors"][when]["valid"] for when in ("before", "after"))
    assert before["strain_median"] > 0.03
    assert after["strain_median"] < 0.6 * before["strain_median"]
    assert after["right_basin"] == after["total"] == 2
    # A fixed point may turn out to be a saddle point, which is told; nothing else fails.
    assert calc.history[-1]["train_skipped"] <= (1 if gradient in ("implicit", "guided") else 0)
    # From the pretrained 2.4 towards the true 2.3 Å.
    assert 2.28 < calc.potential.native["distance"][1].item() < 2.37


@pytest.mark.parametrize("optimizer", ["lbfgs", "gradient-descent"])
def test_every_optimizer_learns(silicon, optimizer):
    options = {"lbfgs": {"step_size": 30.0}, "gradient-descent": {"step_size": 0.02, "momentum": 0.7}}
    calc = run(*silicon, {"optimizer": optimizer, **options[optimizer]}, freeze=["depth", "width"])
    errors = calc.metadata["errors"]
    assert errors["after"]["valid"]["loss"] < 0.7 * errors["before"]["valid"]["loss"]


def test_history_and_metadata(pairs, held_out, tmp_path):
    calc = run(pairs, held_out, {"epochs": 2}, output=tmp_path / "run")
    assert [row["stage"] for row in calc.history] == ["relaxations"] * 2
    for row in calc.history:
        assert math.isfinite(row["train_loss"])
        assert row["valid_total"] == 4
        assert math.isnan(row["replay_loss"])
    assert calc.metadata["split_relaxations"] == "validation pairs given"
    assert set(calc.metadata["data"]) == {"relaxations", "valid_relaxations"}
    with (tmp_path / "run" / "history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["valid_strain_median"]) == pytest.approx(calc.history[1]["valid_strain_median"])
    again = FinetunedCalculator(tmp_path / "run" / "model", device="cpu", dtype="float64")
    assert morse.same_weights(again.potential, calc.potential)


def test_frames_come_first_then_relaxations(pairs, held_out):
    frames = morse.labelled(morse.silicon(6, 1))
    calc = run(pairs, held_out, {"epochs": 1}, train=frames, valid=2, epochs=2, batch_size=2)
    assert [row["stage"] for row in calc.history] == ["frames", "frames", "relaxations"]
    assert [stage["stage"] for stage in calc.metadata["stages"]] == ["frames", "relaxations"]
    first, second = calc.metadata["stages"]
    # The second stage begins where the first one ended.
    assert second["before"]["valid"]["loss"] != first["after"]["valid"]["loss"]
    assert calc.metadata["errors"] == second
    assert "reference_offsets" in calc.metadata


@pytest.mark.parametrize("method", ["bptt+replay", "bptt+ewc", "bptt+reewc"])
@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_forgetting_less(pairs, held_out, method, schedule):
    old = morse.oxide(8, 3)
    options = {"replay": old, "replay_size": 6, "monitor_size": 2, "fisher_size": 4, "replay_schedule": schedule}
    plain = run(pairs, held_out, {"epochs": 2}, **options)
    kept = run(pairs, held_out, {"epochs": 2}, method=method, ewc_lambda=1e3, replay_weight=10.0, **options)
    forgotten, remembered = (calc.history[-1]["replay_forces_mae"] for calc in (plain, kept))
    assert remembered < 0.9 * forgotten
    assert (kept.history[-1]["penalty"] > 0) == (method != "bptt+replay")


def test_stages_that_fight_forgetting_are_bound(pairs):
    """No energy is trained on, so nothing else holds the energies of old structures."""
    options = {"replay": morse.oxide(8, 3), "monitor_size": 4, "learning_rate": 0.01}
    free = run(pairs, None, {"epochs": 3, "learning_rate": 0.02}, method="bptt", **options)
    held = run(pairs, None, {"epochs": 3, "learning_rate": 0.02}, method="bptt+ewc", ewc_lambda=1e-6, **options)
    free, held = (calc.metadata["errors"]["kept"] for calc in (free, held))
    assert free["bound"] is None
    assert free["forgetting"] > 0.1
    assert held["bound"] == 0.05
    assert 0.02 < held["forgetting"] <= 0.05
    assert held["fraction"] < 1


def backward(task, batch):
    """Losses of the pieces of a batch; their gradients are added to those of the parameters."""
    losses = []
    for pieces in task.batches([list(batch)]):
        for piece in pieces:
            value, keep = piece.loss(piece.examples)
            value.backward()
            keep()
            losses.append(float(value.detach()))
    return losses


def test_weight_scales_the_loss(pairs):
    def gradient(weight):
        potential = morse.pretrained().double()
        config = RelaxationConfig.from_options(BPTT | {"weight": weight})
        task = RelaxationTask(potential, read_pairs(pairs), None, config, Log(False))
        backward(task, range(4))
        return potential.native["distance"].grad.clone()

    torch.testing.assert_close(gradient(3.0), 3 * gradient(1.0))


def test_pieces_add_up_to_the_batch(pairs):
    potential = morse.pretrained().double()

    def gradient(max_edges):
        config = RelaxationConfig.from_options(BPTT | {"max_edges": max_edges})
        task = RelaxationTask(potential, read_pairs(pairs), None, config, Log(False))
        potential.zero_grad()
        return len(backward(task, range(6))), potential.native["distance"].grad.clone()

    (one, whole), (several, parts) = gradient(100_000), gradient(100)
    assert one == 1
    assert several > 3
    torch.testing.assert_close(parts, whole, rtol=1e-8, atol=1e-9)


def test_exploding_rollouts_are_left_out_and_told(pairs, monkeypatch):
    """A cell that is far too small blows up, here beyond a bound that the others keep."""
    monkeypatch.setattr(relaxation, "LARGEST_VOLUME_RATIO", 1.3)
    initial, relaxed = pairs[0]
    small = initial.copy()
    small.set_cell(0.8 * small.cell[:], scale_atoms=True)
    options = RelaxationConfig.from_options(BPTT)
    task = RelaxationTask(
        morse.pretrained().double(), read_pairs([*pairs, (small, relaxed)]), None, options, Log(False)
    )
    losses = backward(task, range(7))
    assert task.train_errors().skipped == 1
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    (note,) = task.notes()
    assert "1 rollouts were left out, for example pair 6" in note
    assert "volume has changed by a factor of" in note


def test_a_batch_without_survivors_changes_nothing(pairs):
    potential = morse.pretrained().double()
    before = morse.weights(potential)
    config = FinetuneConfig.from_options(
        {"method": "bptt", "bptt": BPTT | {"gradient": "implicit", "steps": 1, "fmax": 1e-9}, "dtype": "float64"}
    )
    task = RelaxationTask(potential, read_pairs(pairs), None, config.bptt, Log(False))
    trainer = Trainer(potential, task, Replay(), config, None, Log(False))
    trainer.fit()
    assert trainer.rows[-1]["train_skipped"] == len(pairs)
    assert all(torch.equal(value, before[name]) for name, value in morse.weights(potential).items())


@pytest.mark.parametrize("start", ["relaxed", "both"])
def test_other_starts_learn_the_same(silicon, start):
    calc = run(*silicon, {"start": start, "steps": 15}, freeze=["depth", "width"])
    errors = calc.metadata["errors"]
    assert errors["after"]["valid"]["strain_median"] < 0.6 * errors["before"]["valid"]["strain_median"]


def test_starts_keep_the_constraints(pairs):
    initial, relaxed = (atoms.copy() for atoms in pairs[0])
    initial.set_constraint(FixAtoms([1]))
    options = RelaxationConfig.from_options(BPTT | {"start": "both"})
    task = RelaxationTask(morse.pretrained().double(), read_pairs([(initial, relaxed)]), None, options, Log(False))
    assert task.size == 2
    for start, position in zip(task._starts, (initial.positions, relaxed.positions), strict=True):
        np.testing.assert_array_equal(start.positions, position)
        assert start.constraints[0].index.tolist() == [1]


def test_robust_loss_bounds_the_weight_of_one_structure(pairs):
    def gradient(robust):
        potential = morse.pretrained().double()
        options = RelaxationConfig.from_options(BPTT | {"robust": robust})
        task = RelaxationTask(potential, read_pairs(pairs[:1]), None, options, Log(False))
        (loss,) = backward(task, [0])
        return loss, potential.native["distance"].grad

    plain, slope = gradient(None)
    bounded, gentle = gradient(0.01)
    assert bounded == pytest.approx(0.01 * math.log1p(plain / 0.01))
    torch.testing.assert_close(gentle, slope / (1 + plain / 0.01))


def test_equations_that_cannot_be_solved_are_told(pairs, monkeypatch):
    monkeypatch.setattr(implicit, "conjugate_gradient", lambda _, right, *__: (right, {0: "no solution here"}))
    options = RelaxationConfig.from_options(BPTT | {"gradient": "implicit", "steps": 200, "fmax": 0.05})
    task = RelaxationTask(morse.pretrained().double(), read_pairs(pairs[:2]), None, options, Log(False))
    backward(task, [1, 0])
    assert task.train_errors().skipped == 1
    (note,) = task.notes()
    assert note.startswith("1 rollouts were left out, for example pair 0 ")
    assert note.endswith(": no solution here")


def test_trained_step_size_moves(pairs):
    config = FinetuneConfig.from_options(
        {"method": "bptt", "bptt": BPTT | {"train_step_size": True, "epochs": 1}, "dtype": "float64"}
    )
    potential = morse.pretrained().double()
    task = RelaxationTask(potential, read_pairs(pairs), None, config.bptt, Log(False))
    assert task.step_size == pytest.approx(0.1)
    Trainer(potential, task, Replay(), config, None, Log(False)).fit()
    assert abs(task.step_size - 0.1) > 1e-4
    assert any("the step size is" in note for note in task.notes())


def test_energy_of_the_relaxed_structure_is_trained_in_the_models_reference():
    """Energies of another reference: a constant per element must not move the potential."""
    found = make_pairs(range(4), energies=True)
    shifted = [
        (initial, morse.attach(relaxed, energy=relaxed.calc.results["energy"] + 3.0 * len(relaxed)))
        for initial, relaxed in found
    ]
    loss = {"rmsd": 0.0, "strain": 0.0, "energy": 1.0}
    one, two = (run(pairs, None, {"loss": loss, "epochs": 1, "learning_rate": 0.001}) for pairs in (found, shifted))
    for name, value in morse.weights(one.potential).items():
        torch.testing.assert_close(value, morse.weights(two.potential)[name], rtol=1e-8, atol=1e-10)
    assert not morse.same_weights(one.potential, morse.pretrained().double())


def test_fixed_cells_are_noticed(pairs):
    """Without a change of cell in the pairs the cells stay."""
    potential = morse.pretrained().double()
    fixed = []
    for _, relaxed in pairs:
        start = relaxed.copy()
        start.rattle(0.05, seed=1)
        fixed.append((start, relaxed))
    task = RelaxationTask(potential, read_pairs(fixed), None, RelaxationConfig.from_options(BPTT), Log(False))
    backward(task, range(len(fixed)))
    assert task.train_errors().strain_median == 0.0


def test_seed_repeats_the_run(pairs, held_out):
    one, two = (run(pairs, held_out, {"epochs": 1}, seed=4) for _ in range(2))
    assert morse.same_weights(one.potential, two.potential)


def test_split_keeps_formulas_apart(pairs):
    calc = run(pairs, 3, {"epochs": 1})
    assert "none of them in both sets" in calc.metadata["split_relaxations"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "bptt"}, "method='bptt' trains through relaxations: give relaxations=pairs"),
        ({"method": "reewc", "relaxations": True}, "method='reewc' does not use them; use 'bptt.reewc'"),
        ({"method": "naive", "relaxations": True}, "use 'bptt'"),
        ({"method": "naive"}, "there is nothing to train on"),
    ],
)
def test_sources_must_fit_the_method(pairs, options, message):
    options = options | ({"relaxations": pairs} if "relaxations" in options else {})
    with pytest.raises(InputError, match=message):
        finetune(morse.pretrained(), **options, **FAST)


def test_bad_pairs(pairs):
    foreign = crystal(0)
    foreign.symbols = "Ge4"
    moved = foreign.copy()
    moved.rattle(0.1)
    with pytest.raises(DataError, match=r"pair 0.*Ge, an element this model does not know"):
        run([(foreign, moved)], None)
    with pytest.raises(DataError, match=r"share|same structure|both"):
        run(pairs, pairs)
    with pytest.raises(InputError, match="early_stopping needs validation pairs"):
        run(pairs, None, early_stopping=2)
    without = [(initial, relaxed.copy()) for initial, relaxed in pairs]
    with pytest.raises(DataError, match="energy weight, but no pair"):
        run(without, None, {"loss": {"energy": 1.0}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.0}, "step_size must be a positive number"),
        ({"step_size": -0.1}, "step_size must be a positive number"),
        ({"steps": 0}, "steps must be a positive number"),
        ({"optimizer": "bfgs"}, "optimizer='bfgs' is not known"),
        ({"gradient": "exact"}, "gradient='exact' is not known"),
        ({"momentum": 0.5}, "momentum is an option of gradient-descent"),
        ({"optimizer": "gradient-descent", "momentum": 1.0}, "momentum must lie between 0 and 1"),
        ({"train_step_size": True, "gradient": "implicit"}, "does not depend on the step size"),
        ({"loss": {"rmsd": -1.0}}, "weight of rmsd"),
        ({"gradient": "truncated", "fmax": 0.05}, "which all structures must make: no fmax"),
        ({"start": "end"}, "start='end' is not known"),
        ({"robust": 0.0}, "robust must be a positive number"),
        ({"stepz": 3}, "stepz"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        FinetuneConfig.from_options({"method": "bptt", "bptt": options})


def test_pair_sets_are_taken_as_they_are(pairs, held_out):
    read = read_pairs(pairs)
    assert isinstance(read, PairSet)
    one, two = (run(source, held_out, {"epochs": 1}) for source in (read, pairs))
    assert morse.same_weights(one.potential, two.potential)


def test_rollouts_begin_with_larger_steps_of_fire_than_relaxations():
    first, second = RelaxationConfig().method(), RelaxationConfig(step_size=0.05).method()
    assert (first.dt, second.dt) == (0.2, 0.05)
    # A curvature or a step in Å²/eV is another matter.
    for optimizer, own in (("lbfgs", LBFGSStep()), ("gradient-descent", GradientDescentStep())):
        method = RelaxationConfig(optimizer=optimizer).method()
        assert getattr(method, method.step_parameter) == getattr(own, own.step_parameter)


def test_defaults_learn_from_few_pairs(silicon):
    """Without any option of bptt but a learning rate for a potential of six parameters."""
    settings = {"method": "bptt", "replay": None, "bptt": {"learning_rate": 0.006}, "freeze": ["depth", "width"]} | FAST
    train, held_out = silicon
    calc = finetune(morse.pretrained().double(), relaxations=train, valid_relaxations=held_out, **settings)
    before, after = (calc.metadata["errors"][when]["valid"] for when in ("before", "after"))
    assert after["strain_median"] < 0.7 * before["strain_median"]
