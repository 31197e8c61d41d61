"""What the penalty costs: a joint reEWC step against the same batch plain."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ase_finetune.data import read_frames
from ase_finetune.losses import Loss
from ase_finetune.potentials import load_potential
from benchmarks import inputs
from benchmarks.inputs import MODEL, MPTRJ, flat_penalty, train, trainer
from benchmarks.paired import compare
from benchmarks.suite import Missing, Row, Setting, Target
from benchmarks.training_step import naive

TARGETS = {"a step": Target(cpu=1.05, gpu=1.05)}


def run(setting: Setting) -> Iterator[Row | Missing]:
    count, replay = setting.size((1, 1), (2, 4))
    potential, _ = load_potential(MODEL, device=setting.device)
    target = read_frames(inputs.target(setting)).select(range(count)).graphs(potential.cutoff)
    old = read_frames(MPTRJ).select(range(replay)).graphs(potential.cutoff)
    plain = naive(Loss(), count + replay)
    joint = dataclasses.replace(
        plain, method="reewc", batch_size=count, replay_batch_size=replay, replay_schedule="joint"
    )
    ours = trainer(potential, target, joint, old, flat_penalty(potential))
    peer = trainer(potential, [*target, *old], plain)
    measured = compare(
        lambda: train(ours, [list(range(count))]), lambda: train(peer, [list(range(count + replay))]), **setting.times()
    )
    name = f"a step on {count} frames of {inputs.target(setting).name} and {replay} of {MPTRJ.name}"
    yield Row(name, "the same frames without penalty", measured, TARGETS["a step"].on(setting), "s/step", "7net-0")
