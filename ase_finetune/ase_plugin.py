"""What ASE finds under the ``ase.plugins`` entry point: the calculator under the name "finetuned".

ASE loads this module for ``ase info --plugins`` (since 3.29) and asks it for ``__ase_plugins__``. That
interface is marked as unstable, so nothing else of the package depends on it. :func:`register` makes
``ase.calculators.calculator.get_calculator_class("finetuned")`` work, in every version.
"""

from __future__ import annotations

from typing import Any

from ase.calculators import calculator as _ase

from ase_finetune.calculator import FinetunedCalculator

NAME = "finetuned"
CITATION = "ase_finetune: fine-tuned interatomic potentials in ASE"


def register() -> None:
    """Tell ASE the calculator's name, unless it is taken: ASE refuses a second one with an AssertionError."""
    if NAME not in _ase.external_calculators:
        _ase.register_calculator_class(NAME, FinetunedCalculator)


def __getattr__(name: str) -> Any:
    # Made on request: importing ASE's plugin module at the top would make it load all plugins, this
    # unfinished module among them, and find nothing here.
    if name != "__ase_plugins__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ase._4.plugins.plugin import CalculatorPlugin
    except ImportError:  # ASE before 3.29, or after a change of its unstable interface
        return frozenset()
    plugin = CalculatorPlugin(NAME, citation=CITATION, implementation="ase_finetune.calculator.FinetunedCalculator")
    # The import above may have come back here: the first plugin made is the one to keep.
    return globals().setdefault(name, frozenset({plugin}))
