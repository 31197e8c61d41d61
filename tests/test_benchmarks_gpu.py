"""The kit for a GPU that is lent for minutes: nothing that is known is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu import runner
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.models import accelerations
from benchmarks.gpu.plan import MODULES, STAGES
from benchmarks.gpu.profiling import busy_time, summary
from benchmarks.gpu.rows import Book, read, table
from benchmarks.gpu.runner import Options, Runner
from tests import helpers

ROOT = Path(__file__).parents[1]
IDENTITY = {"card": "a card", "torch": "2", "versions": {}, "commit": "abc", "device": "cpu", "quick": True, "run": "1"}
IDENTITY |= {"package": "def"}
NEEDS_BACKENDS = [
    pytest.mark.sevenn,
    pytest.mark.mace,
    pytest.mark.skipif(not (helpers.HAS_SEVENN and helpers.HAS_MACE), reason="needs sevenn and mace"),
]


def kit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks.gpu` in a process of its own."""
    return subprocess.run(  # noqa: S603  # our own module
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


# --- rows


def test_rows_are_settled_by_results_of_the_same_code_and_failures_of_this_run(tmp_path):
    book = Book(tmp_path, IDENTITY)
    for name, status in {"a": "ok", "b": "wrong", "c": "failed", "d": "begun", "e": "skipped"}.items():
        book.add("right", name, status)
    assert book.settled("right") == {"a", "b", "c", "d"}
    assert Book(tmp_path, IDENTITY | {"run": "2"}).settled("right") == {"a", "b"}
    assert Book(tmp_path, IDENTITY | {"package": "another"}).settled("right") == {"c", "d"}
    assert Book(tmp_path, IDENTITY | {"quick": False, "run": "2"}).settled("right") == set()
    assert Book(tmp_path, IDENTITY | {"card": "another", "run": "2"}).settled("right") == set()
    assert book.settled("fast") == set()


def test_the_last_row_of_a_name_counts_and_a_torn_line_is_left_out(tmp_path):
    book = Book(tmp_path, IDENTITY)
    book.add("right", "a", "begun")
    book.add("right", "b", "ok", value=float("nan"), unit="s")
    book.add("right", "a", "ok", value=1.23456789)
    with book.path.open("a") as file:
        file.write('{"stage": "right", "na')
    assert [(row["name"], row["status"]) for row in book.rows()] == [("a", "ok"), ("b", "ok")]
    assert book.rows()[0]["value"] == 1.23457
    assert book.rows()[1]["value"] is None
    assert len(read(book.path)) == 3


def test_what_was_planned_and_not_reached(tmp_path):
    book = Book(tmp_path, IDENTITY)
    book.add("right", "(planned)", "ok", names=["a", "b", "c"])
    book.add("right", "a", "ok")
    book.add("right", "b", "skipped", reason="it rained")
    assert book.unmeasured("right") == ["c"]
    assert Book(tmp_path, IDENTITY | {"run": "2"}).unmeasured("right") == ["b", "c"]


# --- the runner


@pytest.fixture
def stages(monkeypatch):
    """Two stages of tests/gpu_stage.py."""
    monkeypatch.setattr(runner, "MODULES", MODULES | dict.fromkeys(("right", "fast"), "tests.gpu_stage"))


def options(folder: Path, seconds: float, models=(), stages=("right", "fast")) -> Options:
    return Options(folder, time.time() + seconds, stages, "cpu", True, models, None, folder / "none")


def statuses(folder: Path, stage: str) -> dict[str, str]:
    return {row["name"]: row["status"] for row in Book(folder, IDENTITY).rows() if row["stage"] == stage}


def test_a_stage_that_dies_goes_on_after_the_row_and_stops_no_other(stages, tmp_path, capsys):
    assert Runner(options(tmp_path, 300), IDENTITY).run() is False
    expected = {"well": "ok", "wrong": "wrong", "fails": "failed", "skips": "skipped", "dies": "begun", "after": "ok"}
    expected |= {"(planned)": "ok", "(process)": "failed", "(stage)": "ok"}
    assert statuses(tmp_path, "right") == statuses(tmp_path, "fast") == expected
    rows = {row["name"]: row for row in Book(tmp_path, IDENTITY).rows()}
    assert rows["(process)"]["lines"][-2:] == ["my last words", "its process ended with status 3: my last words"]
    assert rows["fails"]["reason"] == "ValueError: out of luck"
    assert rows["fails"]["lines"][-1] == "ValueError: out of luck"
    assert all(IDENTITY.items() <= row.items() for row in rows.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "rows.jsonl", "summary.txt"]
    told = capsys.readouterr().out
    assert (tmp_path / "summary.txt").read_text().strip() in told
    for text in (
        "DIED",
        "WRONG: forces 2",
        "FAILED: ValueError: out of luck",
        "= 0.500  goal 0.7 met",
        "skips: it rained",
    ):
        assert text in told

    # Again: what has a result is not measured anew, the others are.
    before = len(read(tmp_path / "rows.jsonl"))
    Runner(options(tmp_path, 300, stages=["right"]), IDENTITY | {"run": "2"}).run()
    again = read(tmp_path / "rows.jsonl")[before:]
    assert {row["name"] for row in again if row["status"] == "begun"} == {"fails", "skips", "dies"}


@pytest.mark.slow
def test_a_stage_is_stopped_when_its_time_is_over(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", (0.5, 0.5))
    start = time.time()
    Runner(options(tmp_path, 60, ("hangs",)), IDENTITY).run()
    assert time.time() - start < 90
    found = statuses(tmp_path, "right")
    assert found["after"] == "ok"
    assert found["hangs"] == "begun"
    assert found["never"] == "skipped"
    rows = {(row["stage"], row["name"]): row for row in Book(tmp_path, IDENTITY).rows()}
    assert "its time was over" in rows["right", "(process)"]["reason"]


def test_without_time_stages_are_named_as_skipped(stages, tmp_path):
    Runner(options(tmp_path, 1), IDENTITY).run()
    assert statuses(tmp_path, "right") == statuses(tmp_path, "fast") == {"(stage)": "skipped"}
    assert "no time was left" in (tmp_path / "summary.txt").read_text()


def test_a_gpu_that_is_not_there_is_one_line(tmp_path):
    done = kit("run", "--out", str(tmp_path), "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_unknown_stages_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["run", "--out", str(tmp_path), "--stages", "right,nonsense"])
    assert "there is no stage nonsense" in capsys.readouterr().err


# --- the stages


def test_smallest_form(tmp_path):
    """Everything that is checked, on a pair potential: seconds."""
    arguments = ["run", "--out", str(tmp_path), "--device", "cpu", "--quick", "--stages", "right", "--models", "pair"]
    done = kit(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = Book(tmp_path, IDENTITY).rows()
    assert {row["status"] for row in rows} == {"ok", "skipped"}
    assert {row["reason"] for row in rows if row["status"] == "skipped"} == {"needs a GPU"}
    assert sum("errors" in row for row in rows) >= 17
    for row in rows:
        assert row["card"].startswith("CPU")
        assert {"torch", "ase"} <= row["versions"].keys()
        assert row["commit"]
        assert row["sources"]
        assert row["quick"] is True
    assert not [row for row in rows if any(value is None for value in row.get("errors", {}).values())]
    assert table(rows) in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stage", [pytest.param(stage, marks=NEEDS_BACKENDS) for stage in STAGES])
def test_quick_form(stage, tmp_path, request):
    data = os.environ.get("ASE_FINETUNE_DATA")
    more = ["--data", data] if data else []
    done = kit("run", "--out", str(tmp_path), "--device", "cpu", "--quick", "--stages", stage, "--minutes", "20", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = Book(tmp_path, IDENTITY).rows()
    assert sum(row["status"] == "ok" for row in rows) >= 4 or (stage == "science" and not data)
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


def test_every_stage_has_a_module_and_a_share():
    assert STAGES.keys() == MODULES.keys()
    assert sum(STAGES.values()) == pytest.approx(1)


# --- what a profile says


def event(name: str, kind: str, start: float, end: float) -> SimpleNamespace:
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, device_type=SimpleNamespace(name=kind), time_range=span)


def test_busy_time_counts_overlaps_once():
    assert busy_time([(0.0, 4.0), (1.0, 2.0), (3.0, 6.0), (10.0, 11.0)]) == (7.0, [4.0])
    assert busy_time([]) == (0.0, [])


def test_profile_of_two_steps():
    kernels = [event(f"kernel {k % 2}", "CUDA", 100.0 * k, 100.0 * k + 50 + 10 * (k % 2)) for k in range(4)]
    calls = [event("cudaLaunchKernel", "CPU", 0, 1)] * 4 + [event("cudaStreamSynchronize", "CPU", 0, 1)] * 2
    found = summary([*kernels, *calls, event("aten::mul", "CPU", 0, 1)], 2, 200e-6)
    assert (found["kernels"], found["launches"], found["waits"]) == (2, 2, {"cudaStreamSynchronize": 1})
    assert found["busy_ms"] == pytest.approx(0.11)
    assert found["busy_share"] == pytest.approx(0.55)
    assert found["gap_us_median"] == 50
    assert [name for name, _ in found["largest"]] == ["kernel 1", "kernel 0"]


def test_rows_with_and_without_what_accelerates():
    assert accelerations(on_gpu=False) == {"": {}}
    ways = {" accelerate=graph": {"accelerate": "graph"}, " accelerate=none": {"accelerate": "none"}}
    assert accelerations(on_gpu=True) == ways
