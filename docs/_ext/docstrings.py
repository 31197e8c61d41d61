"""How the docstrings of the package are read: prose under Returns, several names in a line, short names as links."""

from __future__ import annotations

import re
import sys
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment

#: Packages and aliases of types that are shown as they are: fetching foreign indices would need a network.
EXTERNAL = frozenset(
    "abc ase collections contextlib enum jsonargparse lightning_fabric logging nn np numpy os pathlib torch typing "
    "Atoms Fabric File FilePath Frames Model Origin PairSource Source Tensor".split()
)
PACKAGE = "ase_finetune"

_returns: dict[int, tuple[str, str]] = {}


def section(lines: list[str], title: str) -> tuple[int, int] | None:
    """Where the body of a section begins and ends, or ``None`` if there is none of this title."""
    for index, line in enumerate(lines[:-1]):
        if line.strip() == title and set(lines[index + 1].strip()) == {"-"}:
            end = index + 2
            while end < len(lines) and not (end + 1 < len(lines) and re.fullmatch(r"\s*-{3,}\s*", lines[end + 1])):
                end += 1
            return index + 2, end
    return None


def before_napoleon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Take the prose of Returns away, which napoleon would read as types, and split entries of several names."""
    del app, what, name, obj, options
    for title in ("Returns", "Yields"):
        found = section(lines, title)
        if found:
            start, end = found
            _returns[id(lines)] = title.lower(), " ".join(line.strip() for line in lines[start:end]).strip()
            del lines[start - 2 : end]
    for title in ("Attributes", "Raises"):
        found = section(lines, title)
        if found:
            start, end = found
            lines[start:end] = _one_name_each(lines[start:end])


def after_napoleon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put the prose of Returns back, as a field."""
    del app, what, name, obj, options
    title, body = _returns.pop(id(lines), ("", ""))
    if body:
        # References and examples are no fields: what is told of the result stands before them.
        places = [index for index, line in enumerate(lines) if line.startswith(".. rubric::")]
        lines[min(places, default=len(lines)) : min(places, default=len(lines))] = ["", f":{title}: {body}", ""]


def _one_name_each(body: list[str]) -> list[str]:
    """``a, b`` above a text as two entries."""
    result: list[str] = []
    starts = [index for index, line in enumerate(body) if line.strip() and not line.startswith(" ")]
    for start, end in zip(starts, [*starts[1:], len(body)], strict=True):
        names, colon, kind = body[start].partition(" : ")
        for name in names.split(","):
            result += [f"{name.strip()}{colon}{kind}", *body[start + 1 : end]]
    return result


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element) -> nodes.Element | None:
    """A short or internal name as a link to the public one; what is not ours, or not public, as plain text."""
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"]).lstrip("~.")
    domain = env.domains.python_domain
    *owners, name = target.split(".")
    found = [known for known in domain.objects if known.split(".")[-1] == name]
    if owners and owners[-1][:1].isupper():
        found = [known for known in found if known.split(".")[-2] == owners[-1]]
    if found and target.split(".")[0] not in EXTERNAL:
        best = min(found, key=lambda known: (domain.objects[known].objtype in ("attribute", "method"), len(known)))
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", best, node, contnode)
    return contnode if target.split(".")[0] in EXTERNAL or _is_name(name) or not _is_class(target) else None


def _is_name(name: str) -> bool:
    """Whether something of this name is in the package, though not public."""
    ours = [module for key, module in sys.modules.items() if key.split(".")[0] == PACKAGE]
    classes = {item for module in ours for item in vars(module).values() if isinstance(item, type)}
    return any(hasattr(item, name) or name in getattr(item, "__annotations__", {}) for item in (*ours, *classes))


def _is_class(target: str) -> bool:
    """Whether a name may be meant for one of ours; shapes such as ``(n, 3)`` and plain words of types are not."""
    return re.fullmatch(r"[A-Za-z_]\w+(\.\w+)+|[A-Z]\w*[a-z]\w*", target) is not None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx, on both sides of napoleon (which has priority 500)."""
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    app.connect("missing-reference", resolve)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as the docstrings call them
    return {"parallel_read_safe": True, "parallel_write_safe": True}
