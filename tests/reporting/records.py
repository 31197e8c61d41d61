"""Records of runs that never were, but might have been."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers

from ase_finetune.reporting import FrameRecord, PairRecord, RunRecord, TensorDrift

LIPS = ("Li", "P", "S")
OLD = ("O", "Si", "Fe", "Li", "Na", "Cl", "Ti", "Cu", "H", "C", "N", "La", "U", "Bi", "S", "Mn")


def frame_record(
    name: str = "valid",
    structures: int = 25,
    atoms: int = 40,
    *,
    seed: int = 0,
    elements: tuple[str, ...] = LIPS,
    before: float = 0.16,
    after: float = 0.1,
    own_labels: bool = False,
    slope: float = 0.8,
    spread: float = 0.02,
    stress: bool = False,
    available: int | None = None,
) -> FrameRecord:
    """Errors of the given size (eV/Å); energies are off by a fiftieth of it per atom."""
    rng = np.random.default_rng(seed)
    numbers = np.array([atomic_numbers[symbol] for symbol in rng.choice(elements, size=structures * atoms)])
    counts = np.full(structures, atoms)
    forces = np.empty((structures * atoms, 3, 3))
    forces[..., 0] = rng.normal(scale=0.8, size=(structures * atoms, 3))
    forces[..., 1] = forces[..., 0] * (1 if own_labels else slope) + rng.normal(scale=before, size=forces.shape[:2])
    forces[..., 2] = forces[..., 0] * (1.005 if own_labels else 0.95) + rng.normal(scale=after, size=forces.shape[:2])
    energy = np.empty((structures, 3))
    energy[:, 0] = atoms * (-4.2 + rng.normal(scale=spread, size=structures))
    for column, error in ((1, before), (2, after)):
        energy[:, column] = energy[:, 0] + atoms * rng.normal(scale=error / 50, size=structures)
    stresses = np.full((structures, 6, 3), math.nan)
    if stress:
        stresses[:] = rng.normal(scale=0.01, size=(structures, 6, 1))
        stresses[..., 2] += rng.normal(scale=0.001, size=(structures, 6))
    descriptions = [f"frame {k} of {name} (some.extxyz)" for k in range(structures)]
    return FrameRecord(
        name, own_labels, numbers, counts, descriptions, energy, forces, stresses, available or structures
    )


def history(epochs: int, stage: str = "frames", penalty: bool = True) -> list[dict[str, Any]]:
    """Errors that fall and settle."""
    rows = []
    for epoch in range(1, epochs + 1):
        fall = math.exp(-epoch / max(2.0, epochs / 4))
        row: dict[str, Any] = {"stage": stage, "epoch": epoch, "learning_rate": 3e-4 * fall}
        row |= {"penalty": 1e-4 * (1 - fall) if penalty else 0.0, "skipped_steps": 0, "seconds": 45.0 + epoch % 3}
        row |= {"best": True, "peak_memory_gb": 1.2 + 0.1 * (1 - fall), "train_loss": 2e-3 * (0.3 + 0.7 * fall)}
        old = {"forces_mae": 3.5 * (1 - fall), "energy_mae": 1.6 * (1 - fall), "stress_mae": 0.3 * (1 - fall)}
        row |= {f"replay_{name}": value for name, value in (old | {"loss": 4e-5, "slope": 1.003}).items()}
        if stage == "frames":
            for name, lag in (("train", 1.1), ("valid", 1.0)):
                new = {
                    "forces_mae": lag * (70 + 55 * fall),
                    "energy_mae": lag * (1.5 + fall),
                    "loss": 1e-3 * lag * (0.3 + fall),
                }
                row |= {f"{name}_{k}": v for k, v in (new | {"stress_mae": math.nan, "slope": 0.95}).items()}
        else:
            row |= {"train_strain_median": 0.07 + 0.03 * fall, "train_rmsd_median": 0.1 + 0.05 * fall}
            row |= {"valid_strain_median": 0.06 + 0.03 * fall, "valid_rmsd_median": 0.1 + 0.05 * fall}
            row |= {"valid_loss": 0.3, "train_skipped": 0, "valid_right_basin": 40 + int(10 * (1 - fall))}
        rows.append(row)
    return rows


def stage(epochs: int, name: str = "frames", best: int | None = None) -> dict[str, Any]:
    """What the metadata say about a stage."""
    nothing = {"forces_mae": 0.0, "energy_mae": 0.0, "stress_mae": 0.0, "slope": 1.0, "loss": 0.0}
    valid: dict[str, Any] = {"forces_mae": 125.0, "energy_mae": 2.5, "stress_mae": None, "slope": 0.8, "loss": 2e-3}
    if name == "relaxations":
        valid = {"strain_median": 0.09, "rmsd_median": 0.15, "right_basin": 40, "loss": 0.35}
    before = {"valid": valid, "replay": nothing}
    return {"stage": name, "best_epoch": epochs if best is None else best, "before": before, "after": before}


def drift(penalty: bool = True) -> list[TensorDrift]:
    """Tensors named as those of SevenNet."""
    rng = np.random.default_rng(3)
    names = ["edge_embedding.basis_function.coeffs", "onehot_to_feature_x.linear.weight"]
    for layer in range(5):
        parts = ("self_connection_intro", "self_interaction_1", "convolution", "self_interaction_2")
        names += [f"{layer}_{part}.weight" for part in parts] + [f"{layer}_convolution.denominator"]
    names += ["reduce_input_to_hidden.linear.weight", "reduce_hidden_to_energy.linear.weight"]
    names += ["rescale_atomic_energy.shift", "rescale_atomic_energy.scale"]
    shares = rng.dirichlet(np.full(len(names), 0.2))
    return [
        TensorDrift(
            name=name,
            size=int(rng.integers(1, 60_000)),
            trained=not name.startswith("rescale") and "denominator" not in name,
            change=0.0 if name.startswith("rescale") else float(rng.lognormal(-6, 1)),
            scale=float(rng.lognormal(-0.5, 0.5)),
            stiffness=float(share) if penalty else math.nan,
        )
        for name, share in zip(names, shares, strict=True)
    ]


def metadata(method: str = "reewc", stages: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    """As ``run.json`` holds them."""
    return {
        "base_model": "7net-0",
        "base_hash": "245d1a5ebdb068dace7117b24564995313d28d89586ede00c6cb0c92bfae721f",
        "head": None,
        "config": {"method": method, "epochs": 10, "learning_rate": 5e-4, "bptt": {"epochs": 3, "loss": {"rmsd": 1.0}}},
        "versions": {"ase_finetune": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "processes": 1,
        "split": "validation: 8 of 80 frames of train, the last of each trajectory",
        "data": {"train": "8816ce", "valid": "690ea9", "replay": "463296"},
        "reference_offsets": {"Li": 0.0466, "P": 0.0207, "S": 0.0759},
        "stages": stages or [],
        **more,
    }


def run(epochs: int = 10, **more: Any) -> RunRecord:
    """reEWC on labelled frames, with replay labels made by the model."""
    old = frame_record(
        "replay", 32, 12, seed=1, elements=OLD, before=0.0, after=0.005, own_labels=True, spread=2.0, stress=True
    )
    record = {
        "metadata": metadata(stages=[stage(epochs)]),
        "history": history(epochs),
        "log": ["replay: 152 structures labelled by the pretrained model", "best epoch: 10"],
        "frames": [frame_record(), old],
        "drift": drift(),
    }
    return RunRecord(**(record | more))


def pair_record(count: int = 30, *, failed: int = 2, seed: int = 5, kept: int = 10) -> PairRecord:
    """Relaxations that end closer after than before; the last ones failed."""
    rng = np.random.default_rng(seed)
    before, after = [], []
    for k in range(count):
        start = float(rng.lognormal(0.3, 0.8))
        for errors, size in ((before, start), (after, start * float(rng.uniform(0.4, 1.1)))):
            error = {"delta_q": size, "rmsd": 0.05 * size, "strain": 0.02 * size, "log_volume": 0.03 * size}
            errors.append(error | {"steps": 24, "converged": True, "right_basin": size < 4, "failure": None})
        if k >= count - failed:
            nothing = dict.fromkeys(("delta_q", "rmsd", "strain", "log_volume"), math.nan)
            after[-1] |= nothing | {"converged": False, "right_basin": False, "failure": "forces are not finite"}
    order = sorted(range(count), key=lambda k: -np.nan_to_num(after[k]["delta_q"], nan=1e9))[:kept]
    targets = [_crystal(rng, k) for k in order]
    ends = [[_moved(atoms, rng, 0.25), _moved(atoms, rng, 0.1)] for atoms in targets]
    norms = np.exp(rng.normal(scale=0.3, size=(12, 20))) * np.geomspace(0.2, 3.0, 20)
    return PairRecord(
        [f"pair {k} of relaxations" for k in range(count)],
        before,
        after,
        order,
        targets,
        [end[0] for end in ends],
        [end[1] for end in ends],
        norms,
    )


def _crystal(rng: np.random.Generator, k: int) -> Atoms:
    kinds = (
        ("NaCl", "rocksalt", 5.6),
        ("CsCl", "cesiumchloride", 4.1),
        ("ZnS", "zincblende", 5.4),
        ("CaO", "rocksalt", 4.8),
    )
    name, structure, a = kinds[k % 4]
    return bulk(name, structure, a=a, cubic=True) if structure != "cesiumchloride" else bulk(name, structure, a=a)


def _moved(atoms: Atoms, rng: np.random.Generator, size: float) -> Atoms:
    copy = atoms.copy()
    copy.set_cell(copy.cell[:] @ (np.eye(3) + rng.normal(scale=0.2 * size, size=(3, 3))), scale_atoms=True)
    copy.positions += rng.normal(scale=size, size=copy.positions.shape)
    return copy


def relaxation_run(epochs: int = 3, frames_epochs: int = 4, **more: Any) -> RunRecord:
    """Frames first, then relaxations."""
    stages = [stage(frames_epochs), stage(epochs, "relaxations")]
    rows = [*history(frames_epochs), *history(epochs, "relaxations")]
    return run(metadata=metadata("bptt+reewc", stages), history=rows, pairs=pair_record(), **more)
