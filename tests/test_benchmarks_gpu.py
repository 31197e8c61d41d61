"""The kit for a GPU that is lent for minutes: nothing that is known is lost, and a bundle that does not fit says so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu import bundle, installing, requirements, runner
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bundle import cut, slim, split_frames
from benchmarks.gpu.installing import BundleError, install, sha256
from benchmarks.gpu.plan import MODULES, STAGES
from benchmarks.gpu.profiling import busy_time, summary
from benchmarks.gpu.rows import Book, read, table
from benchmarks.gpu.runner import Options, Runner
from tests import helpers

ROOT = Path(__file__).parents[1]
IDENTITY = {"card": "a card", "torch": "2", "versions": {}, "commit": "abc", "device": "cpu", "quick": True, "run": "1"}
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
    assert Book(tmp_path, IDENTITY | {"commit": "def"}).settled("right") == {"c", "d"}
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


# --- bundles

FRAME = '2\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 number={}\nSi 0 0 0\nSi 1 1 1\n'


def test_data_are_cut_as_they_are_written(tmp_path, monkeypatch):
    text = "".join(FRAME.format(number) for number in range(10))
    assert "".join(split_frames(text + "\n")) == text
    (tmp_path / "frames.extxyz").write_text(text)
    monkeypatch.setattr(bundle, "FILES", {"frames.extxyz": 4})
    assert cut(tmp_path, tmp_path / "cut") == {"frames.extxyz": 4}
    assert re.findall(r"number=(\d)", (tmp_path / "cut" / "frames.extxyz").read_text()) == ["0", "2", "5", "7"]
    monkeypatch.setattr(bundle, "FILES", {"others.extxyz": None})
    with pytest.raises(BundleError, match="has no others"):
        cut(tmp_path, tmp_path / "cut")
    assert cut(None, tmp_path / "cut") == {}


def make_wheel(path: Path, name: str, **files: str) -> Path:
    """A wheel with a module, and files beside it."""
    info = f"{name}-1.0.dist-info"
    contents = {f"{name}/__init__.py": "VALUE = 7\n"} | {f"{name}/{file}": text for file, text in files.items()}
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    contents[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*contents, f"{info}/RECORD"])
    wheel = path / f"{name}-1.0-py3-none-any.whl"
    path.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as file:
        for inside, text in contents.items():
            file.writestr(inside, text)
    return wheel


def test_slim_wheels_install(tmp_path):
    wheel = make_wheel(tmp_path / "wheels", "heavy", **{"weights/large.pth": "w", "code.so": "c", "kept.py": "k"})
    slim(wheel, ("weights/", ".so"))
    before = wheel.stat().st_mtime_ns
    slim(wheel, ("weights/", ".so"))
    assert wheel.stat().st_mtime_ns == before
    installing._pip(tmp_path / "wheels", tmp_path / "site")
    assert sorted(path.name for path in (tmp_path / "site" / "heavy").glob("*.py")) == ["__init__.py", "kept.py"]
    assert not (tmp_path / "site" / "heavy" / "code.so").exists()


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A bundle of one package for this machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "bundle"
    wheel = make_wheel(folder / "wheels", "tiny_gpu_test")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    manifest = {"python": version, "platform": f"{sys.platform}-{os.uname().machine}", "have": {"numpy": [">=1.0"]}}
    manifest |= {"peers": [], "data": {}, "files": {f"wheels/{wheel.name}": sha256(wheel.read_bytes())}}
    return SimpleNamespace(folder=folder, manifest=manifest)


def written(packed: SimpleNamespace, **changes: object) -> Path:
    (packed.folder / "manifest.json").write_text(json.dumps(packed.manifest | changes))
    return packed.folder


def test_a_bundle_is_installed_without_an_index(packed):
    found = install(written(packed))
    command = [sys.executable, "-c", "import tiny_gpu_test; print(tiny_gpu_test.VALUE)"]
    done = subprocess.run(command, env=found.environment, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "7"
    assert install(packed.folder) == found
    assert found.data is None
    assert found.peers is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"python": "2.7"}, "is for Python 2.7, this is 3"),
        ({"platform": "plan9-vax"}, "is for the platform plan9-vax, this is"),
        ({"files": {"wheels/none.whl": ""}}, "none.whl is missing; prepare it anew"),
        ({"have": {"no-such-package": []}}, "leaves out no-such-package, and this machine has none"),
        ({"have": {"numpy": ["<1.0"]}}, "needed is <1.0; prepare it without --have numpy"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused_in_one_line(packed, changes, message, capsys):
    folder = written(packed, **changes)
    assert main(["run", "--bundle", str(folder), "--out", str(folder.parent / "out"), "--device", "cpu"]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert len(told.splitlines()) == 1


def test_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"is no bundle.*prepare --to"):
        install(tmp_path)


@pytest.mark.sevenn
@pytest.mark.mace
@pytest.mark.skipif(not (helpers.HAS_SEVENN and helpers.HAS_MACE), reason="needs sevenn and mace")
def test_needed_packages_are_those_of_the_constraints(monkeypatch):
    monkeypatch.setattr(requirements, "pinned", dict)
    found = requirements.needs(requirements.own_requirements(), {"matplotlib", "scipy"})
    assert {"ase", "e3nn", "mace-torch", "sevenn", "vesin", "lightning-fabric", "jsonargparse"} <= found.packages.keys()
    assert found.packages["e3nn"] == "0.4.4"
    assert not {"torch", "matplotlib", "fonttools", "scipy", "aiohttp"} & found.packages.keys()
    assert found.have["torch"]
    assert ">=3.8" in found.have["matplotlib"]
    monkeypatch.setattr(requirements, "pinned", lambda: {"ase": "1.0"})
    with pytest.raises(BundleError, match=r"ase .* is installed, constraints.txt has 1.0"):
        requirements.needs(["ase"])
