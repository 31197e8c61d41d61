"""From a name or a file to a potential."""

from __future__ import annotations

import dataclasses
import difflib
import http.client
import importlib.util
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from ase_finetune.errors import (
    BackendNotInstalledError,
    CheckpointError,
    FinetuneError,
    InputError,
    ModelNotAvailableError,
    UnknownModelError,
)
from ase_finetune.potentials import downloads
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.catalog import CATALOG, Availability, ModelInfo
from ase_finetune.potentials.formats import CONFIG_FILE, find_saved
from ase_finetune.potentials.imports import ONE_AT_A_TIME
from ase_finetune.potentials.mace import MACEPotential
from ase_finetune.potentials.sevennet import SevenNetPotential
from ase_finetune.potentials.storage import load_potential_dir
from ase_finetune.potentials.torch_files import read_pickle_bytes

_INSTALL = {"sevenn": "'ase_finetune[sevenn]'", "mace": "'ase_finetune[mace]'"}


def list_models() -> list[ModelInfo]:
    """All known pretrained models, with what is installed and downloaded here."""
    return [_with_availability(info) for info in CATALOG]


def locate_model(name: str, download: bool = True) -> Path:
    """The file of a pretrained model, downloaded to its backend's cache if need be.

    Parameters
    ----------
    name
        A name or alias of :func:`list_models`.
    download
        Whether the network may be used.

    Raises
    ------
    UnknownModelError
        If no model has this name; near ones are suggested.
    InputError
        If the model is known but cannot be supported.
    BackendNotInstalledError
        If the package that would run the model is missing.
    ModelNotAvailableError
        If the file is not here and was not downloaded; says which file to copy where.
    """
    info = find_model(name)
    if info is None:
        raise UnknownModelError(f"no pretrained model is called {name!r}{_suggestion(name)}")
    if info.availability == "unsupported":
        raise InputError(f"{info.name} is {info.note}")
    places = places_of(info)
    for path, _ in places:
        if path.is_file():
            return path
    if _package(info.backend) is None:
        raise BackendNotInstalledError(f"{info.name} {_needs(info)}")
    target = places[-1][0]
    if info.url is None:
        raise ModelNotAvailableError(
            f"{info.name} is not here: it {info.note or f'comes with {info.backend}'}; "
            f"upgrade {info.backend}, or copy its file to {target}"
        )
    by_hand = f"to use it without a network, download {info.url} elsewhere and copy it to {target}"
    if not download:
        raise ModelNotAvailableError(f"{info.name} has not been downloaded yet; {by_hand}")
    sys.stderr.write(f"Downloading {info.name} from {info.url} to {target} (licence: {info.licence})\n")
    try:
        downloads.download(info, target)
    except (OSError, http.client.HTTPException) as error:
        raise ModelNotAvailableError(f"{info.name} could not be downloaded ({error}); {by_hand}") from error
    return target


def load_potential(
    model: str | os.PathLike[str] | Potential,
    *,
    head: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    trust_pickle: bool = False,
) -> tuple[Potential, dict[str, Any]]:
    """Load a potential by name or from a file.

    Parameters
    ----------
    model
        A name of :func:`list_models`; a folder written by :func:`save_potential`; the output folder of a
        finished run; a SevenNet checkpoint (``.pth``); a MACE model (``.model``); or a potential, which is
        used as it is. A folder without ``potential.json`` does not hide the model of the same name.
    head
        Head or modality of a model with several.
    device
        Where to put it.
    dtype
        Floating-point type of the parameters; ``None`` keeps the file's.
    trust_pickle
        Allow MACE ``.model`` files, which run code when they are loaded. Pretrained models loaded by name
        need no permission if they come with the installed mace, have the SHA-256 that is known of them,
        or are what was downloaded here from their official address.

    Returns
    -------
    The potential, and what is known about its origin: the metadata it was saved with, or
    ``{"model": name or path}``.

    Raises
    ------
    UnknownModelError
        If there is no such name or file.
    ModelNotAvailableError
        If a known model's file is not here and cannot be downloaded.
    CheckpointError
        If a file is damaged or of an unknown kind, or a run has not ended; ``UntrustedFileError`` if a file
        needs ``trust_pickle``.
    InputError
        If ``head`` does not fit the model.
    """
    if isinstance(model, Potential):
        if head is not None and head != model.head:
            raise InputError(f"the given potential uses head {model.head!r}, head={head!r} was asked for")
        return model, {}
    with ONE_AT_A_TIME:
        potential, metadata = _load(model, head, trust_pickle)
    return potential.to(device=device, dtype=dtype), metadata


def find_model(name: str) -> ModelInfo | None:
    """The catalogue's entry for a name or alias in any case, or ``None``."""
    wanted = name.lower()
    for info in CATALOG:
        if wanted == info.name or wanted in info.aliases:
            return info
    return None


def _load(model: str | os.PathLike[str], head: str | None, trust_pickle: bool) -> tuple[Potential, dict[str, Any]]:
    path = Path(model).expanduser()
    info = find_model(model) if isinstance(model, str) else None
    # Only a saved potential, or something spelled as a path, hides a known name.
    is_path = info is None or len(path.parts) > 1 or bool(path.suffix)
    saved = find_saved(path) if is_path or (path / CONFIG_FILE).is_file() else None
    if saved is not None:
        return load_potential_dir(saved, head=head)
    if is_path and path.is_file():
        return _load_file(path, head, trust_pickle), {"model": str(path)}
    if info is not None:
        return _load_named(info, head, trust_pickle), {"model": info.name}
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder without {CONFIG_FILE}: neither a saved potential nor a finished run")
    raise UnknownModelError(f"there is no file and no pretrained model called {str(model)!r}{_suggestion(str(model))}")


def _load_named(info: ModelInfo, head: str | None, trust_pickle: bool) -> Potential:
    path = locate_model(info.name)
    if info.backend == "sevenn":
        return _load_sevennet(path, head)
    if not trust_pickle and not _is_shipped(info, path):
        downloads.check_official(info, path)
    return MACEPotential.from_checkpoint(path, head, trust_pickle=True)


def _load_file(path: Path, head: str | None, trust_pickle: bool) -> Potential:
    kind = _kind(path)
    if kind == "sevenn":
        return _load_sevennet(path, head)
    if kind == "mace":
        return MACEPotential.from_checkpoint(path, head, trust_pickle)
    raise CheckpointError(
        f"{path} is no model file: it looks like {kind}; expected are a folder written by save(), "
        "a SevenNet checkpoint (.pth) or a MACE model (.model)"
    )


def _load_sevennet(path: Path, head: str | None) -> Potential:
    try:
        return SevenNetPotential.from_checkpoint(path, head)
    except FinetuneError as error:
        raise error if str(path) in str(error) else type(error)(f"{path}: {error}") from error
    except Exception as error:  # an older sevenn at options it does not know, and what nobody ever meant
        raise CheckpointError(
            f"the installed sevenn cannot build the model of {path} ({error}); it may need another version of sevenn"
        ) from error


def _kind(path: Path) -> str:
    """``"sevenn"``, ``"mace"``, or what the file looks like; reads it without unpickling anything."""
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        return "an empty file"
    if not zipfile.is_zipfile(path):
        return _kind_of_bytes(start)
    names, content = read_pickle_bytes(path)
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript file (a LAMMPS potential?), which cannot be trained"
    if b"model_state_dict" in content:
        return "sevenn"
    if b"mace.modules" in content:
        return "mace"
    return "a torch file of another program" if content else "a zip file"


def _kind_of_bytes(start: bytes) -> str:
    if start.startswith(b"PK"):
        return "a torch file that was cut off"
    if start.startswith(b"\x80") and b"mace.modules" in start:
        return "mace"  # torch's format before version 1.6
    if start.startswith(b"\x80"):
        return "a pickle"
    if start.lstrip().startswith(b"<"):
        return "a web page, not the download it should be"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file it stands for"
    return "a binary file" if b"\0" in start else "a text file"


def _suggestion(name: str) -> str:
    names = [alias for info in CATALOG for alias in (info.name, *info.aliases)]
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ";"
    return f"{hint} ase_finetune.potentials.list_models() lists all"


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)  # does not import a top-level package
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def _needs(info: ModelInfo) -> str:
    return f"needs {info.backend}: pip install {_INSTALL[info.backend]}"


def places_of(info: ModelInfo) -> list[tuple[Path, Availability]]:
    """Where the file may be, the download target last."""
    package = _package(info.backend)
    shipped: list[tuple[Path, Availability]] = []
    if info.backend == "sevenn":
        if package is not None:
            shipped = [(package / "pretrained_potentials" / info.file, "shipped")]
        return [*shipped, (Path.home() / ".cache" / "sevennet" / info.file, "cached")]
    if package is not None and info.url is not None:
        shipped = [(package / "calculators" / "foundations_models" / info.url.rpartition("/")[2], "shipped")]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mace"
    return [*shipped, (cache / info.file, "cached")]


def _is_shipped(info: ModelInfo, path: Path) -> bool:
    """Whether a file came with the installed backend, so that loading it runs installed code."""
    return (path, "shipped") in places_of(info)


def _with_availability(info: ModelInfo) -> ModelInfo:
    if info.availability == "unsupported":
        return info
    if _package(info.backend) is None:
        return dataclasses.replace(info, availability="unsupported", note=_needs(info))
    for path, availability in places_of(info):
        if path.is_file():
            return dataclasses.replace(info, availability=availability)
    return dataclasses.replace(info, availability="unsupported" if info.url is None else "download")
