"""What the drivers share: the behaviour of an ASE optimizer, and restart files."""

from __future__ import annotations

import io
import re

import ase.optimize
import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones
from ase.io import Trajectory, read
from ase.optimize.optimize import Optimizer

from ase_finetune.errors import InputError
from ase_finetune.optimize import FIRE, LBFGS, GradientDescent
from tests.optimize import runs
from tests.optimize.runs import STRUCTURES

DRIVERS = [GradientDescent, FIRE, LBFGS]


def prepared(name="cluster", **options):
    atoms = STRUCTURES[name].copy()
    atoms.calc = runs.calculator(**options)
    return atoms


def log_of(optimizer, **options):
    log = io.StringIO()
    driver = optimizer(prepared(), logfile=log, **options)
    assert isinstance(driver, Optimizer)
    converged = driver.run(fmax=0.2, steps=100)
    return re.sub(r"\d\d:\d\d:\d\d", "TIME", log.getvalue()), converged, driver.get_number_of_steps(), driver.todict()


@pytest.mark.parametrize("name", ["FIRE", "LBFGS"])
@pytest.mark.parametrize("differentiable", [False, True])
def test_log_result_and_description_are_those_of_ase(name, differentiable):
    ours = log_of({"FIRE": FIRE, "LBFGS": LBFGS}[name], differentiable=differentiable)
    theirs = log_of(getattr(ase.optimize, name))
    assert ours[0] == theirs[0]
    assert ours[1:3] == theirs[1:3]
    assert ours[1]
    assert ours[2] > 5
    for key in ("type", "optimizer", "restart", "maxstep", "max_steps", "fmax"):
        assert ours[3][key] == theirs[3][key]


@pytest.mark.parametrize("differentiable", [False, True])
def test_trajectory_holds_every_step_with_energies(tmp_path, differentiable):
    atoms = prepared()
    energies = []
    with FIRE(atoms, logfile=None, trajectory=tmp_path / "steps.traj", differentiable=differentiable) as driver:
        driver.attach(lambda: energies.append(atoms.get_potential_energy()))
        assert not driver.run(fmax=1e-6, steps=7)
    with Trajectory(tmp_path / "steps.traj") as frames:
        assert frames.description["optimizer"] == "FIRE"
        assert [frame.get_potential_energy() for frame in frames] == energies
        assert np.array_equal(frames[-1].positions, atoms.positions)
    assert len(energies) == 8


def test_trajectory_can_be_appended_to(tmp_path):
    atoms = prepared()
    LBFGS(atoms, logfile=None, trajectory=tmp_path / "a.traj").run(fmax=0, steps=3)
    LBFGS(atoms, logfile=None, trajectory=tmp_path / "a.traj", append_trajectory=True, loginterval=2).run(0, 4)
    assert len(read(tmp_path / "a.traj", ":")) == 4 + 2


def test_observers_have_their_intervals():
    seen = {1: [], 3: [], -2: []}
    driver = FIRE(prepared(), logfile=None)
    for interval, steps in seen.items():
        driver.attach(lambda steps=steps: steps.append(driver.nsteps), interval=interval)
    driver.run(fmax=0, steps=6)
    assert seen == {1: [0, 1, 2, 3, 4, 5, 6], 3: [0, 3, 6], -2: [2]}


def test_irun_yields_before_the_first_and_after_every_step():
    driver = LBFGS(prepared(), logfile=None)
    assert [bool(converged) for converged in driver.irun(fmax=0, steps=3)] == [False] * 4
    assert [bool(converged) for converged in driver.irun(fmax=1e9, steps=3)] == [True]
    assert driver.nsteps == 3


@pytest.mark.parametrize("optimizer", DRIVERS)
def test_a_second_run_goes_on(optimizer):
    parts, whole = prepared(skin=0.0), prepared(skin=0.0)
    driver = optimizer(parts, logfile=None)
    driver.run(fmax=0, steps=6)
    driver.run(fmax=0, steps=9)
    optimizer(whole, logfile=None).run(fmax=0, steps=15)
    assert np.array_equal(parts.positions, whole.positions)


@pytest.mark.parametrize("optimizer", DRIVERS)
@pytest.mark.parametrize(("structure", "wrap"), [("cluster", runs.same), ("strained", runs.cell_filter())])
@pytest.mark.parametrize("differentiable", [False, True])
def test_restarted_runs_go_on_bit_for_bit(tmp_path, optimizer, structure, wrap, differentiable):
    # Without a skin: a new calculator would list its neighbours, and so sum, in another order.
    atoms = prepared(structure, skin=0.0)
    files = {"restart": tmp_path / "state.json", "trajectory": tmp_path / "steps.traj", "logfile": None}
    optimizer(wrap(atoms), **files, differentiable=differentiable).run(fmax=0, steps=10)
    again = read(tmp_path / "steps.traj")
    again.calc = runs.calculator(skin=0.0)
    optimizer(wrap(again), **files, differentiable=differentiable).run(fmax=0, steps=10)
    whole = prepared(structure, skin=0.0)
    optimizer(wrap(whole), logfile=None).run(fmax=0, steps=20)
    assert np.array_equal(again.positions, whole.positions)
    assert np.array_equal(again.cell[:], whole.cell[:])


def test_restart_files_of_others_are_refused(tmp_path):
    path = tmp_path / "state.json"
    FIRE(prepared(), restart=path, logfile=None).run(fmax=0, steps=2)
    with pytest.raises(InputError, match=r"state.json is of the optimizer 'fire', not of 'lbfgs'"):
        LBFGS(prepared(), restart=path, logfile=None)
    with pytest.raises(InputError, match="with 5 rows of coordinates"):
        FIRE(prepared("small"), restart=path, logfile=None)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", '{"__ase_objtype__": "nothing"}'])
def test_broken_restart_files_are_refused(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"restart file .*state.json .*delete it"):
        FIRE(prepared(), restart=path, logfile=None)


def test_a_restart_file_of_ase_is_refused(tmp_path):
    path = tmp_path / "state.json"
    ase.optimize.FIRE(prepared(), restart=str(path), logfile=None).run(fmax=0, steps=2)
    with pytest.raises(InputError, match="was not written by this package"):
        FIRE(prepared(), restart=path, logfile=None)


class Broken(Calculator):
    """Forces that are not finite from the third evaluation on."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012
    count = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.count += 1
        forces = np.ones((len(self.atoms), 3))
        if self.count > 2:
            forces[1] = np.nan
        self.results = {"energy": 0.0, "forces": forces}


def test_forces_that_are_not_finite_stop_the_run():
    atoms = STRUCTURES["cluster"].copy()
    atoms.calc = Broken()
    with pytest.raises(InputError, match=r"after 2 steps of FIRE the forces on rows \[1\] are not finite"):
        FIRE(atoms, logfile=None).run(fmax=0.01, steps=10)
    assert np.isfinite(atoms.positions).all()


def test_gradients_need_the_differentiable_mode():
    driver = FIRE(prepared(), logfile=None)
    for name in ("positions", "cell", "energy", "start_positions", "path"):
        with pytest.raises(InputError, match=f"{name} carries gradients: make the optimizer with differentiable=True"):
            getattr(driver, name)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"differentiable": True, "gradient": "implicit"}, "'implicit'"),
        ({"differentiable": True, "gradient": "truncated"}, "window=None"),
        ({"differentiable": True, "window": 3}, "window belongs to gradient='truncated'"),
        ({"differentiable": True, "gradient": "truncated", "window": 0}, "at least one step"),
        ({"gradient": "unrolled"}, "options of differentiable=True"),
    ],
)
def test_gradient_options_that_do_not_fit(options, culprit):
    with pytest.raises(InputError, match=culprit):
        FIRE(prepared(), logfile=None, **options)


def test_the_calculator_must_be_differentiable():
    atoms = STRUCTURES["cluster"].copy()
    with pytest.raises(InputError, match="needs a FinetunedCalculator, the atoms have no calculator"):
        FIRE(atoms, logfile=None, differentiable=True)
    atoms.calc = LennardJones()
    with pytest.raises(InputError, match=r"this is LennardJones; set atoms\.calc = FinetunedCalculator"):
        FIRE(atoms, logfile=None, differentiable=True)
