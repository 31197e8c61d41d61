"""Bundles of benchmarks.gpu: what is in them, and that one that does not fit says so in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu import bundle, installing, requirements
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bundle import cut, slim, split_frames
from benchmarks.gpu.installing import BundleError, install, sha256
from tests import helpers

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
