from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ase_finetune import FinetuneConfig, Loss
from ase_finetune.errors import InputError

EVERYTHING = {
    "method": "ewc",
    "epochs": 3,
    "batch_size": 2,
    "max_edges": 500,
    "stream": False,
    "num_workers": 2,
    "learning_rate": 1e-3,
    "loss": {"kind": "mse", "forces_weight": 2.0},
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "schedule": "constant",
    "warmup": 0.2,
    "clip_norm": None,
    "ema_decay": 0.99,
    "drop_outliers": True,
    "max_skipped_steps": 2,
    "checkpoint_minutes": 0.5,
    "report": False,
    "loggers": ["tensorboard"],
    "early_stopping": 5,
    "freeze": ["a.*", "b"],
    "reference": "shift",
    "reference_frames": "all",
    "replay_labels": "pseudo",
    "replay_size": 10,
    "replay_batch_size": 3,
    "replay_schedule": "joint",
    "replay_weight": 0.5,
    "monitor_size": 4,
    "fisher": "fisher.pt",
    "fisher_size": 7,
    "fisher_draws": 2,
    "fisher_probes": 3,
    "fisher_normalize": False,
    "fisher_anchor": "anchor.pt",
    "ewc_lambda": 3.0,
    "keep": "last",
    "max_forgetting": 0.05,
    "group_by": "run",
    "energy_key": "e",
    "forces_key": "f",
    "stress_key": "s",
    "seed": 4,
    "device": "cpu",
    "dtype": "float64",
    "trust_pickle": True,
    "bptt": {"epochs": 5, "steps": 7, "gradient": "guided", "loss": {"rmsd": 0.5, "strain": 2.0}},
}


def test_every_option_is_tried_here():
    defaults = FinetuneConfig()
    assert set(EVERYTHING) == {item.name for item in fields(FinetuneConfig)}
    config = FinetuneConfig.from_options(EVERYTHING)
    for name in EVERYTHING:
        assert getattr(config, name) != getattr(defaults, name), name


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_round_trip(options):
    config = FinetuneConfig.from_options(options)
    written = json.loads(json.dumps(config.to_dict()))
    assert FinetuneConfig.from_options(written) == config
    assert set(written) == set(EVERYTHING)


def test_kinds_of_numbers():
    """Numbers of numpy, whole numbers where others are wanted, and paths."""
    config = FinetuneConfig(epochs=np.int64(3), learning_rate=np.float32(0.5), ewc_lambda=1, fisher=Path("fisher.pt"))
    assert (config.epochs, config.learning_rate, config.ewc_lambda, config.fisher) == (3, 0.5, 1.0, "fisher.pt")
    assert [type(value) for value in (config.epochs, config.learning_rate, config.ewc_lambda)] == [int, float, float]
    json.dumps(config.to_dict())


@pytest.mark.parametrize("patterns", [["a", "b*"], ("a", "b*"), iter(["a", "b*"])])
def test_patterns_are_equal_however_given(patterns):
    assert FinetuneConfig(freeze=patterns) == FinetuneConfig(freeze=("a", "b*"))
    assert FinetuneConfig(freeze=("a", "b*")).to_dict()["freeze"] == ["a", "b*"]


@pytest.mark.parametrize("loss", ["mse", {"kind": "mse"}, Loss("mse")])
def test_loss_by_name_dictionary_or_object(loss):
    assert FinetuneConfig.from_options({"loss": loss}).loss == Loss("mse")


def test_options_are_not_changed():
    options = {"loss": "l1"}
    FinetuneConfig.from_options(options)
    assert options == {"loss": "l1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 1}, "unknown option 'learning_rat'; did you mean 'learning_rate'"),
        ({"lambda_ewc": 1}, "unknown option 'lambda_ewc'; did you mean 'ewc_lambda'"),
        ({"batchsize": 1}, "did you mean 'batch_size'"),
        ({"qqqq": 1}, "unknown option 'qqqq'; did you mean another"),
        ({"loss": {"kin": "mse"}}, "unknown option 'kin' of loss; did you mean 'kind'"),
        ({"loss": "hubert"}, "loss.kind='hubert' is not known"),
        ({"loss": {"huber_delta": -1}}, "huber_delta must be positive"),
        ({"method": "rewc"}, "method='rewc' is not known; use one of naive, replay, ewc, reewc"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is not known; use one of adam, adamw"),
        ({"schedule": "linear"}, "schedule='linear' is not known"),
        ({"reference": "refit"}, "reference='refit' is not known; use one of align, shift, none"),
        ({"replay_labels": "own"}, "replay_labels='own' is not known"),
        ({"replay_schedule": "both"}, "replay_schedule='both' is not known; use one of alternate, joint"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"batch_size": -1}, "batch_size must be positive, got -1"),
        ({"max_edges": 0}, "max_edges must be positive"),
        ({"num_workers": -1}, "num_workers must not be negative"),
        ({"fisher_probes": 0}, "fisher_probes must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number, got nan"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"early_stopping": 0}, "early_stopping must be positive"),
        ({"replay_size": 0}, "replay_size must be positive"),
        ({"replay_batch_size": 0}, "replay_batch_size must be positive"),
        ({"fisher_size": 0}, "fisher_size must be positive"),
        ({"fisher_draws": 0}, "fisher_draws must be positive"),
        ({"warmup": 1.0}, "warmup is a fraction of the steps between 0 and 1, got 1"),
        ({"warmup": -0.1}, "warmup is a fraction"),
        ({"ema_decay": 1.0}, "ema_decay must lie between 0 and 1, got 1"),
        ({"ewc_lambda": -1.0}, "ewc_lambda must be a finite number that is not negative, got -1"),
        ({"ewc_lambda": float("inf")}, "ewc_lambda must be a finite number"),
        ({"max_forgetting": 0.0}, "max_forgetting must be positive, got 0"),
        ({"max_forgetting": -0.03}, "max_forgetting must be positive, got -0.03"),
        ({"max_forgetting": float("inf")}, "max_forgetting must be positive, got inf"),
        ({"max_forgetting": float("nan")}, "max_forgetting must be a number, got nan"),
        ({"max_forgetting": "3 %"}, "max_forgetting must be a number, got '3 %'"),
        ({"max_forgetting": 3}, r"max_forgetting is a fraction .* \(0.03 is 3 %\), got 3$"),
        ({"max_forgetting": 0.03, "monitor_size": 0}, "max_forgetting is measured on .* but monitor_size=0"),
        ({"max_forgetting": 0.03, "ewc_lambda": 0}, "max_forgetting multiplies ewc_lambda, and ewc_lambda=0 stays 0"),
        ({"replay_weight": -1.0}, "replay_weight"),
        ({"monitor_size": -1}, "monitor_size"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"monitor_size": [None]}, r"monitor_size must be a whole number, got \[None\]"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"epochs": 2.0}, "epochs must be a whole number, got 2.0"),
        ({"epochs": 10**30}, "epochs must be a whole number, got 1000"),
        ({"weight_decay": "nan"}, "weight_decay must be a number, got 'nan'"),
        ({"learning_rate": None}, "learning_rate must be a number, got None"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive, got inf"),
        ({"learning_rate": 10**400}, "learning_rate must be a number, got 1000"),
        ({"seed": float("nan")}, "seed must be a whole number"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"stream": 10**30}, "stream must be True or False"),
        ({"group_by": None}, "group_by must be a text, got None"),
        ({"fisher_normalize": ""}, "fisher_normalize must be True or False, got ''"),
        ({"dtype": float("inf")}, "dtype=inf is not known; use one of float32, float64"),
        ({"dtype": ["float32"]}, "dtype=.* is not known"),
        ({"loss": {"huber_delta": []}}, r"loss.huber_delta must be a number, got \[\]"),
        ({"loss": {3: 1}}, "unknown option 3 of loss"),
        ({"loss": [1]}, r"loss must be Loss, got \[1\]"),
        ({"bptt": {"steps": "many"}}, "bptt.steps must be a whole number, got 'many'"),
        ({"bptt": {"start": 3}}, "bptt.start=3 is not known; use one of initial, relaxed, both"),
        ({"bptt": {"loss": {"rmsd": "x"}}}, "loss.rmsd must be a number, got 'x'"),
        ({"freeze": [3]}, r"freeze takes a list of texts, got \[3\]"),
        ({"freeze": 3}, "freeze takes a list of texts, got 3"),
        ({"freeze": "shift"}, "freeze takes a list of texts, got 'shift'"),
    ],
)
def test_invalid_values_name_the_option(options, message):
    with pytest.raises(InputError, match=message):
        FinetuneConfig.from_options(options)


@pytest.mark.parametrize(
    ("method", "replay", "ewc"),
    [("naive", False, False), ("replay", True, False), ("ewc", False, True), ("reewc", True, True)],
)
def test_what_methods_use(method, replay, ewc):
    config = FinetuneConfig(method=method)
    assert (config.uses_replay, config.uses_ewc) == (replay, ewc)


def test_no_weight_decay_by_default():
    assert FinetuneConfig().weight_decay == 0.0
