from __future__ import annotations

import importlib
import importlib.metadata
import os

import pytest
import torch

from ase_finetune.analysis import DoctorReport, doctor
from ase_finetune.analysis.compatibility import Problem, diagnose, mend_backends
from ase_finetune.analysis.self_test import Trial, run_trials
from ase_finetune.cli import main
from ase_finetune.errors import BackendNotInstalledError
from tests import helpers

MODULE = importlib.import_module("ase_finetune.analysis.doctor")
SELF_TEST = importlib.import_module("ase_finetune.analysis.self_test")
BOTH = 'pip install "sevenn>=0.10.4,<0.11" "mace-torch>=0.3.16" "e3nn==0.4.4"'
MACE = 'pip install "mace-torch>=0.3.16" "e3nn==0.4.4"'


@pytest.fixture(autouse=True)
def safe_loading(monkeypatch):
    """Tests that use mace itself leave this variable behind."""
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)


def versions(sevenn: str | None = None, mace: str | None = None, e3nn: str | None = None) -> dict[str, str]:
    given = {"sevenn": sevenn, "mace-torch": mace, "e3nn": e3nn}
    return {name: version for name, version in given.items() if version is not None}


@pytest.mark.parametrize(
    "installed",
    [
        versions("0.10.4", "0.3.16", "0.4.4"),
        versions("0.10.4", None, "0.4.4"),
        versions("0.10.4", None, "0.5.6"),
        versions("0.10.10", "0.3.16", "0.4.4"),
        versions("0.13.0", None, "0.6.0"),
        versions("0.11", None, "0.5"),
        versions(None, "0.3.16", "0.4.4"),
    ],
)
def test_versions_that_go_together(installed):
    assert diagnose(installed) == []


@pytest.mark.parametrize(
    ("installed", "text", "remedy", "serious"),
    [
        ({}, "neither sevenn nor mace-torch", 'pip install "ase_finetune[all]"', True),
        (versions(e3nn="0.5.6"), "neither sevenn nor mace-torch", 'pip install "ase_finetune[all]"', True),
        # The conflict, whichever of the two was installed last.
        (versions("0.13.0", "0.3.16", "0.4.4"), "sevenn does not work", BOTH, True),
        (versions("0.11.0", "0.3.16", "0.5.6"), "outside of what its authors test", BOTH, False),
        (versions("0.10.4", "0.3.16", "0.5.6"), "asks for e3nn 0.4.4, and 0.5.6", BOTH, False),
        (versions(None, "0.3.16", "0.5.6"), "asks for e3nn 0.4.4, and 0.5.6", MACE, False),
        (versions("0.13.0", None, "0.4.4"), "sevenn 0.13.0 needs e3nn >= 0.5", 'pip install "e3nn>=0.5"', True),
        (versions("0.9.5", None, "0.5.6"), "sevenn 0.9.5 is older", 'pip install "sevenn>=0.10.4"', True),
        (versions("0.9.5", "0.3.16", "0.4.4"), "sevenn 0.9.5 is older", BOTH, True),
        (versions("0.10.4", "0.3.6", "0.4.4"), "mace-torch 0.3.6 is older", BOTH, True),
        (versions("0.10.4"), "without which sevenn cannot", 'pip install "sevenn>=0.10.4"', True),
        (versions("0.13.0"), "without which sevenn cannot", 'pip install "sevenn>=0.10.4"', True),
        (versions("0.10.4", "0.3.16"), "without which sevenn and mace-torch cannot", BOTH, True),
    ],
)
def test_versions_that_do_not(installed, text, remedy, serious):
    (problem,) = diagnose(installed)
    assert text in problem.text
    assert problem.remedy.split("   #")[0] == remedy == mend_backends(installed)
    assert problem.serious is serious


def test_a_conflict_has_two_ways_out():
    (problem,) = diagnose(versions("0.13.0", "0.3.16", "0.4.4"))
    assert "environment of its own, without mace-torch" in problem.remedy


def test_several_problems_have_one_remedy():
    problems = diagnose(versions("0.9", "0.3.6", "0.5.6"))
    assert len(problems) == 3
    assert {problem.remedy for problem in problems} == {BOTH}


def test_old_and_missing_requirements():
    installed = versions("0.10.4", None, "0.4.4") | {"torch": "2.3.1+cu121", "ase": "3.26", "numpy": "2.0.0rc1"}
    required = {"torch": "2.4", "ase": "3.26.0", "numpy": "1.26", "vesin": "0.4"}
    assert diagnose(installed, required) == [
        Problem("torch 2.3.1+cu121 is older than 2.4, the lowest that is supported", 'pip install "torch>=2.4"'),
        Problem("vesin is not installed", 'pip install "vesin>=0.4"'),
    ]


def test_our_own_requirements_are_met():
    required = MODULE._required()
    assert {"ase", "torch", "numpy", "vesin", "jsonargparse"} <= set(required)
    assert [problem for problem in diagnose(MODULE._installed(), required) if "older than" in problem.text] == []


@pytest.mark.mace
@pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")
def test_self_test_of_mace():
    trials = list(run_trials("mace", []))
    assert [trial.name for trial in trials] == ["mace: forces", "mace: finetune"]
    assert all(trial.passed for trial in trials), trials


@pytest.mark.sevenn
@pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")
def test_self_test_of_sevenn():
    trials = list(run_trials("sevenn", ["cpu"], fit=False))
    assert [trial.name for trial in trials] == ["7net-0: forces", "7net-0: cpu"]
    assert all(trial.passed for trial in trials), trials


def test_wrong_forces_are_noticed(monkeypatch):
    potential = helpers.build_sevennet() if helpers.HAS_SEVENN else pytest.skip("needs sevenn")
    potential.to(dtype=torch.float64)
    predict = type(potential).predict

    def wrong(self, *arguments, **options):
        prediction = predict(self, *arguments, **options)
        prediction.forces[0] += 1e-3
        return prediction

    monkeypatch.setattr(type(potential), "predict", wrong)
    monkeypatch.setattr(SELF_TEST, "_potential", lambda _: ("wrong", potential))
    (trial,) = run_trials("sevenn", [], fit=False)
    assert trial.passed is False
    assert "1e-03 eV/Å" in trial.detail


def test_a_model_that_does_not_load(monkeypatch):
    def fail(backend):
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(SELF_TEST, "_potential", fail)
    assert list(run_trials("sevenn", [])) == [Trial("sevenn: a model", False, "RuntimeError: no kernel")]


def test_no_model_here_is_no_failure(monkeypatch):
    monkeypatch.setattr(SELF_TEST, "list_models", list)
    (trial,) = run_trials("sevenn", [])
    assert trial.passed is None


def install(monkeypatch, installed, importer=lambda *_: None):
    """Another installation, as metadata tell it."""
    known = {"ase": "3.29.0", "torch": "2.13.0"} | installed

    def version(name):
        if name not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(MODULE.importlib.metadata, "version", version)
    monkeypatch.setattr(MODULE, "_required", lambda: {"torch": "2.4"})
    monkeypatch.setattr(MODULE, "import_backend", importer)


def test_report_of_a_sound_installation(monkeypatch):
    install(monkeypatch, versions("0.10.4", None, "0.4.4"))
    monkeypatch.setattr(MODULE, "run_trials", lambda *_, **__: [Trial("7net-0: forces", True, "fine", 0.1)])
    report = doctor()
    assert report.ok
    assert report.problems == ()
    text = str(report)
    assert 'not installed (pip install "ase_finetune[mace]")' in text
    assert "7net-0: forces        passed, fine (0.1 s)" in text
    assert text.splitlines()[-1].startswith("ready with sevenn; ")
    assert max(map(len, text.splitlines())) < 200


def test_report_of_a_conflict(monkeypatch):
    install(monkeypatch, versions("0.13.0", "0.3.16", "0.4.4"))
    tried = []
    monkeypatch.setattr(MODULE, "run_trials", lambda name, *_, **__: tried.append(name) or [])
    report = doctor()
    assert report.backends["mace"] == ""
    assert report.backends["sevenn"].startswith("does not work: sevenn 0.13.0 needs e3nn >= 0.5")
    assert tried == ["mace"]
    assert BOTH in str(report)
    assert report.ok  # mace can be worked with


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ModuleNotFoundError("No module named 'torch_geometric'"), 'pip install "sevenn>=0.10.4"'),
        (ImportError("libcudart.so.12: cannot open"), "pip check"),
        (RuntimeError("operator torchvision::nms\ndoes not exist"), "pip check"),
        (AttributeError("module 'numpy' has no attribute 'in1d'"), "pip check"),
    ],
)
def test_a_backend_that_does_not_import(monkeypatch, error, remedy):
    def importer(module, hint):
        if isinstance(error, ImportError):
            raise BackendNotInstalledError("told in our words") from error
        raise error

    install(monkeypatch, versions("0.13.0", None, "0.6.0"), importer)
    report = doctor()
    assert not report.ok
    (problem,) = report.problems
    assert str(error).splitlines()[0] in problem.text
    assert type(error).__name__ in problem.text
    assert problem.remedy.startswith(remedy)
    assert "NOT ready without a backend" in str(report)


@pytest.mark.parametrize("broken", ["_installed", "_required", "_devices", "_models", "_processes", "_trials"])
def test_nothing_kills_the_doctor(monkeypatch, broken):
    def fail(*_):
        raise RuntimeError("CUDA error: unknown")

    install(monkeypatch, versions("0.10.4", None, "0.4.4"))
    monkeypatch.setattr(MODULE, "run_trials", lambda *_, **__: [])
    monkeypatch.setattr(MODULE, broken, fail)
    report = doctor()
    assert "cannot be determined: RuntimeError: CUDA error: unknown" in str(report)


def test_metadata_without_a_version(monkeypatch):
    install(monkeypatch, {"sevenn": None, "e3nn": "0.4.4"})
    report = doctor(self_test=False)
    assert any("sevenn 0 is older" in problem.text for problem in report.problems)


def test_unsafe_loading_is_told(monkeypatch):
    install(monkeypatch, versions("0.10.4", None, "0.4.4"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    report = doctor(self_test=False)
    (problem,) = report.problems
    assert problem.remedy == "unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    assert "warning: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set" in str(report)
    assert report.ok


@pytest.mark.parametrize(
    ("cuda", "hidden", "remedy"),
    [
        (None, None, "pip install --force-reinstall torch"),
        ("12.4", "", "unset CUDA_VISIBLE_DEVICES"),
        ("12.4", None, "nvidia-smi"),
    ],
)
def test_a_driver_that_torch_does_not_use(monkeypatch, tmp_path, cuda, hidden, remedy):
    install(monkeypatch, versions("0.10.4", None, "0.4.4"))
    monkeypatch.setattr(MODULE, "_DRIVER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (problem,) = doctor(self_test=False).problems
    assert problem.remedy.startswith(remedy)
    assert not problem.serious


def test_several_processes_are_told_and_do_not_wait_for_each_other(monkeypatch):
    install(monkeypatch, versions("0.10.4", None, "0.4.4"))
    fitted = []
    monkeypatch.setattr(MODULE, "run_trials", lambda *_, fit: fitted.append(fit) or [])
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    report = doctor()
    assert fitted == [False]
    assert "2 processes on each of 2 nodes" in str(report)
    assert "run the doctor without torchrun or srun" in str(report)


def test_a_failed_trial_is_not_ok():
    report = DoctorReport({}, {"sevenn": ""}, (Trial("a", True, ""), Trial("b", None, "")), (), 1.0)
    assert report.ok
    assert not DoctorReport({}, {"sevenn": ""}, (Trial("a", False, "off"),), (), 1.0).ok
    assert not DoctorReport({}, {"sevenn": "not installed"}, (), (), 1.0).ok


def test_command(monkeypatch, capsys):
    install(monkeypatch, versions("0.10.4", None, "0.4.4"))
    assert main(["doctor", "--self_test", "false"]) == 0
    assert "ready with sevenn" in capsys.readouterr().out
    install(monkeypatch, {})
    assert main(["doctor"]) == 1
    assert 'pip install "ase_finetune[all]"' in capsys.readouterr().out


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    """Neither files nor changes of the process."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ), torch.get_default_dtype(), torch.get_rng_state()
    doctor(self_test=False)
    assert (dict(os.environ), torch.get_default_dtype()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert list(tmp_path.iterdir()) == []
