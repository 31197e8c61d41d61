from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from ase.build import bulk, molecule

from ase_finetune.reporting import TensorDrift
from ase_finetune.reporting.elements import periodic_table, places
from ase_finetune.reporting.figures import Chart, Missing, own_style
from ase_finetune.reporting.learning import learning_curves
from ase_finetune.reporting.parameters import drift, layers
from ase_finetune.reporting.parity import parity, softening
from ase_finetune.reporting.record import AFTER, BEFORE
from ase_finetune.reporting.relaxations import gradient_norms, outcome
from ase_finetune.reporting.stages import stages
from ase_finetune.reporting.structures import side_by_side, worst
from tests.reporting import records


@pytest.fixture(autouse=True)
def style():
    with own_style():
        yield


def test_every_element_has_a_place_of_its_own():
    found = places()
    assert sorted(found) == list(range(1, 119))
    assert len(set(found.values())) == 118
    wanted = {
        1: (1, 1),
        2: (1, 18),
        5: (2, 13),
        26: (4, 8),
        57: (8, 4),
        71: (8, 18),
        72: (6, 4),
        118: (7, 18),
        103: (9, 18),
    }
    assert {z: found[z] for z in wanted} == wanted


def test_elements_are_better_or_worse():
    frames = records.frame_record(structures=4, atoms=30, slope=1)
    frames.forces[..., BEFORE] = frames.forces[..., 0] + 0.1
    frames.forces[..., AFTER] = frames.forces[..., BEFORE]
    frames.forces[frames.numbers == 3, :, AFTER] += 0.05
    frames.forces[frames.numbers == 16, :, AFTER] -= 0.02
    chart = periodic_table(frames)
    assert isinstance(chart, Chart)
    assert (
        chart.shown.count("--worse-rgb") == chart.shown.count("--better-rgb") == chart.shown.count("--muted-rgb") == 1
    )
    for words in (">Li<span>▲50<", ">S<span>▼20<", ">P<span>0<"):
        assert words in chart.shown


def tensor(name, size=1, change=0.0, scale=1.0, stiffness=math.nan):
    return TensorDrift(name, size, True, change, scale, stiffness)


def test_layers_by_hand():
    found = layers(
        [
            tensor("interactions.0.linear_up.weight", 3, change=0.1, scale=2.0, stiffness=0.25),
            tensor("interactions.0.linear.weight", 1, change=0.5, scale=1.0, stiffness=0.5),
            tensor("interactions.1.linear_up.weight", 3, change=0.2, scale=1.0, stiffness=0.25),
            dataclasses.replace(tensor("embedding.weight", 5), trained=False),
            tensor("zero", 2, change=0.1, scale=0.0),
        ]
    )
    assert [layer.name for layer in found] == ["interactions.0", "interactions.1", "embedding", "zero"]
    assert found[0].change == pytest.approx(math.sqrt((3 * 0.01 + 0.25) / (3 * 4 + 1)))
    assert found[0].stiffness == pytest.approx(0.75)
    assert (found[2].size, found[2].trained, found[2].change) == (5, 0, 0)
    assert math.isnan(found[3].change)


def test_too_many_layers_are_drawn_coarser():
    many = [tensor(f"block.{k}.weight", change=0.1) for k in range(100)] + [tensor("head.0.weight")]
    assert [layer.name for layer in layers(many)] == ["block", "head"]
    assert len(layers(many, most=200)) == 101


def test_names_without_structure_are_capped():
    tensors = [tensor(f"layer{k}", change=0.1 * (k + 1), stiffness=0.01) for k in range(60)]
    found = layers(tensors, most=10)
    assert [layer.name for layer in found] == [*(f"layer{k}" for k in range(51, 60)), "51 others, together"]
    assert (found[-1].size, found[-1].stiffness) == (51, pytest.approx(0.51))
    assert found[-1].change == pytest.approx(math.sqrt(np.mean([(0.1 * (k + 1)) ** 2 for k in range(51)])))


def test_without_a_penalty_there_is_no_fisher_information():
    chart = drift(records.drift(penalty=False))
    assert isinstance(chart, Chart)
    assert "Fisher" not in chart.caption + chart.body + chart.panels[0].svg
    assert isinstance(drift([tensor("a")]), Missing)


def test_outcomes_by_hand():
    error = {"delta_q": 1.0, "rmsd": 0.1, "strain": 0.02, "log_volume": -0.1, "steps": 10, "converged": True}
    errors = [
        error | {"right_basin": True, "failure": None},
        error | {"right_basin": True, "failure": None, "delta_q": 3.0, "steps": 30},
        error | {"right_basin": False, "failure": None, "delta_q": 8.0, "steps": 40},
        dict.fromkeys(error, math.nan) | {"right_basin": False, "failure": "exploded", "converged": False},
    ]
    found = outcome(errors)
    assert (found["delta_q"], found["all_delta_q"], found["steps"]) == (2, 3, 30)
    assert found["volume"] == pytest.approx(100 * (1 - math.exp(-0.1)))
    assert [found[name] for name in ("right_basin", "converged", "failed", "total")] == [2, 3, 1, 4]


def test_ends_are_shown_beside_their_targets():
    target = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    end = target.copy()
    end.positions += 0.02
    end.positions[3] += 2 * end.cell[0] - end.cell[2]
    before = end.get_positions()
    one, two = side_by_side([target, end])
    assert abs(two.positions - one.positions).max() < 0.021
    np.testing.assert_array_equal(end.positions, before)


def test_molecules_and_broken_structures_stay_as_they_are():
    water = molecule("H2O")
    broken = bulk("Si")
    broken.positions[:] = math.nan
    one, two = side_by_side([water, broken])
    np.testing.assert_array_equal(one.positions, water.positions)
    assert np.isnan(two.positions).all()


def test_large_structures_are_pictures():
    pairs = records.pair_record(2, failed=0, kept=1)
    chart = worst(pairs)
    assert chart.panels[0].svg.startswith("<svg")
    large = [atoms * (3, 3, 3) for atoms in (pairs.targets[0], pairs.ends_before[0], pairs.ends_after[0])]
    pairs = dataclasses.replace(pairs, targets=large[:1], ends_before=large[1:2], ends_after=large[2:])
    panel = worst(pairs).panels[0]
    assert panel.svg.startswith("<img alt=")
    assert len(panel.svg) < 80_000


def test_gradients_that_were_not_computed_are_left_out():
    pairs = records.pair_record(2)
    pairs.gradient_norms[:, :5] = math.nan
    pairs.gradient_norms[0, 7] = 0.0
    chart = gradient_norms(pairs)
    middle = np.nanmedian(pairs.gradient_norms[:, [5, -1]], axis=0)
    assert f"over 15 steps: at the first one {middle[0] / middle[1]:.2g} times that at the last" in chart.panels[0].alt
    assert isinstance(gradient_norms(dataclasses.replace(pairs, gradient_norms=np.zeros((0, 0)))), Missing)


def test_small_errors_beside_a_wide_range_are_shown_as_differences():
    wide = parity(records.frame_record(spread=2.0)).panels[1].svg
    narrow = parity(records.frame_record(spread=0.02)).panels[1].svg
    assert "prediction − label, meV/atom" in wide
    assert "prediction, eV/atom" in narrow


def test_stages_begin_with_the_untouched_model():
    first, second = stages(records.relaxation_run(epochs=3, frames_epochs=4))
    assert (first.name, first.best_epoch, first.planned) == ("frames", 4, 10)
    assert (second.name, second.best_epoch, second.planned) == ("relaxations", 3, 3)
    np.testing.assert_array_equal(first.epochs, range(5))
    curve = second.curve("valid", "strain_median")
    assert curve[0] == 0.09
    np.testing.assert_array_equal(curve[1:], [row["valid_strain_median"] for row in second.rows])


def test_later_stages_begin_with_the_stage_before():
    first, second = learning_curves(records.relaxation_run())
    assert "epoch 0 is the untouched model" in first.caption
    assert "epoch 0 is the result of the stage before" in second.caption


def test_softening_needs_labels_of_a_reference():
    aim, own = records.frame_record(), records.frame_record("replay", 4, 5, own_labels=True)
    chart = softening([aim, own])
    assert "replay" not in chart.panels[0].alt
    assert softening([own]).reason == "all labels are the untouched model's own"
    isolated = dataclasses.replace(aim, forces=1e-5 * aim.forces)
    assert isinstance(softening([isolated]), Missing)


def test_the_rise_on_old_structures_is_drawn_beside_what_was_allowed():
    record = records.run(3)
    record.metadata["stages"][0]["kept"] = {"bound": 0.05, "epoch": 3}
    assert "learning-frames-forgetting" not in [panel.name for panel in learning_curves(record)[0].panels]
    for row, rise in zip(record.history, (0.01, 0.03, 0.02), strict=True):
        row["forgetting"] = rise
    panel = next(p for p in learning_curves(record)[0].panels if p.name == "learning-frames-forgetting")
    assert "old structures from 0 to 2; allowed from 5 to 5" in panel.alt
