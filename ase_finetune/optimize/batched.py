"""Relaxing many structures at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase import Atoms
from tqdm import tqdm

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.errors import InputError
from ase_finetune.optimize.cell import CellOptions, cell_options
from ase_finetune.optimize.coordinates import check_relaxable
from ase_finetune.optimize.fire import FIREStep
from ase_finetune.optimize.gradient_descent import GradientDescentStep
from ase_finetune.optimize.lbfgs import LBFGSStep
from ase_finetune.optimize.method import Method, check_positive
from ase_finetune.optimize.pool import Pool, Relaxed
from ase_finetune.optimize.relaxation import DEFAULT_SKIN, check_elements
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.capture import check_accelerate

METHODS: dict[str, type[Method[Any]]] = {m.name: m for m in (GradientDescentStep, FIREStep, LBFGSStep)}


def build_method(optimizer: str | Method[Any], **options: Any) -> Method[Any]:
    """An optimizer by its name and options.

    Raises
    ------
    InputError
        If there is no such optimizer or option.
    """
    if isinstance(optimizer, Method):
        if options:
            raise InputError(f"options {', '.join(options)} have no effect on an optimizer that is already made")
        return optimizer
    if optimizer not in METHODS:
        raise InputError(f"optimizer {optimizer!r} is not known; use one of {', '.join(METHODS)}")
    try:
        return METHODS[optimizer](**options)
    except TypeError as error:
        raise InputError(f"{optimizer}: {error}") from error


def relax(
    structures: Sequence[Atoms],
    calc: FinetunedCalculator,
    optimizer: str | Method[Any] = "fire",
    *,
    cell: bool | CellOptions = False,
    fmax: float = 0.05,
    steps: int = 500,
    max_edges: int | None = None,
    skin: float = DEFAULT_SKIN,
    accelerate: str | None = None,
    progress: bool | None = None,
    processes: Processes = ALONE,
    **options: Any,
) -> list[Relaxed]:
    """Relax many structures together; each makes the steps it would make alone.

    Parameters
    ----------
    structures
        Any sizes and elements; ``FixAtoms`` and ``FixCartesian`` are honoured. Not changed.
    calc
        Its one potential gives the forces.
    optimizer
        ``"fire"``, ``"lbfgs"``, ``"gradient-descent"``, or a step such as ``FIREStep(dt=0.2)``.
    cell
        Whether, or how, the cells relax too: as ``FrechetCellFilter`` does.
    fmax
        Converged when all forces, on the cell's coordinates too, are below, eV/Å.
    steps
        Steps of each structure, at most.
    max_edges
        Edges evaluated at once; as a structure finishes the next one joins. ``None`` is 4000 on a CPU and
        200 000 on a GPU.
    skin
        Of the neighbour lists, Å.
    accelerate
        Whether evaluations are recorded as CUDA graphs, as for :class:`FinetunedCalculator`; ``None`` for what its
        calculator does.
    progress
        Show a progress bar; ``None`` does on terminals.
    processes
        Share the structures; all get all results. Under ``torchrun`` or ``srun`` they are
        ``ase_finetune.parallel.launched()``.
    **options
        Options of the optimizer, such as ``dt=0.2`` or ``maxstep=0.1``.

    Returns
    -------
    One result per structure, in the order given. Structures that explode or do not converge are
    named there; they never stop the others.

    Raises
    ------
    InputError
        If an argument, an element or a constraint is not usable; the structure's position is named.
    """
    if isinstance(structures, Atoms):
        raise InputError("relax takes a list of structures; for one write relax([atoms], calc)[0]")
    method = build_method(optimizer, **options)
    check_positive("fmax", fmax)
    if steps < 0:
        raise InputError(f"steps must not be negative, got {steps}")
    if len(calc.potentials) > 1:
        raise InputError("an ensemble cannot be relaxed in batches; give one of its members")
    accelerate = calc.parameters["accelerate"] if accelerate is None else accelerate
    check_accelerate(accelerate, calc.potentials)
    options_of_cell = cell_options(cell)
    check_elements(calc.potential, structures)
    for index, atoms in enumerate(structures):
        check_relaxable(atoms, index, cell=options_of_cell is not None)
    pool = Pool(
        calc,
        method,
        options_of_cell,
        fmax=fmax,
        steps=steps,
        skin=skin,
        max_edges=max_edges,
        accelerate=accelerate,
    )
    own = processes.share([len(atoms) for atoms in structures])
    hidden = _hidden(progress) if processes.is_first else True
    with tqdm(total=len(own), unit="structure", desc="relax", leave=False, disable=hidden) as bar:
        found = pool.run([structures[index] for index in own], bar.update)
    mine = {own[position]: result for position, result in found.items()}
    results = {index: result for part in processes.gather(mine) for index, result in part.items()}
    return [results[index] for index in range(len(structures))]


def _hidden(progress: bool | None) -> bool | None:
    """Tqdm's ``disable``, which hides the bar where there is no terminal if it is ``None``."""
    return None if progress is None else not progress
