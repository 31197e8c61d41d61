"""sevenn's reEWC trainer as a worker: sevenn >= 0.13 and nothing of ours. Started by reewc_epoch.py.

The first line it reads are options; each further line makes it run one epoch and answer with seconds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def prepare(options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The trainer, its batches and an error recorder; the memory set is replayed in order."""
    import torch
    from ase.io import read
    from sevenn import _keys as keys
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import atoms_to_graph
    from sevenn.train.reewc import ReewcTrainer
    from sevenn.util import get_error_recorder, load_checkpoint
    from torch_geometric.loader import DataLoader

    torch.set_num_threads(options["threads"])
    checkpoint = load_checkpoint(options["model"])
    model = checkpoint.build_model()

    def loader(path: str, count: int, size: int) -> list[Any]:
        structures = read(path, index=f":{count}")
        graphs = [AtomGraphData.from_numpy_dict(atoms_to_graph(a, 5.0, False, y_from_calc=True)) for a in structures]
        return list(DataLoader(graphs, batch_size=size, drop_last=True))

    names = {getattr(keys, name): value for name, value in options["config"].items()}
    with tempfile.TemporaryDirectory() as folder:
        named = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        torch.save({name: torch.full_like(p, 1e-3) for name, p in named.items()}, Path(folder) / "fisher.pt")
        torch.save(named, Path(folder) / "anchor.pt")
        penalty = {
            keys.FISHER: f"{folder}/fisher.pt",
            keys.OPT_PARAMS: f"{folder}/anchor.pt",
            keys.EWC_LAMBDA: 1.0,
        }
        config = checkpoint.config | names | {keys.CONTINUE: penalty}
        memory = loader(options["memory"], options["memory_count"], options["memory_batch"])
        made = ReewcTrainer.from_config(model, config, memory_loader=memory)
    recorder = get_error_recorder()
    return made, loader(options["train"], options["train_count"], options["batch"]), recorder


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever sevenn prints must not be taken for an answer
    made, batches, recorder = prepare(json.loads(sys.stdin.readline()))

    def say(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    import torch

    on_gpu = made.device.type == "cuda"
    say(ready=True, steps=len(batches))
    for _ in sys.stdin:
        epoch = [batch.clone() for batch in batches]
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        made.run_one_epoch(epoch, is_train=True, error_recorder=recorder, memory_error_recorder=recorder)
        if on_gpu:
            torch.cuda.synchronize()
        say(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
