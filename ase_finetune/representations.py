"""How objects show themselves in terminals and notebooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def brief(options: Any) -> str:
    """A dataclass as the call that makes it, without what is as by default: ``FinetuneConfig(epochs=3)``."""
    changed = (f"{name}={value!r}" for name, value in changes(options).items())
    return f"{type(options).__name__}({', '.join(changed)})"


def changes(options: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not as by default."""
    return {item.name: v for item in dataclasses.fields(options) if (v := getattr(options, item.name)) != default(item)}


def default(item: dataclasses.Field[Any]) -> Any:
    """What a field is when nothing is said; :data:`dataclasses.MISSING` if something has to be."""
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def html_table(
    title: str,
    rows: Mapping[str, Any] | Sequence[Sequence[Any]],
    *,
    header: Sequence[str] = (),
    bold: Sequence[str] = (),
) -> str:
    """A small table for notebooks, in their own colours and type.

    Parameters
    ----------
    title
        Above it.
    rows
        Values by name, or rows of cells.
    header
        Titles of the columns.
    bold
        First cells of the rows to stress.
    """
    cells = [[name, value] for name, value in rows.items()] if isinstance(rows, Mapping) else rows
    lines = [f"<table><caption>{escape(title)}</caption>"]
    if header:
        lines.append(f"<thead><tr>{''.join(f'<th>{escape(str(item))}</th>' for item in header)}</tr></thead>")
    lines.append("<tbody>")
    for row in cells:
        style = ' style="font-weight:bold"' if str(row[0]) in bold else ""
        lines.append(f"<tr{style}>{''.join(f'<td>{escape(_text(item))}</td>' for item in row)}</tr>")
    return "".join([*lines, "</tbody></table>"])


def calculator_table(potential: Any, parameters: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """What a calculator is, and the errors before and after its fine-tuning, as HTML tables."""
    size = sum(parameter.numel() for _, parameter in potential.native_parameters())
    rows = {
        **parameters,
        "backend": potential.backend,
        "parameters": f"{size:,d}",
        "cutoff": f"{potential.cutoff:g} Å",
        "elements": len(potential.numbers),
    }
    if "config" in metadata:
        rows |= {"fine-tuned from": metadata["base_model"], "method": metadata["config"]["method"]}
    return html_table("FinetunedCalculator", rows) + errors_table(metadata)


def errors_table(metadata: Mapping[str, Any]) -> str:
    """Errors before and after fine-tuning as an HTML table; nothing if the metadata has none."""
    if "errors" not in metadata:
        return ""
    before, after = metadata["errors"]["before"], metadata["errors"]["after"]
    rows = [
        [name, measure.replace("_", " "), before[name][measure], value]
        for name, values in after.items()
        for measure, value in values.items()
        if value is not None and before[name][measure] is not None
    ]
    title = "Errors: energy in meV/atom, forces in meV/Å, stress in kbar, lengths in Å"
    return html_table(title, rows, header=("set", "measure", "before", "after"))


def counted(number: int, noun: str) -> str:
    """A number of things, in words: ``1 step``, ``2 steps``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
