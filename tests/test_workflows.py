"""The lines of docs/workflows.md, in the tools that are installed here; the others are skipped."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import get_calculator_class
from ase.io import read, write
from ase.units import GPa

from ase_finetune import FinetunedCalculator
from ase_finetune.analysis import validate
from ase_finetune.potentials import MorsePotential

pytestmark = pytest.mark.filterwarnings("ignore")  # of the tools and all that is below them


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder as ``calc.save`` writes it."""
    path = tmp_path / "model"
    FinetunedCalculator(MorsePotential(cutoff=4.0).double(), dtype="float64", device="cpu").save(path)
    return str(path)


@pytest.fixture
def crystal() -> Atoms:
    return bulk("Si", "fcc", a=3.3)


def relaxed(model: str, crystal: Atoms) -> Atoms:
    """What our own check makes of it, to compare with."""
    found = validate(calculator(model), crystal, checks=["equilibrium"]).result("equilibrium")
    atoms = crystal.copy()
    volume = found.quantity("volume per atom").value * len(atoms)
    atoms.set_cell(atoms.cell[:] * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    atoms.calc = calculator(model)
    return atoms


def calculator(model: str) -> FinetunedCalculator:
    return FinetunedCalculator(model, dtype="float64", device="cpu")


def tool(name: str) -> Any:
    """A tool, or a skipped test where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"needs {name}: see docs/workflows.md")


def test_ase_finds_the_calculator_by_name(model, crystal):
    crystal.calc = get_calculator_class("finetuned")(model=model, dtype="float64")
    assert np.isfinite(crystal.get_potential_energy())


@pytest.mark.slow
def test_command_line_of_ase(model, crystal, tmp_path):
    write(tmp_path / "si.xyz", crystal)
    code = "import ase_finetune; from ase.cli.main import main; main()"
    options = ["run", "finetuned", "si.xyz", "-p", f"model={model},dtype=float64", "-s", "0.01", "-o", "out.json"]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "ignore", "-c", code, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "si.traj")
    assert found.get_potential_energy() == pytest.approx(relaxed(model, crystal).get_potential_energy(), abs=1e-4)


def test_phonopy(model, crystal):
    phonopy = tool("phonopy")
    atoms = importlib.import_module("phonopy.structure.atoms").PhonopyAtoms
    start = relaxed(model, crystal)
    cell = atoms(symbols=start.symbols, cell=start.cell[:], scaled_positions=start.get_scaled_positions())
    phonons = phonopy.Phonopy(cell, supercell_matrix=[2, 2, 2], primitive_matrix="P")
    phonons.generate_displacements(distance=0.01)
    structures = [Atoms(c.symbols, cell=c.cell, scaled_positions=c.scaled_positions, pbc=True)
                  for c in phonons.supercells_with_displacements]  # fmt: skip
    phonons.forces = [result["forces"] for result in calculator(model).calculate_many(structures)]
    phonons.produce_force_constants()
    phonons.run_mesh([4, 4, 4])
    assert 1 < phonons.mesh.frequencies.max() < 50


def test_matcalc(model, crystal):
    matcalc = tool("matcalc")
    found = matcalc.ElasticityCalc(calculator(model), fmax=0.005).calc(crystal)
    ours = validate(calculator(model), crystal, checks=["elastic constants"]).result("elastic constants")
    assert found["bulk_modulus_vrh"] / GPa == pytest.approx(ours.quantity("bulk modulus (Hill)").value, rel=0.03)


def test_quacc(model, crystal, tmp_path, monkeypatch):
    tool("quacc")
    monkeypatch.chdir(tmp_path)
    job = importlib.import_module("quacc").job
    runner = importlib.import_module("quacc.runners.ase").Runner
    summarize = importlib.import_module("quacc.schemas.ase").Summarize

    @job
    def relax_job(atoms: Atoms, model: str, **options: Any) -> Any:
        calc = FinetunedCalculator(model, **options)
        run = runner(atoms, calc).run_opt(relax_cell=True, fmax=0.01)
        return summarize(additional_fields={"name": "ase_finetune relax"}).opt(run)

    found = relax_job(crystal, model, dtype="float64")
    assert found["converged"]
    assert found["results"]["energy"] == pytest.approx(relaxed(model, crystal).get_potential_energy(), abs=1e-3)


def test_atomate2(model, crystal, tmp_path, monkeypatch):
    tool("atomate2")
    monkeypatch.chdir(tmp_path)
    maker = importlib.import_module("atomate2.forcefields.jobs").ForceFieldRelaxMaker(
        force_field_name={"@module": "ase_finetune.calculator", "@callable": "FinetunedCalculator"},
        calculator_kwargs={"model": model, "dtype": "float64"},
        relax_kwargs={"fmax": 0.01},
    )
    adaptor = importlib.import_module("pymatgen.io.ase").AseAtomsAdaptor
    job = maker.make(adaptor.get_structure(crystal))
    responses = importlib.import_module("jobflow").run_locally(job, create_folders=True)
    found = responses[job.uuid][1].output
    assert found.ase_calculator_name == "FinetunedCalculator"
    assert found.output.energy == pytest.approx(relaxed(model, crystal).get_potential_energy(), abs=1e-3)


def test_janus(model, crystal, tmp_path, monkeypatch):
    tool("janus_core")
    monkeypatch.chdir(tmp_path)
    optimization = importlib.import_module("janus_core.calculations.geom_opt").GeomOpt
    expected = relaxed(model, crystal).get_potential_energy()
    crystal.calc = calculator(model)
    optimization(struct=crystal, fmax=0.01).run()
    assert crystal.get_potential_energy() == pytest.approx(expected, abs=1e-3)
