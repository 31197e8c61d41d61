"""Errors by element on a periodic table: what was learnt and what was forgotten, and where."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from ase_finetune.reporting.figures import Chart, Drawing, Missing, Panel, draw
from ase_finetune.reporting.markup import text
from ase_finetune.reporting.measures import ElementError, element_errors, is_nothing
from ase_finetune.reporting.palette import LIGHT
from ase_finetune.reporting.record import FrameRecord
from ase_finetune.reporting.sets import anchor, is_target, is_trained_on, long_name, remark
from ase_finetune.reporting.tiles import in_form

# First atomic number and column of each run of neighbours, by row of the table.
_ROWS = (
    ((1, 1, 1), (2, 2, 18)),
    ((3, 4, 1), (5, 10, 13)),
    ((11, 12, 1), (13, 18, 13)),
    ((19, 36, 1),),
    ((37, 54, 1),),
    ((55, 56, 1), (72, 86, 4)),
    ((87, 88, 1), (104, 118, 4)),
    ((57, 71, 4),),
    ((89, 103, 4),),
)

# meV/Å; shown as 0.
_UNCHANGED = 0.05


def places() -> dict[int, tuple[int, int]]:
    """Row and column of each element, from 1; the lanthanides and actinides are rows 8 and 9."""
    return {
        z: (row, column + z - first)
        for row, runs in enumerate(_ROWS, start=1)
        for first, last, column in runs
        for z in range(first, last + 1)
    }


def periodic_table(frames: FrameRecord) -> Chart | Missing:
    """The change of the force error of every element of a set."""
    title = f"By element: {long_name(frames)}"
    found = element_errors(frames)
    if not found:
        return Missing(title, "there are no force labels with finite predictions")
    scale = _scale(found)
    key = f"elements-{anchor(frames)}"
    body = f"<details><summary>All numbers</summary>{_table(found)}</details>"
    return Chart(key, title, _caption(frames), [_picture(key, frames, found, scale)], body, _grid(found, scale))


def _caption(frames: FrameRecord) -> str:
    role = "what was learnt" if is_target(frames) or is_trained_on(frames) else "what was forgotten"
    start = "from zero: labels are the model's own" if frames.own_labels else "before to after"
    return (
        f"Change of the mean absolute force error of the atoms of each element, in meV/Å ({start}): {role}, and where. "
        "Green with ▼: better. Purple with ▲: worse. Grey: not in the set. Elements with few atoms say little."
        + remark(frames)
    )


def _scale(found: Mapping[int, ElementError]) -> float:
    """The change that has the full colour."""
    return max(1.0, float(np.quantile([abs(error.change) for error in found.values()], 0.9)))


def _opacity(change: float, scale: float) -> float:
    return min(1.0, abs(change) / scale) * 0.62 + 0.08


def _tint(error: ElementError) -> str:
    if abs(error.change) < _UNCHANGED:
        return "muted"
    return "better" if error.change < 0 else "worse"


def _sign(change: float) -> str:
    if abs(change) < _UNCHANGED:
        return "0"
    return f"{'▲' if change > 0 else '▼'}{_digits(abs(change))}"


def _digits(value: float) -> str:
    return in_form(value, ".1f" if value < 9.95 else ".0f")


def _grid(found: Mapping[int, ElementError], scale: float) -> str:
    cells = []
    for z, (row, column) in places().items():
        place = f"grid-row:{row + (row > 7)};grid-column:{column}"
        symbol, error = chemical_symbols[z], found.get(z)
        if error is None:
            cells.append(f'<i style="{place}" aria-hidden="true">{symbol}</i>')
            continue
        color = f"background:rgba(var(--{_tint(error)}-rgb),{_opacity(error.change, scale):.2f})"
        words = text(_words(z, error))
        cells.append(
            f'<b style="{place};{color}" role="img" aria-label="{words}" title="{words}">{symbol}'
            f"<span>{_sign(error.change)}</span></b>"
        )
    return f'<div class="periodic">{"".join(cells)}</div>'


def _words(z: int, error: ElementError) -> str:
    return (
        f"{chemical_symbols[z]}: {in_form(error.before, '.1f')} before, {in_form(error.after, '.1f')} after, "
        f"{in_form(error.change, '+.1f')} meV/Å "
        f"({error.atoms} atoms)"
    )


def _table(found: Mapping[int, ElementError]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{chemical_symbols[z]}</th><td>{error.atoms}</td><td>{in_form(error.before, '.1f')}</td>"
        f"<td>{in_form(error.after, '.1f')}</td><td>{in_form(error.change, '+.1f')}</td></tr>"
        for z, error in sorted(found.items(), key=lambda item: -item[1].change)
    )
    return (
        '<div class="scroll"><table><thead><tr><th>element<th>atoms<th>before, meV/Å<th>after, meV/Å<th>change'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _picture(key: str, frames: FrameRecord, found: Mapping[int, ElementError], scale: float) -> Panel:
    worst = max(found.items(), key=lambda item: item[1].change)
    best = min(found.items(), key=lambda item: item[1].change)
    alt = f"Change of the force error by element, {long_name(frames)}. Largest rise or smallest fall: {_words(*worst)}"
    if not is_nothing(best[1].change - worst[1].change):
        alt += f". Largest fall or smallest rise: {_words(*best)}"
    return draw(
        key, f"{alt}.", functools.partial(_paint, found, scale), size=(9.0, 4.9), margins=(0.05, 0.05, 0.05, 0.05)
    )


def _paint(found: Mapping[int, ElementError], scale: float, drawing: Drawing) -> None:
    ax = drawing.ax
    for z, (row, column) in places().items():
        error = found.get(z)
        y = -row - (0.4 if row > 7 else 0.0)
        tint = LIGHT["grid" if error is None else _tint(error)]
        opacity = 0.35 if error is None else _opacity(error.change, scale)
        face = tuple(1 - opacity * (1 - part) for part in to_rgb(tint))
        ax.add_patch(Rectangle((column, y), 0.94, 0.94, facecolor=face, edgecolor="none"))
        options: dict[str, Any] = {"ha": "center", "va": "center"}
        if error is None:
            ax.text(column + 0.47, y + 0.47, chemical_symbols[z], color=LIGHT["before"], fontsize=9, **options)
            continue
        bold: dict[str, Any] = {"color": LIGHT["ink"], "fontsize": 10, "fontweight": "bold"}
        ax.text(column + 0.47, y + 0.62, chemical_symbols[z], **bold, **options)
        ax.text(column + 0.47, y + 0.25, _sign(error.change), color=LIGHT["ink"], fontsize=7.5, **options)
    ax.set_xlim(0.9, 19.1)
    ax.set_ylim(-9.5, 0.05)
    ax.set_axis_off()
