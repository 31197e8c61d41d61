"""Damaged inputs of all kinds: a fixed selection of what ``python -m benchmarks.reliability.fuzz`` tries."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ase_finetune.continual import load_anchor, load_fisher
from ase_finetune.data import read_frames, read_pairs
from ase_finetune.errors import FinetuneError
from ase_finetune.files import read_sealed
from ase_finetune.potentials import load_potential
from ase_finetune.potentials.formats import CONFIG_FILE, FORMAT_VERSION, _digest
from tests import helpers

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and limits on memory")

COUNT = 100


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("needs fork")
    from benchmarks.reliability.fuzz import Fuzzer

    return Fuzzer(tmp_path_factory.mktemp("fuzz"))


def kinds() -> list[Any]:
    if sys.platform != "linux":
        return []
    from benchmarks.reliability.corpus import KINDS

    return [kind for kind in KINDS if "SevenNet" not in kind or helpers.HAS_SEVENN]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", kinds())
def test_damaged_input(fuzzer, kind):
    from benchmarks.reliability.fuzz import make_cases

    findings = [fuzzer.run(case) for case in make_cases(max(5, COUNT // len(kinds())), 1, [kind])]
    assert [(f.case.damage, f.wrong, f.outcome.text) for f in findings if f.wrong] == []


@needs_linux
def test_cases_are_the_same_for_the_same_seed():
    from benchmarks.reliability.corpus import KINDS
    from benchmarks.reliability.fuzz import make_cases

    cases = make_cases(400, 3)
    assert cases == make_cases(400, 3)
    assert cases != make_cases(400, 4)
    assert {case.kind for case in cases} == set(KINDS)
    assert len(set(cases)) > 390
    assert [case.rng.random() for case in cases[:5]] == [case.rng.random() for case in cases[:5]]


@needs_linux
@pytest.mark.filterwarnings("ignore")
def test_the_sandbox_tells_how_it_ended():
    from benchmarks.reliability.sandbox import attempt

    def hang():
        while True:
            pass

    assert attempt(lambda: {"a": 1}).value == {"a": 1}
    assert attempt(lambda: load_potential("no such model")).kind == "refused"
    assert attempt(lambda: 1 / 0).error == "ZeroDivisionError"
    assert attempt(lambda: sys.exit(3)).error == "SystemExit"
    assert attempt(lambda: os.kill(os.getpid(), signal.SIGKILL)).kind == "crash"
    assert attempt(hang, seconds=0.5).kind == "hang"
    assert attempt(lambda: bytearray(2 << 30), memory=1 << 30).error == "MemoryError"
    assert attempt(lambda: [0] * 10_000).value == [0] * 10_000


LOADERS = {
    "model.pth": load_potential,
    "model.model": load_potential,
    "fisher.safetensors": load_fisher,
    "fisher.pt": load_fisher,
    "anchor.pt": load_anchor,
    "sealed": lambda path: read_sealed(path, kind="test"),
    "frames.extxyz": read_frames,
    "frames.traj": read_frames,
    "frames.db": read_frames,
}
STARTS = (
    b"",
    b"PK\x03\x04",
    b"\x80\x02",
    b"\x08\0\0\0\0\0\0\0{}      ",
    b"8\nLattice=",
    b"- of UlmASE-Trajectory",
    b"SQLite f",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOADERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=200))
def test_any_bytes_end_in_an_error_of_ours(tmp_path, name, start, rest):
    path = tmp_path / name
    path.write_bytes(start + rest)
    with pytest.raises(FinetuneError) as caught:
        LOADERS[name](path)
    assert name in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
ENTRIES = "format_version backend head dtype architecture metadata versions weights_file weights_sha256".split()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from(ENTRIES), JSON, min_size=1, max_size=3),
    version=st.sampled_from([1, 2, None]),
)
def test_any_description_ends_in_an_error_of_ours(tmp_path, changes, version):
    import json

    base = {
        "format_version": version,
        "backend": "morse",
        "head": None,
        "dtype": "float32",
        "architecture": {"numbers": [8, 14], "cutoff": 4.0},
        "metadata": {},
        "versions": {},
        "weights_file": "weights-0123456789ab.safetensors",
        "weights_sha256": "0" * 64,
    }
    content = json.loads(json.dumps(base | changes))
    if content["format_version"] == FORMAT_VERSION:
        content["sha256"] = _digest(content)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(FinetuneError) as caught:
        load_potential(tmp_path)
    assert str(tmp_path) in str(caught.value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=JSON, name=st.sampled_from(["numbers", "cutoff", "all"]))
def test_any_architecture_ends_in_an_error_of_ours_or_a_model(tmp_path, changes, name):
    from tests.hostile.payloads import write_potential

    architecture = {"numbers": [8, 14], "cutoff": 4.0}
    architecture = {"a": changes} if name == "all" else architecture | {name: changes}
    folder = write_potential(tmp_path / "model", architecture)
    with pytest.raises(FinetuneError) as caught:  # at the latest its weights do not fit
        load_potential(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.text('0123456789.-eE Sinaf"=LatticeProprsgy:R\n', max_size=60), max_size=6),
    count=st.integers(-2, 12),
)
def test_any_text_of_frames(tmp_path, lines, count):
    path = tmp_path / "frames.extxyz"
    path.write_text("\n".join([str(count), *lines]))
    for read in (lambda: read_frames(path, require_labels=False), lambda: read_pairs([path, path])):
        try:
            found = read()
        except FinetuneError as error:
            text = str(error)
        else:
            text = path.name
            assert len(found) > 0
        assert path.name in text


def test_a_link_to_itself(tmp_path: Path):
    for name, loader in LOADERS.items():
        path = tmp_path / name
        path.symlink_to(path)
        with pytest.raises(FinetuneError, match=name):
            loader(path)
