"""One HTML file without scripts and without anything from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ase_finetune.errors import OutputError
from ase_finetune.files import make_folder, write_bytes, write_text
from ase_finetune.reporting.figures import Chart, Missing
from ase_finetune.reporting.markup import table, text
from ase_finetune.reporting.style import stylesheet
from ase_finetune.reporting.tiles import Tile
from ase_finetune.reporting.verdict import Verdict

# Nothing may be loaded or run, whatever a file name says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

_INTERVALS = (
    "In brackets: 95 % interval of the change, from drawing the structures again and again (bootstrap). Unclear: it "
    "holds zero."
)

# Names of the pictures that pages of ours have.
_OURS = re.compile(
    r"learning-[a-z0-9-]+-(forces|energy|stress|strain|rmsd|basin|forgetting)|penalty-[a-z0-9-]+|seconds|peak-memory-gb"
    r"|skipped-steps|train-skipped|parity-[a-z0-9-]+-(forces|energy)|softening|elements-[a-z0-9-]+|drift|delta-q"
    r"|relaxed-(rmsd|strain|volume)|worst-\d\d|gradient-norm|pareto-[a-z0-9-]+-(forces|energy|strain|rmsd)"
)


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
    """The verdict: a headline, numbers, what is worst, what to do next, and the rest in words."""
    tiles = "".join(f'<div class="tiles">{"".join(map(_tile, row))}</div>' for row in verdict.tiles)
    note = f"<p><small>{_INTERVALS}</small></p>" if any("(" in t.note for row in verdict.tiles for t in row) else ""
    worst = "".join(table(item.heads, item.rows, "wide") for item in verdict.worst)
    blocks = [("Next", _list("ol", "steps", verdict.steps)), ("Worst on the target", worst)]
    columns = "".join(f"<div><h3>{heading}</h3>{content}</div>" for heading, content in blocks if content)
    words = "".join(f"<p>{text(sentence)}</p>" for sentence in verdict.sentences)
    return (
        f'<p class="headline {verdict.tone}">{text(verdict.headline)}</p>{tiles}'
        f'<div class="answers">{columns}</div>{words}{note}{_list("ul", "warnings", verdict.warnings)}'
    )


def _tile(tile: Tile) -> str:
    return (
        f'<div class="tile {tile.tone}"><div>{text(tile.title)}</div><strong>{text(tile.text)}</strong>'
        f"<em>{text(tile.note)}</em></div>"
    )


def _list(tag: str, kind: str, items: Sequence[str]) -> str:
    lines = "".join(f"<li>{text(item)}</li>" for item in items)
    return f'<{tag} class="{kind}">{lines}</{tag}>' if lines else ""


def pairs_table(values: Mapping[str, Any]) -> str:
    """Names and values."""
    return table((), [(name, value(item)) for name, item in values.items()], "words")


def value(item: Any) -> str:
    """A value of an option as it is shown."""
    if item is None or item == []:
        return "–"
    if isinstance(item, bool):
        return "yes" if item else "no"
    return f"{item:g}" if isinstance(item, float) else str(item)


def path_of(output: Path, name: str) -> Path:
    """The page at ``output``: itself if it ends in ``.html`` and is no folder, or else ``name`` in that folder."""
    return output if output.suffix == ".html" and not output.is_dir() else output / name


def write(path: Path, content: str, items: Iterable[Chart | Missing], folder: Path) -> None:
    """Write a page, and its pictures as files into a folder, from which those of an earlier page are removed.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    make_folder(path.parent)
    make_folder(folder)
    panels = {panel.name: panel.png for item in items if isinstance(item, Chart) for panel in item.panels}
    for name, png in panels.items():
        write_bytes(folder / f"{name}.png", png)
    write_text(path, content)
    for file in folder.glob("*.png"):
        if file.stem not in panels and _OURS.fullmatch(file.stem):
            _remove(file)


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {file}, a picture of an earlier report: {error.strerror}") from error
