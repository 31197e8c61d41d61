"""Fine-tuned models in the programs they are exported for: sevenn's and mace's own calculators and LAMMPS commands.

The commands run as a user runs them, in a process of their own; what they write is loaded and evaluated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import chemical_symbols

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.imports import import_backend, unchanged_environment
from ase_finetune.potentials.mace import MACEPotential
from tests.morse import labelled, silicon
from tests.pretrained import sevennet_calculator

pytestmark = pytest.mark.slow

#: What their commands warn about is theirs.
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def tuned(potential: Any) -> FinetunedCalculator:
    """A model whose weights a fine-tuning has changed."""
    frames = labelled(silicon(4, 0))
    before = [value.clone() for value in potential.parameters()]
    options = {"method": "naive", "epochs": 1, "batch_size": 2, "device": "cpu", "verbose": False}
    calc = finetune(potential, frames, None, replay=labelled(silicon(3, 9)), **options)
    assert any(not torch.equal(old, new) for old, new in zip(before, calc.potential.native.parameters(), strict=True))
    return calc


def structure() -> Atoms:
    (atoms,) = silicon(1, 7)
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.02 * np.eye(3, k=1)), scale_atoms=True)
    return atoms


def expected(calc: FinetunedCalculator) -> dict[str, Any]:
    return calc.calculate_many([structure()])[0]


def run(folder: Path, command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment the tests run in."""
    program = Path(sys.executable).parent / command
    if not program.exists():
        pytest.skip(f"{command} is not beside {Path(sys.executable).name}")
    return subprocess.run(  # noqa: S603
        [str(program), *arguments],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def load_script(path: Path) -> tuple[Any, dict[str, str]]:
    """A TorchScript file and the texts that sevenn keeps in it."""
    extra = {"chemical_symbols_to_index": "", "cutoff": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(path), _extra_files=extra)
    return module, {name: value.decode() if isinstance(value, bytes) else value for name, value in extra.items()}


@pytest.fixture(scope="module")
def sevennet(tiny_sevennet: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with ``mine.pth``, and the calculator it was exported from."""
    folder = tmp_path_factory.mktemp("sevennet")
    calc = tuned(tiny_sevennet())
    calc.export(folder / "mine.pth")
    return folder, calc


@pytest.fixture(scope="module")
def mace(tiny_mace: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with ``mine.model``, and the calculator it was exported from."""
    folder = tmp_path_factory.mktemp("mace")
    calc = tuned(MACEPotential(tiny_mace()))
    calc.potential.double()  # MACE's calculator is compared in double precision
    calc.export(folder / "mine.model")
    return folder, calc


@pytest.fixture(scope="module")
def mace_calculator(mace: Any) -> Any:
    """MACE's calculator of the exported file; it loads with torch's safe loader off, as ``import mace`` does."""
    folder, _ = mace
    module = import_backend("mace.calculators", "mace-torch")
    with unchanged_environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        return module.MACECalculator(
            model_paths=folder / "mine.model", device="cpu", default_dtype="float64", head="Default"
        )


@pytest.mark.sevenn
class TestSevenNet:
    def test_its_calculator_finds_the_same(self, sevennet):
        folder, calc = sevennet
        atoms = structure()
        atoms.calc = sevennet_calculator(folder / "mine.pth")
        ours = expected(calc)
        assert atoms.get_potential_energy() == pytest.approx(ours["energy"], abs=1e-5)
        assert np.abs(atoms.get_forces() - ours["forces"]).max() < 1e-5
        assert np.abs(atoms.get_stress() - ours["stress"]).max() < 1e-6

    def test_the_model_for_lammps_finds_the_same(self, sevennet):
        folder, calc = sevennet
        # e3nn 0.4 does not import on torch >= 2.6 otherwise: a user of LAMMPS needs this variable, too.
        old = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"} if version("e3nn").startswith("0.4.") else {}
        done = run(folder, "sevenn_get_model", "mine.pth", "-o", "serial", **old)
        assert done.returncode == 0, done.stderr
        module, extra = load_script(folder / "serial.pt")
        energy, forces, stress = evaluate_as_lammps(module, as_lammps_gives_it(structure(), extra))
        ours = expected(calc)
        assert energy == pytest.approx(ours["energy"], abs=1e-5)
        assert np.abs(forces - ours["forces"]).max() < 1e-5
        assert np.abs(stress - ours["stress"]).max() < 1e-6

    def test_the_parallel_model_for_lammps_is_made(self, sevennet):
        folder, calc = sevennet
        old = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"} if version("e3nn").startswith("0.4.") else {}
        done = run(folder, "sevenn_get_model", "mine.pth", "-p", "-o", "parallel", **old)
        assert done.returncode == 0, done.stderr
        files = sorted((folder / "parallel").glob("deployed_parallel_*.pt"))
        extras = [load_script(file)[1] for file in files]
        elements = [chemical_symbols[z] for z in calc.potential.numbers]
        assert len(extras) == 2, "one for each convolution"
        assert [extra["chemical_symbols_to_index"].split() for extra in extras] == [elements, elements]
        assert [float(extra["cutoff"]) for extra in extras] == [calc.potential.cutoff] * 2

    def test_without_the_variable_the_command_says_why(self, sevennet):
        if not version("e3nn").startswith("0.4."):
            pytest.skip("newer e3nn imports on every torch")
        folder, _ = sevennet
        done = run(folder, "sevenn_get_model", "mine.pth", "-o", "refused")
        assert done.returncode != 0
        assert "weights_only" in done.stderr, "the variable in docs/workflows.md may not be needed any more"


def evaluate_as_lammps(module: Any, data: dict[str, torch.Tensor]) -> tuple[float, Any, Any]:
    """Energy, forces and stress in ASE's sign and order, as sevenn's pair style gets them from the model."""
    found = module(data)
    energy = found["inferred_total_energy"]
    if "inferred_force" in found:
        stress = -found["inferred_stress"].detach().numpy().ravel()[[0, 1, 2, 4, 5, 3]]
        return energy.item(), found["inferred_force"].detach().numpy(), stress
    # Since 0.11 the pair style differentiates by the edges itself.
    (gradient,) = torch.autograd.grad(energy, found["edge_vec"])
    i, j = data["edge_index"]
    forces = torch.zeros_like(data["pos"]).index_add(0, i, gradient).index_add(0, j, -gradient)
    virial = (found["edge_vec"].detach().T @ gradient / data["cell_volume"]).numpy()
    return energy.item(), forces.numpy(), virial[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def as_lammps_gives_it(atoms: Atoms, extra: dict[str, str]) -> dict[str, torch.Tensor]:
    """The input that sevenn's pair style in LAMMPS makes."""
    cutoff = float(extra["cutoff"])
    species = [chemical_symbols.index(symbol) for symbol in extra["chemical_symbols_to_index"].split()]
    graph = AtomGraph.from_atoms(atoms, cutoff)
    return {
        "x": torch.tensor([species.index(int(z)) for z in graph.numbers]),
        "pos": graph.positions,
        "edge_index": graph.edge_index,
        "edge_vec": graph.edge_vectors(),  # what sevenn >= 0.11 differentiates by; earlier ones make it from "pos"
        "num_atoms": torch.tensor(len(atoms)),
        "cell_lattice_vectors": graph.cell[0],
        "cell_volume": graph.volume[0],
        "pbc_shift": graph.edge_shift,
    }


@pytest.mark.mace
class TestMACE:
    def test_its_calculator_finds_the_same(self, mace, mace_calculator):
        _, calc = mace
        atoms = structure()
        atoms.calc = mace_calculator
        ours = expected(calc)
        assert atoms.get_potential_energy() == pytest.approx(ours["energy"], abs=1e-9)
        assert np.abs(atoms.get_forces() - ours["forces"]).max() < 1e-9
        assert np.abs(atoms.get_stress() - ours["stress"]).max() < 1e-10

    def test_the_model_for_lammps_finds_the_same(self, mace, mace_calculator):
        folder, calc = mace
        done = run(folder, "mace_create_lammps_model", "mine.model")
        assert done.returncode == 0, done.stderr
        module, _ = load_script(folder / "mine.model-lammps.pt")
        atoms = structure()
        data = mace_calculator._atoms_to_batch(atoms).to_dict()
        found = module(data, torch.ones(len(atoms)), compute_virials=True)
        ours = expected(calc)
        assert found["total_energy_local"].item() == pytest.approx(ours["energy"], abs=1e-9)
        assert np.abs(found["forces"].detach().numpy() - ours["forces"]).max() < 1e-9
        virials = found["virials"].detach().numpy().reshape(3, 3)
        stress = -virials[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] / atoms.get_volume()
        assert np.abs(stress - ours["stress"]).max() < 1e-9
