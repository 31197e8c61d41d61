from __future__ import annotations

import copy
import errno
import json
import os
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import (
    BaseCalculator,
    Calculator,
    PropertyNotImplementedError,
    get_calculator_class,
)
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.io import Trajectory, read, write
from ase.md.verlet import VelocityVerlet
from ase.outputs import Properties

from ase_finetune import FinetunedCalculator, ase_plugin
from ase_finetune.errors import InputError, OutputError, OutputExistsError, UnknownModelError
from ase_finetune.potentials import MorsePotential, save_potential
from ase_finetune.potentials.warming import warm_up
from tests.pretrained import path_or_skip, pretrained, sevennet_calculator

PROPERTIES = ["energy", "free_energy", "energies", "forces", "stress"]


class Counting(MorsePotential):
    """Counts its evaluations."""

    calls = 0

    def predict(self, graph, **options):
        self.calls += 1
        return super().predict(graph, **options)


def morse(seed=0, kind=MorsePotential):
    depth = 1.0 + 0.1 * seed
    return kind([1, 8, 14], depth=[0.2, 0.6, depth], distance=[1.0, 1.4, 2.4], shift=[-0.1, 0.2, -0.3]).double()


@pytest.fixture
def silicon():
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=3)
    return atoms


@pytest.fixture
def calc():
    return FinetunedCalculator(morse())


def mixed():
    """Structures of all sizes and periodicities."""
    silicon = bulk("Si", cubic=True)
    silicon.rattle(0.1, seed=1)
    slab = silicon.copy()
    slab.center(vacuum=4.0, axis=2)
    slab.pbc = (True, True, False)
    return [silicon, molecule("H2O"), slab, Atoms("Si", cell=[2.6, 2.6, 2.6], pbc=True), Atoms("O")]


def evaluate(calculator, atoms):
    """Results of a single evaluation by a calculator without history."""
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.get_potential_energy()
    return dict(calculator.results)


class TestAnAseCalculator:
    def test_properties_are_its_own(self, silicon):
        # MACECalculator once added its own to this list, for every calculator of the process.
        before = [list(base.implemented_properties) for base in (Calculator, BaseCalculator)]
        evaluate(FinetunedCalculator(morse()), silicon)
        assert [list(base.implemented_properties) for base in (Calculator, BaseCalculator)] == before
        assert vars(FinetunedCalculator)["implemented_properties"] == PROPERTIES

    @pytest.mark.parametrize("first", PROPERTIES)
    def test_one_evaluation_whatever_is_asked_first(self, silicon, first):
        potential = morse(kind=Counting)
        silicon.calc = FinetunedCalculator(potential)
        silicon.calc.get_property(first, silicon)
        assert potential.calls == 1
        for name in PROPERTIES:
            silicon.calc.get_property(name, silicon)
        silicon.get_potential_energy(force_consistent=True)
        assert potential.calls == 1

    def test_evaluates_again_when_something_changes(self, silicon):
        potential = morse(kind=Counting)
        silicon.calc = FinetunedCalculator(potential)
        energies = [silicon.get_potential_energy()]
        for change in (
            lambda: silicon.positions.__setitem__((0, 0), 0.2),
            lambda: silicon.set_cell(silicon.cell[:] * 1.01, scale_atoms=True),
            lambda: silicon.symbols.__setitem__(0, "O"),
            lambda: silicon.set_pbc((True, True, False)),
        ):
            change()
            energies.append(silicon.get_potential_energy())
        assert potential.calls == 5
        assert len(set(energies)) == 5
        assert energies[-1] == pytest.approx(FinetunedCalculator(morse()).get_potential_energy(silicon.copy()))

    def test_only_standard_results_of_the_right_shape(self, calc, silicon):
        results = evaluate(calc, silicon)
        assert sorted(results) == sorted(PROPERTIES)
        properties = Properties(results)  # refuses other names and shapes
        assert properties["natoms"] == 8
        assert isinstance(results["energy"], float)
        assert results["free_energy"] == results["energy"]
        assert results["energies"].sum() == pytest.approx(results["energy"], abs=1e-12)
        assert results["forces"].dtype == results["stress"].dtype == np.float64

    def test_forces_and_stress_by_ase_finite_differences(self, calc, silicon):
        silicon.calc = calc
        np.testing.assert_allclose(silicon.get_forces(), calculate_numerical_forces(silicon, 1e-4), rtol=0, atol=1e-6)
        np.testing.assert_allclose(silicon.get_stress(), calculate_numerical_stress(silicon, 1e-5), rtol=0, atol=1e-7)

    def test_stress_of_a_molecule(self, calc):
        water = molecule("H2O")
        water.calc = calc
        assert water.get_potential_energy() < 0
        assert "stress" not in calc.results
        with pytest.raises(PropertyNotImplementedError, match="stress needs a cell with a volume"):
            water.get_stress()
        assert water.get_forces().shape == (3, 3)

    def test_parameters_are_plain(self, calc, tmp_path):
        assert json.loads(json.dumps(calc.parameters)) == dict(calc.parameters)
        assert json.loads(json.dumps(calc.todict())) == calc.todict()
        save_potential(morse(), tmp_path / "saved")
        loaded = FinetunedCalculator(tmp_path / "saved", device="cpu")
        assert json.loads(json.dumps(loaded.parameters))["model"] == str(tmp_path / "saved")
        assert (loaded.parameters["device"], loaded.parameters["dtype"]) == ("cpu", "float32")

    @pytest.mark.parametrize("how", ["pickle", "deepcopy"])
    def test_copies_give_the_same_numbers(self, calc, silicon, how):
        before = evaluate(calc, silicon)
        twin = pickle.loads(pickle.dumps(calc)) if how == "pickle" else copy.deepcopy(calc)  # noqa: S301
        assert twin.results.keys() == before.keys()
        twin.reset()
        assert_equal_results(evaluate(twin, silicon), before)
        with torch.no_grad():
            twin.potential.native["depth"] *= 2
        twin.reset()
        assert evaluate(twin, silicon)["energy"] != before["energy"]
        calc.reset()
        assert_equal_results(evaluate(calc, silicon), before)

    @pytest.mark.parametrize("suffix", ["traj", "extxyz", "db", "json"])
    def test_written_and_read_back(self, calc, silicon, tmp_path, suffix):
        if suffix == "db":
            pytest.importorskip("ase.db")
        silicon.calc = calc
        results = evaluate(calc, silicon)
        silicon.get_forces()
        write(tmp_path / f"frame.{suffix}", silicon)
        again = read(tmp_path / f"frame.{suffix}")
        assert again.get_potential_energy() == pytest.approx(results["energy"], abs=1e-7)
        np.testing.assert_allclose(again.get_forces(), results["forces"], rtol=0, atol=1e-7)
        np.testing.assert_allclose(again.get_stress(), results["stress"], rtol=0, atol=1e-7)
        if suffix == "traj":
            assert again.calc.name == "finetunedcalculator"

    def test_atoms_can_be_given(self, silicon):
        calc = FinetunedCalculator(morse(), atoms=silicon)
        assert silicon.calc is calc
        with pytest.raises(InputError, match="no atoms to evaluate"):
            calc.get_potential_energy()
        assert silicon.get_potential_energy() == calc.get_potential_energy()


class TestDynamics:
    def run(self, atoms, skin, path):
        atoms = atoms.copy()
        potential = morse(kind=Counting)
        atoms.calc = FinetunedCalculator(potential, skin=skin)
        thermal = np.sqrt(atoms.get_masses()[:, None] * 1500 * units.kB)
        atoms.set_momenta(thermal * np.random.default_rng(0).normal(size=(8, 3)))
        with Trajectory(path, "w", atoms) as trajectory:
            VelocityVerlet(atoms, 2 * units.fs, trajectory=trajectory, loginterval=5).run(60)
        assert potential.calls == 61
        return atoms, read(path, index=":")

    def test_skin_changes_nothing(self, silicon, tmp_path):
        (without, one), (with_skin, other) = (self.run(silicon, s, tmp_path / f"{s}.traj") for s in (0.0, 0.5))
        assert without.calc._graph.neighbors.rebuilds == 61
        assert 1 < with_skin.calc._graph.neighbors.rebuilds < 30
        assert len(one) == len(other) == 13
        np.testing.assert_allclose(with_skin.positions, without.positions, rtol=0, atol=1e-9)
        for a, b in zip(one, other, strict=True):
            assert a.get_potential_energy() == pytest.approx(b.get_potential_energy(), abs=1e-9)
        assert np.abs(without.positions - silicon.positions).max() > 0.25, "the list was never put to the test"


class TestMany:
    def test_equals_single_evaluations(self, calc):
        structures = mixed()
        for max_edges in (1, 400, 10**6):
            many = calc.calculate_many(structures, max_edges=max_edges)
            assert len(many) == len(structures)
            for atoms, results in zip(structures, many, strict=True):
                assert_equal_results(results, evaluate(FinetunedCalculator(morse()), atoms), 1e-12)
        assert ["stress" in results for results in many] == [True, False, True, True, False]

    def test_of_nothing(self, calc):
        assert calc.calculate_many([]) == []

    def test_leaves_the_cache_alone(self, calc, silicon):
        before = evaluate(calc, silicon)
        calc.calculate_many(mixed())
        assert_equal_results(calc.results, before)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda atoms: atoms.symbols.__setitem__(1, "Ge"), r"structure 2: atom 1 is Ge.*it knows H, O, Si"),
            (lambda atoms: atoms.positions.__setitem__(4, np.nan), r"structure 2: position of atom 4 \(Si\)"),
            (lambda atoms: atoms.positions.__setitem__(4, atoms.positions[5]), r"structure 2: atoms .* coincide"),
            (lambda atoms: atoms.cell.__setitem__(1, 0), r"structure 2: pbc=.* spans a volume"),
        ],
    )
    def test_names_the_structure_at_fault(self, calc, spoil, message):
        structures = mixed()
        spoil(structures[2])
        with pytest.raises(InputError, match=message):
            calc.calculate_many(structures)

    def test_max_edges(self, calc):
        with pytest.raises(InputError, match="max_edges must be positive, got -1"):
            calc.calculate_many(mixed(), max_edges=-1)


class TestEnsemble:
    def test_mean_and_spread(self, silicon):
        members = [evaluate(FinetunedCalculator(morse(seed)), silicon) for seed in range(3)]
        calc = FinetunedCalculator([morse(seed) for seed in range(3)])
        results = evaluate(calc, silicon)
        for name in PROPERTIES:
            values = np.array([member[name] for member in members])
            np.testing.assert_allclose(results[name], values.mean(axis=0), rtol=0, atol=1e-12)
            np.testing.assert_allclose(calc.spread[name], values.std(axis=0), rtol=0, atol=1e-12)
        assert calc.spread["energy"] > 0.1
        assert calc.spread["forces"].shape == (8, 3)
        assert Properties(results)["energy"] == results["energy"]
        assert_equal_results(calc.calculate_many([silicon])[0], results, 1e-12)

    def test_of_saved_models(self, tmp_path, silicon):
        for seed in range(2):
            save_potential(morse(seed), tmp_path / str(seed))
        paths = [tmp_path / "0", tmp_path / "1"]
        calc = FinetunedCalculator(paths, dtype="float64", device="cpu")
        given = FinetunedCalculator([morse(0), morse(1)])
        assert_equal_results(evaluate(calc, silicon), evaluate(given, silicon))
        assert calc.parameters["model"] == [str(path) for path in paths]
        silicon.calc = calc
        silicon.get_potential_energy()
        write(tmp_path / "ensemble.traj", silicon)
        assert read(tmp_path / "ensemble.traj").get_potential_energy() == calc.results["energy"]

    def test_one_model_has_no_spread(self, calc, silicon):
        evaluate(calc, silicon)
        assert calc.spread == {}

    def test_cutoffs_may_differ(self, silicon):
        short, long = (MorsePotential([14], cutoff=cutoff).double() for cutoff in (3.0, 5.0))
        energies = [evaluate(FinetunedCalculator(potential), silicon)["energy"] for potential in (short, long)]
        assert energies[0] != energies[1]
        both = evaluate(FinetunedCalculator([short, long]), silicon)["energy"]
        assert both == pytest.approx(np.mean(energies), abs=1e-10)

    def test_has_no_single_file(self, tmp_path):
        calc = FinetunedCalculator([morse(0), morse(1)])
        for write_it in (calc.save, calc.export):
            with pytest.raises(InputError, match="save its members one by one"):
                write_it(tmp_path / "model")
        assert list(tmp_path.iterdir()) == []

    def test_members_must_be_alike(self):
        with pytest.raises(InputError, match="must be alike, these are float32 on cpu, float64 on cpu"):
            FinetunedCalculator([morse(), morse().float()])

    def test_of_nothing(self):
        with pytest.raises(InputError, match="list of models is empty"):
            FinetunedCalculator([])

    def test_element_that_one_member_does_not_know(self, silicon):
        silicon.calc = FinetunedCalculator([morse(), MorsePotential([1]).double()])
        with pytest.raises(InputError, match="atom 0 is Si"):
            silicon.get_potential_energy()


class TestArguments:
    @pytest.mark.parametrize("device", ["tpu9", "cuda:77", "gpu", ""])
    def test_device_that_does_not_exist(self, device):
        with pytest.raises(InputError, match=f"device '{device}' does not exist here; there is cpu"):
            FinetunedCalculator(morse(), device=device)

    @pytest.mark.parametrize("dtype", ["float16", "double", ""])
    def test_dtype(self, dtype):
        with pytest.raises(InputError, match=f"dtype must be 'float32' or 'float64', got '{dtype}'"):
            FinetunedCalculator(morse(), dtype=dtype)

    def test_given_potential_keeps_its_dtype(self):
        assert FinetunedCalculator(morse()).parameters["dtype"] == "float64"
        single = FinetunedCalculator(morse().float())
        assert single.parameters["dtype"] == "float32"
        assert single.potential.dtype == torch.float32
        with pytest.raises(
            InputError, match="dtype='float64' was asked for, but the given potential is float32 on cpu"
        ):
            FinetunedCalculator(morse().float(), dtype="float64")

    def test_dtype_of_a_saved_model(self, tmp_path, silicon):
        save_potential(morse(), tmp_path / "saved")
        single, double = (
            FinetunedCalculator(tmp_path / "saved", dtype=d, device="cpu") for d in ("float32", "float64")
        )
        assert (single.potential.dtype, double.potential.dtype) == (torch.float32, torch.float64)
        one, two = evaluate(single, silicon)["energy"], evaluate(double, silicon)["energy"]
        assert one == pytest.approx(two, abs=1e-4)
        assert one != two
        assert two == evaluate(FinetunedCalculator(morse()), silicon)["energy"]

    def test_reference(self):
        with pytest.raises(InputError, match="reference must be 'model' or 'target', got 'vasp'"):
            FinetunedCalculator(morse(), reference="vasp")
        with pytest.raises(InputError, match="needs a model fine-tuned with reference='align'"):
            FinetunedCalculator(morse(), reference="target")

    def test_skin(self):
        with pytest.raises(InputError, match="skin must not be negative"):
            FinetunedCalculator(morse(), skin=-1.0)

    def test_head(self):
        with pytest.raises(InputError, match="uses head None, head='r2scan' was asked for"):
            FinetunedCalculator(morse(), head="r2scan")

    def test_unknown_model(self):
        with pytest.raises(UnknownModelError, match=r"'7net-00'.*did you mean 7net-0"):
            FinetunedCalculator("7net-00")


def test_reference_offsets_are_added_back(tmp_path, silicon):
    silicon.symbols[0] = "O"
    save_potential(morse(), tmp_path / "tuned", metadata={"reference_offsets": {"Si": 0.5, "O": -2.0}})
    model, target = (
        FinetunedCalculator(tmp_path / "tuned", reference=reference, dtype="float64", device="cpu")
        for reference in ("model", "target")
    )
    assert model.metadata["reference_offsets"] == {"Si": 0.5, "O": -2.0}
    one, two = evaluate(model, silicon), evaluate(target, silicon)
    assert one["energy"] == evaluate(FinetunedCalculator(morse()), silicon)["energy"]
    assert two["energy"] == pytest.approx(one["energy"] + 7 * 0.5 - 2.0, abs=1e-10)
    assert two["free_energy"] == two["energy"]
    np.testing.assert_allclose(two["energies"] - one["energies"], [-2.0] + [0.5] * 7, rtol=0, atol=1e-12)
    for name in ("forces", "stress"):
        assert np.array_equal(one[name], two[name])
    assert target.calculate_many([silicon])[0]["energy"] == pytest.approx(two["energy"], abs=1e-10)
    # An element without an offset stays where it is.
    water = molecule("H2O")
    shift = evaluate(target, water)["energy"] - evaluate(model, water)["energy"]
    assert shift == pytest.approx(-2.0, abs=1e-10)


class TestBadStructures:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda atoms: atoms.positions.__setitem__((3, 1), np.nan), r"position of atom 3 \(Si\) is not finite"),
            (lambda atoms: atoms.positions.__setitem__(3, np.inf), r"position of atom 3 \(Si\) is not finite"),
            (lambda atoms: atoms.positions.__setitem__(3, atoms.positions[6]), r"atoms .*\(Si\) and .*\(Si\) coincide"),
            (lambda atoms: atoms.set_cell(np.zeros((3, 3))), "needs a cell that spans a volume"),
            (lambda atoms: atoms.symbols.__setitem__(2, "Au"), "atom 2 is Au, an element this model does not know"),
            (lambda atoms: atoms.__delitem__(slice(None)), "the structure has no atoms"),
        ],
    )
    @pytest.mark.parametrize("used_before", [False, True])
    def test_error_through_ase(self, calc, silicon, spoil, message, used_before):
        silicon.calc = calc
        if used_before:  # the neighbour list knows a good structure
            silicon.get_forces()
        good = silicon.copy()
        spoil(silicon)
        for ask in (silicon.get_potential_energy, silicon.get_forces):
            with pytest.raises(ValueError, match=message) as caught:
                ask()
            assert isinstance(caught.value, InputError)
        # The calculator is none the worse for it.
        assert_equal_results(evaluate(calc, good), evaluate(FinetunedCalculator(morse()), good))


class TestFiles:
    def test_saved_and_loaded_bit_for_bit(self, calc, silicon, tmp_path):
        calc.metadata["note"] = "tuned"
        calc.save(tmp_path / "model")
        again = FinetunedCalculator(tmp_path / "model", dtype="float64", device="cpu")
        assert again.metadata["note"] == "tuned"
        assert_equal_results(evaluate(again, silicon), evaluate(calc, silicon))

    def test_never_overwritten_silently(self, calc, tmp_path):
        for name, write_it in (("folder", calc.save), ("file.json", calc.export)):
            write_it(tmp_path / name)
            before = sorted(path.name for path in tmp_path.iterdir())
            with pytest.raises(OutputExistsError, match=f"{name} exists"):
                write_it(tmp_path / name)
            with pytest.raises(FileExistsError):
                write_it(str(tmp_path / name))
            write_it(tmp_path / name, overwrite=True)
            assert sorted(path.name for path in tmp_path.iterdir()) == before

    def test_failed_export_leaves_the_old_file(self, calc, tmp_path, monkeypatch):
        calc.export(tmp_path / "model.json")
        before = (tmp_path / "model.json").read_text()

        def fail(descriptor):
            raise OSError(errno.ENOSPC, "disk full")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError, match="disk full"):
            calc.export(tmp_path / "model.json", overwrite=True)
        assert (tmp_path / "model.json").read_text() == before


class TestPlugin:
    def test_known_to_ase_by_name(self):
        assert get_calculator_class("finetuned") is FinetunedCalculator

    def test_registered_once(self):
        from ase.calculators import calculator

        ase_plugin.register()
        ase_plugin.register()
        assert calculator.names.count("finetuned") == 1

    def test_a_name_already_taken_is_left_alone(self, monkeypatch):
        from ase.calculators import calculator

        monkeypatch.setitem(calculator.external_calculators, "finetuned", Calculator)
        ase_plugin.register()
        assert calculator.external_calculators["finetuned"] is Calculator

    def test_plugin_of_ase(self):
        plugins = pytest.importorskip("ase._4.plugins.plugin", reason="ASE before 3.29")
        (plugin,) = ase_plugin.__ase_plugins__
        assert isinstance(plugin, plugins.CalculatorPlugin)
        assert plugin.name == "finetuned"
        assert plugin.implementation is FinetunedCalculator
        assert ase_plugin.__ase_plugins__ is ase_plugin.__ase_plugins__

    def test_collected_like_an_entry_point(self, monkeypatch):
        """Also when this module is what imports ASE's plugins first: they load this module in turn."""
        collection = pytest.importorskip("ase._4.plugins.plugin_collection", reason="ASE before 3.29")

        class EntryPoint:
            def load(self):
                return ase_plugin

        monkeypatch.setattr(collection, "entry_points", lambda group: [EntryPoint()] if group == "ase.plugins" else [])
        monkeypatch.delitem(vars(ase_plugin), "__ase_plugins__", raising=False)
        found = collection.PluginCollection.from_entry_points()
        assert [plugin.name for plugin in found.calculators] == ["finetuned"]
        (plugin,) = found
        assert plugin.package == "ase_finetune"

    def test_asked_for_first(self):
        import subprocess
        import sys
        from pathlib import Path

        code = (
            "import importlib.metadata as m, importlib, types\n"
            "point = types.SimpleNamespace(load=lambda: importlib.import_module('ase_finetune.ase_plugin'))\n"
            "real = m.entry_points\n"
            "m.entry_points = lambda **k: [point] if k.get('group') == 'ase.plugins' else real(**k)\n"
            "import ase_finetune.ase_plugin as ours\n"
            "mine = ours.__ase_plugins__\n"
            "from ase._4.plugins import plugins\n"
            "assert set(mine) == set(plugins), (mine, set(plugins))\n"
            "assert len(mine) == 1\n"
        )
        pytest.importorskip("ase._4.plugins", reason="ASE before 3.29")
        root = Path(__file__).parents[1]
        done = subprocess.run(  # noqa: S603  # our own code
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def test_without_the_unstable_interface(self, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "ase._4.plugins.plugin", None)  # importing it raises ImportError
        monkeypatch.delitem(vars(ase_plugin), "__ase_plugins__", raising=False)
        assert ase_plugin.__ase_plugins__ == frozenset()
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = ase_plugin.nothing


@pytest.mark.sevenn
class TestSevenNet0:
    def test_by_name(self, silicon):
        path = path_or_skip("7net-0")
        calc = FinetunedCalculator("7net-0", device="cpu")
        assert calc.parameters == {
            "model": "7net-0",
            "device": "cpu",
            "dtype": "float32",
            "head": None,
            "reference": "model",
            "skin": 0.5,
            "accelerate": "auto",
        }
        results = evaluate(calc, silicon)
        Properties(results)
        silicon.calc = sevennet_calculator(path)
        assert results["energy"] == pytest.approx(silicon.get_potential_energy(), abs=8e-5)
        np.testing.assert_allclose(results["forces"], silicon.get_forces(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(results["stress"], silicon.get_stress(), rtol=0, atol=1e-5)

    def test_saved_exported_and_pickled(self, silicon, tmp_path):
        calc = FinetunedCalculator(copy.deepcopy(pretrained("7net-0")))
        with torch.no_grad():
            for _, parameter in calc.potential.native_parameters(trainable_only=True):
                parameter.mul_(1.02)
        warm_up(calc.potential)  # TorchScript rounds the first evaluation of a process in another order
        expected = evaluate(calc, silicon)
        calc.save(tmp_path / "tuned")
        assert_equal_results(evaluate(FinetunedCalculator(tmp_path / "tuned", device="cpu"), silicon), expected)
        twin = pickle.loads(pickle.dumps(calc))  # noqa: S301
        twin.reset()
        assert_equal_results(evaluate(twin, silicon), expected)
        calc.export(tmp_path / "tuned.pth")
        assert_equal_results(evaluate(FinetunedCalculator(tmp_path / "tuned.pth", device="cpu"), silicon), expected)
        silicon.calc = sevennet_calculator(tmp_path / "tuned.pth")
        assert silicon.get_potential_energy() == pytest.approx(expected["energy"], abs=8e-5)
        np.testing.assert_allclose(silicon.get_forces(), expected["forces"], rtol=0, atol=1e-4)
        assert abs(expected["energy"] - evaluate(FinetunedCalculator(pretrained()), silicon)["energy"]) > 1e-2


def assert_equal_results(found, expected, tolerance=0.0):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)
