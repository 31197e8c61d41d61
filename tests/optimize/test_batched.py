"""relax() against ASE's optimizers, one structure at a time, on the Morse potential."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixCartesian
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE, LBFGS
from tqdm import tqdm

from ase_finetune.optimize import FIREStep, relax
from ase_finetune.optimize.cell import CellOptions
from tests import morse
from tests.optimize.runs import calculator, cluster, small_cell, strained

ASE = {"fire": (FIRE, {}), "lbfgs": (LBFGS, {"memory": 6})}
FMAX = 0.02
# LBFGS amplifies rounding where it jumps between basins: 1e-14 Å becomes 1e-2 Å within 80 steps.
STEPS = {"fire": 100, "lbfgs": 30}


def crystals():
    """Crystals of 1 to 8 atoms that need different numbers of steps; the first is converged at once."""
    single = bulk("Si", a=3.5)
    start = [single, small_cell(0), morse.oxide(1, 1)[0], strained(2), small_cell(1), strained(4)]
    fixed = strained(3)
    fixed.set_constraint(FixAtoms([0, 5]))
    single.info["name"] = "single"
    return [*start, fixed]


def mixed():
    """Crystals, a slab, molecules and a lone atom."""
    slab = bulk("Si", "fcc", a=3.6, cubic=True) * (1, 1, 2)
    slab.pbc = (True, True, False)
    slab.cell[2] = 0.0
    slab.positions += np.random.default_rng(0).normal(scale=0.1, size=(8, 3))
    slab.set_constraint(FixAtoms([0, 1]))
    partly = cluster(3)
    partly.set_constraint([FixCartesian(1, mask=(True, False, True)), FixAtoms([2])])
    return [cluster(0), *crystals(), slab, Atoms("O", positions=[(1.0, 2.0, 3.0)]), partly]


def ase_run(atoms, optimizer, cell, steps):
    """Final atoms, number of steps and whether it has converged, with ASE's own optimizer."""
    atoms = atoms.copy()
    atoms.calc = calculator()
    made, options = ASE[optimizer]
    driver = made(FrechetCellFilter(atoms) if cell else atoms, logfile=None, **options)
    return atoms, bool(driver.run(fmax=FMAX, steps=steps)), driver.nsteps


@pytest.fixture(scope="module", params=[("fire", True), ("lbfgs", True), ("fire", False), ("lbfgs", False)], ids=str)
def reference(request):
    optimizer, cell = request.param
    start = crystals() if cell else mixed()
    return optimizer, cell, start, [ase_run(atoms, optimizer, cell, STEPS[optimizer]) for atoms in start]


# One structure at a time, a few that leave and join at different times, all together.
@pytest.mark.parametrize("max_edges", [1, 1200, 100_000])
def test_equals_ase_structure_by_structure(reference, max_edges):
    optimizer, cell, start, expected = reference
    before = [atoms.copy() for atoms in start]
    options = {"fmax": FMAX, "steps": STEPS[optimizer], "max_edges": max_edges, **ASE[optimizer][1]}
    results = relax(start, calculator(), optimizer, cell=cell, **options)
    assert len(results) == len(start)
    assert len({result.steps for result in results}) > 2
    for result, (atoms, converged, steps) in zip(results, expected, strict=True):
        assert result.failure is None
        assert result.converged == converged
        assert result.steps == steps
        assert (result.atoms.numbers == atoms.numbers).all()
        np.testing.assert_allclose(result.atoms.positions, atoms.positions, rtol=0, atol=1e-7)
        np.testing.assert_allclose(result.atoms.cell[:], atoms.cell[:], rtol=0, atol=1e-7)
        assert result.atoms.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        if not cell:
            assert result.fmax == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max(), abs=1e-7)
    for atoms, original in zip(start, before, strict=True):
        assert atoms == original
        assert atoms.calc is None


def test_results_carry_what_the_calculator_gives_there():
    calc = calculator()
    for cell, start in ((False, mixed()), (True, crystals())):
        for result, atoms in zip(relax(start, calc, cell=cell, fmax=FMAX, steps=7), start, strict=True):
            final = result.atoms
            fresh = final.copy()
            fresh.calc = calc
            assert final.info == atoms.info
            assert (final.pbc == atoms.pbc).all()
            assert final.get_potential_energy() == pytest.approx(fresh.get_potential_energy(), abs=1e-10)
            assert final.get_potential_energies() == pytest.approx(fresh.get_potential_energies(), abs=1e-10)
            np.testing.assert_allclose(final.get_forces(), fresh.get_forces(), atol=1e-10)
            raw = final.get_forces(apply_constraint=False)
            np.testing.assert_allclose(raw, fresh.get_forces(apply_constraint=False), atol=1e-10)
            if final.cell.rank == 3:
                np.testing.assert_allclose(final.get_stress(), fresh.get_stress(), atol=1e-10)


def test_fixed_atoms_stay_in_single_precision_too():
    atoms = strained()
    atoms.set_constraint(FixAtoms([1, 4]))
    (result,) = relax([atoms], calculator_single(), fmax=0.05, steps=30)
    assert result.steps > 3
    assert (result.atoms.positions[[1, 4]] == atoms.positions[[1, 4]]).all()
    assert np.abs(result.atoms.positions[0] - atoms.positions[0]).max() > 0.01
    assert (result.atoms.cell[:] == atoms.cell[:]).all()


def calculator_single():
    from ase_finetune import FinetunedCalculator

    return FinetunedCalculator(morse.pretrained(), device="cpu", dtype="float32")


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_options_of_the_cell(optimizer):
    start = [strained(0), strained(1), small_cell(0)]
    options = {"mask": (1, 1, 0, 0, 0, 1), "scalar_pressure": 0.02}
    results = relax(start, calculator(), optimizer, cell=CellOptions(**options), fmax=FMAX, steps=40)
    for result, atoms in zip(results, start, strict=True):
        expected = atoms.copy()
        expected.calc = calculator()
        mask = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]])
        filtered = FrechetCellFilter(expected, mask=mask, scalar_pressure=0.02)
        {"fire": FIRE, "lbfgs": LBFGS}[optimizer](filtered, logfile=None).run(fmax=FMAX, steps=40)
        np.testing.assert_allclose(result.atoms.positions, expected.positions, atol=1e-6)
        np.testing.assert_allclose(result.atoms.cell[:], expected.cell[:], atol=1e-6)


def test_names_methods_and_their_options_are_one():
    start = [small_cell(0), cluster()]
    by_name = relax(start, calculator(), "fire", fmax=FMAX, steps=12, dt=0.2, maxstep=0.1)
    by_step = relax(start, calculator(), FIREStep(dt=0.2, maxstep=0.1), fmax=FMAX, steps=12)
    default = relax(start, calculator(), fmax=FMAX, steps=12)
    for one, two, other in zip(by_name, by_step, default, strict=True):
        assert (one.atoms.positions == two.atoms.positions).all()
        assert not np.allclose(one.atoms.positions, other.atoms.positions, atol=1e-3)


def test_more_structures_than_one_batch_come_back_in_order():
    start = [a for seed in range(6) for a in (cluster(seed), small_cell(seed), strained(seed))]
    alone = [relax([atoms], calculator(), "lbfgs", fmax=0.1, steps=25)[0] for atoms in start]
    together = relax(start, calculator(), "lbfgs", fmax=0.1, steps=25, max_edges=900)
    for one, two in zip(alone, together, strict=True):
        assert (one.steps, one.converged) == (two.steps, two.converged)
        np.testing.assert_allclose(one.atoms.positions, two.atoms.positions, atol=1e-8)


def test_nothing_to_do():
    assert relax([], calculator()) == []


def test_no_steps_is_an_evaluation():
    atoms = strained()
    (result,) = relax([atoms], calculator(), cell=True, fmax=1e-3, steps=0)
    assert (result.steps, result.converged) == (0, False)
    assert (result.atoms.positions == atoms.positions).all()
    expected = calculator().get_potential_energy(atoms)
    assert result.atoms.get_potential_energy() == pytest.approx(expected, abs=1e-10)


def test_the_progress_bar(capfd, monkeypatch):
    # It counts at once, not only every tenth of a second.
    monkeypatch.setattr("ase_finetune.optimize.batched.tqdm", functools.partial(tqdm, mininterval=0))
    for progress in (False, None):  # None shows it on terminals, and this is none
        relax([cluster()], calculator(), fmax=0.1, steps=3, progress=progress)
        assert capfd.readouterr().err == ""
    relax([cluster(), small_cell()], calculator(), fmax=0.1, steps=3, progress=True)
    shown = capfd.readouterr().err
    assert "relax" in shown
    assert all(f"{k}/2" in shown for k in range(3))
