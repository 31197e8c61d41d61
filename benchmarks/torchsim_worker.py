"""torch-sim's batched relaxation as a worker: torch-sim and sevenn, nothing of ours. Started by relaxation.py.

The first line it reads are options; each further line makes it relax all structures and answer
with seconds and energies.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def relax(ts: Any, structures: list[Any], model: Any, options: dict[str, Any]) -> Any:
    """Relax cells and positions by FIRE until no force is above fmax (eV/Å); each structure leaves the batch then."""
    return ts.optimize(
        structures,
        model,
        optimizer=ts.Optimizer.fire,
        convergence_fn=ts.generate_force_convergence_fn(force_tol=options["fmax"]),
        max_steps=options["steps"],
        steps_between_swaps=1,
        init_kwargs={"cell_filter": ts.CellFilter.frechet},
    )


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the packages print must not be taken for an answer
    options = json.loads(sys.stdin.readline())
    import torch
    import torch_sim as ts
    from ase.io import read
    from sevenn.torchsim import SevenNetModel

    torch.set_num_threads(options["threads"])
    model = SevenNetModel(options["model"], device=options["device"])
    structures = read(options["structures"], index=":")
    for atoms in structures:  # old ones only carry labels
        atoms.calc = None

    def say(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    ts.static(structures[:1], model)  # the first evaluation is not paid for by the first repeat
    say(ready=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        state = relax(ts, structures, model, options)
        energies = state.energy.tolist()  # waits for a GPU, too
        say(seconds=time.perf_counter() - start, energies=energies)


if __name__ == "__main__":
    main()
