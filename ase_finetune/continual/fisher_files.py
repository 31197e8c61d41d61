"""Fisher information on disk: our own files, which say what they are valid for, and published ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ase_finetune.continual.fisher import FisherInformation
from ase_finetune.errors import CheckpointError, OutputExistsError
from ase_finetune.files import is_there, parse_json, read_safetensors, read_sealed, write_sealed
from ase_finetune.losses import Loss
from ase_finetune.potentials.torch_files import load_torch_file

_KIND = "fisher-2"
_FORMAT_1 = "ase_finetune-fisher-1"


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
    OutputError
        If it cannot be written; an earlier file is as it was.
    """
    target = Path(path)
    if is_there(target) and not overwrite:
        raise OutputExistsError(f"{target} exists; choose another name or pass overwrite=True")
    metadata = fisher.metadata | {"model_hash": model_hash, "data_hash": data_hash}
    write_sealed(target, fisher.values, metadata, kind=_KIND)


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

    Returns
    -------
    Tensors by parameter name, and what is known of their origin.

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

    Parameters
    ----------
    path
        A ``.pt`` or ``.pth`` file.

    Returns
    -------
    Tensors by parameter name.

    Raises
    ------
    CheckpointError
        If the file is corrupt or does not hold tensors by parameter name.
    """
    return _load_tensors(Path(path))


def _load_tensors(path: Path) -> dict[str, Tensor]:
    content = load_torch_file(path, "file of tensors")
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} does not hold a dictionary of tensors by parameter name")
    # Files written under DistributedDataParallel carry a prefix that belongs to the wrapper, not the model.
    values = {str(name).removeprefix("module."): value for name, value in content.items()}
    _check_values(values, path)
    return values


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    header, values = read_safetensors(path)
    if header.get("format") == _FORMAT_1:  # until 0.1, without a seal
        metadata = parse_json(header.get("json", ""), path)
    else:
        values, metadata = read_sealed(path, kind=_KIND)
    _check_values(values, path)
    return values, metadata


def _check_values(values: dict[str, Tensor], path: Path) -> None:
    for name, value in values.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise CheckpointError(f"{path} is damaged: {name!r} is not a tensor of finite numbers")
