"""All checks in one call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorSetupError, PropertyNotImplementedError
from ase.io import read
from tqdm import tqdm

from ase_finetune.analysis.validation.crystal import EquationOfState, Equilibrium
from ase_finetune.analysis.validation.defects import Vacancy
from ase_finetune.analysis.validation.diffusion import Diffusion
from ase_finetune.analysis.validation.dimers import Dimers
from ase_finetune.analysis.validation.elasticity import ElasticConstants
from ase_finetune.analysis.validation.lattice_dynamics import Phonons
from ase_finetune.analysis.validation.material import CheckFailedError, Material, NotApplicableError, attached
from ase_finetune.analysis.validation.reference_crystals import reference_crystals
from ase_finetune.analysis.validation.results import CheckResult, Findings
from ase_finetune.analysis.validation.summary import Validation
from ase_finetune.errors import BackendNotInstalledError, InputError, NotFiniteError, SimulationError
from ase_finetune.graphs import check_atoms

Check = Equilibrium | EquationOfState | ElasticConstants | Phonons | Vacancy | Diffusion | Dimers

#: In the order they are made.
CHECKS: dict[str, type[Check]] = {
    check.name: check for check in (Equilibrium, EquationOfState, ElasticConstants, Phonons, Vacancy, Diffusion, Dimers)
}


def validate(
    calc: Calculator,
    structures: Atoms | Sequence[Atoms] | str | os.PathLike[str] | None = None,
    *,
    against: Calculator | None = None,
    checks: Sequence[str | Check] | None = None,
    progress: bool | None = None,
) -> Validation:
    """Ask a calculator for the physics of some crystals, and another one for comparison.

    Each structure is relaxed first, by each calculator to its own minimum; what is checked is what the calculator
    takes for the crystal. Equal arguments give equal results.

    Parameters
    ----------
    calc
        Any ASE calculator. float64 is recommended: what its numerical noise hides is said.
    structures
        Crystals (or molecules, of which less can be checked), or a file of some: best those that you know. ``None``
        takes the elements as crystals, which a fine-tuned calculator has met in training, three at most.
    against
        Usually the pretrained calculator: its numbers stand beside, as "before".
    checks
        Names out of ``"equilibrium"``, ``"equation of state"``, ``"elastic constants"``, ``"phonons"``, ``"vacancy"``,
        ``"diffusion"``, ``"dimers"``, or checks with other options than the usual ones, such as
        ``Diffusion(picoseconds=50)``. ``None`` is all of them.
    progress
        Show a progress bar; ``None`` does on terminals.

    Returns
    -------
    Results with their verdicts; ``print`` shows them as a table. Physics that goes wrong in a check (what explodes,
    collapses, or is not finite) is its result and does not stop the others. What is no fault of the potential, such
    as a full memory, is raised.

    Raises
    ------
    InputError
        If there is no structure or no such check, or a structure cannot be evaluated, for example because of an
        element that the calculator does not know: before any check is made.
    BackendNotInstalledError
        If phonons were asked for by name and phonopy is not installed: before any check is made.
    """
    chosen = _checks(checks)
    given, elements = _structures(structures, calc)
    calculators = [calc] if against is None else [against, calc]
    alone = [check for check in chosen if isinstance(check, Dimers)]
    total = len(calculators) * (len(given) * sum(c.cost for c in chosen if c not in alone) + sum(c.cost for c in alone))
    hidden = None if progress is None else not progress
    strict = checks is not None
    if strict and any(isinstance(check, Phonons) for check in chosen):
        Phonons.require_phonopy()
    for calculator in calculators:
        _try(calculator, given, elements if alone else ())
    with tqdm(total=total, desc="validate", leave=False, disable=hidden, bar_format=_BAR) as bar:
        found = []
        for calculator in calculators:
            results = [r for name, atoms in given for r in _material(calculator, name, atoms, chosen, bar, strict)]
            results += [_pairs(calculator, check, elements, bar) for check in alone]
            found.append(results)
    return Validation(found[-1], None if against is None else found[0])


#: Without counts, which are no number of anything here.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"


def _material(
    calc: Calculator, name: str, atoms: Atoms, checks: Sequence[Check], bar: tqdm[Any], strict: bool
) -> Iterator[CheckResult]:
    """Relax a structure and make all checks of it."""
    wanted = [check for check in checks if not isinstance(check, Dimers)]
    if not wanted:
        return
    made: list[Material] = []
    bar.set_postfix_str(f"{name}, relaxation")

    def relax() -> Findings:
        made.append(Material.of(atoms, calc, name))
        return Findings([])

    begun = _attempt("equilibrium", name, relax, strict)
    if not made:
        yield begun
        bar.update(sum(check.cost for check in wanted))
        return
    for check in wanted:
        bar.set_postfix_str(f"{name}, {check.name}")
        yield _attempt(check.name, name, lambda check=check: check.run(made[0]), strict)  # type: ignore[misc]
        bar.update(check.cost)


def _pairs(calc: Calculator, check: Dimers, elements: Sequence[str], bar: tqdm[Any]) -> CheckResult:
    bar.set_postfix_str(check.name)
    result = _attempt(check.name, "pairs of elements", lambda: check.run(calc, elements), strict=True)
    bar.update(check.cost)
    return result


def _attempt(check: str, structure: str, work: Callable[[], Findings], strict: bool) -> CheckResult:
    """Make a check; what the potential has run into is its result, all else is raised."""
    start = time.perf_counter()

    def result(**values: Any) -> CheckResult:
        return CheckResult(check, structure, seconds=time.perf_counter() - start, **values)

    try:
        with np.errstate(all="ignore"):  # what is not finite is reported as that
            findings = work()
    except BackendNotInstalledError as error:
        if strict:
            raise
        return result(not_applicable=str(error))
    except (NotApplicableError, PropertyNotImplementedError) as error:
        return result(not_applicable=str(error) or "the calculator does not give what it needs")
    except (CheckFailedError, SimulationError, NotFiniteError) as error:
        return result(failure=str(error))
    except (ArithmeticError, np.linalg.LinAlgError) as error:  # of numbers that are zero, huge or not finite
        return result(failure=f"{type(error).__name__}: {error}")
    return result(quantities=findings.quantities, note=findings.note, normal=findings.normal)


def _try(calc: Calculator, structures: Sequence[tuple[str, Atoms]], elements: Sequence[str]) -> None:
    """Evaluate all structures once, and a lone atom of each further element, to know now what cannot be evaluated."""
    present = {symbol for _, atoms in structures for symbol in atoms.get_chemical_symbols()}
    alone = [(symbol, Atoms(symbol)) for symbol in elements if symbol not in present]
    for name, atoms in [*structures, *alone]:
        copy = attached(atoms, calc)
        try:
            with np.errstate(all="ignore"):  # numbers that are not finite are for the checks to report
                copy.get_potential_energy()
        except (InputError, NotImplementedError, KeyError, CalculatorSetupError) as error:
            raise InputError(f"{name} cannot be evaluated by {type(calc).__name__}: {error}") from error
        except (ArithmeticError, np.linalg.LinAlgError):
            continue  # as well


def _checks(checks: Sequence[str | Check] | None) -> list[Check]:
    if isinstance(checks, str):
        raise InputError(f"checks must be a list; for one write checks=[{checks!r}]")
    found: list[Check] = []
    for item in CHECKS if checks is None else checks:
        if not isinstance(item, str):
            found.append(item)
        elif item in CHECKS:
            found.append(CHECKS[item]())
        else:
            raise InputError(f"there is no check {item!r}; there are {', '.join(map(repr, CHECKS))}")
    if not found:
        raise InputError("the list of checks is empty")
    return found


def _structures(
    structures: Atoms | Sequence[Atoms] | str | os.PathLike[str] | None, calc: Calculator
) -> tuple[list[tuple[str, Atoms]], list[str]]:
    """Structures under their names, and the elements whose pairs are of interest."""
    if structures is None:
        return reference_crystals(calc)
    chosen: list[Atoms]
    if isinstance(structures, (str, os.PathLike)):
        chosen = _read(structures)
    else:
        chosen = [structures] if isinstance(structures, Atoms) else list(structures)
    if not chosen:
        raise InputError("the list of structures is empty")
    for index, atoms in enumerate(chosen):
        try:
            check_atoms(atoms)
        except InputError as error:
            raise InputError(f"structure {index}: {error}") from error
    elements = sorted({symbol for atoms in chosen for symbol in atoms.get_chemical_symbols()})
    return list(zip(_names(chosen), chosen, strict=True)), elements


def _read(path: str | os.PathLike[str]) -> list[Atoms]:
    try:
        return list(read(path, index=":"))
    except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
        raise InputError(f"no structures can be read from {path}: {error}") from error


def _names(structures: Sequence[Atoms]) -> list[str]:
    """Formulas; numbered where several are alike."""
    formulas = [atoms.get_chemical_formula("metal", empirical=True) for atoms in structures]
    return [
        name if formulas.count(name) == 1 else f"{name} #{formulas[: index + 1].count(name)}"
        for index, name in enumerate(formulas)
    ]
