"""Copies to a device that the program does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def send(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device; where it is a GPU the copy is made in the background.

    Parameters
    ----------
    value
        As it is if it is there already.
    device
        Where to.
    """
    if device.type == "cuda" and value.device.type == "cpu":
        # From memory that is not page-locked the program would wait for the copy.
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
