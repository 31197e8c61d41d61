"""Structures beside each other: where relaxations should have ended, and where they did."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.utils import make_patch_list
from ase.visualize.plot import Matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Patch, PathPatch

from ase_finetune.reporting.axes import lines
from ase_finetune.reporting.figures import Chart, Drawing, Missing, Panel, draw
from ase_finetune.reporting.markup import text
from ase_finetune.reporting.measures import Array, formatted, number
from ase_finetune.reporting.palette import LIGHT
from ase_finetune.reporting.record import PairRecord

# Of the three structures of a pair; drawings of more are slow to show.
_FEW_ATOMS = 100


def worst(pairs: PairRecord) -> Chart | Missing:
    """The worst pairs after training, with their structures."""
    title = "The worst pairs"
    if not pairs.shown:
        return Missing(title, "no structures were kept")
    panels, rows = [], []
    for rank, position in enumerate(pairs.shown[:10], start=1):
        structures = (pairs.targets[rank - 1], pairs.ends_before[rank - 1], pairs.ends_after[rank - 1])
        before, after = pairs.before[position], pairs.after[position]
        panels.append(_structures(rank, structures, (before, after)))
        rows.append(_worst_row(rank, pairs.descriptions[position], structures[0], before, after))
    heads = "<th>structure<th>Delta Q before<th>after, Å √amu<th>right minimum<th>failure"
    table = (
        f'<div class="scroll"><table class="wide"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    caption = (
        "Left: the reference's relaxed structure. Middle and right: where the relaxation ended before and after "
        "training. Seen along z, turned a little; dashed: the cell. Worst first."
    )
    return Chart("worst", title, caption, panels, table)


def _worst_row(rank: int, description: str, atoms: Atoms, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    basins = " → ".join("yes" if error.get("right_basin") else "no" for error in (before, after))
    failure = text(after.get("failure") or before.get("failure") or "")
    cells = "".join(f"<td>{formatted(number(error.get('delta_q')), '.3g')}" for error in (before, after))
    name = f"{text(atoms.get_chemical_formula())} <small>{text(description)}</small>"
    return f"<tr><th scope=row>{rank}  {name}{cells}<td>{basins}<td>{failure}</tr>"


def _structures(rank: int, structures: Sequence[Atoms], errors: Sequence[Mapping[str, Any]]) -> Panel:
    before, after = ("failed" if e.get("failure") else formatted(number(e.get("delta_q")), ".3g") for e in errors)
    formula = structures[0].get_chemical_formula()
    titles = (f"{rank}  {formula}", f"before  {before}", f"after  {after}")
    alt = f"{formula}: target, end before (Delta Q {before} Å √amu) and end after ({after} Å √amu)."
    paint = functools.partial(_paint_structures, structures, titles)
    many = sum(map(len, structures)) > _FEW_ATOMS
    margins = (0.05, 0.05, 0.05, 0.3)
    return draw(f"worst-{rank:02d}", alt, paint, size=(5.0, 2.1), columns=3, margins=margins, as_image=many)


def _paint_structures(structures: Sequence[Atoms], titles: Sequence[str], drawing: Drawing) -> None:
    for ax, atoms, title in zip(drawing.axes, side_by_side(structures), titles, strict=True):
        ax.set_axis_off()
        left = ax.get_position().x0 + 0.01
        looks: dict[str, Any] = {"color": LIGHT["ink"], "fontsize": 10, "fontweight": "bold", "va": "top"}
        drawing.figure.text(left, 0.985, title, **looks)
        if not len(atoms) or not _is_finite(atoms):
            ax.text(0.5, 0.5, "not finite", ha="center", color=LIGHT["muted"], transform=ax.transAxes)
            continue
        _paint_atoms(ax, atoms)


def side_by_side(structures: Sequence[Atoms]) -> list[Atoms]:
    """Copies whose atoms lie in the cell; those of the others are the images next to those of the first."""
    copies = [atoms.copy() for atoms in structures]
    for atoms in copies:
        if not (len(atoms) and atoms.pbc.any() and _is_finite(atoms) and abs(atoms.cell.volume) > 1e-6):
            continue
        atoms.wrap(eps=0.05)
        if len(atoms) == len(copies[0]) and _is_finite(copies[0]):
            scaled, wanted = (item.get_scaled_positions(wrap=False) for item in (atoms, copies[0]))
            atoms.set_scaled_positions(scaled - np.round(scaled - wanted) * atoms.pbc)
    return copies


def _is_finite(atoms: Atoms) -> bool:
    return bool(np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell[:]).all())


def _paint_atoms(ax: Axes, atoms: Atoms) -> None:
    """As ASE's ``plot_atoms`` without pyplot, and with the dashes of the cell between two atoms as one line."""
    writer = Matplotlib(atoms, ax, rotation="8x,-14y,0z", radii=0.5, show_unit_cell=2)
    dashes: list[Array] = []
    shapes: list[Patch] = []
    for patch in [*make_patch_list(writer), None]:  # from the back to the front
        if isinstance(patch, PathPatch):
            dashes.append(np.asarray(patch.get_path().vertices, dtype=np.float64))
            continue
        if dashes:
            looks = {"edgecolor": LIGHT["muted"], "fill": False, "linewidth": 0.8}
            shapes.append(PathPatch(lines(np.concatenate(dashes)), **looks))
            dashes = []
        if patch is not None:
            patch.set_edgecolor(LIGHT["muted"])
            patch.set_linewidth(0.6)
            shapes.append(patch)
    ax.add_collection(PatchCollection(shapes, match_original=True), autolim=False)
    ax.set_xlim(0, writer.w)
    ax.set_ylim(0, writer.h)
