"""``ase-finetune md``: molecular dynamics of one structure."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace
from tqdm import tqdm

from ase_finetune.analysis.dynamics import MDRun, run_md
from ase_finetune.analysis.frame_files import SUFFIXES
from ase_finetune.analysis.watching import MDPoint
from ase_finetune.cli.common import ACCELERATE, MODEL, OVERWRITE, REFERENCE, load_calculator, model_group
from ase_finetune.cli.options import Group, Option
from ase_finetune.cli.places import check_file
from ase_finetune.cli.replacing import Replacing
from ase_finetune.cli.structures import read_structures
from ase_finetune.cli.terminal import Terminal
from ase_finetune.cli.verbs import Verb
from ase_finetune.errors import InputError

_DATA = (
    MODEL,
    Option(
        "structure",
        str | None,
        None,
        "File that ASE reads; file@3 is its fourth structure.",
        needed=True,
        position=True,
    ),
    Option("repeat", list[int] | None, None, "Cells along each axis, for example 2 2 2.", "INT INT INT", count=3),
    Option("output", str | None, None, "New file for the trajectory: .traj, .extxyz or .db.", "FILE", needed=True),
    OVERWRITE,
)
_HOW = (
    Option("temperature", float, 300.0, "K; of the initial velocities for nve."),
    Option("picoseconds", float, 1.0, "Length of the run, ps."),
    Option("timestep", float, 1.0, "Time step, fs."),
    Option(
        "ensemble",
        Literal["nvt", "nve", "npt"],
        "nvt",
        "nvt (stochastic velocity rescaling), nve (no thermostat) or npt (a barostat, too).",
    ),
    Option("pressure", float, 0.0, "GPa, for npt."),
    Option("interval", int, 10, "Steps from one frame of the trajectory to the next."),
    Option("seed", int, 0, "Of the velocities and the thermostat: equal seeds give equal runs."),
)

#: Lines on the terminal, at most about so many; of a long run one in so many seconds.
_LINES = 50
_SECONDS = 10.0


def _run(options: Namespace, terminal: Terminal) -> int:
    output = Path(options.output)
    _check(options)
    structures = read_structures([options.structure], "structure")
    if len(structures) > 1:
        raise InputError(
            f"{options.structure} holds {len(structures)} structures; choose one, such as {options.structure}@-1"
        )
    (atoms,) = structures
    calculator = load_calculator(options, terminal)
    if options.repeat is not None:
        atoms = atoms.repeat(options.repeat)
    how = f"{options.ensemble}, {options.picoseconds:g} ps at {options.temperature:g} K"
    terminal.note(f"{atoms.get_chemical_formula()}, {len(atoms)} atoms: {how}")
    terminal.result(_TITLE)
    lines = _Lines(options.picoseconds, 1e-3 * options.timestep * options.interval)
    with Replacing(output) as file:

        def show(point: MDPoint) -> None:
            file.frame_is_written()
            lines(point)

        run = run_md(
            atoms,
            calculator,
            temperature=options.temperature,
            picoseconds=options.picoseconds,
            timestep=options.timestep,
            ensemble=options.ensemble,
            pressure=options.pressure,
            output=file.path,
            interval=options.interval,
            seed=options.seed,
            progress=terminal.progress,
            on_interval=show,
        )
    _conclude(run, output, len(atoms), terminal)
    return 0


def _check(options: Namespace) -> None:
    """Refuse what needs neither structure nor model to be refused."""
    check_file(options.output, overwrite=options.overwrite, inputs=(options.model, options.structure))
    if Path(options.output).suffix not in SUFFIXES:
        raise InputError(f"{options.output} must end in one of {', '.join(SUFFIXES)}: frames are appended to it")
    if options.seed < 0:
        raise InputError(f"seed must not be negative, got {options.seed}")
    if options.repeat is not None and min(options.repeat) < 1:
        raise InputError(f"repeat takes three positive numbers, got {options.repeat}")


_TITLE = f"{'time/ps':>10s}{'T/K':>9s}{'Epot/eV':>14s}{'Etot/eV':>14s}{'p/GPa':>10s}"


class _Lines:
    """Prints some of the points of a run: enough to follow it, not so many that they hide it."""

    def __init__(self, picoseconds: float, between: float) -> None:
        # The last of the points, which are so far apart (ps); times are sums that are hardly ever round.
        self._every, self._last = picoseconds / _LINES, picoseconds - 0.99 * between
        self._next = 0.0
        self._shown = time.perf_counter()

    def __call__(self, point: MDPoint) -> None:
        late = time.perf_counter() - self._shown > _SECONDS
        if point.time < self._next and not late and point.time < self._last:
            return
        self._next, self._shown = point.time + 0.99 * self._every, time.perf_counter()
        pressure = "-" if point.pressure != point.pressure else f"{point.pressure:.3f}"
        line = f"{point.time:10.3f}{point.temperature:9.1f}{point.potential_energy:14.4f}{point.total_energy:14.4f}"
        # Above the progress bar.
        tqdm.write(f"{line}{pressure:>10s}")


def _conclude(run: MDRun, output: Path, count: int, terminal: Terminal) -> None:
    if run.drift is not None:
        terminal.result(f"drift of the total energy: {run.drift:+.3g} meV/atom/ps")
    half = len(run.temperatures) // 2
    terminal.note(
        f"mean temperature of the second half: {run.temperatures[half:].mean():.1f} K; "
        f"{1e6 * run.seconds / run.steps / count:.3g} µs per step and atom; written to {output}"
    )
    terminal.detail(f"{run.steps} steps in {run.seconds:.1f} s")


MD = Verb(
    description="Molecular dynamics of one structure, from random velocities. A run that explodes ends with an error.",
    examples=(
        ("10 ps at 600 K", "md runs/mine/model start.cif --output run.traj --temperature 600 --picoseconds 10"),
        (
            "is energy conserved? ends with the drift",
            "md 7net-0 POSCAR --repeat 2 2 2 --output nve.traj --ensemble nve --picoseconds 2",
        ),
        (
            "under pressure",
            "md mace-mpa-0 water.extxyz@-1 --output npt.extxyz --ensemble npt --pressure 1 --timestep 0.5",
        ),
    ),
    groups=(Group("structure", _DATA), Group("dynamics", _HOW), model_group(REFERENCE, ACCELERATE)),
    run=_run,
)
