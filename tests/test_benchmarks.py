"""The benchmarks run in their smallest form and tell what they could not measure. Nothing here judges speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from benchmarks import suite
from benchmarks.__main__ import main
from benchmarks.paired import Comparison, alternate
from benchmarks.two_processes import last_words
from benchmarks.workers import Worker, WorkerError
from tests import helpers

ROOT = Path(__file__).parents[1]
NEEDS_BACKENDS = [
    pytest.mark.sevenn,
    pytest.mark.mace,
    pytest.mark.skipif(not (helpers.HAS_SEVENN and helpers.HAS_MACE), reason="needs sevenn and mace"),
]

#: For each benchmark, its rows in the quick form without a GPU and without the environment of the newest sevenn.
ROWS = {
    "md": 1,
    "md_mace": 1,
    "training_step": 2,
    "reewc_epoch": 0,
    "fisher": 3,
    "ewc_step": 1,
    "bptt": 2,
    "relaxation": 1,
    "memory": 1,
    "long_tail": 1,
    "growth": 3,
    "two_processes": 1,
}


@dataclass
class Run:
    """What `python -m benchmarks --quick` left."""

    folder: Path
    output: str
    returncode: int

    def content(self, name: str) -> dict:
        path = self.folder / f"{name}.json"
        assert path.exists(), self.output
        return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Run:
    """All benchmarks once, in one process: it takes longer to import the backends than to run most of them."""
    folder = tmp_path_factory.mktemp("benchmarks") / "deep" / "results"
    nowhere = folder.parent / "no-such-python"
    options = ["--quick", "--device", "cpu", "--threads", "1", "--output", str(folder), "--newest-sevenn", str(nowhere)]
    environment = {name: value for name, value in os.environ.items() if name != "ASE_FINETUNE_DATA"}
    done = subprocess.run(  # noqa: S603  # our own module
        [sys.executable, "-m", "benchmarks", *options],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return Run(folder, done.stdout + done.stderr, done.returncode)


def test_every_benchmark_is_expected():
    assert list(ROWS) == suite.NAMES


@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS_BACKENDS) for name in suite.NAMES])
def test_benchmark(quick, name):
    content = quick.content(name)
    reasons = [row["reason"] for row in content["missing"]]
    assert not [reason for reason in reasons if "failed" in reason or "ended" in reason], quick.output
    expected = ROWS[name]
    if name == "two_processes" and any("needs two cores" in reason for reason in reasons):
        expected = 0
    assert len(content["rows"]) == expected
    for row in content["rows"]:
        assert row["ratio"] == pytest.approx(np.median(row["ours_all"]) / np.median(row["peer_all"]))
        assert row["ours"] == np.median(row["ours_all"]) > 0
        assert row["met"] == (None if row["target"] is None else row["ratio"] <= row["target"])
        assert row["name"] in quick.output
    assert content["quick"] is True
    assert content["device"] == "cpu"
    assert content["threads"] == 1
    assert {"torch", "ase", "sevenn"} <= set(content["versions"])
    assert "1 thread, " in content["machine"]


@pytest.mark.parametrize(
    ("name", "reason"), [("reewc_epoch", "make .venv-newest-sevenn"), ("relaxation", "bench-peers")]
)
@pytest.mark.sevenn
@pytest.mark.mace
@pytest.mark.skipif(not (helpers.HAS_SEVENN and helpers.HAS_MACE), reason="needs sevenn and mace")
def test_missing_peers_are_told(quick, name, reason):
    rows = [row for row in quick.content(name)["missing"] if "on a GPU" not in row["name"]]
    assert len(rows) == 1
    assert "no-such-python does not exist" in rows[0]["reason"]
    assert reason in rows[0]["reason"]
    listed = quick.output.split("missing rows")[1]
    assert rows[0]["name"] in listed
    assert rows[0]["reason"] in listed


@pytest.mark.sevenn
@pytest.mark.mace
@pytest.mark.skipif(not (helpers.HAS_SEVENN and helpers.HAS_MACE), reason="needs sevenn and mace")
def test_gpu_rows_are_missing_on_a_cpu(quick):
    for name in suite.NAMES:
        targets = [target for target in suite.load(name).TARGETS.values() if target.gpu is not None]
        rows = [row for row in quick.content(name)["missing"] if "on a GPU" in row["name"]]
        assert len(rows) == len(targets) > 0
        assert all("GPU here" in row["reason"] or "run on the CPU, as asked" in row["reason"] for row in rows)


@pytest.mark.sevenn
@pytest.mark.mace
@pytest.mark.skipif(not (helpers.HAS_SEVENN and helpers.HAS_MACE), reason="needs sevenn and mace")
def test_picture_and_exit(quick):
    assert quick.returncode == 0, quick.output
    picture = plt.imread(quick.folder / "ratios.png")
    assert min(picture.shape[:2]) > 300
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20


def test_alternating_repeats():
    calls = []

    def side(name, values):
        def call():
            calls.append(name)
            return values.pop(0)

        return call

    found = alternate(side("ours", [9.0, 2.0, 4.0, 6.0]), side("peer", [9.0, 1.0, 1.0, 4.0]), 3, warmup=1, per=2)
    assert calls == ["ours", "peer", "peer", "ours", "ours", "peer", "peer", "ours"]
    assert found == Comparison([1.0, 2.0, 3.0], [0.5, 0.5, 2.0])
    assert found.medians == (2.0, 0.5)
    assert found.ratio == 4.0


@pytest.mark.parametrize(("target", "met"), [(0.5, True), (0.49, False), (None, None)])
def test_row_against_target(target, met):
    row = suite.Row("name", "peer", Comparison([1.0], [2.0]), target)
    assert row.met is met
    assert row.to_dict()["met"] is met
    assert ("NOT MET" in row.line()) == (met is False)


def fake_benchmark(**attributes):
    module = type(suite)("fake")
    module.__doc__ = "First line.\n\nMore."
    module.TARGETS = {}
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def test_what_fails_is_listed_and_the_others_run(monkeypatch, tmp_path, capsys):
    def broken(setting):
        yield suite.Row("first", "peer", Comparison([1.0], [2.0]), 1.0)
        raise ValueError("out of luck")

    def works(setting):
        yield suite.Missing("a row", "a peer", "it rained")

    modules = {"md": fake_benchmark(run=broken), "fisher": fake_benchmark(run=works)}
    monkeypatch.setattr(suite, "load", modules.__getitem__)
    assert main(["md", "fisher", "--device", "cpu", "--output", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "md: all rows to come: failed with ValueError: out of luck" in out
    assert "fisher: a row, against a peer: it rained" in out
    assert [row["name"] for row in json.loads((tmp_path / "md.json").read_text())["rows"]] == ["first"]
    assert (tmp_path / "ratios.png").exists()


def test_list_and_unknown_names(capsys):
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == suite.NAMES
    assert all(len(line.split()) > 4 for line in listed)
    with pytest.raises(SystemExit):
        main(["md", "nonsense"])
    assert "there is no benchmark nonsense" in capsys.readouterr().err


def test_a_worker_that_ends_tells_why(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text("import sys; sys.stdin.readline(); raise SystemExit('no sevenn here')")
    monkeypatch.setattr("benchmarks.workers.__file__", str(tmp_path / "workers.py"))
    with pytest.raises(WorkerError, match="no sevenn here"):
        Worker(Path(sys.executable), "worker.py", {})


def test_a_worker_answers_line_by_line(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, sys\n"
        "options = json.loads(sys.stdin.readline())\n"
        "print(json.dumps(options), flush=True)\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'seconds': 0.5}), flush=True)\n"
    )
    monkeypatch.setattr("benchmarks.workers.__file__", str(tmp_path / "workers.py"))
    with Worker(Path(sys.executable), "worker.py", {"threads": 1}) as worker:
        assert worker.ready == {"threads": 1}
        assert [worker.seconds(), worker.seconds()] == [0.5, 0.5]


def test_last_words_of_a_process_are_not_those_of_its_launcher():
    told = "starting\nterminate called\n-----\nW1121 torch/distributed/elastic/api.py:1] Sending\n========\n"
    assert last_words(told) == "terminate called"
    assert last_words("") == ""
