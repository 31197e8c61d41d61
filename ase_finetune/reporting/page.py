"""One HTML file without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ase_finetune.files import make_folder, write_bytes, write_text
from ase_finetune.reporting.figures import Chart, Missing
from ase_finetune.reporting.markup import text
from ase_finetune.reporting.style import stylesheet
from ase_finetune.reporting.verdict import Verdict

# Nothing may be loaded or run, whatever a file name says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def page(title: str, lead: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """A whole page.

    Parameters
    ----------
    title, lead
        Its first lines, as text.
    sections
        Anchor, heading (text) and HTML of each.
    footer
        Its last line, as text.
    """
    links = "".join(f'<a href="#{anchor}">{text(heading)}</a>' for anchor, heading, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{text(heading)}</h2>{content}</section>' for anchor, heading, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{text(title)}</title><style>{stylesheet()}</style></head>\n"
        f'<body><main><header><h1>{text(title)}</h1><p class="lead">{text(lead)}</p></header>'
        f'<nav aria-label="Contents">{links}</nav>{body}<footer>{text(footer)}</footer></main></body></html>\n'
    )


def chart(item: Chart) -> str:
    """A chart with its heading, its caption and what belongs to it."""
    caption = f"<figcaption>{text(item.caption)}</figcaption>"
    pictures = "".join(panel.svg for panel in item.panels)
    if item.shown is not None:
        figure = f"<figure>{item.shown}{caption}</figure>"
    elif len(item.panels) % 2:  # the caption fills the gap
        figure = f'<figure class="panels">{pictures}{caption}</figure>'
    else:
        figure = f'<figure><div class="panels">{pictures}</div>{caption}</figure>'
    return f'<section class="chart" id="{item.key}"><h3>{text(item.title)}</h3>{figure}{item.body}</section>'


def missing(items: Iterable[Missing]) -> str:
    """What is not shown, and why."""
    words = "; ".join(f"{item.title} ({item.reason})" for item in items)
    return f'<p class="missing">Not shown: {text(words)}.</p>' if words else ""


def charts(items: Sequence[Chart | Missing]) -> str:
    """Charts, and then what is missing."""
    drawn = "".join(chart(item) for item in items if isinstance(item, Chart))
    return drawn + missing(item for item in items if isinstance(item, Missing))


def summary(verdict: Verdict) -> str:
    """Numbers, sentences and warnings."""
    tiles = "".join(
        f'<div class="tile {tile.tone}"><div>{text(tile.title)}</div><strong>{text(tile.text)}</strong>'
        f"<em>{text(tile.note)}</em></div>"
        for tile in verdict.tiles
    )
    sentences = "".join(f"<p>{text(sentence)}</p>" for sentence in verdict.sentences)
    warnings = "".join(f"<li>{text(warning)}</li>" for warning in verdict.warnings)
    parts = [f'<div class="tiles">{tiles}</div>' if tiles else "", sentences]
    return "".join([*parts, f'<ul class="warnings">{warnings}</ul>' if warnings else ""])


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    """A table of texts and numbers; the first cell of each row names it."""
    head = "".join(f"<th>{text(item)}</th>" for item in heads)
    lines = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>{"".join(f"<td>{text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{lines}</tbody></table></div>'


def pairs_table(values: Mapping[str, Any]) -> str:
    """Names and values."""
    return table((), [(name, value(item)) for name, item in values.items()], "words")


def value(item: Any) -> str:
    """A value of an option as it is shown."""
    if item is None:
        return "–"
    if isinstance(item, bool):
        return "yes" if item else "no"
    return f"{item:g}" if isinstance(item, float) else str(item)


def folded(title: str, content: str) -> str:
    """HTML that is shown when it is asked for."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def write(path: Path, content: str, items: Iterable[Chart | Missing], folder: Path) -> None:
    """Write a page, and its pictures as files into a folder.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    make_folder(folder)
    for item in items:
        for panel in item.panels if isinstance(item, Chart) else ():
            write_bytes(folder / f"{panel.name}.png", panel.png)
    write_text(path, content)
