"""Reports of runs that are over: once more, on further data, and several runs in one picture."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from ase_finetune.data import FrameSet, ReferenceOffsets, read_frames
from ase_finetune.errors import CheckpointError, FinetuneError, InputError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.preparing import labelled_graphs
from ase_finetune.potentials import Potential, load_potential
from ase_finetune.potentials.base import Prediction
from ase_finetune.potentials.batched import predict_many
from ase_finetune.potentials.devices import resolve_device, resolve_dtype
from ase_finetune.potentials.storage import potential_hash
from ase_finetune.reporting import RECORD_FILE, FrameRecord, RunRecord, write_comparison, write_report
from ase_finetune.reporting.record import BEFORE, LABEL
from ase_finetune.reporting.sets import RESERVED

PathLike = str | os.PathLike[str]

#: Structures of a set that are evaluated, at most.
MOST_STRUCTURES = 200


def report_run(
    folder: PathLike,
    *,
    frames: Sequence[PathLike] = (),
    output: PathLike | None = None,
    device: str = "auto",
    trust_pickle: bool = False,
    verbose: bool = False,
) -> Path:
    """Write the report of a run again, if need be with further labelled sets.

    Parameters
    ----------
    folder
        Output folder of a finished run.
    frames
        Files of labelled frames, for example reference data of other materials. The untouched and the fine-tuned model
        are evaluated on them, at most :data:`MOST_STRUCTURES` structures of each, evenly chosen. Energies are brought
        to the reference that the run was judged in, by its reference energies. Where these lack an element of a set,
        its energies stay as they are, and are judged after the best offsets per element.
    output
        Folder for the report, or a file that ends in ``.html``, with the pictures in a folder of its name; the folder
        of the run when ``None``, where the earlier report is replaced.
    device
        For the evaluation.
    trust_pickle
        Allow loading the untouched model from a foreign MACE ``.model`` file, which can execute code.
    verbose
        Show progress bars on a terminal.

    Returns
    -------
    The path of the page.

    Raises
    ------
    CheckpointError
        If the folder holds no finished run, or its base model cannot be loaded or is another one now.
    DataError, InputError
        If frames cannot be used.
    OutputError
        If the report cannot be written.
    """
    folder = Path(folder)
    record = read_record(folder)
    if frames:
        sets = [read_frames(os.fspath(path), name=_name(Path(path))) for path in frames]
        before = _base_model(folder, record, device, trust_pickle)
        dtype = resolve_dtype(_dtype(record))
        after, _ = load_potential(folder / "model", head=before.head, device=before.device, dtype=dtype)
        further = [in_reference(further_record(i, before, after, verbose=verbose), record.metadata) for i in sets]
        record = dataclasses.replace(record, frames=[*record.frames, *further])
    return write_report(record, folder if output is None else Path(output), defaults=FinetuneConfig().to_dict())


def compare_runs(folders: Sequence[PathLike], output: PathLike, *, names: Sequence[str] | None = None) -> Path:
    """Compare runs in one picture: what each gained on the target against what it forgot.

    Parameters
    ----------
    folders
        Output folders of runs that began with the same model and were judged by the same validation data.
    output
        Folder for ``comparison.html`` and its pictures, or a file that ends in ``.html``.
    names
        What the runs are called; by default as much of their paths as tells them apart.

    Returns
    -------
    The path of the page.

    Raises
    ------
    CheckpointError
        If a folder holds no finished run.
    InputError
        If the runs cannot be compared; the message names them.
    OutputError
        If the page cannot be written.
    """
    paths = [Path(folder) for folder in folders]
    labels = _labels(paths) if names is None else [str(name) for name in names]
    if len(labels) != len(paths):
        raise InputError(f"{len(labels)} names for {len(paths)} runs")
    double = sorted({label for label in labels if labels.count(label) > 1})
    if double:
        raise InputError(f"two runs have the name {double[0]!r}")
    records = {label: read_record(path) for label, path in zip(labels, paths, strict=True)}
    return write_comparison(records, Path(output))


def read_record(folder: Path) -> RunRecord:
    """What a finished run left to be judged by.

    Raises
    ------
    CheckpointError
        If it left nothing, or it is damaged.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no finished run (no {RECORD_FILE}); a run that was stopped goes on with resume=True"
        )
    return RunRecord.read(path)


def further_record(frames: FrameSet, before: Potential, after: Potential, *, verbose: bool = False) -> FrameRecord:
    """Labels of a set and what two potentials say about it.

    Parameters
    ----------
    frames
        Labelled; at most :data:`MOST_STRUCTURES` of them are taken, evenly.
    before, after
        The potentials.
    verbose
        Show progress bars on a terminal.
    """
    available = len(frames)
    if available > MOST_STRUCTURES:
        frames = frames.select(np.linspace(0, available - 1, MOST_STRUCTURES).round().astype(int))
    predictions = [_predict(potential, frames, verbose) for potential in (before, after)]
    items = list(frames)
    counts = np.array([len(item.atoms) for item in items], dtype=np.int64)
    nothing = np.full(6, np.nan)
    return FrameRecord(
        name=frames.name,
        own_labels=False,
        numbers=np.concatenate([item.atoms.numbers for item in items]).astype(np.int64),
        counts=counts,
        descriptions=[frames.describe(k) for k in range(len(items))],
        energy=_columns(
            [np.array([np.nan if item.energy is None else item.energy for item in items])],
            [[_array(p.energy) for p in each] for each in predictions],
        ),
        forces=_columns(
            [np.full((len(item.atoms), 3), np.nan) if item.forces is None else item.forces for item in items],
            [[_array(p.forces) for p in each] for each in predictions],
        ),
        stress=_columns(
            [np.stack([nothing if item.stress is None else item.stress for item in items])],
            [[_array(p.stress).reshape(1, 6) for p in each] for each in predictions],
        ),
        available=available,
    )


def in_reference(frames: FrameRecord, metadata: Mapping[str, Any]) -> FrameRecord:
    """A set with its energies in the reference that a run was judged in.

    Parameters
    ----------
    frames
        As :func:`further_record` gives it.
    metadata
        Of the run. Its ``reference_offsets`` are taken off the labels, its ``shifted_by`` are added to the
        predictions before (after training the model has them); by symbol, eV per atom.
    """
    shifted = metadata.get("shifted_by")
    by_symbol = shifted or metadata.get("reference_offsets") or {}
    offsets = ReferenceOffsets({atomic_numbers[symbol]: float(value) for symbol, value in by_symbol.items()})
    unknown = bool(set(frames.numbers.tolist()) - set(offsets.offsets))
    structures = np.split(frames.numbers, np.cumsum(frames.counts)[:-1])
    sums = np.array([offsets.energy(numbers) for numbers in structures])
    energy = frames.energy.copy()
    if shifted:
        energy[:, BEFORE] += sums
    elif not unknown:
        energy[:, LABEL] -= sums
    return dataclasses.replace(frames, energy=energy, other_reference=unknown)


def _name(path: Path) -> str:
    """Of the set in a file; those of a run's own sets are taken."""
    return f"{path.name} (file)" if path.name in RESERVED else path.name


def _predict(potential: Potential, frames: FrameSet, verbose: bool) -> list[Prediction]:
    graphs = labelled_graphs(potential, frames)
    # Without periodicity in all directions a structure has no stress, and one that is not asked for costs nothing.
    stress = frames.num_labels["stress"] > 0
    with Log(verbose).bar(len(graphs), frames.name) as bar:
        return predict_many(potential, graphs, stress=stress, on_structure=bar.update)


def _array(values: object) -> NDArray[np.float64]:
    return np.full(6, np.nan) if values is None else np.asarray(values, dtype=np.float64)


def _columns(
    labels: Sequence[NDArray[np.float64]], predictions: Sequence[Sequence[NDArray[np.float64]]]
) -> NDArray[np.float64]:
    """Labels and predictions along a last axis."""
    return np.stack([np.concatenate(labels), *(np.concatenate(each) for each in predictions)], axis=-1)


def _base_model(folder: Path, record: RunRecord, device: str, trust_pickle: bool) -> Potential:
    """The untouched model of a run, checked to be the same as then."""
    name = str(record.metadata.get("base_model"))
    target, dtype = resolve_device(device), resolve_dtype(_dtype(record))
    head = record.metadata.get("head")
    try:
        potential, _ = load_potential(name, head=head, device=target, dtype=dtype, trust_pickle=trust_pickle)
    except FinetuneError as error:
        raise CheckpointError(f"the base model of the run in {folder} cannot be loaded: {error}") from error
    if potential_hash(potential) != record.metadata.get("base_hash"):
        raise CheckpointError(
            f"{name} is not the model that the run in {folder} began with: its weights have another hash"
        )
    return potential


def _dtype(record: RunRecord) -> str:
    return str((record.metadata.get("config") or {}).get("dtype", "float32"))


def _labels(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while depth < max(map(len, parts), default=1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
        depth += 1
    return [str(path) for path in paths]
