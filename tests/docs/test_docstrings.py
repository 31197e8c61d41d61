"""Every public name has a docstring that names its arguments, what it returns and what it raises."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ase_finetune
from ase_finetune import errors
from tests.docs.pages import ROOT

ROOMS = sorted(
    ["ase_finetune"] + [f"ase_finetune.{path.parent.name}" for path in (ROOT / "ase_finetune").glob("*/__init__.py")]
)
#: Errors that a caller is to know of; a class also stands for those derived from it.
OURS = {name: item for name, item in vars(errors).items() if isinstance(item, type)}
#: First words of a summary that says what is done, not what is returned.
IMPERATIVES = frozenset(
    "Add Apply Attach Build Call Check Compute Copy Cut Estimate Evaluate Export Find Fine-tune Fit Give Join Keep "
    "Label List Load Make Mark Measure Merge Put Raise Read Relax Remove Run Save Select Sort Split Take Tell Train "
    "Update Write".split()
)


def public() -> Iterator[tuple[str, Any]]:
    """Functions and classes of the rooms, and the methods and properties of the classes, by where they are defined."""
    found: dict[str, Any] = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in getattr(module, "__all__", ()):
            item = getattr(module, name)
            if inspect.isfunction(item) or inspect.isclass(item):
                found[f"{item.__module__}.{item.__qualname__}"] = item
    yield from sorted(found.items())
    for name, item in sorted(found.items()):
        if inspect.isclass(item):
            for key, member in vars(item).items():
                plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                if not key.startswith("_") and (inspect.isfunction(plain) or isinstance(plain, property)):
                    yield f"{name}.{key}", plain


PUBLIC = dict(public())
FUNCTIONS = {name: item for name, item in PUBLIC.items() if inspect.isfunction(item)}


def sections(text: str) -> dict[str, str]:
    """The sections of a docstring by their titles; what is before them has none."""
    parts = re.split(r"^(\w+)\n-{3,}\n", inspect.cleandoc(text), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(body: str) -> dict[str, str]:
    """The entries of a section by name; ``a, b : shape`` stands for two."""
    found: dict[str, str] = {}
    for part in re.split(r"\n(?=\S)", body.strip("\n")):
        head, _, text = part.partition("\n")
        names, _, kind = head.partition(" : ")
        found |= {name.strip().lstrip("*"): f"{kind} {text}" for name in names.split(",")}
    return found


def inherited(item: Any) -> bool:
    """Whether a method is told of where it is first defined."""
    owner = PUBLIC.get(f"{item.__module__}.{item.__qualname__}".rpartition(".")[0])
    return inspect.isclass(owner) and any(hasattr(base, item.__name__) for base in owner.__mro__[1:-1])


def arguments(item: Any) -> list[str]:
    """Names of the arguments of a function, or of the construction of a class."""
    if inspect.isclass(item) and dataclasses.is_dataclass(item):
        return [field.name for field in dataclasses.fields(item) if field.init and not field.name.startswith("_")]
    if inspect.isclass(item) and (issubclass(item, BaseException) or "__init__" not in vars(item)):
        return []
    signature = inspect.signature(item.__init__ if inspect.isclass(item) else item)
    return [name for name in signature.parameters if name not in ("self", "cls") and not name.startswith("_")]


def raised(function: Callable[..., Any]) -> set[str]:
    """Errors of ours that the function itself raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)} & set(
        OURS
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_there_is_a_docstring(name):
    item = PUBLIC[name]
    target = item.fget if isinstance(item, property) else item
    assert item.__doc__ or inherited(target), name


@pytest.mark.parametrize("name", [name for name, item in PUBLIC.items() if not isinstance(item, property)])
def test_arguments_are_told(name):
    item = PUBLIC[name]
    text = item.__doc__
    if text is None:
        assert inherited(item)
        return
    found = sections(text)
    told = entries(found.get("Parameters", "")) | entries(found.get("Attributes", ""))
    # A short docstring may tell of an argument in its sentence.
    missing = [key for key in arguments(item) if key not in told and f"``{key}``" not in text]
    assert not missing, f"{name} does not tell of {', '.join(missing)}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_told(name):
    function = FUNCTIONS[name]
    if not function.__doc__:
        return
    result = inspect.signature(function).return_annotation
    if str(result) in ("None", "NoReturn") or str(result).startswith(("Iterator", "Generator")):
        return
    found = sections(function.__doc__)
    summary = found[""].strip().splitlines()[0]
    assert "Returns" in found or "Yields" in found or summary.split()[0] not in IMPERATIVES, f"{name}: {summary}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_told(name):
    function = FUNCTIONS[name]
    if not function.__doc__:
        return
    found = sections(function.__doc__).get("Raises", "") + sections(function.__doc__)[""]
    told = [item for key, item in OURS.items() if re.search(rf"\b{key}\b", found)]
    missing = {key for key in raised(function) if not issubclass(OURS[key], tuple(told))}
    assert not missing, f"{name} raises {', '.join(missing)}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensors_have_shapes(name):
    function = FUNCTIONS[name]
    found = sections(function.__doc__ or "")
    told = entries(found.get("Parameters", ""))
    for key, parameter in inspect.signature(function).parameters.items():
        if str(parameter.annotation) == "Tensor" and key in told:
            assert re.search(r"\([\w\d, .]*\)|\(\)|without dimensions", told[key]), f"{name}: shape of {key}"


def test_rooms_are_found():
    assert "ase_finetune.optimize" in ROOMS
    assert "ase_finetune.finetuning.api.finetune" in FUNCTIONS
    assert ase_finetune.__all__
