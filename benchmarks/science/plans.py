"""What a study does, read from its YAML file: the model, the data, and the cases with their options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, eq=False)
class Case:
    """One run of a study.

    Attributes
    ----------
    name
        In tables and pictures.
    options
        Of ``finetune()``; empty for the untouched model.
    group
        What a picture draws in one colour, joined by a line.
    frames
        Training frames, where they are not those of the study.
    seeds
        One run for each of them.
    fisher
        Curvature made for this case, see ``curvature.py``; the options' own if empty.
    averages
        Fractions of the way from the pretrained to the fine-tuned weights that are judged, too, with the first seed
        (WiSE-FT).
    start
        Name or file of a model other than that of the study.
    labelled
        Of a study on relaxations: labelled frames that come before the pairs, or in their place if the method does not
        train through relaxations. ``"minima"``: the DFT minima with forces and stress of zero; ``"trajectories"``.
    lora
        ``rank`` and ``alpha`` of low-rank terms that are trained in place of the weights, see ``lora.py``.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    frames: int | None = None
    seeds: Sequence[int] = (0,)
    fisher: dict[str, Any] = field(default_factory=dict)
    averages: Sequence[float] = ()
    start: str | None = None
    labelled: str = ""
    lora: dict[str, Any] = field(default_factory=dict)

    def result(self, seed: int) -> str:
        """Name of the file of its result, without suffix."""
        return f"{''.join(c if c.isalnum() or c in '.-+' else '-' for c in self.name)}-s{seed}"


@dataclass(frozen=True)
class Plan:
    """A study in one of its forms.

    Attributes
    ----------
    study, form
        Their names.
    title
        Of the picture.
    kind
        ``"frames"`` or ``"relaxations"``: what is trained on.
    model
        Pretrained model; ``"work:universal-mace"`` is trained here, see ``universal_mace.py``.
    train
        ``{"set": name, "frames": count}``, or pairs.
    judged
        Sets that every result is judged on, with the largest number of their frames (all if ``None``).
    options
        Options of ``finetune()`` that all cases share; a case's own go before.
    cases
        What is run, in this order.
    picture
        What is drawn, see ``pictures.py``.
    relaxed
        How held-out structures are relaxed (``fmax``, ``steps``, ``cell``), in a study on relaxations.
    """

    study: str
    form: str
    title: str
    kind: str
    model: str
    train: dict[str, Any]
    judged: dict[str, Any]
    options: dict[str, Any]
    cases: Sequence[Case]
    picture: dict[str, Any]
    relaxed: dict[str, Any] = field(default_factory=dict)

    def only(self, names: Sequence[str]) -> Plan:
        """With the named cases alone.

        Raises
        ------
        SystemExit
            If there is no such case.
        """
        known = [case.name for case in self.cases]
        for name in names:
            if name not in known:
                raise SystemExit(f"{self.study} has no case {name!r}; it has {', '.join(known)}")
        return replace(self, cases=[case for case in self.cases if case.name in names])


def studies() -> list[str]:
    """Names of all studies."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def read_plan(study: str, form: str) -> Plan:
    """The plan of a study: what its forms share, overlaid by ``forms: {form: ...}``."""
    content = yaml.safe_load((CONFIGS / f"{study}.yaml").read_text(encoding="utf-8"))
    forms = content.pop("forms")
    if form not in forms:
        raise SystemExit(f"{study} has no {form} form; it has {', '.join(forms)}")
    own = dict(forms[form])
    cases = [Case(**case) for case in own.pop("cases", content.pop("cases", []))]
    for name in ("train", "options", "judged", "picture"):
        own[name] = dict(content.pop(name, {})) | dict(own.get(name, {}))
    return Plan(study=study, form=form, cases=cases, **content, **own)
