"""Where a potential's relaxations end, compared with where they should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, median
from typing import Any

import torch
from ase import Atoms

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.errors import InputError
from ase_finetune.optimize.batched import relax
from ase_finetune.optimize.cell import CellOptions
from ase_finetune.optimize.pool import Relaxed
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.trajectories.losses import cell_strain, delta_q, log_volume_ratio, rmsd
from ase_finetune.trajectories.structures import Structures

#: Two relaxations ended in the same minimum if they differ by less: RMSD in Å, strain.
SAME_BASIN = (0.15, 0.05)


# Distance beyond which a structure counts logarithmically.
_SCALE = 0.1


@dataclass(frozen=True)
class PairError:
    """How one relaxation ended.

    Attributes
    ----------
    delta_q, rmsd, strain, log_volume
        Distance from the target: Å sqrt(amu), Å, dimensionless, ln(V/V_target). NaN after a failure.
    steps
        Steps to convergence.
    converged
        Whether it converged.
    right_basin
        Whether it ended in the minimum that the target itself relaxes to.
    failure
        Why it was given up, or ``None``.
    """

    delta_q: float = math.nan
    rmsd: float = math.nan
    strain: float = math.nan
    log_volume: float = math.nan
    steps: int = 0
    converged: bool = False
    right_basin: bool = False
    failure: str | None = None


@dataclass(frozen=True)
class RelaxationErrors:
    """Errors over a set of relaxations, each over those that ended in the right basin.

    Attributes
    ----------
    loss
        Mean of s ln(1 + d/s) over all that did not fail, with d the strain plus the RMSD in Å and s = 0.1: a
        structure that ends in another basin, or no longer does, must not decide which weights are best.
    rmsd_median, rmsd_mean
        Å.
    strain_median, strain_mean
        Dimensionless.
    delta_q_median
        Å sqrt(amu).
    volume_mae
        Mean absolute volume error in per cent.
    steps_median
        Steps to convergence, of all.
    right_basin, converged, failed, total
        Numbers of relaxations.
    losses
        What ``loss`` is the mean of, for each relaxation in their order; infinite for those that failed.
    """

    loss: float
    rmsd_median: float
    rmsd_mean: float
    strain_median: float
    strain_mean: float
    delta_q_median: float
    volume_mae: float
    steps_median: float
    right_basin: int
    converged: int
    failed: int
    total: int
    losses: Sequence[float] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Values over the set by name."""
        return {name: value for name, value in asdict(self).items() if name != "losses"}


def summarize(errors: Sequence[PairError]) -> RelaxationErrors:
    """One set of numbers for many relaxations.

    Parameters
    ----------
    errors
        As :func:`evaluate_relaxations` gives them, at least one.
    """
    inside = [error for error in errors if error.right_basin]
    alive = [error for error in errors if error.failure is None]
    losses = [
        math.inf if error.failure is not None else _SCALE * math.log1p((error.strain + error.rmsd) / _SCALE)
        for error in errors
    ]

    def over(name: str, how: Any = median) -> float:
        values = [abs(getattr(error, name)) for error in inside]
        return float(how(values)) if values else math.nan

    return RelaxationErrors(
        loss=mean(filter(math.isfinite, losses)) if alive else math.nan,
        rmsd_median=over("rmsd"),
        rmsd_mean=over("rmsd", mean),
        strain_median=over("strain"),
        strain_mean=over("strain", mean),
        delta_q_median=over("delta_q"),
        volume_mae=100 * float(torch.tensor([error.log_volume for error in inside]).expm1().abs().mean()),
        steps_median=float(median(error.steps for error in errors)) if errors else math.nan,
        right_basin=len(inside),
        converged=sum(error.converged for error in errors),
        failed=len(errors) - len(alive),
        total=len(errors),
        losses=tuple(losses),
    )


def evaluate_relaxations(
    calc: FinetunedCalculator,
    initial: Sequence[Atoms],
    relaxed: Sequence[Atoms],
    *,
    cell: bool | CellOptions = True,
    fmax: float = 0.05,
    steps: int = 500,
    optimizer: str = "fire",
    progress: bool | None = None,
    processes: Processes = ALONE,
) -> list[PairError]:
    """Relax structures to convergence and compare them with the reference's relaxed ones.

    The targets are relaxed as well: a relaxation is in the right basin if it ends where that of its target
    ends, within :data:`SAME_BASIN`. What is left between that minimum and the target is the potential's error;
    another basin is another matter and is counted apart.

    Parameters
    ----------
    calc
        The calculator.
    initial, relaxed
        Starts and targets, the same atoms in the same order.
    cell, fmax, steps, optimizer, progress, processes
        As for :func:`ase_finetune.optimize.relax`.

    Returns
    -------
    One :class:`PairError` per pair, in the order given.
    """
    options: dict[str, Any] = {"cell": cell, "fmax": fmax, "steps": steps, "progress": progress, "processes": processes}
    return [error for error, _ in relax_pairs(calc, initial, relaxed, optimizer=optimizer, **options)]


def relax_pairs(
    calc: FinetunedCalculator,
    initial: Sequence[Atoms],
    relaxed: Sequence[Atoms],
    *,
    optimizer: str = "fire",
    **options: Any,
) -> list[tuple[PairError, Atoms]]:
    """As :func:`evaluate_relaxations`, with the structures in which the relaxations of the starts ended."""
    if len(initial) != len(relaxed):
        raise InputError(f"{len(initial)} initial and {len(relaxed)} relaxed structures")
    ends = relax([*initial, *relaxed], calc, optimizer, **options)
    found = zip(ends[: len(initial)], ends[len(initial) :], relaxed, strict=True)
    return [(_compare(end, own, target), end.atoms) for end, own, target in found]


def _compare(end: Relaxed, own: Relaxed, target: Atoms) -> PairError:
    """The end of a relaxation against its target and against the minimum the target relaxes to."""
    if end.failure is not None:
        return PairError(steps=end.steps, failure=end.failure)
    final, wanted = Structures.from_atoms([end.atoms]), Structures.from_atoms([target])
    # With fixed atoms there is no drift to take off; alignment is for free molecules.
    options: dict[str, bool] = {
        "remove_drift": not end.atoms.constraints,
        "align": not end.atoms.pbc.any() and not end.atoms.constraints,
    }
    same = False
    if own.failure is None:
        minimum = Structures.from_atoms([own.atoms])
        apart = float(rmsd(final, minimum, **options)), float(cell_strain(final, minimum))
        same = apart[0] < SAME_BASIN[0] and apart[1] < SAME_BASIN[1]
    return PairError(
        delta_q=float(delta_q(final, wanted, **options)),
        rmsd=float(rmsd(final, wanted, **options)),
        strain=float(cell_strain(final, wanted)),
        log_volume=float(log_volume_ratio(final, wanted)),
        steps=end.steps,
        converged=end.converged,
        right_basin=same,
    )
