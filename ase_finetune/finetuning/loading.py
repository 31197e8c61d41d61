"""The potential that a run works on."""

from __future__ import annotations

import copy
from typing import Any

from ase_finetune.calculator import Model
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.parallel import Processes
from ase_finetune.potentials import Potential, load_potential
from ase_finetune.potentials.devices import resolve_device, resolve_dtype
from ase_finetune.potentials.warming import warm_up


def load_own(
    model: Model, head: str | None, config: FinetuneConfig, processes: Processes
) -> tuple[Potential, dict[str, Any]]:
    """The potential in the config's dtype on the device of this process, and its metadata.

    One that was given as it is gets copied: it belongs to somebody else. It has been evaluated once, so that
    whatever is computed with it does not depend on what came before.
    """
    device, dtype = processes.device or resolve_device(config.device), resolve_dtype(config.dtype)
    potential, base = load_potential(model, head=head, device=device, dtype=dtype, trust_pickle=config.trust_pickle)
    if potential is model:
        potential = copy.deepcopy(potential).to(device=device, dtype=dtype)
    warm_up(potential)
    return potential, base
