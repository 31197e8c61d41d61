"""One naive training step on 7net-0: ours against sevenn's own trainer, same batch, loss and optimizer.

python benchmarks/training_step.py [--frames 4] [--repeats 5]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from paired import compare, machine

from ase_finetune import FinetuneConfig
from ase_finetune.data import read_frames
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.tasks import FrameTask, Replay
from ase_finetune.finetuning.training import Trainer
from ase_finetune.potentials import load_potential

DATA = Path(__file__).parents[1] / "examples" / "data"


def our_step(name: str, frames: int) -> object:
    """One iteration of our trainer, as `finetune(method="naive")` makes it."""
    potential, _ = load_potential("7net-0")
    graphs = read_frames(DATA / name).select(range(frames)).graphs(potential.cutoff)
    config = FinetuneConfig(method="naive", batch_size=frames, clip_norm=None, learning_rate=1e-5)
    task = FrameTask(potential, graphs, [], config)
    trainer = Trainer(potential, task, Replay(), config, None, Log(verbose=False))
    return lambda: trainer._iteration(list(range(frames)))


def sevenn_step(name: str, frames: int, stress: bool) -> object:
    """One pass of sevenn's trainer over a loader that holds the same batch."""
    import sevenn._keys as keys
    from ase.io import read
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.error_recorder import ErrorRecorder
    from sevenn.train.dataload import atoms_to_graph
    from sevenn.train.trainer import Trainer as SevenNetTrainer
    from sevenn.util import get_error_recorder, model_from_checkpoint, pretrained_name_to_path
    from torch_geometric.loader import DataLoader

    model, config = model_from_checkpoint(
        torch.load(pretrained_name_to_path("7net-0"), map_location="cpu", weights_only=False)
    )
    structures = read(DATA / name, index=f":{frames}")
    graphs = [AtomGraphData.from_numpy_dict(atoms_to_graph(a, 5.0, False, y_from_calc=True)) for a in structures]
    config = config | {
        keys.LOSS: "huber",
        keys.LOSS_PARAM: {"delta": 0.01},
        keys.FORCE_WEIGHT: 1.0,
        keys.STRESS_WEIGHT: 0.01,
        keys.IS_TRAIN_STRESS: stress,
        keys.OPTIMIZER: "adam",
        keys.OPTIM_PARAM: {"lr": 1e-5},
        keys.SCHEDULER: "exponentiallr",
        keys.SCHEDULER_PARAM: {"gamma": 1.0},
        keys.DEVICE: "cpu",
        keys.IS_DDP: False,
    }
    trainer = SevenNetTrainer.from_config(model, config)
    loader = list(DataLoader(graphs, batch_size=frames))
    recorder: ErrorRecorder = get_error_recorder()
    return lambda: trainer.run_one_epoch([loader[0].clone()], is_train=True, error_recorder=recorder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(machine())
    for name, stress in (("lips_train.extxyz", False), ("mptrj_replay.extxyz", True)):
        ours = our_step(name, arguments.frames)  # first: its import guard lets e3nn load on new torch
        peer = sevenn_step(name, arguments.frames, stress)
        compare(f"{arguments.frames} frames of {name}", ours, peer, arguments.repeats, warmup=2)


if __name__ == "__main__":
    main()
