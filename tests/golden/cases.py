"""The runs of finetune() whose outputs are kept, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.db import connect
from ase.io import write
from torch import Tensor

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials import MorsePotential
from ase_finetune.potentials.mace import MACEPotential
from tests import helpers, morse

# Labels in float64: those of float32 would be other ones with every order of summation.
TRUTH = morse.truth().double()
TRAIN = morse.labelled(morse.silicon(8, 1), TRUTH)
VALID = morse.labelled(morse.silicon(4, 2), TRUTH)
FEW = morse.labelled(morse.silicon(2, 2), TRUTH)
OLD = morse.oxide(8, 3)
OLD_LABELLED = morse.labelled(OLD, TRUTH)
ELSEWHERE = morse.labelled(morse.silicon(4, 9), TRUTH)


def crystal(seed: int, scale: float = 1.0, rattle: float = 0.05) -> Atoms:
    """Fcc silicon, or for odd seeds rock salt SiO; rattled and strained."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        atoms = bulk("NaCl", "rocksalt", a=3.78 * scale)
        atoms.symbols = "SiO"
    else:
        atoms = bulk("Si", "fcc", a=3.12 * scale, cubic=True)
    atoms.positions += rng.normal(scale=rattle, size=atoms.positions.shape)
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.2 * rattle * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.info["structure_id"] = f"crystal {seed}"
    return atoms


def pairs(*seeds: int) -> list[tuple[Atoms, Atoms]]:
    """Where relaxations begin, and symmetric crystals that they are to end in."""
    return [(crystal(seed), crystal(seed, 0.98, rattle=0.0)) for seed in seeds]


PAIRS = pairs(0, 1, 2, 3, 4)
VALID_PAIRS = pairs(10, 11)

COMMON: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 3,
    "learning_rate": 0.02,
    "monitor_size": 3,
    "dtype": "float64",
    "device": "cpu",
    "report": False,
    "verbose": False,
}
FRAMES: dict[str, Any] = {"train": TRAIN, "valid": VALID, "replay": OLD}
NAIVE: dict[str, Any] = FRAMES | {"method": "naive", "replay": None}
RELAXATIONS: dict[str, Any] = {"relaxations": PAIRS, "valid_relaxations": VALID_PAIRS, "method": "bptt", "replay": OLD}


def bptt(**options: Any) -> dict[str, Any]:
    """Options of short rollouts."""
    short = {"epochs": 2, "batch_size": 2, "learning_rate": 5e-3, "steps": 5, "valid_fmax": 0.05, "valid_steps": 15}
    return {"bptt": short | options}


def descent(**options: Any) -> dict[str, Any]:
    """Options of short rollouts by steepest descent."""
    return bptt(**{"optimizer": "gradient-descent", "step_size": 0.02} | options)


#: Morse potential in float64: arguments of finetune() beside :data:`COMMON`.
MORSE: dict[str, dict[str, Any]] = {
    # The new frames alone
    "naive": NAIVE,
    "naive-fraction": NAIVE | {"valid": 0.25, "seed": 2, "schedule": "constant", "warmup": 0.3},
    "naive-without-validation": NAIVE | {"valid": None, "reference_frames": "all"},
    "naive-watched": NAIVE | {"replay": OLD, "max_forgetting": 0.3},
    "naive-ema": NAIVE | {"ema_decay": 0.8, "optimizer": "adamw", "weight_decay": 0.1},
    "naive-keep-last": NAIVE | {"keep": "last", "learning_rate": 0.2, "clip_norm": 0.01},
    "naive-few": NAIVE | {"valid": FEW},
    "naive-early-stopping": NAIVE | {"early_stopping": 1, "learning_rate": 0.1, "epochs": 4},
    "naive-pieces": NAIVE | {"max_edges": 150},
    "naive-frozen": NAIVE | {"freeze": ["shift", "dep*"]},
    "naive-skipped": NAIVE | {"seed": 4},
    "naive-losses": NAIVE | {"loss": {"kind": "mse", "energy_weight": 3.0, "stress_weight": 0.1}},
    "naive-reference-none": NAIVE | {"reference": "none"},
    "naive-reference-shift": NAIVE | {"reference": "shift"},
    "naive-members": NAIVE | {"valid": 0.25, "members": 2},
    "naive-report": NAIVE | {"replay": OLD, "report": True},
    # Old structures beside them
    "replay": FRAMES | {"method": "replay"},
    "replay-joint": FRAMES | {"method": "replay", "replay_schedule": "joint", "replay_weight": 0.5},
    "replay-early-stopping": FRAMES | {"method": "replay", "early_stopping": 1, "learning_rate": 0.1, "epochs": 4},
    "replay-labelled": FRAMES | {"method": "replay", "replay": OLD_LABELLED, "replay_size": 4, "keep": "last"},
    "replay-of-two": FRAMES | {"method": "replay", "replay": [OLD, ELSEWHERE], "reference": "shift"},
    # A penalty
    "ewc": FRAMES | {"method": "ewc"},
    "ewc-bound": FRAMES | {"method": "ewc", "ewc_lambda": 0.1, "max_forgetting": 0.01},
    "ewc-empirical": FRAMES | {"method": "ewc", "fisher": "empirical", "replay": OLD_LABELLED, "ewc_lambda": 0.1},
    "ewc-probes": FRAMES
    | {"method": "ewc", "fisher": "empirical", "fisher_probes": 2, "replay": OLD_LABELLED, "ewc_lambda": 0.1},
    "ewc-raw": FRAMES | {"method": "ewc", "fisher_normalize": False, "ewc_lambda": 1e-6, "fisher_draws": 3},
    "ewc-published": FRAMES | {"method": "ewc", "ewc_lambda": 0.01},
    # Both
    "reewc": FRAMES | {"method": "reewc", "ema_decay": 0.8, "keep": "last"},
    "reewc-joint": FRAMES | {"method": "reewc", "replay_schedule": "joint", "replay_batch_size": 2, "max_edges": 150},
    "reewc-bound": FRAMES | {"method": "reewc", "max_forgetting": 0.05, "reference": "shift", "fisher_size": 3},
    "reewc-bound-no-validation": FRAMES | {"method": "reewc", "valid": None, "max_forgetting": 1e-3},
    # Frames in a database, and models that were fine-tuned before
    "streamed": NAIVE | {"stream": True, "valid": 0.25},
    "streamed-workers": FRAMES | {"method": "reewc", "stream": True, "num_workers": 1, "valid": 0.25, "epochs": 2},
    "second-round": FRAMES | {"method": "reewc"},
    "original": FRAMES | {"method": "ewc", "original": morse.truth()},
    # Relaxations
    "bptt": RELAXATIONS | bptt(epochs=3),
    "bptt-initial": RELAXATIONS | {"replay": None} | bptt(start="initial", robust=None, clip_norm=0.1),
    "bptt-both": RELAXATIONS | {"valid_relaxations": 0.4, "seed": 1} | bptt(start="both", cell=False),
    "bptt-descent": RELAXATIONS | descent(momentum=0.5, start="initial", train_step_size=True, clip_growth=1.0),
    "bptt-lbfgs": RELAXATIONS | bptt(optimizer="lbfgs", gradient="unrolled", start="initial"),
    "bptt-unrolled": RELAXATIONS | bptt(gradient="unrolled"),
    "bptt-truncated": RELAXATIONS | bptt(gradient="truncated", window=2, start="initial"),
    "bptt-implicit": RELAXATIONS | bptt(gradient="implicit", steps=60, batch_size=5),
    "bptt-guided": RELAXATIONS | bptt(gradient="guided", window=2, steps=60, batch_size=5, start="initial"),
    "bptt-losses": RELAXATIONS
    | bptt(loss={"delta_q": 1.0, "rmsd": 0.0, "volume": 1.0}, start="initial", weight=0.3, max_edges=200),
    "bptt-early-stopping": RELAXATIONS | {"early_stopping": 1} | bptt(learning_rate=0.05, epochs=4),
    "bptt-bound": RELAXATIONS | {"method": "bptt+ewc", "max_forgetting": 0.01} | bptt(),
    "bptt-replay": RELAXATIONS | {"method": "bptt+replay", "max_forgetting": 0.5} | bptt(),
    "bptt-ewc": RELAXATIONS | {"method": "bptt+ewc", "keep": "last"} | bptt(start="initial"),
    "bptt-reewc": RELAXATIONS | {"method": "bptt+reewc", "keep": "last"} | bptt(train_step_size=True),
    "bptt-reewc-joint": RELAXATIONS | {"method": "bptt+reewc", "replay_schedule": "joint"} | bptt(weight=0.5),
    "frames-and-relaxations": FRAMES | RELAXATIONS | {"epochs": 2} | bptt(),
    "frames-and-relaxations-reewc": FRAMES
    | RELAXATIONS
    | {"method": "bptt+reewc", "epochs": 2, "keep": "last"}
    | bptt(),
}

_SHORT = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-2, "monitor_size": 2, "keep": "last"}
_FOUR = {"train": TRAIN[:4], "valid": VALID[:2], "replay": OLD[:5]} | _SHORT
_TWO = pairs(0, 1)
_TWO_PAIRS = {"relaxations": _TWO, "valid_relaxations": pairs(2), "replay": OLD[:5], **_SHORT}
_ROLLOUTS = bptt(steps=3, valid_steps=3, learning_rate=1e-3)

#: The same of the tiny models of tests.helpers.
SEVENNET: dict[str, dict[str, Any]] = {
    "sevennet-reewc": _FOUR | {"method": "reewc"},
}
MACE: dict[str, dict[str, Any]] = {
    "mace-reewc-joint": _FOUR | {"method": "reewc", "replay_schedule": "joint", "ema_decay": 0.5},
    "mace-bptt-ewc": _TWO_PAIRS | {"method": "bptt+ewc"} | _ROLLOUTS,
}

CASES = MORSE | SEVENNET | MACE

#: Runs that are interrupted after these steps of the optimizer, one after the other, and go on each time.
RESUMED = {
    "naive-ema": (1, 8),
    "streamed-workers": (3,),
    "replay-early-stopping": (2, 5),
    "reewc": (1, 6),
    "reewc-joint": (4,),
    "reewc-bound": (5, 9),
    "second-round": (2,),
    "bptt-reewc": (1, 7),
    "bptt-bound": (4,),
    "frames-and-relaxations-reewc": (4, 15),
}

#: Runs that two processes make together; the last one is also interrupted in one of them, and goes on.
TOGETHER = ("streamed-workers", "ewc-probes", "reewc-joint", "reewc-bound", "bptt-reewc", "reewc")


class Unsteady(MorsePotential):
    """The gradient by the parameters is not a number where one of the training frames is evaluated, the rest is."""

    def atomic_energies(self, graph: AtomGraph, edges: Tensor) -> Tensor:
        energies = super().atomic_energies(graph, edges)
        bad = torch.tensor(TRAIN[4].positions[0]).to(graph.positions)
        if not torch.isclose(graph.positions.detach(), bad).all(dim=1).any():
            return energies
        return energies + (0 * dict(self.native_parameters())["depth"].sum()).sqrt()


def model(name: str) -> Any:
    """The pretrained potential of a case."""
    if name == "naive-skipped":
        return Unsteady([8, 14], **morse.PRETRAINED)
    if name in MORSE:
        return morse.pretrained()
    potential = helpers.build_sevennet() if name in SEVENNET else MACEPotential(helpers.build_mace())
    with torch.no_grad():
        # Random numbers of torch differ in their last digits between instruction sets; few binary digits do not.
        for parameter in potential.parameters():
            parameter.copy_((64 * parameter).round() / 64)
    return potential


def arguments(name: str, folder: Path) -> dict[str, Any]:
    """All arguments of finetune() but ``output`` and ``resume``; files that it reads are written into the folder."""
    given = {"model": model(name), **COMMON, **CASES[name]}
    return given | _FILES[name](folder) if name in _FILES else given


def _database(folder: Path) -> Mapping[str, Any]:
    """An ASE database of frames."""
    path = folder / "frames.db"
    if not path.exists():
        with connect(path) as rows:
            for atoms in TRAIN:
                rows.write(atoms)
    return {"train": path}


def _published(folder: Path) -> Mapping[str, Any]:
    """Fisher information and anchor as they were published with reEWC."""
    potential = MorsePotential([8, 14], **morse.PRETRAINED)
    weights = morse.weights(potential)
    fisher = {f"module.{name}": torch.arange(1.0, 1.0 + len(w)).to(w) for name, w in weights.items()}
    torch.save(fisher, folder / "fisher.pt")
    torch.save(weights, folder / "anchor.pt")
    return {"fisher": str(folder / "fisher.pt"), "fisher_anchor": str(folder / "anchor.pt")}


def _first_round(folder: Path) -> Mapping[str, Any]:
    """A model that was fine-tuned on frames of a file before, and other frames."""
    one = folder / "one"
    if not one.exists():
        write(folder / "first.extxyz", TRAIN)
        FinetunedCalculator(morse.pretrained(), device="cpu").save(folder / "pretrained")
        options = COMMON | {"method": "ewc", "keep": "last", "output": one, "replay": OLD}
        finetune(folder / "pretrained", folder / "first.extxyz", 0.25, **options)
    return {"model": one, "train": morse.labelled(morse.oxide(5, 21), TRUTH), "valid": ELSEWHERE}


_FILES: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    "streamed": _database,
    "streamed-workers": _database,
    "ewc-published": _published,
    "second-round": _first_round,
}
