"""Makes an offline bundle: wheels for the Python of the GPU's machine, peers without their weights, and data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from benchmarks.gpu.identity import sources_hash
from benchmarks.gpu.installing import (
    DATA,
    MANIFEST,
    PEERS,
    PLATFORM,
    PYTHON,
    WHEELS,
    BundleError,
    last_line,
    sha256,
)
from benchmarks.gpu.plan import ROOT
from benchmarks.gpu.requirements import needs, own_requirements, pinned
from benchmarks.science.storing import commit

MIB = 2**20

#: What may travel to the machine of the GPU, bundle and checkout together.
LARGEST = 60 * MIB

#: pip matches the version of glibc in a platform's name exactly.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)] + [
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
]

#: Of the data, what the stages use: files, and how many frames of them, spread evenly (all if ``None``).
FILES: dict[str, int | None] = {
    "lgps_train.extxyz": 300,
    "lgps_valid.extxyz": None,
    "mptrj_retention.extxyz": None,
    "mptrj_replay.extxyz": None,
    "crystal_pairs_train_initial.extxyz": None,
    "crystal_pairs_valid_initial.extxyz": None,
}

#: Beside sevenn with its reEWC trainer, in the version of constraints-newest-sevenn.txt.
PEER_PACKAGES = ("e3nn==0.5.6", "torch-sim-atomistic==0.6.2")

#: What is left out of sevenn's wheels: code for LAMMPS, and an older 7net-0; of the peers' one all weights.
LEFT_OUT = {
    WHEELS: ("SevenNet_0__22May2024/", "pair_e3gnn/", ".so"),
    PEERS: ("pretrained_potentials/", "pair_e3gnn/", ".so"),
}


def prepare(folder: Path, data: Path | None, have: str = "", peers: bool = True) -> dict[str, Any]:
    """Make a bundle; wheels that are there already stay.

    Parameters
    ----------
    folder
        Where.
    data
        Folder of the research data; without it, stages use the data of the examples or skip rows.
    have
        Packages of the GPU's machine, with commas; torch is one in any case.
    peers
        Whether to take sevenn's reEWC trainer and torch-sim along.

    Returns
    -------
    The manifest.

    Raises
    ------
    BundleError
        If a package cannot be had.
    """
    named = {canonicalize_name(name.strip()) for name in have.split(",") if name.strip()}
    found = needs(own_requirements(), named)
    fetch([f"{name}=={version}" for name, version in found.packages.items()], folder / WHEELS)
    others = [f"sevenn=={pinned(ROOT / 'constraints-newest-sevenn.txt')['sevenn']}", *PEER_PACKAGES] if peers else []
    fetch(others, folder / PEERS)
    for part in (WHEELS, PEERS):
        for wheel in (folder / part).glob("sevenn-*.whl"):
            slim(wheel, LEFT_OUT[part])
    frames = cut(data, folder / DATA)
    manifest = {
        "python": PYTHON,
        "platform": PLATFORM,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "sources": sources_hash(),
        "packages": found.packages,
        "have": found.have,
        "peers": others,
        "data": frames,
        "files": {name: sha256((folder / name).read_bytes()) for name in _files(folder)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _tell(folder, manifest)
    return manifest


def fetch(requirements: Sequence[str], folder: Path) -> None:
    """Wheels of exactly these packages, built where there is none; other wheels in the folder go."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = {requirement.partition("==")[::2]: requirement for requirement in requirements}
    there = {}
    for wheel in folder.glob("*.whl"):
        name, version = wheel.name.split("-")[:2]
        key = str(canonicalize_name(name)), version
        if key in expected:
            there[key] = wheel
        else:
            wheel.unlink()
    for key, requirement in expected.items():
        if key not in there:
            print(f"  {requirement}", flush=True)
            _fetch(requirement, folder)


def _fetch(requirement: str, folder: Path) -> None:
    """One wheel for the GPU's machine: as the index has it, or built here if that gives one for any machine."""
    target = ["--python-version", PYTHON, "--implementation", "cp", "--only-binary", ":all:"]
    target += [part for tag in (f"cp{PYTHON.replace('.', '')}", "abi3", "none") for part in ("--abi", tag)]
    target += [part for name in PLATFORMS for part in ("--platform", name)]
    done = _pip("download", "--no-deps", *target, "--dest", str(folder), requirement)
    if done.returncode == 0:
        return
    with tempfile.TemporaryDirectory() as place:
        built = _pip("wheel", "--no-deps", "--wheel-dir", place, requirement)
        wheels = list(Path(place).glob("*.whl"))
        if built.returncode != 0 or not wheels:
            raise BundleError(
                f"there is no wheel of {requirement}: {last_line(done.stderr)}; and {last_line(built.stderr)}"
            )
        if not wheels[0].name.endswith("-none-any.whl"):
            raise BundleError(f"{requirement} has no wheel for Python {PYTHON} and cannot be built here; use --have")
        shutil.move(str(wheels[0]), folder / wheels[0].name)


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def slim(wheel: Path, left_out: Sequence[str]) -> None:
    """Leave out folders (``"name/"``) and suffixes; a wheel that was slimmed stays as it is."""

    def is_left_out(name: str) -> bool:
        return any(part in name if part.endswith("/") else name.endswith(part) for part in left_out)

    with zipfile.ZipFile(wheel) as source:
        if not any(is_left_out(name) for name in source.namelist()):
            return
        part = wheel.with_suffix(".part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as result:
            for name in source.namelist():
                content = source.read(name)
                if name.endswith("/RECORD"):
                    lines = content.decode().splitlines()
                    content = "\n".join(text for text in lines if not is_left_out(text.split(",")[0])).encode() + b"\n"
                if not is_left_out(name):
                    result.writestr(source.getinfo(name), content, zipfile.ZIP_DEFLATED)
    part.replace(wheel)


def cut(data: Path | None, folder: Path) -> dict[str, int]:
    """Copy what the stages use of the data; returns how many frames of each file."""
    shutil.rmtree(folder, ignore_errors=True)
    if data is None:
        return {}
    folder.mkdir(parents=True)
    found = {}
    for name, count in FILES.items():
        if not (data / name).exists():
            raise BundleError(f"{data} has no {name}; give the folder of the research data, or none")
        frames = split_frames((data / name).read_text(encoding="utf-8"))
        if count is not None and count < len(frames):
            frames = [frames[k * len(frames) // count] for k in range(count)]
        (folder / name).write_text("".join(frames), encoding="utf-8")
        found[name] = len(frames)
    return found


def split_frames(text: str) -> list[str]:
    """The frames of an extxyz file, as they are written."""
    lines, frames, start = text.splitlines(keepends=True), [], 0
    while start < len(lines) and lines[start].strip():
        end = start + int(lines[start]) + 2
        frames.append("".join(lines[start:end]))
        start = end
    return frames


def _files(folder: Path) -> Iterable[str]:
    parts = (WHEELS, PEERS, DATA)
    return sorted(path.relative_to(folder).as_posix() for part in parts for path in (folder / part).glob("*"))


def size(paths: Iterable[Path]) -> int:
    """Bytes of files."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def checkout(root: Path = ROOT) -> list[Path]:
    """Files that travel with a checkout: those that git knows or would."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return [root / name for name in done.stdout.split("\0") if name]


def _tell(folder: Path, manifest: Mapping[str, Any]) -> None:
    """How large everything is, and what takes most of it."""
    parts = {name: size((folder / name).glob("*")) for name in (WHEELS, PEERS, DATA)}
    bundle, code = sum(parts.values()), size(checkout())
    print(f"{len(manifest['packages'])} packages for Python {manifest['python']}, {manifest['platform']}")
    print(", ".join(f"{name} {value / MIB:.1f} MiB" for name, value in parts.items()))
    print("largest: " + ", ".join(_largest([*(folder / WHEELS).glob("*"), *(folder / PEERS).glob("*")])))
    total = bundle + code
    verdict = "" if total <= LARGEST else f": MORE THAN {LARGEST // MIB} MiB; name what the machine has with --have"
    print(f"bundle {bundle / MIB:.1f} MiB, with the checkout ({code / MIB:.1f} MiB) {total / MIB:.1f} MiB{verdict}")


def _largest(paths: Collection[Path]) -> list[str]:
    ordered = sorted(paths, key=lambda path: -path.stat().st_size)[:6]
    return [f"{path.name.split('-')[0]} {path.stat().st_size / MIB:.1f}" for path in ordered]
