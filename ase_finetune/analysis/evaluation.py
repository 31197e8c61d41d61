"""Errors of a calculator on labelled frames."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ase.data import atomic_numbers

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.data import FrameSet, ReferenceOffsets, align, fit_reference
from ase_finetune.errors import InputError
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.preparing import labelled_graphs
from ase_finetune.metrics import Errors, measure
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.batched import predict_many
from ase_finetune.representations import html_table


@dataclass(frozen=True)
class Evaluation:
    """Errors on a set of frames.

    Attributes
    ----------
    name
        Of the set.
    frames
        Number of frames.
    raw
        Errors against the labels as they are.
    aligned_energy_mae
        Energy MAE in meV/atom after the best per-element offsets: what is left when another code or
        correction only moves the reference. ``nan`` where there are too few frames for their elements
        to tell the two apart.
    """

    name: str
    frames: int
    raw: Errors
    aligned_energy_mae: float

    def __str__(self) -> str:
        return evaluation_table([self])

    def _repr_html_(self) -> str:
        rows = {"frames": self.frames, **asdict(self.raw), "energy_mae after the best offsets": self.aligned_energy_mae}
        return html_table(f"{self.name}: energy in meV/atom, forces in meV/Å, stress in kbar", rows)


def evaluate_calculator(
    calculator: FinetunedCalculator, frames: FrameSet, *, verbose: bool = False, processes: Processes = ALONE
) -> Evaluation:
    """Errors of a calculator on labelled frames.

    Parameters
    ----------
    calculator
        Single model (not an ensemble).
    frames
        As :func:`ase_finetune.data.read_frames` gives them.
    verbose
        Show a progress bar on a terminal.
    processes
        Share the work; all get the result.

    Raises
    ------
    DataError
        If a frame holds an element the model does not know.
    InputError
        If the calculator is an ensemble.
    """
    if len(calculator.potentials) > 1:
        raise InputError("evaluate the members of an ensemble one by one")
    potential = calculator.potential
    if calculator.parameters["reference"] == "target":
        # The labels come to the model's reference instead of the predictions to theirs: the same difference.
        offsets = calculator.metadata["reference_offsets"]
        frames = align(frames, ReferenceOffsets({atomic_numbers[symbol]: offsets[symbol] for symbol in offsets}))
    graphs = labelled_graphs(potential, frames)
    with Log(verbose).bar(len(graphs), frames.name) as bar:
        predictions = predict_many(potential, graphs, on_structure=bar.update, processes=processes)
    fitted = fit_reference(frames, [float(prediction.energy[0]) for prediction in predictions])
    aligned = align(frames, fitted).graphs(potential.cutoff)
    return Evaluation(
        frames.name,
        len(frames),
        measure(predictions, graphs),
        measure(predictions, aligned).energy_mae if len(frames) >= 2 * fitted.rank else math.nan,
    )


def evaluation_table(evaluations: list[Evaluation]) -> str:
    """Evaluations as text, one line each."""
    titles = ("energy", "aligned", "forces", "stress", "slope")
    units = ("meV/atom", "meV/atom", "meV/Å", "kbar", "")
    lines = [
        f"{'set':23s}{'frames':>7s}" + "".join(f"{title:>10s}" for title in titles),
        f"{'mean absolute errors':30s}" + "".join(f"{unit:>10s}" for unit in units),
    ]
    for item in evaluations:
        values = (item.raw.energy_mae, item.aligned_energy_mae, item.raw.forces_mae, item.raw.stress_mae)
        cells = "".join(f"{value:10.2f}" for value in values) + f"{item.raw.slope:10.3f}"
        lines.append(f"{item.name[:22]:23s}{item.frames:7d}" + cells.replace("nan", "  -"))
    return "\n".join(lines)


def before_after_table(before: list[Evaluation], after: list[Evaluation]) -> str:
    """Two evaluations of the same sets side by side."""
    lines = [f"{'':24s}{'':30s}{'before':>10s}{'after':>10s}{'change':>10s}"]
    for old, new in zip(before, after, strict=True):
        rows = (
            ("energy MAE raw, meV/atom", old.raw.energy_mae, new.raw.energy_mae),
            ("energy MAE aligned, meV/atom", old.aligned_energy_mae, new.aligned_energy_mae),
            ("force MAE, meV/Å", old.raw.forces_mae, new.raw.forces_mae),
            ("stress MAE, kbar", old.raw.stress_mae, new.raw.stress_mae),
            ("softening slope", old.raw.slope, new.raw.slope),
        )
        lines += [
            f"{new.name:24s}{title:30s}{was:10.3f}{now:10.3f}" + (f"{100 * (now / was - 1):+9.1f}%" if was else "")
            for title, was, now in rows
            if not math.isnan(was)
        ]
    return "\n".join(lines)
