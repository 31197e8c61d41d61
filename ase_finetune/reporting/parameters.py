"""How far the parameters moved, layer by layer, beside what old structures need."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ase_finetune.reporting.axes import heading, log_axis
from ase_finetune.reporting.figures import Chart, Drawing, Missing, draw
from ase_finetune.reporting.markup import text
from ase_finetune.reporting.palette import LIGHT
from ase_finetune.reporting.record import TensorDrift

# More layers than that are drawn coarser.
_MOST = 36


@dataclass(frozen=True)
class Layer:
    """Parameter tensors that belong together.

    Attributes
    ----------
    name
        What their names have in common.
    size, trained
        Number of values, and of those that could move.
    change
        Root mean square change relative to the root mean square of the values before; NaN where those are zero.
    stiffness
        Share of the Fisher information; NaN without EWC.
    """

    name: str
    size: int
    trained: int
    change: float
    stiffness: float


def layers(drift: Sequence[TensorDrift], most: int = _MOST) -> list[Layer]:
    """Tensors grouped by their names, down to numbers, in the order of the model; coarser if there are too many.

    Of more than ``most`` even so, those that moved least are one layer at the end.
    """
    for depth in (2, 1):
        groups: dict[str, list[TensorDrift]] = {}
        for tensor in drift:
            groups.setdefault(_group(tensor.name, depth), []).append(tensor)
        if len(groups) <= most:
            break
    return _capped([_layer(name, members) for name, members in groups.items()], groups, most)


def _capped(found: list[Layer], groups: Mapping[str, Sequence[TensorDrift]], most: int) -> list[Layer]:
    """The layers that moved most, in their order, and the rest as one."""
    if len(found) <= most:
        return found
    order = sorted(range(len(found)), key=lambda k: (-np.nan_to_num(found[k].change), k))
    own = sorted(order[: most - 1])
    rest = [tensor for k in sorted(order[most - 1 :]) for tensor in groups[found[k].name]]
    return [*(found[k] for k in own), _layer(f"{len(found) - len(own)} others, together", rest)]


def _group(name: str, depth: int) -> str:
    """``interactions.0`` of ``interactions.0.linear_up.weight``; ``edge_embedding`` of ``edge_embedding.x.coeffs``."""
    parts = name.split(".")
    if depth == 2 and len(parts) > 1 and parts[1].isdigit():
        return ".".join(parts[:2])
    return parts[0]


def _layer(name: str, members: Sequence[TensorDrift]) -> Layer:
    change = math.fsum(t.size * t.change**2 for t in members if math.isfinite(t.change))
    scale = math.fsum(t.size * t.scale**2 for t in members if math.isfinite(t.scale))
    shares = [t.stiffness for t in members if math.isfinite(t.stiffness)]
    return Layer(
        name=name,
        size=sum(t.size for t in members),
        trained=sum(t.size for t in members if t.trained),
        change=math.sqrt(change / scale) if scale > 0 and math.isfinite(change) else math.nan,
        stiffness=math.fsum(shares) if shares else math.nan,
    )


def drift(tensors: Sequence[TensorDrift]) -> Chart | Missing:
    """Relative drift of each layer, and its share of the Fisher information."""
    title = "Parameter drift by layer"
    found = layers(tensors)
    moved = [layer for layer in found if layer.change > 0]
    if not moved:
        return Missing(title, "no parameter moved")
    fisher = any(layer.stiffness > 0 for layer in found)
    most = max(moved, key=lambda layer: layer.change)
    alt = f"Drift of {len(found)} layers; {most.name} moved most, by {100 * most.change:.2g} per cent"
    if fisher:
        stiffest = max(found, key=lambda layer: -1.0 if math.isnan(layer.stiffness) else layer.stiffness)
        alt += f"; {stiffest.name} has the largest share of the Fisher information, {100 * stiffest.stiffness:.0f} %"
    caption = (
        "Root mean square change of the parameters of each layer relative to their size before, from input to output; "
        "logarithmic. Layers that were frozen are named in grey."
    )
    if fisher:
        caption += (
            " Right: the layer's share of the Fisher information, which says how much old structures need it. Stiff "
            "layers should have moved little."
        )
    longest = max(len(layer.name) for layer in found)
    panel = draw(
        "drift",
        f"{alt}.",
        functools.partial(_paint, found, fisher),
        size=(5.6, 1.1 + 0.19 * len(found)),
        columns=2 if fisher else 1,
        widths=(3, 2) if fisher else None,
        margins=(min(0.35 + 0.062 * min(longest, 32), 2.3), 0.2, 0.52, 0.36),
    )
    body = f"<details><summary>All numbers</summary>{_table(found, fisher)}</details>"
    return Chart("drift", title, caption, [panel], body)


def _paint(found: Sequence[Layer], fisher: bool, drawing: Drawing) -> None:
    rows = range(len(found))
    left = drawing.axes[0]
    values = [layer.change if layer.change > 0 else math.nan for layer in found]
    lowest = min(value for value in values if value > 0)
    for row, value in zip(rows, values, strict=True):
        if value > 0:
            left.plot([0.5 * lowest, value], [row, row], color=LIGHT["target"], linewidth=5, solid_capstyle="butt")
    left.set_xlim(0.5 * lowest, 2 * max(value for value in values if value > 0))
    log_axis(left, "x")
    left.set_xlabel("relative change")
    left.set_yticks(rows, [_short(layer.name) for layer in found])
    for label, layer in zip(left.get_yticklabels(), found, strict=True):
        label.set_color(LIGHT["ink" if layer.trained else "before"])
        label.set_fontsize(8)
    heading(left, "Drift")
    if fisher:
        right = drawing.axes[1]
        shares = [0.0 if math.isnan(layer.stiffness) else 100 * layer.stiffness for layer in found]
        right.barh(rows, shares, height=0.6, color=LIGHT["kept"], zorder=3)
        right.set_yticks([])
        right.set_xlim(0, 1.15 * max(shares))
        right.set_xlabel("share, %")
        heading(right, "Fisher share")
    for ax in drawing.axes:
        ax.set_ylim(len(found) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:15]}…{name[-16:]}"


def _table(found: Sequence[Layer], fisher: bool) -> str:
    def share(layer: Layer) -> str:
        return "" if not fisher else f"<td>{'–' if math.isnan(layer.stiffness) else f'{100 * layer.stiffness:.2g} %'}"

    rows = "".join(
        f"<tr><th scope=row>{text(layer.name)}<td>{layer.size:,}<td>{layer.trained:,}"
        f"<td>{'–' if math.isnan(layer.change) else f'{100 * layer.change:.2g} %'}{share(layer)}</tr>"
        for layer in found
    )
    heads = "<th>layer<th>values<th>trained<th>relative change" + ("<th>Fisher share" if fisher else "")
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
