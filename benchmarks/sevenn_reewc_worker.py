"""sevenn's reEWC trainer as a worker that trains for good: sevenn >= 0.13 and nothing of ours. See science/trainers.py.

The first line it reads are options. Each further line is some steps to make: the frames of each target and each replay
batch, the learning rates, and where to write the weights afterwards. It answers with seconds.

Since 0.11 sevenn sorts the columns of the last weights of its convolutions (and flips some signs) when it loads older
checkpoints, under the same names. Fisher information, anchor and weights are exchanged in the order of the checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any


def labelled(path: str, chosen: Sequence[int]) -> tuple[list[Any], list[list[float]]]:
    """Graphs of sevenn of some frames of a file; of each frame the number of atoms and the energy, to compare."""
    from ase.io import read
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import atoms_to_graph

    structures = read(path, index=":")
    frames = [structures[index] for index in chosen]
    graphs = [AtomGraphData.from_numpy_dict(atoms_to_graph(a, 5.0, False, y_from_calc=True)) for a in frames]
    return graphs, [[len(atoms), atoms.get_potential_energy()] for atoms in frames]


def column_orders(model: str) -> dict[str, Any]:
    """Where the columns of sevenn's convolutions come from: positions from 1, negative where the sign is flipped."""
    import torch
    from sevenn.model_build import build_E3_equivariant_model
    from sevenn.scripts import backward_compatibility as compat
    from sevenn.util import load_checkpoint

    checkpoint = load_checkpoint(model)  # one of its own: sorting changes it in place
    state = compat.map_old_model(checkpoint.model_state_dict)
    numbered = {
        name: torch.arange(1.0, value.shape[1] + 1).repeat(value.shape[0], 1)
        for name, value in state.items()
        if "_convolution.weight_nn." in name
    }
    module = build_E3_equivariant_model(checkpoint.config)
    found = compat.patch_state_dict_if_old(state | numbered, checkpoint.config, module)
    return {name: found[name][0] for name in numbered}


def to_sevenn(values: dict[str, Any], orders: dict[str, Any]) -> dict[str, Any]:
    """Tensors in the order of the checkpoint, in sevenn's."""
    moved = {name: values[name][:, order.abs().long() - 1] * order.sign() for name, order in orders.items()}
    return values | moved


def from_sevenn(values: dict[str, Any], orders: dict[str, Any]) -> dict[str, Any]:
    """Tensors in the order of sevenn, in the checkpoint's."""
    moved = {name: (values[name] * order.sign())[:, order.abs().argsort()] for name, order in orders.items()}
    return values | moved


def trainer(options: dict[str, Any], orders: dict[str, Any]) -> Any:
    """The trainer of sevenn with the penalty, but without a memory set yet."""
    import torch
    from sevenn import _keys as keys
    from sevenn.train.reewc import ReewcTrainer
    from sevenn.util import load_checkpoint

    checkpoint = load_checkpoint(options["model"])
    model = checkpoint.build_model()
    if options["all_parameters"]:
        model.requires_grad_(True)
    fisher, anchor = (torch.load(options[name], map_location="cpu", weights_only=True) for name in ("fisher", "anchor"))
    if options["reorder"]:
        fisher = {name: value.abs() for name, value in to_sevenn(fisher, orders).items()}
        anchor = to_sevenn(anchor, orders)
        if not all(torch.equal(anchor[name], value.detach()) for name, value in model.named_parameters()):
            raise SystemExit("the anchor is not where sevenn starts")
    named = {getattr(keys, name): value for name, value in options["config"].items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(fisher, f"{folder}/fisher.pt")
        torch.save(anchor, f"{folder}/anchor.pt")
        penalty = {
            keys.FISHER: f"{folder}/fisher.pt",
            keys.OPT_PARAMS: f"{folder}/anchor.pt",
            keys.EWC_LAMBDA: options["strength"],
        }
        config = checkpoint.config | named | {keys.CONTINUE: penalty}
        return ReewcTrainer.from_config(model, config, memory_loader=[])


def with_rates(made: Any, batches: Iterable[Any], rates: Sequence[float]) -> Iterator[Any]:
    """The batches; before each one the learning rate of its two steps is set, since sevenn's schedules know epochs."""
    for batch, rate in zip(batches, rates, strict=True):
        for group in made.optimizer.param_groups:
            group["lr"] = rate
        yield batch


def steps(made: Any, target: list[Any], replay: list[Any], task: dict[str, Any]) -> None:
    """Target and replay steps in turn, as sevenn makes them."""
    from torch_geometric.loader import DataLoader

    made.memory_loader = DataLoader(replay, batch_sampler=task["replay"])
    made.run_one_epoch(with_rates(made, DataLoader(target, batch_sampler=task["target"]), task["rates"]), is_train=True)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever sevenn prints must not be taken for an answer
    import torch

    options = json.loads(sys.stdin.readline())
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    orders = column_orders(options["model"])
    made = trainer(options, orders)
    target, target_labels = labelled(*options["target"])
    replay, replay_labels = labelled(*options["replay"])

    def say(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    def wait() -> None:
        if made.device.type == "cuda":
            torch.cuda.synchronize()

    def write(path: str) -> None:
        named = {name: value.detach().cpu() for name, value in made.model.named_parameters()}
        torch.save(from_sevenn(named, orders), f"{path}.part")
        os.replace(f"{path}.part", path)  # noqa: PTH105  # a path of the other side, a string

    write(options["weights"])
    penalty = next(term for term, _ in made.loss_functions if term.name == "EWC")
    say(
        penalty=options["strength"] / 2 * float(penalty.get_loss({}, made.model)),
        reordered=[name for name, order in orders.items() if order.tolist() != sorted(order.tolist(), key=abs)],
        trained=[name for name, value in made.model.named_parameters() if value.requires_grad],
        labels=[target_labels, replay_labels],
        versions={package: version(package) for package in ("sevenn", "e3nn", "torch", "torch_geometric", "ase")},
    )
    for line in sys.stdin:
        task = json.loads(line)
        wait()
        start, cpu = time.perf_counter(), time.process_time()
        steps(made, target, replay, task)
        wait()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        write(task["weights"])
        say(seconds=seconds, cpu_seconds=cpu_seconds)


if __name__ == "__main__":
    main()
