"""Which packages the package and its backends need on the machine of the GPU, in the versions the tests run with."""

from __future__ import annotations

import configparser
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu.installing import GIVEN, PYTHON, BundleError
from benchmarks.gpu.plan import ROOT

#: Required by sevenn, mace or torch-geometric and not imported by anything that the stages run: 4 MiB.
UNUSED = ("aiohttp", "gitpython")

#: The markers of requirements are those of the machine of the GPU, not of this one.
MARKERS = {
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
}


def own_requirements(path: Path = ROOT / "setup.cfg") -> list[str]:
    """What the package needs, with both backends."""
    config = configparser.ConfigParser()
    config.read(path, encoding="utf-8")
    extras = config["options.extras_require"]
    # The narrower bound of sevenn, without which there is no mace, is that of the installed version.
    texts = config["options"]["install_requires"], extras["sevenn"], extras["mace"]
    return [text for lines in texts for text in lines.splitlines() if text.strip()]


def pinned(path: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """Versions by canonical name of the lines ``name==version`` of a file whose markers apply."""
    found: dict[str, str] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        if text.strip() and not text.startswith("#"):
            requirement = Requirement(text)
            if _applies(requirement):
                found[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return found


@dataclass(frozen=True)
class Needs:
    """What a bundle holds.

    Attributes
    ----------
    packages
        Version by name.
    have
        Of packages that are left out, by name: what those that need them ask of their version.
    """

    packages: dict[str, str]
    have: dict[str, list[str]]


def needs(roots: Collection[str], have: Collection[str] = ()) -> Needs:
    """All packages that are needed, in the versions that are installed here.

    Parameters
    ----------
    roots
        Requirements.
    have
        Canonical names of packages that are left out, together with what only they need.

    Raises
    ------
    BundleError
        If a package is not installed here, or in another version than ``constraints.txt`` has.
    """
    wanted, packages, left_out = pinned(), dict[str, str](), dict[str, set[str]]()
    waiting = [Requirement(text) for text in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name in UNUSED or not _applies(requirement):
            continue
        if name in have or name == GIVEN:
            left_out.setdefault(name, set()).add(str(requirement.specifier))
        elif (name, extras) not in seen:
            seen.add((name, extras))
            packages[name] = _version(name, wanted)
            waiting += list(_needed_by(name, extras))
    return Needs(
        dict(sorted(packages.items())), {name: sorted(filter(None, found)) for name, found in left_out.items()}
    )


def _version(name: str, wanted: dict[str, str]) -> str:
    try:
        version = distribution(name).version
    except PackageNotFoundError as error:
        raise BundleError(
            f"{name} is needed and not installed here; run make test, or prepare with --have {name}"
        ) from error
    if wanted.get(name, version) != version:
        raise BundleError(f"{name} {version} is installed, constraints.txt has {wanted[name]}; run make test before")
    return version


def _needed_by(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for text in requires(name) or []:
        requirement = Requirement(text)
        if any(_applies(requirement, extra) for extra in ("", *extras)):
            requirement.marker = None
            yield requirement


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate(MARKERS | {"extra": extra})
