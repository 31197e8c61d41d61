"""What is damaged: for each kind of input how it is made, how it is read, and what counts as right.

A new kind of input is one entry of :data:`KINDS`.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write

from ase_finetune import finetune
from ase_finetune.cli import build_parser
from ase_finetune.continual import FisherInformation, load_fisher, save_fisher
from ase_finetune.data import read_frames, read_pairs
from ase_finetune.errors import InputError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials import MorsePotential, Potential, load_potential, save_potential


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes
    ----------
    build
        Makes an undamaged one in a folder; returns what is given to ``load``, a file or a folder.
    load
        Reads it; returns something JSON-able, or raises.
    exact
        Whether a damaged one must give the same as the undamaged one, or be refused. Otherwise what is read
        must be sound, which ``load`` checks.
    text
        Whether lines and words of it can be damaged.
    harmed
        Which files of a folder are damaged, by pattern.
    named
        Names of which a message must hold one, besides those of the files.
    """

    build: Callable[[Path], Path]
    load: Callable[[Path], Any]
    exact: bool = False
    text: bool = False
    harmed: str = "*"
    named: tuple[str, ...] = ()


def structures(count: int = 3) -> list[Atoms]:
    """Labelled silicon."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        atoms = bulk("Si", cubic=True)
        atoms.positions += rng.normal(scale=0.05, size=(8, 3))
        atoms.calc = SinglePointCalculator(
            atoms, energy=-40 + rng.normal(), forces=rng.normal(size=(8, 3)), stress=0.01 * rng.normal(size=6)
        )
        made.append(atoms)
    return made


def energy(potential: Potential) -> dict[str, Any]:
    """What a potential says about a structure, exactly."""
    atoms = structures(1)[0]
    graph = AtomGraph.from_atoms(atoms, potential.cutoff)
    with torch.no_grad():
        return {"energy": float(potential.energies(graph).sum()), "numbers": list(potential.numbers)}


def _read_frames(path: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames = read_frames(path, require_labels=False)
    for frame in frames:
        for name in ("energy", "forces", "stress"):
            value = getattr(frame, name)
            assert value is None or np.isfinite(value).all(), f"{name} of frame {frame.index} is not finite"
        assert np.isfinite(frame.atoms.positions).all(), "positions are not finite"
        assert np.isfinite(frame.atoms.cell[:]).all(), "the cell is not finite"
    return {"frames": len(frames)}


def _read_pairs(folder: Path) -> dict[str, Any]:
    pairs = read_pairs([folder / "initial.extxyz", folder / "relaxed.extxyz"])
    for pair in pairs:
        for atoms in (pair.initial, pair.relaxed):
            assert np.isfinite(atoms.positions).all(), "positions are not finite"
        assert pair.energy is None or math.isfinite(pair.energy), "the energy is not finite"
    return {"pairs": len(pairs)}


def _load_potential(path: Path) -> dict[str, Any]:
    return energy(load_potential(path)[0])


def _load_fisher(path: Path) -> dict[str, Any]:
    return {name: value.tolist() for name, value in load_fisher(path).values.items()}


def _write_extxyz(folder: Path) -> Path:
    write(folder / "frames.extxyz", structures())
    return folder / "frames.extxyz"


def _write_traj(folder: Path) -> Path:
    write(folder / "frames.traj", structures())
    return folder / "frames.traj"


def _write_db(folder: Path) -> Path:
    with connect(folder / "frames.db") as database:
        for atoms in structures():
            database.write(atoms)
    return folder / "frames.db"


def _write_pairs(folder: Path) -> Path:
    (folder / "pairs").mkdir()
    write(folder / "pairs" / "relaxed.extxyz", structures())
    initial = [Atoms(atoms.numbers, atoms.positions + 0.1, cell=atoms.cell, pbc=True) for atoms in structures()]
    for index, atoms in enumerate(initial):
        atoms.positions[index] += 0.05
    write(folder / "pairs" / "initial.extxyz", initial)
    return folder / "pairs"


def _save_morse(folder: Path) -> Path:
    save_potential(MorsePotential([8, 14], depth=[0.3, 1.1]), folder / "model", metadata={"reference": {"Si": 0.5}})
    return folder / "model"


def _fisher_values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(5, generator=generator) for name in ("depth", "width", "shift")}


def _save_fisher(folder: Path) -> Path:
    fisher = FisherInformation(_fisher_values(), {"kind": "gaussian"})
    save_fisher(fisher, folder / "fisher.safetensors", model_hash="a", data_hash="b")
    return folder / "fisher.safetensors"


def _save_published_fisher(folder: Path) -> Path:
    torch.save(_fisher_values(), folder / "fisher.pt")
    return folder / "fisher.pt"


def _save_sevennet(folder: Path) -> Path:
    from tests.helpers import build_sevennet  # the only one that builds in a second

    build_sevennet().save_native(folder / "model.pth")
    return folder / "model.pth"


def _fit(folder: Path) -> Path:
    _resume(folder / "run")
    return folder / "run"


def _resume(path: Path) -> dict[str, Any]:
    """Go on with a run, of which the last checkpoint may be lost, but not the one before it too."""
    frames = structures(4)
    for atoms in frames:
        atoms.calc.results["forces"] -= atoms.calc.results["forces"].mean(axis=0)
    options: dict[str, Any] = {"method": "ewc", "epochs": 2, "fisher_size": 2, "monitor_size": 1, "device": "cpu"}
    calculator = finetune(
        MorsePotential([8, 14], depth=[0.3, 1.1]),
        frames,
        None,
        replay=structures(4),
        output=path,
        resume=True,
        verbose=False,
        **options,
    )
    return {name: value.tolist() for name, value in calculator.potential.native_parameters()}


_OPTIONS = {item.name for item in fields(FinetuneConfig)}


def _write_yaml(folder: Path) -> Path:
    options = {"method": "ewc", "epochs": 3, "learning_rate": 1e-3, "loss": {"kind": "huber"}, "freeze": ["a*"]}
    (folder / "options.yaml").write_text(yaml.safe_dump(options | {"model": "7net-0", "output": "run"}))
    return folder / "options.yaml"


def _read_yaml(path: Path) -> dict[str, Any]:
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            options = build_parser().parse_args(["fit", "--config", str(path)]).fit
        except SystemExit as error:
            if error.code != 2:
                raise
            raise InputError(told.getvalue()) from error  # how a command line tells errors
        values = options.as_dict()
        config = FinetuneConfig.from_options({name: values[name] for name in _OPTIONS})
    return check_config(config)


def _write_options(folder: Path) -> Path:
    (folder / "options.json").write_text('["seed", 4]')
    return folder / "options.json"


def _read_options(path: Path) -> dict[str, Any]:
    from benchmarks.reliability.damage import VALUES

    name, index = json.loads(path.read_text())
    value = VALUES[index]
    options = {"loss": {name[5:]: value}} if name.startswith("loss.") else {name: value}
    if name.startswith("bptt."):
        options = {"bptt": {name[5:]: value}}
    return check_config(FinetuneConfig.from_options(options))


def check_config(config: FinetuneConfig) -> dict[str, Any]:
    """Whether numbers are finite and what should be whole or text is; a summary of the options."""
    for item in fields(config):
        value, kind = getattr(config, item.name), str(item.type)
        if value is None and "None" in kind:
            continue
        wanted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
        allowed = wanted.get(kind.split(" ")[0])
        wrong = allowed is not None and (
            not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        )
        assert not wrong, f"{item.name} is {value!r} and should be {kind}"
        assert not isinstance(value, float) or math.isfinite(value), f"{item.name} is {value}"
    return {"method": config.method}


KINDS: dict[str, Kind] = {
    "extxyz": Kind(_write_extxyz, _read_frames, text=True),
    "traj": Kind(_write_traj, _read_frames),
    "db": Kind(_write_db, _read_frames),
    "pairs": Kind(_write_pairs, _read_pairs, text=True),
    "potential.json": Kind(_save_morse, _load_potential, exact=True, text=True, harmed="*.json"),
    "potential weights": Kind(_save_morse, _load_potential, exact=True, harmed="*.safetensors"),
    "Fisher": Kind(_save_fisher, _load_fisher, exact=True),
    "published Fisher": Kind(_save_published_fisher, _load_fisher, exact=True),
    "run": Kind(_fit, _resume, exact=True, harmed="checkpoints/*.safetensors"),
    "SevenNet .pth": Kind(_save_sevennet, _load_potential, exact=True),
    "YAML": Kind(_write_yaml, _read_yaml, text=True, named=("model", "output", *_OPTIONS)),
    "options": Kind(_write_options, _read_options, named=tuple(_OPTIONS)),
}
