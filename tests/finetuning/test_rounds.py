"""A second round of fine-tuning keeps to the pretrained model, not to what the first round made of it."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from ase.db import connect
from ase.io import read, write

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.continual import gaussian_fisher
from ase_finetune.data import fit_reference, read_frames
from ase_finetune.errors import DataError, InputError, ModelNotAvailableError, RunStoppedError
from ase_finetune.finetuning import api, earlier, old_material
from ase_finetune.finetuning.keeping import RunKeeper
from ase_finetune.potentials import load_potential, save_potential
from ase_finetune.potentials.mace import MACEPotential
from ase_finetune.potentials.storage import potential_hash
from ase_finetune.reporting import RECORD_FILE, RunRecord
from tests import helpers, morse

OLD = morse.oxide(12, 3)
FIRST = morse.labelled(morse.silicon(12, 1))
SECOND = morse.labelled(morse.oxide(8, 21))
VALID = morse.labelled(morse.oxide(4, 22))
OFFSETS = {"Si": 3.0, "O": -5.0}
OPTIONS = {"epochs": 2, "learning_rate": 0.03, "monitor_size": 4, "verbose": False, "device": "cpu", "report": False}


def shifted(frames, offsets=OFFSETS):
    """The labels in the energy reference of another code."""
    made = []
    for atoms in frames:
        energy = atoms.calc.results["energy"] + sum(offsets[symbol] for symbol in atoms.get_chemical_symbols())
        made.append(morse.attach(atoms, **(atoms.calc.results | {"energy": energy})))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretrained model, frames of a first round in a file, and the model that it ended with."""
    place = tmp_path_factory.mktemp("rounds")
    save_potential(morse.pretrained(), place / "pretrained")
    write(place / "first.extxyz", shifted(FIRST))
    options = OPTIONS | {"epochs": 4, "keep": "last"}
    finetune(place / "pretrained", place / "first.extxyz", 0.25, replay=OLD, output=place / "one", **options)
    return place


@pytest.fixture
def desk(folder, tmp_path, monkeypatch):
    """The same under paths that may be spoiled: the noted ones are those of this copy."""
    place = tmp_path / "desk"
    shutil.copytree(folder, place)
    potential, metadata = load_potential(place / "one" / "model")
    text = json.dumps(metadata).replace(str(folder), str(place))
    save_potential(potential, place / "one" / "model", metadata=json.loads(text), overwrite=True)
    monkeypatch.chdir(tmp_path)
    return place


def second(place, train=SECOND, valid=VALID, *, model="one/model", replay=OLD, **options):
    return finetune(place / model, shifted(train), shifted(valid), replay=replay, **(OPTIONS | options))


def first_model(place):
    return load_potential(place / "one" / "model")[0]


def without_rounds(metadata):
    """The metadata as they were before rounds were noted."""
    return {name: value for name, value in metadata.items() if name != "rounds"}


# What must not be forgotten


def test_a_first_round_notes_its_frames(folder):
    _, metadata = load_potential(folder / "one" / "model")
    (noted,) = metadata["rounds"]
    assert noted["model"] == str(folder / "pretrained")
    assert noted["hash"] == potential_hash(morse.pretrained())
    assert noted["train"]["path"] == [str(folder / "first.extxyz")]
    assert (noted["train"]["frames"], noted["valid"]["frames"]) == (9, 3)
    assert noted["train"]["digest"] == metadata["data"]["train"]
    assert noted["offsets"] == metadata["reference_offsets"]
    assert noted["kept"] == metadata["outcome"]


def test_labels_fisher_anchor_and_forgetting_are_those_of_the_pretrained_model(desk, monkeypatch):
    seen = {}
    made = {"labels": "pseudo_label", "fisher": "gaussian_fisher"}
    for name, function in made.items():
        original = getattr(old_material, function)

        def watch(potential, *arguments, name=name, original=original, **options):
            seen[name] = morse.weights(potential)
            return original(potential, *arguments, **options)

        monkeypatch.setattr(old_material, function, watch)
    penalty = old_material.EWCPenalty

    class Watched(penalty):
        def __init__(self, parameters, fisher, strength, *, anchor=None, **options):
            seen["anchor"] = anchor
            super().__init__(parameters, fisher, strength, anchor=anchor, **options)
            seen["penalty"] = self.value()

    monkeypatch.setattr(old_material, "EWCPenalty", Watched)
    forgetting = old_material.Forgetting

    def built(most, before, pretrained, adapted):
        seen.update(before=before, pretrained=pretrained)
        return forgetting(most, before, pretrained, adapted)

    monkeypatch.setattr(old_material, "Forgetting", built)
    second(desk, method="reewc")
    start = morse.weights(morse.pretrained())
    for name in ("labels", "fisher", "anchor", "pretrained"):
        assert seen[name].keys() == start.keys(), name
        assert all(torch.equal(seen[name][key], start[key]) for key in start), name
    assert seen["before"]["forces_mae"] < 1e-3
    # ... while training begins where the first round ended.
    assert seen["penalty"] > 0


def test_forgetting_is_counted_from_the_pretrained_model(desk, capsys):
    calculator = second(desk, method="ewc", ewc_lambda=1e8, learning_rate=1e-9, keep="last", verbose=True)
    moved = calculator.metadata["errors"]["before"]["replay"]["forces_mae"]
    assert moved > 1
    assert calculator.history[-1]["replay_forces_mae"] == pytest.approx(moved, rel=1e-3)
    assert calculator.history[-1]["forgetting"] > 0.01
    told = capsys.readouterr().out
    assert (
        f"round 2 of {desk / 'pretrained'}: round 1 was trained on 9 frames (first.extxyz); forgetting is mea" in told
    )


def test_a_model_that_has_forgotten_too_much_is_noted(desk, capsys):
    second(desk, method="reewc", max_forgetting=1e-4, verbose=True)
    assert "note: training begins with a model whose errors on old structures have risen by" in capsys.readouterr().out


def test_frozen_parameters_need_no_fisher_information(desk):
    calculator = second(desk, method="reewc", freeze=["shift", "width"])
    assert calculator.metadata["frozen"] == ["shift", "width"]
    now, began = morse.weights(calculator.potential), morse.weights(first_model(desk))
    assert torch.equal(now["width"], began["width"])


def test_the_report_shows_the_change_since_the_pretrained_model(desk):
    second(desk, output=desk / "two", report=True, method="replay", keep="last")
    record = RunRecord.read(desk / "two" / RECORD_FILE)
    sets = {frames.name: frames for frames in record.frames}
    assert list(sets) == ["valid", "earlier rounds", "replay"]
    assert np.abs(sets["replay"].forces[..., 0] - sets["replay"].forces[..., 1]).max() < 1e-5
    before = FinetunedCalculator(desk / "one" / "model", device="cpu").calculate_many(VALID)
    assert sets["valid"].energy[:, 1] == pytest.approx([result["energy"] for result in before], rel=1e-5)
    start, now = (morse.weights(p) for p in (morse.pretrained(), load_potential(desk / "two" / "model")[0]))
    (depth,) = (tensor for tensor in record.drift if tensor.name == "depth")
    assert depth.change == pytest.approx(float((now["depth"] - start["depth"]).square().mean().sqrt()), rel=1e-5)
    page = (desk / "two" / "report.html").read_text(encoding="utf-8")
    assert "<h3>Rounds</h3>" in page
    assert str(desk / "pretrained") in page


# Reference energies


def predicted(potential, frames):
    return [result["energy"] for result in FinetunedCalculator(potential, device="cpu").calculate_many(frames)]


def test_offsets_are_fitted_to_the_frames_of_all_rounds(desk):
    calculator = second(desk, method="replay", dtype="float64")
    noted = load_potential(desk / "one" / "model")[1]["rounds"][0]
    frames = read(desk / "first.extxyz", ":")
    held_out = set(noted["valid"]["fingerprints"])
    trained = [a for a in frames if earlier.fingerprints(read_frames([a])).isdisjoint(held_out)]
    assert len(trained) == 9
    everything = [*shifted(SECOND), *trained]
    expected = fit_reference(read_frames(everything), predicted(morse.pretrained(), everything)).to_dict()["offsets"]
    alone = fit_reference(read_frames(shifted(SECOND)), predicted(morse.pretrained(), SECOND)).to_dict()["offsets"]
    offsets = calculator.metadata["reference_offsets"]
    assert offsets == pytest.approx(expected, abs=1e-4)
    assert offsets["Si"] != pytest.approx(alone["Si"], abs=0.1)


def test_without_earlier_frames_the_nearest_offsets_to_the_earlier_ones_are_taken(desk, capsys):
    """Si4O4 alone does not tell Si from O; what is known of Si stays."""
    (desk / "first.extxyz").unlink()
    calculator = second(desk, method="replay", verbose=True)
    one = load_potential(desk / "one" / "model")[1]["reference_offsets"]
    offsets = calculator.metadata["reference_offsets"]
    both = fit_reference(read_frames(shifted(SECOND)), predicted(morse.pretrained(), SECOND))
    together = sum(both.offsets.values())
    assert offsets["Si"] + offsets["O"] == pytest.approx(together, abs=1e-3)
    assert offsets["Si"] - one["Si"] == pytest.approx(offsets["O"], abs=1e-3)
    assert "there is no file" in capsys.readouterr().out


def test_elements_of_earlier_rounds_alone_keep_their_offsets():
    frames = read_frames(shifted(FIRST))
    start = {8: -4.0, 14: 1.0}
    found = fit_reference(frames, predicted(morse.pretrained(), FIRST), start=start)
    plain = fit_reference(frames, predicted(morse.pretrained(), FIRST))
    assert found.offsets == {8: -4.0, 14: pytest.approx(plain.offsets[14], abs=1e-9)}
    assert found.rank == len(found.offsets)
    assert found.mae_after == pytest.approx(plain.mae_after, abs=1e-9)


def test_training_begins_with_the_errors_of_the_last_round(desk):
    calculator = second(desk, method="replay")
    aligned = [atoms.copy() for atoms in SECOND]
    labels = [atoms.calc.results["forces"] for atoms in SECOND]
    forces = [r["forces"] for r in FinetunedCalculator(first_model(desk), device="cpu").calculate_many(aligned)]
    expected = 1e3 * np.mean(np.abs(np.concatenate(labels) - np.concatenate(forces)))
    assert calculator.metadata["errors"]["before"]["train"]["forces_mae"] == pytest.approx(expected, rel=1e-3)


def test_a_model_that_was_shifted(desk):
    """The pretrained model is compared with it in the reference that it has now."""
    options = {"reference": "shift", "keep": "last", "method": "reewc", "dtype": "float64"}
    frames = shifted([*FIRST, *SECOND])
    write(desk / "both.extxyz", frames)
    one = finetune(
        desk / "pretrained", desk / "both.extxyz", None, replay=OLD, output=desk / "s", **(OPTIONS | options)
    )
    assert one.metadata["shifted_by"]["Si"] == pytest.approx(3, abs=1)
    more = shifted(morse.labelled(morse.silicon(4, 30)))
    for reference in ("shift", "align"):
        two = finetune(desk / "s" / "model", more, None, replay=OLD, **(options | {"reference": reference}))
        moved = two.metadata["errors"]["before"]["replay"]["energy_mae"]
        assert moved < 300, moved  # meV/atom; another reference is 1000 off
        assert two.metadata["earlier_frames"]["before"]["energy_mae"] < 300
        name = {"shift": "shifted_by", "align": "reference_offsets"}[reference]
        assert all(abs(value) < 0.3 for value in two.metadata[name].values())


# Frames of earlier rounds


def replayed(monkeypatch):
    """The labelled frames that a run replays, once it has run."""
    seen = []
    original = earlier.Labelled

    def watch(run, train, held_out):
        seen.append((train, held_out))
        return original(run, train, held_out)

    monkeypatch.setattr(earlier, "Labelled", watch)
    return seen


def test_earlier_frames_are_replayed_with_their_labels(desk, monkeypatch, capsys):
    seen = replayed(monkeypatch)
    calculator = second(desk, method="replay", keep="last", verbose=True)
    ((train, held_out),) = seen
    assert (len(train), len(held_out)) == (9, 3)
    marks = set(load_potential(desk / "one" / "model")[1]["rounds"][0]["valid"]["fingerprints"])
    assert earlier.fingerprints(held_out) == marks
    assert earlier.fingerprints(train).isdisjoint(marks)
    offset = 8 * calculator.metadata["reference_offsets"]["Si"]
    energies = {round(a.get_potential_energy() - offset, 3) for a in read(desk / "first.extxyz", ":")}
    assert all(round(frame.energy, 3) in energies for frame in train)
    assert calculator.metadata["earlier_frames"]["role"] == "validation frames"
    out = capsys.readouterr().out
    assert "earlier rounds: 9 frames are replayed with their own labels" in out
    assert "earlier     force MAE, meV/Å" in out
    # ... and that is felt
    (desk / "first.extxyz").unlink()
    alone = second(desk, method="replay", keep="last")
    assert not morse.same_weights(alone.potential, calculator.potential)
    assert "earlier_frames" not in alone.metadata


def test_the_size_of_replay_bounds_them_too(desk, monkeypatch):
    seen = replayed(monkeypatch)
    second(desk, method="replay", replay_size=4)
    assert len(seen[0][0]) == 4


def test_methods_without_replay_only_judge_by_them(desk, capsys):
    calculator = second(desk, method="ewc", verbose=True)
    assert calculator.metadata["earlier_frames"]["frames"] == 3
    assert "note: method='ewc' replays" in capsys.readouterr().out


def test_frames_that_this_round_has_are_not_replayed(desk, monkeypatch, capsys):
    seen = replayed(monkeypatch)
    frames = read(desk / "first.extxyz", ":")
    finetune(
        desk / "one" / "model", [*shifted(SECOND), *frames[:6]], frames[6:8], replay=OLD, **(OPTIONS | {"verbose": 1})
    )
    ((train, held_out),) = seen
    assert len(train) + len(held_out) == 4
    marks = set(load_potential(desk / "one" / "model")[1]["rounds"][0]["valid"]["fingerprints"])
    again = len(earlier.fingerprints(read_frames(frames[:6])) & marks)
    assert (f"note: {again} training frames were validation frames" in capsys.readouterr().out) == (again > 0)


def test_all_frames_again(desk):
    """Then nothing is left to replay."""
    calculator = second(desk, [*SECOND, *FIRST])
    assert "earlier_frames" not in calculator.metadata


def test_forces_alone_move_the_model_by_the_earlier_offsets(desk, capsys):
    forces = morse.labelled(SECOND, labels=["forces"])
    options = OPTIONS | {"reference": "shift", "verbose": True, "method": "replay"}
    sources = [OLD, desk / "first.extxyz", shifted(morse.labelled(morse.silicon(4, 70)))]
    calculator = finetune(desk / "one" / "model", forces, None, replay=sources, **options)
    one = load_potential(desk / "one" / "model")[1]["reference_offsets"]
    assert calculator.metadata["shifted_by"] == pytest.approx(one)
    assert "replay 3: the energies are in the reference of the target" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: write(file, shifted(FIRST, {"Si": 3.1})), "first.extxyz has changed since"),
        (lambda file: file.unlink(), "there is no file"),
    ],
)
def test_changed_frames_are_not_replayed(desk, change, reason, monkeypatch, capsys):
    seen = replayed(monkeypatch)
    change(desk / "first.extxyz")
    second(desk, method="replay", verbose=True)
    assert not len(seen[0][0])
    out = capsys.readouterr().out
    assert reason in out
    assert "replay=['embedded', frames]" in out


def test_frames_given_as_a_list_can_be_given_again(desk, monkeypatch, capsys):
    seen = replayed(monkeypatch)
    frames = shifted(FIRST)
    one = finetune(desk / "pretrained", frames, 0.25, replay=OLD, output=desk / "l", **OPTIONS)
    assert one.metadata["rounds"][0]["train"]["path"] is None
    assert len(seen.pop()[0]) == 0
    second(desk, model="l/model", method="replay", verbose=True)
    assert "given as structures, not as a file; to replay them, give" in capsys.readouterr().out
    assert len(seen.pop()[0]) == 0
    write(desk / "again.extxyz", frames)
    for source in (desk / "again.extxyz", frames):
        calculator = second(desk, model="l/model", replay=[OLD, source], method="replay", verbose=True)
        train, held_out = seen.pop()
        assert (len(train), len(held_out)) == (9, 3)
        assert "the energies are in the reference of the target" in capsys.readouterr().out
        offset = 8 * calculator.metadata["reference_offsets"]["Si"]
        assert train[0].energy == pytest.approx(
            next(
                a.calc.results["energy"] - offset for a in frames if np.allclose(a.positions, train[0].atoms.positions)
            ),
            abs=1e-5,
        )


def test_what_is_replayed_by_itself_is_not_replayed_twice(desk, monkeypatch):
    seen = replayed(monkeypatch)
    second(desk, replay=[OLD, desk / "first.extxyz"], method="replay")
    assert len(seen[0][0]) == 9


# A list of sources


@pytest.mark.parametrize("reference", ["align", "shift"])
def test_sources_with_and_without_labels(desk, monkeypatch, capsys, reference):
    """Also in a first round: labels per source, each in the reference that it is in."""
    seen = replayed(monkeypatch)
    theirs = morse.labelled(morse.silicon(5, 40), morse.pretrained())
    ours = shifted(morse.labelled(morse.silicon(5, 41)))
    write(desk / "theirs.extxyz", theirs)
    write(desk / "ours.extxyz", ours)
    sources = [OLD, str(desk / "theirs.extxyz"), desk / "ours.extxyz"]
    frames = [*FIRST, *SECOND]
    calculator = finetune(
        morse.pretrained(), shifted(frames), None, replay=sources, method="replay", reference=reference,
        **(OPTIONS | {"verbose": True}),
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "replay 2 (theirs.extxyz): the energies are in the reference of the pretrained model" in out
    assert "replay 3 (ours.extxyz): the energies are in the reference of the target" in out
    assert "replay: 12 structures labelled by the pretrained model" in out
    offsets = calculator.metadata["reference_offsets" if reference == "align" else "shifted_by"]
    expected = {
        "align": [theirs[0].calc.results["energy"], ours[0].calc.results["energy"] - 8 * offsets["Si"]],
        "shift": [theirs[0].calc.results["energy"] + 8 * offsets["Si"], ours[0].calc.results["energy"]],
    }
    train = seen[0][0]
    assert [train[0].energy, train[5].energy] == pytest.approx(expected[reference], abs=1e-5)
    # Only structures that the pretrained model labelled watch forgetting.
    assert calculator.metadata["errors"]["before"]["replay"]["forces_mae"] < 1e-3
    assert calculator.metadata["earlier_frames"]["role"] == "training frames"


def test_a_list_of_structures_is_one_source():
    labelled = morse.labelled(OLD)
    options = OPTIONS | {"method": "replay"}
    frames, valid = FIRST[:6], FIRST[6:]
    one, two = (
        finetune(morse.pretrained(), frames, valid, replay=replay, **options) for replay in (labelled, [labelled])
    )
    assert morse.same_weights(one.potential, two.potential)
    assert one.metadata["errors"]["before"]["replay"]["forces_mae"] > 10


def test_sources_take_turns():
    """A small source is not crowded out by a large one."""
    small = morse.silicon(2, 50)
    options = OPTIONS | {"method": "replay", "replay_size": 4, "monitor_size": 2}
    calculator = finetune(morse.pretrained(), FIRST[:6], None, replay=[OLD, small], **options)
    assert (
        calculator.metadata["data"]["replay"]
        != finetune(morse.pretrained(), FIRST[:6], None, replay=[OLD], **options).metadata["data"]["replay"]
    )


def test_sources_that_do_not_do(desk):
    with pytest.raises(DataError, match="replay_labels='data', but the replay 1 structures carry no labels"):
        second(desk, replay=[OLD, desk / "first.extxyz"], replay_labels="data")
    with pytest.raises(InputError, match=r"replay 2: expected a path"):
        second(desk, replay=[OLD, 3])
    with pytest.raises(InputError, match=r"validation frames of an earlier round, .* give replay=\['embedded', f"):
        second(desk, replay=desk / "first.extxyz")


# The chain


def test_without_the_pretrained_model(desk):
    shutil.move(desk / "pretrained", desk / "elsewhere")
    digest = potential_hash(morse.pretrained())
    with pytest.raises(
        ModelNotAvailableError, match=rf"was fine-tuned from \S+pretrained \(hash {digest}\).*original="
    ):
        second(desk)
    save_potential(morse.truth(), desk / "pretrained")
    with pytest.raises(InputError, match=rf"pretrained is not the model .* had the hash {digest}"):
        second(desk)
    with pytest.raises(InputError, match=r"original=a morse potential is not the model that"):
        second(desk, original=morse.truth())
    one, two = (second(desk, original=given) for given in (desk / "elsewhere", morse.pretrained()))
    assert morse.same_weights(one.potential, two.potential)


def test_a_model_that_was_given_as_an_object(tmp_path):
    finetune(morse.pretrained(), FIRST, 0.25, replay=OLD, output=tmp_path / "one", **OPTIONS)
    with pytest.raises(ModelNotAvailableError, match=r"fine-tuned from a morse potential .* give it as original="):
        second(tmp_path)
    given = morse.pretrained()
    second(tmp_path, original=given, freeze=["shift"], reference="shift")
    assert morse.same_weights(given, morse.pretrained())
    assert all(parameter.requires_grad for parameter in given.parameters())


def test_the_pretrained_model_of_a_model_without_metadata():
    """Somebody else's fine-tuning: what it was trained on is not known."""
    calculator = finetune(morse.truth(), SECOND, VALID, original=morse.pretrained(), replay=OLD, **OPTIONS)
    assert calculator.metadata["errors"]["before"]["replay"]["forces_mae"] > 10
    assert [noted["hash"] for noted in calculator.metadata["rounds"]] == [
        potential_hash(morse.pretrained()),
        potential_hash(morse.truth()),
    ]
    with pytest.raises(InputError, match="is a model of another kind"):
        finetune(morse.truth(), SECOND, VALID, original=morse.MorsePotential([14]), replay=OLD, **OPTIONS)


def test_a_model_from_before_rounds_were_noted(desk, capsys):
    potential, metadata = load_potential(desk / "one" / "model")
    save_potential(potential, desk / "old", metadata=without_rounds(metadata))
    calculator = second(desk, model="old", method="reewc", verbose=True)
    out = capsys.readouterr().out
    assert "note: what round 1 was trained on was not noted, so it is not replayed; to replay them, give them as" in out
    assert calculator.metadata["errors"]["before"]["replay"]["forces_mae"] > 1
    assert calculator.metadata["rounds"][0]["offsets"] == metadata["reference_offsets"]
    given = second(desk, model="old", replay=[OLD, desk / "first.extxyz"], verbose=True)
    assert "the energies are in the reference of the target" in capsys.readouterr().out
    assert given.metadata["earlier_frames"]["frames"] == 12


def test_a_third_round(desk, monkeypatch, capsys):
    write(desk / "second.extxyz", shifted(SECOND))
    write(desk / "valid.extxyz", shifted(VALID))
    finetune(
        desk / "one" / "model",
        desk / "second.extxyz",
        desk / "valid.extxyz",
        replay=OLD,
        output=desk / "two",
        **OPTIONS,
    )
    seen = replayed(monkeypatch)
    third = shifted(morse.labelled(morse.oxide(6, 60)))
    calculator = finetune(desk / "two" / "model", third, None, replay=OLD, **(OPTIONS | {"verbose": True}))
    assert f"round 3 of {desk / 'pretrained'}: round 1 was trained on 9" in capsys.readouterr().out
    rounds = calculator.metadata["rounds"]
    assert [noted["model"] for noted in rounds] == [
        str(desk / name) for name in ("pretrained", "one/model", "two/model")
    ]
    assert rounds[1]["valid"]["path"] == [str(desk / "valid.extxyz")]
    ((train, held_out),) = seen
    assert (len(train), len(held_out)) == (9 + 8, 3 + 4)
    assert calculator.metadata["errors"]["before"]["replay"]["forces_mae"] > 1
    shutil.rmtree(desk / "pretrained")
    with pytest.raises(ModelNotAvailableError, match="pretrained"):
        finetune(desk / "two" / "model", third, None, replay=OLD, **OPTIONS)


def test_outliers_that_were_left_out_stay_out(desk, monkeypatch):
    frames = shifted(FIRST)
    spoiled = frames[3].calc.results
    frames[3] = morse.attach(frames[3], **(spoiled | {"energy": spoiled["energy"] + 500}))
    write(desk / "spoiled.extxyz", frames)
    options = OPTIONS | {"drop_outliers": True}
    one = finetune(desk / "pretrained", desk / "spoiled.extxyz", None, replay=OLD, output=desk / "o", **options)
    assert one.metadata["rounds"][0]["train"]["frames"] == 11
    seen = replayed(monkeypatch)
    second(desk, model="o/model")
    assert len(seen[0][0]) == 11


def test_frames_with_keys_of_their_own(desk, monkeypatch):
    frames = []
    for atoms in shifted(FIRST):
        bare = atoms.copy()
        bare.info["my_energy"], bare.arrays["my_forces"] = atoms.calc.results["energy"], atoms.calc.results["forces"]
        frames.append(bare)
    write(desk / "keyed.extxyz", frames)
    options = OPTIONS | {"energy_key": "my_energy", "forces_key": "my_forces"}
    finetune(desk / "pretrained", desk / "keyed.extxyz", 0.25, replay=OLD, output=desk / "k", **options)
    seen = replayed(monkeypatch)
    second(desk, model="k/model")
    assert len(seen[0][0]) == 9


def test_relaxations_after_frames_keep_the_offsets(desk):
    pairs = list(zip(morse.silicon(4, 4), morse.silicon(4, 5), strict=True))
    bptt = {"epochs": 1, "batch_size": 2, "start": "initial", "steps": 3, "valid_steps": 5}
    calculator = finetune(
        desk / "one" / "model", relaxations=pairs, replay=OLD, method="bptt+reewc", bptt=bptt, **OPTIONS
    )
    _, metadata = load_potential(desk / "one" / "model")
    assert calculator.metadata["reference_offsets"] == pytest.approx(metadata["reference_offsets"])
    assert calculator.metadata["rounds"][1]["train"] is None
    assert calculator.metadata["earlier_frames"]["before"]["energy_mae"] < 500


# Resume


def test_resumed_to_the_last_bit(desk, monkeypatch):
    whole = second(desk, output=desk / "whole", method="reewc")
    original, made = RunKeeper.after_step, []

    def after_step(self, trainer):
        made.append(1)
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer)

    monkeypatch.setattr(RunKeeper, "after_step", after_step)
    with pytest.raises(RunStoppedError):
        second(desk, output=desk / "parts", method="reewc")
    monkeypatch.setattr(old_material, "gaussian_fisher", lambda *_, **__: pytest.fail("again"))
    resumed = second(desk, output=desk / "parts", method="reewc", resume=True)
    assert morse.same_weights(resumed.potential, whole.potential)
    keys = ("errors", "earlier_frames", "reference_offsets", "data", "rounds")
    assert all(json.dumps(resumed.metadata[key]) == json.dumps(whole.metadata[key]) for key in keys)
    (desk / "first.extxyz").unlink()
    with pytest.raises(InputError, match=r"data.round 1: "):
        second(desk, output=desk / "parts", method="reewc", resume=True)


def test_a_first_round_has_one_model(monkeypatch):
    """Nothing is loaded, compared or labelled twice: bits are those of a package without rounds."""
    seen = []
    context = api.Context

    def watch(*arguments, **options):
        seen.append(context(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(api, "Context", watch)
    finetune(morse.pretrained(), FIRST, 0.25, replay=OLD, method="reewc", **OPTIONS)
    assert seen[0].original is seen[0].potential
    assert not seen[0].rounds.earlier
    names = [name for name in seen[0].prepared._values if "round" in name or "earlier" in name]
    assert names == []


def test_fisher_information_is_that_of_the_pretrained_model(desk):
    calculator = second(desk, method="ewc", fisher_size=6, output=desk / "f")
    pretrained = morse.pretrained()
    frames = read_frames(OLD, require_labels=False)
    watching = np.linspace(0, 11, 4).round().astype(int)
    used = [k for k in range(12) if k not in watching][:6]
    graphs = frames.select(used).graphs(pretrained.cutoff)
    expected = gaussian_fisher(pretrained, graphs)
    assert calculator.metadata["fisher"]["divided_by_mean"] == pytest.approx(expected.mean, rel=1e-6)


def test_frames_of_a_streamed_database(desk, monkeypatch):
    with connect(desk / "first.db") as rows:
        for atoms in shifted(FIRST):
            rows.write(atoms)
    options = OPTIONS | {"stream": True, "method": "naive"}
    finetune(desk / "pretrained", desk / "first.db", 0.25, replay=OLD, output=desk / "d", **options)
    seen = replayed(monkeypatch)
    second(desk, model="d/model")
    ((train, held_out),) = seen
    assert (len(train), len(held_out)) == (9, 3)


def test_without_replay_structures(desk):
    calculator = second(desk, replay=None, method="naive")
    assert calculator.metadata["earlier_frames"]["frames"] == 3
    assert set(calculator.metadata["errors"]["after"]) == {"valid"}


def test_in_another_folder(desk, monkeypatch, tmp_path):
    """Paths are noted in full."""
    monkeypatch.chdir(desk)
    finetune("pretrained", "first.extxyz", 0.25, replay=OLD, output="here", **OPTIONS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    calculator = second(desk, model="here/model")
    assert calculator.metadata["rounds"][0]["model"] == str(desk / "pretrained")
    assert calculator.metadata["earlier_frames"]["frames"] == 3


@pytest.mark.mace
@pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")
def test_a_head_of_mace(tiny_mace, tmp_path):
    save_potential(MACEPotential(tiny_mace(heads=["pbe", "scan"]), "pbe"), tmp_path / "pretrained")
    options = OPTIONS | {"epochs": 1, "learning_rate": 1e-3, "monitor_size": 2, "reference": "shift", "keep": "last"}
    frames = morse.labelled(morse.silicon(3, 1))
    finetune(tmp_path / "pretrained", frames, None, replay=OLD[:4], head="scan", output=tmp_path / "one", **options)
    calculator = finetune(tmp_path / "one" / "model", frames, None, replay=OLD[:4], **options)
    assert calculator.metadata["head"] == "scan"
    # The shifts of the first round are part of the reference, not of what was forgotten.
    assert 0 < calculator.metadata["errors"]["before"]["replay"]["energy_mae"] < 500
