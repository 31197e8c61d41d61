"""A bundle on the machine of the GPU: whether it fits, and its packages beside those that are there.

Imports nothing but Python's own library: before the bundle is installed there may be nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import ROOT

#: What bundles are made for.
PYTHON, PLATFORM = "3.12", "linux-x86_64"

#: Comes with the machine, and so does what only it needs.
GIVEN = "torch"

MANIFEST, WHEELS, PEERS, DATA = "manifest.json", "wheels", "peers", "data"

#: torch-sim imports the library of its trajectory files, which is as large as all the rest and not needed to relax.
TABLES = "def __getattr__(name):\n    return lambda *arguments, **options: None\n"


class BundleError(Exception):
    """A bundle that cannot be made or used; the message names the culprit and the remedy."""


@dataclass(frozen=True)
class Installed:
    """What processes need to find the packages.

    Attributes
    ----------
    paths
        Folders for ``sys.path``.
    data
        Folder of the bundle's data.
    peers
        Interpreter with the peers that cannot live beside mace.
    manifest
        Of the bundle.
    """

    paths: list[str] = field(default_factory=list)
    data: Path | None = None
    peers: Path | None = None
    manifest: dict[str, Any] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Of the processes of the stages."""
        paths = [str(ROOT), *self.paths, *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}

    def identity(self, device: str) -> dict[str, Any]:
        """Card, versions and commit, from a process of its own: this one leaves the GPU alone.

        Raises
        ------
        BundleError
            If torch, the device or a package is not usable.
        """
        command = [sys.executable, "-m", "benchmarks.gpu.identity", device]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
            hint = "" if self.paths else "; is --bundle FOLDER missing?" if "No module named" in last else ""
            raise BundleError(f"nothing can be measured here: {last}{hint}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if found["commit"] == "unknown" and self.manifest is not None:
            # A checkout without its history: the bundle was made in one with it.
            same = found["sources"] == self.manifest["sources"]
            found["commit"] = f"{self.manifest['commit']}{'' if same else '-changed'}"
        return found


def install(bundle: Path | None) -> Installed:
    """Install the packages of a bundle into a folder for temporary files, or find them there.

    Raises
    ------
    BundleError
        If it is not for this machine, or not whole.
    """
    if bundle is None:
        return Installed()
    manifest = checked(bundle)
    mark = sha256((bundle / MANIFEST).read_bytes())[:12]
    place = Path(tempfile.gettempdir()) / f"ase_finetune-gpu-{mark}"
    site, peers = place / "site", place / "peers"
    if not (place / "ready").exists():
        shutil.rmtree(place, ignore_errors=True)
        _pip(bundle / WHEELS, site)
        if manifest["peers"]:
            _install_peers(bundle / PEERS, site, peers)
        (place / "ready").touch()
    python = peers / "python"
    data = bundle / DATA if manifest["data"] else None
    return Installed([str(site)], data, python if python.exists() else None, manifest)


def checked(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle that is whole and for this machine."""
    path = bundle / MANIFEST
    if not path.exists():
        raise BundleError(
            f"{bundle} is no bundle: it has no {MANIFEST}; make one with python -m benchmarks.gpu prepare --to {bundle}"
        )
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    here = ".".join(platform.python_version_tuple()[:2]), f"{sys.platform}-{platform.machine()}"
    for what, is_here, name in zip(("Python", "the platform"), here, ("python", "platform"), strict=True):
        if manifest[name] != is_here:
            raise BundleError(
                f"{bundle} is for {what} {manifest[name]}, this is {is_here}; run it with a Python that fits"
            )
    for name, wanted in manifest["files"].items():
        file = bundle / name
        if not file.exists() or sha256(file.read_bytes()) != wanted:
            raise BundleError(
                f"{bundle} is not whole: {name} is {'another' if file.exists() else 'missing'}; prepare it anew"
            )
    for name, specifiers in manifest["have"].items():
        problem = unsuitable(name, specifiers)
        if problem:
            remedy = "install one that knows the GPU" if name == GIVEN else f"prepare it without --have {name}"
            raise BundleError(f"{bundle} leaves out {name}, and {problem}; {remedy}")
    return manifest


def unsuitable(name: str, specifiers: Sequence[str]) -> str:
    """Why a package of this machine cannot take part; empty if it can."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "this machine has none"
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # then nothing is known, and imports will tell
        return ""
    wrong = [text for text in specifiers if not SpecifierSet(text, prereleases=True).contains(version)]
    return f"this machine has {version}, needed is {', '.join(wrong)}" if wrong else ""


def _install_peers(wheels: Path, site: Path, peers: Path) -> None:
    """The peers in a folder of their own, which goes before that of the others, and an interpreter that finds both."""
    _pip(wheels, peers / "site")
    (peers / "site" / "tables.py").write_text(TABLES, encoding="utf-8")
    # The wheels came without weights; those of the other version are the same.
    weights = Path("sevenn") / "pretrained_potentials"
    shutil.copytree(site / weights, peers / "site" / weights, dirs_exist_ok=True)
    python = peers / "python"
    path = os.pathsep.join([str(peers / "site"), str(site)])
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)


def _pip(wheels: Path, target: Path) -> None:
    """Install all wheels of a folder, without an index and without looking at what they need."""
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
    files: Sequence[str] = sorted(str(path) for path in wheels.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "--isolated", "install", *options, "--target", str(target), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BundleError(f"pip could not install {wheels}: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """The last line that says something, without the addresses in it: they are of one machine."""
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.startswith("[notice]")]
    return re.sub(r"\w+://\S+", "...", lines[-1].strip()) if lines else "it said nothing"


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
