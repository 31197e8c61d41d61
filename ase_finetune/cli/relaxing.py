"""``ase-finetune relax``: many structures at once."""

from __future__ import annotations

from typing import Literal

from ase import Atoms
from jsonargparse import Namespace

from ase_finetune.cli.common import ACCELERATE, MODEL, OVERWRITE, REFERENCE, for_process, load_calculator, model_group
from ase_finetune.cli.options import Group, Option
from ase_finetune.cli.structures import check_count, check_output, read_structures, write_structures
from ase_finetune.cli.terminal import Terminal
from ase_finetune.cli.verbs import NOT_ALL_WELL, Verb
from ase_finetune.optimize import Relaxed, relax
from ase_finetune.parallel import launched

_DATA = (
    MODEL,
    Option(
        "structures",
        list[str] | None,
        None,
        "Files that ASE reads; file@0:10 takes some of their structures.",
        needed=True,
        position=True,
    ),
    Option("output", str | None, None, "File for the relaxed structures, such as relaxed.extxyz.", "FILE", needed=True),
    OVERWRITE,
)
_HOW = (
    Option("cell", bool, False, "Relax the cells too, as ASE's FrechetCellFilter does."),
    Option("fmax", float, 0.05, "Converged when all forces, on the cell's coordinates too, are below, eV/Å."),
    Option("steps", int, 500, "Steps of each structure, at most."),
    Option("optimizer", Literal["fire", "lbfgs", "gradient-descent"], "fire", "Makes the steps of ASE's optimizers."),
    Option(
        "max_edges", int | None, None, "Pairs of atoms evaluated at once; null is 4000 on a CPU and 200000 on a GPU."
    ),
)


def _run(options: Namespace, terminal: Terminal) -> int:
    processes = launched(options.device)
    terminal = for_process(terminal, processes)
    inputs = (options.model, *options.structures)
    processes.on_first(lambda: check_output(options.output, overwrite=options.overwrite, inputs=inputs))
    structures = read_structures(options.structures)
    check_count(options.output, len(structures))
    calculator = load_calculator(options, terminal, processes)
    terminal.note(f"relaxing {len(structures)} structures to {options.fmax:g} eV/Å with {options.optimizer}")
    results = relax(
        structures,
        calculator,
        options.optimizer,
        cell=options.cell,
        fmax=options.fmax,
        steps=options.steps,
        max_edges=options.max_edges,
        progress=terminal.progress,
        processes=processes,
    )
    if processes.is_first:
        pairs = zip(structures, results, strict=True)
        terminal.result("\n".join([*_TITLES, *(_row(place, *pair) for place, pair in enumerate(pairs))]))
    processes.on_first(lambda: write_structures(options.output, [result.atoms for result in results]))
    converged = sum(result.converged for result in results)
    terminal.detail(f"{sum(result.steps for result in results)} steps in all")
    terminal.note(f"{converged} of {len(results)} converged; written to {options.output}")
    return 0 if converged == len(results) else NOT_ALL_WELL


_TITLES = (
    f"{'structure':24s}{'atoms':>6s}{'steps':>6s}{'fmax':>9s}{'energy':>11s}{'volume':>9s}  state",
    f"{'':36s}{'eV/Å':>9s}{'eV/atom':>11s}{'%':>9s}",
)


def _row(place: int, start: Atoms, result: Relaxed) -> str:
    """A line of the table; the structure by its place in the output, as ``file@place`` reads it, and its formula."""
    label = f"{place:4d} {start.get_chemical_formula(empirical=True)}"[:23]
    state = "converged" if result.converged else f"failed: {result.failure}" if result.failure else "not converged"
    energy = "-" if result.failure else f"{result.atoms.get_potential_energy() / len(result.atoms):.4f}"
    volume = "-"
    if start.cell.rank == 3:
        volume = f"{100 * (result.atoms.get_volume() / start.get_volume() - 1):+.2f}"
    return f"{label:24s}{len(start):6d}{result.steps:6d}{result.fmax:9.3g}{energy:>11s}{volume:>9s}  {state}"


RELAX = Verb(
    description="Relax structures in batches; each makes the steps it would make alone; those that fail are listed. "
    "Results are in the order given, with energies (eV), forces (eV/Å) and stress. The exit code is 3 if not all "
    "converged. Under torchrun or srun several processes share the work.",
    examples=(
        (
            "positions and cells of all structures of a file",
            "relax 7net-0 initial.extxyz --output relaxed.extxyz --cell",
        ),
        (
            "tight, with your own model",
            "relax runs/mine/model POSCAR --output out.vasp --fmax 0.001 --dtype float64",
        ),
        ("the first hundred of a database", "relax mace-mpa-0 set.db@:100 --output relaxed.traj --max_edges 2000"),
    ),
    groups=(Group("structures", _DATA), Group("relaxation", _HOW), model_group(REFERENCE, ACCELERATE)),
    run=_run,
)
