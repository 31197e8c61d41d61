"""Fisher information on disk: our own files, which say what they are valid for, and published ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ase_finetune.continual.fisher import FisherInformation
from ase_finetune.errors import CheckpointError, OutputExistsError
from ase_finetune.losses import Loss
from ase_finetune.potentials.imports import LOAD_ERRORS

_FORMAT = "ase_finetune-fisher-1"


def save_fisher(
    fisher: FisherInformation, path: str | os.PathLike[str], *, model_hash: str, data_hash: str, overwrite: bool = False
) -> None:
    """Write Fisher information as safetensors, with what it is valid for in the header.

    Parameters
    ----------
    fisher
        As :func:`empirical_fisher` or :func:`gaussian_fisher` made it.
    path
        File to write, usually ``*.safetensors``.
    model_hash, data_hash
        Of the model and the structures it was made with.
    overwrite
        Replace an existing file.

    Raises
    ------
    OutputExistsError
        If ``path`` exists and ``overwrite`` is not set.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target} exists; choose another name or pass overwrite=True")
    metadata = fisher.metadata | {"model_hash": model_hash, "data_hash": data_hash}
    partial = target.with_name(target.name + ".part")
    tensors = {name: value.contiguous() for name, value in fisher.values.items()}
    save_file(tensors, partial, metadata={"format": _FORMAT, "json": json.dumps(metadata)})
    partial.replace(target)


def load_fisher(
    path: str | os.PathLike[str], *, model_hash: str | None = None, loss: Loss | None = None
) -> FisherInformation:
    """Read Fisher information: our own files or the published ``fisher_sevenn.pt``.

    Parameters
    ----------
    path
        ``.safetensors`` written by :func:`save_fisher`, or a ``.pt``/``.pth`` file with a dictionary of
        tensors by parameter name, as published with reEWC. The latter says nothing about its origin:
        its names and shapes are checked when it is used.
    model_hash
        Of the model it is meant for.
    loss
        The training loss; an empirical Fisher made with another one is refused.

    Raises
    ------
    CheckpointError
        If the file is corrupt or of another format, model or loss.
    """
    source = Path(path)
    if source.suffix in (".pt", ".pth", ".pkl"):
        return FisherInformation(_load_tensors(source), {"kind": "published", "file": source.name})
    values, metadata = _load_safetensors(source)
    if model_hash is not None and metadata.get("model_hash") != model_hash:
        raise CheckpointError(
            f"{source} was made with another model (its hash is {str(metadata.get('model_hash'))[:12]}..., "
            f"this model's {model_hash[:12]}...)"
        )
    if loss is not None and metadata.get("kind") == "empirical" and metadata.get("loss") != loss.describe():
        raise CheckpointError(
            f"{source} was made with another loss: {metadata.get('loss')}, training uses {loss.describe()}"
        )
    return FisherInformation(values, metadata)


def load_anchor(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read anchor parameters theta*, such as the published ``opt_params_sevenn.pt``.

    Raises
    ------
    CheckpointError
        If the file is corrupt or does not hold tensors by parameter name.
    """
    return _load_tensors(Path(path))


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except LOAD_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is not a readable file of tensors: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} does not hold a dictionary of tensors by parameter name")
    # Files written under DistributedDataParallel carry a prefix that belongs to the wrapper, not the model.
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable Fisher file: {error}") from error
    if header.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is a safetensors file, but not Fisher information of this package")
    return values, json.loads(header["json"])
