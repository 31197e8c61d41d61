"""Choice of device and floating-point type by name."""

from __future__ import annotations

import platform
from typing import Any

import torch

from ase_finetune.errors import InputError

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def resolve_device(device: str) -> torch.device:
    """The device of a name; ``"auto"`` is the first GPU, or the CPU where there is none.

    Raises
    ------
    InputError
        If the name is no device, one that does not exist here, or one without float64.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, dtype=torch.float64, device=resolved)
    except TypeError as error:  # Apple's GPUs
        raise InputError(f"device {device!r} has no float64, which positions are in; use device='cpu'") from error
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise InputError(f"device {device!r} does not exist here; there is {', '.join(here)}") from error
    return resolved


def resolve_dtype(dtype: str) -> torch.dtype:
    """The torch type of ``"float32"`` or ``"float64"``.

    Raises
    ------
    InputError
        If ``dtype`` is neither.
    """
    if dtype not in _DTYPES:
        raise InputError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return _DTYPES[dtype]


def machine(device: torch.device) -> dict[str, Any]:
    """On what something was computed: device, name of the GPU or kind of processor, threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": str(device), "processor": name, "threads": torch.get_num_threads()}
