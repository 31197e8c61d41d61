"""All checks in one call: what fits is found, what does not is told, nothing stops the rest."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential as MorsePair
from ase.io import write

from ase_finetune import FinetunedCalculator
from ase_finetune.analysis import validate
from ase_finetune.analysis.validation import (
    CHECKS,
    Diffusion,
    Dimers,
    ElasticConstants,
    EquationOfState,
    Phonons,
    Vacancy,
)
from ase_finetune.analysis.validation.dimers import dimer
from ase_finetune.analysis.validation.material import Material, is_solid
from ase_finetune.errors import BackendNotInstalledError, InputError
from ase_finetune.potentials import MorsePotential
from tests.morse import pretrained, truth
from tests.pretrained import path_or_skip


class Wrong(EMT):
    """EMT with forces that are not the derivative of its energy."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = 1.2 * self.results["forces"]


class Hole(Calculator):
    """A repulsive pair that turns into attraction below 1.2 Å, behind a wall of the given height (eV)."""

    implemented_properties = ("energy", "forces")

    def __init__(self, height: float, depth: float) -> None:
        super().__init__()
        self.height, self.depth = height, depth

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        vector = self.atoms.positions[1] - self.atoms.positions[0]
        r = np.linalg.norm(vector)
        x = (r - 1.2) / 0.3
        energy = self.height * np.exp(-(x**2)) - self.depth / (1 + np.exp((r - 0.8) / 0.05))
        step = np.exp((r - 0.8) / 0.05)
        slope = -2 * x / 0.3 * self.height * np.exp(-(x**2)) + self.depth * step / 0.05 / (1 + step) ** 2
        self.results = {"energy": energy, "forces": np.array([slope * vector / r, -slope * vector / r])}


def copper() -> Atoms:
    return bulk("Cu", cubic=True)


QUICK = Diffusion(picoseconds=0.1, largest=8)


def test_a_good_crystal_passes_every_check():
    checks = [QUICK if name == "diffusion" else name for name in CHECKS]
    result = validate(EMT(), copper(), checks=checks)
    assert [item.check for item in result.results] == list(CHECKS)
    assert (result.passed, result.verdict) == (True, "ok")
    assert "7 of 7 checks are ok, 0 suspicious, 0 failed" in str(result)
    vacancy = result.result("vacancy").quantity("formation energy").value
    assert vacancy == pytest.approx(1.23, abs=0.1)  # 1.28 eV measured; EMT is fitted to it
    assert result.result("phonons").quantity("highest frequency").value == pytest.approx(8.1, abs=0.4)


def test_before_and_after_stand_side_by_side():
    names = ["equilibrium", "equation of state", "dimers"]
    calcs = [FinetunedCalculator(p.double(), dtype="float64", device="cpu") for p in (truth(), pretrained())]
    structure = bulk("Si", "fcc", a=3.2)
    result = validate(calcs[0], structure, against=calcs[1], checks=names)
    alone = [validate(calc, structure, checks=names) for calc in calcs]
    assert result.results == [_timed(one, other) for one, other in zip(alone[0].results, result.results, strict=True)]
    assert result.against == [_timed(one, other) for one, other in zip(alone[1].results, result.against, strict=True)]
    (row,) = [row for row in result.rows(1) if row.quantity.name == "bulk modulus"]
    assert row.change == pytest.approx(row.quantity.value - row.before.value)
    assert row.change > 10, "its well is deeper and narrower"
    line = next(line for line in str(result).splitlines() if "bulk modulus" in line)
    assert f"{row.before.value:.4g}" in line
    assert f"{row.quantity.value:.4g}" in line
    assert "before" in str(result).splitlines()[0]


def _timed(one, other):
    """Equal but for the time it took."""
    from dataclasses import replace

    return replace(one, seconds=other.seconds)


def test_an_unstable_crystal_has_imaginary_modes():
    for structure, stable in ((bulk("Cu", "sc", a=2.4), False), (bulk("Cu"), True)):
        found = validate(EMT(), structure, checks=["phonons"]).result("phonons")
        lowest = found.quantity("lowest frequency of the supercell")
        assert (lowest.value > 0) is stable
        assert (lowest.verdict == "ok") is stable
        assert found.quantity("violation of the sum rule").value < 1e-8
        assert found.quantity("lowest optical frequency at Γ") is None, "one atom has no optical modes"
    assert "imaginary" in validate(EMT(), bulk("Cu", "sc", a=2.4), checks=["phonons"]).results[0].quantities[0].why


def test_frequencies_at_gamma_are_those_of_ase(tmp_path):
    from ase.phonons import Phonons as Reference

    atoms = copper()
    atoms.calc = EMT()
    found = validate(EMT(), atoms, checks=["phonons", "equilibrium"])
    volume = found.result("equilibrium").quantity("volume per atom").value
    atoms.set_cell(np.eye(3) * (4 * volume) ** (1 / 3), scale_atoms=True)
    reference = Reference(atoms, EMT(), supercell=(2, 2, 2), delta=0.02, name=str(tmp_path / "phonon"))
    reference.run()
    reference.read(acoustic=True)
    lowest = reference.band_structure([(0, 0, 0)])[0][3] * 241.799  # eV to THz
    assert found.result("phonons").quantity("lowest optical frequency at Γ").value == pytest.approx(lowest, rel=5e-3)


def test_phonons_of_a_large_cell_say_what_they_would_cost():
    rattled = copper()
    rattled.rattle(0.3, seed=0)
    found = validate(EMT(), rattled, checks=[Phonons(most=0)]).result("phonons")
    assert "allow it with Phonons(most=" in found.not_applicable


def test_without_phonopy_the_rest_is_checked(monkeypatch):
    monkeypatch.setitem(sys.modules, "phonopy", None)
    quick = {"vacancy", "diffusion", "elastic constants"}
    monkeypatch.setattr(
        "ase_finetune.analysis.validation.api.CHECKS", {name: c for name, c in CHECKS.items() if name not in quick}
    )
    result = validate(EMT(), copper())
    assert "pip install 'ase_finetune[validate]'" in result.result("phonons").not_applicable
    assert result.result("equation of state").verdict == "ok"
    with pytest.raises(BackendNotInstalledError, match="validate"):
        validate(EMT(), copper(), checks=["equilibrium", "phonons"], against=Broken(RuntimeError("work was done")))


def test_schottky_energy_of_a_compound_is_that_of_its_vacancies():
    """Of two elements that are the same but for their free atoms: twice the formation energy of one of them."""
    check, crystals = (
        Vacancy(length=5.0, largest=32),
        (bulk("SiO", "cesiumchloride", a=2.8), bulk("Si", "bcc", a=2.8, cubic=True)),
    )
    calc = FinetunedCalculator(MorsePotential([8, 14], cutoff=4.0).double(), dtype="float64", device="cpu")
    elemental = validate(calc, crystals[1], checks=[check]).result("vacancy")
    calc.potential.shift_energies({8: 3.0, 14: -6.0})
    compound = validate(calc, crystals[0], checks=[check]).result("vacancy")
    assert "x" in compound.note
    assert {q.name.split(":")[0] for q in compound.quantities[1:]} == {"Si", "O"}
    schottky = compound.quantity("Schottky energy per formula unit").value
    assert schottky == pytest.approx(2 * elemental.quantity("formation energy").value, rel=1e-3)
    assert schottky > 0.1


def test_a_hole_behind_a_low_wall_fails():
    low, high = (
        validate(Hole(height, 60.0), molecule_of("Cu"), checks=["dimers"]).results[0].quantities[0]
        for height in (2.0, 30.0)
    )
    assert (low.verdict, high.verdict) == ("failed", "suspicious")
    assert low.value == pytest.approx(2.0, rel=0.25)
    assert "eV below that at 1.85 Å: atoms that get over the wall fuse" in low.why
    assert validate(EMT(), copper(), checks=["dimers"]).results[0].quantities[0].verdict == "ok"


def test_what_is_normal_is_said_where_a_wall_is_suspicious():
    suspicious = validate(Hole(30.0, 60.0), molecule_of("Cu"), checks=["dimers"])
    assert "normal for universal models" in suspicious.results[0].normal
    for text in (str(suspicious), suspicious._repr_html_()):
        assert suspicious.results[0].normal in text
    assert suspicious.to_dict()["results"][0]["normal"] == suspicious.results[0].normal
    fine = validate(EMT(), copper(), checks=["dimers"])
    assert fine.results[0].normal == ""
    assert "normal" not in str(fine)


def molecule_of(symbol: str) -> Atoms:
    return Atoms([symbol, symbol], positions=[(0, 0, 0), (0, 0, 2.5)])


def test_all_pairs_of_elements_are_tried():
    found = validate(EMT(), [bulk("Cu"), bulk("Ni"), bulk("Au")], checks=[Dimers(points=6)]).result("dimers")
    walls = [quantity.name for quantity in found.quantities if quantity.name.endswith("wall")]
    assert walls == [f"{pair} wall" for pair in ("Au-Au", "Au-Cu", "Au-Ni", "Cu-Cu", "Cu-Ni", "Ni-Ni")]


def test_forces_that_are_no_derivative_fail():
    found = validate(Wrong(), copper(), checks=["dimers"]).result("dimers")
    assert found.quantity("Cu-Cu force against energies").verdict == "failed"


def test_a_short_run_does_not_take_vibration_for_diffusion():
    found = validate(EMT(), copper(), checks=[QUICK]).result("diffusion")
    coefficient = found.quantity("D(Cu)")
    assert coefficient.verdict == "not judged"
    assert coefficient.why.startswith("not resolved: a run of this length cannot distinguish less than")
    assert "K (NVT)" in found.note


def test_a_liquid_diffuses():
    potential = MorsePotential([18], depth=0.05, distance=3.8).double()
    calc = FinetunedCalculator(potential, dtype="float64", device="cpu")
    atoms = bulk("Ar", cubic=True, a=7.0)  # half as dense as the crystal, and hot
    check = Diffusion(temperature=1500, picoseconds=2, timestep=5, largest=4)
    found = validate(calc, atoms, checks=[check]).result("diffusion")
    coefficient = found.quantity("D(Ar)")
    assert coefficient.why == ""
    assert 1e-5 < coefficient.value < 5e-3  # cm²/s


def test_molecules_get_what_fits_them():
    result = validate(EMT(), molecule("CO"), checks=[n for n in CHECKS if n != "diffusion"])
    told = {item.check: item.not_applicable for item in result.results}
    for name in ("equation of state", "elastic constants", "phonons", "vacancy"):
        assert "periodic in all directions" in told[name]
    assert told["equilibrium"] == told["dimers"] == ""
    assert result.result("equilibrium").quantity("volume per atom") is None
    assert "not applicable" in str(result)


class Broken(EMT):
    """EMT that does something else for nickel."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error, self.calls = error, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        if 28 in self.atoms.numbers and self.error is not None:
            self.calls += 1
            if self.calls > 1:  # what is not told before any check
                raise self.error
        elif 28 in self.atoms.numbers:
            self.results["forces"] = np.full_like(self.results["forces"], np.nan)


def test_what_goes_wrong_in_a_structure_does_not_stop_the_others():
    result = validate(Broken(), [bulk("Ni"), copper()], checks=["equilibrium", "equation of state"])
    broken = result.results[0]
    assert (broken.structure, broken.verdict) == ("Ni", "failed")
    assert "forces" in broken.failure or "broke down" in broken.failure
    assert result.result("equation of state", "Cu").verdict == "ok"
    assert not result.passed
    with pytest.raises(KeyError, match="no result of 'vacancy'"):
        result.result("vacancy")


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), ValueError("a bug"), OSError("disk")])
def test_what_is_no_fault_of_the_potential_is_raised(error):
    with pytest.raises(type(error)):
        validate(Broken(error), [copper(), bulk("Ni")], checks=["equilibrium"])


def test_what_cannot_be_evaluated_is_told_before_any_check(monkeypatch):
    monkeypatch.setattr(Material, "of", lambda *_: pytest.fail("a check was made"))
    with pytest.raises(InputError, match="Si cannot be evaluated by EMT: No EMT-potential for Si"):
        validate(EMT(), [copper(), bulk("Si")])
    calc = FinetunedCalculator(truth().double(), dtype="float64", device="cpu")
    with pytest.raises(InputError, match=r"Cu cannot be evaluated by FinetunedCalculator: .*Cu"):
        validate(EMT(), copper(), against=calc)


def boxed_molecule() -> Atoms:
    return Atoms("CO", positions=[(0, 0, 0), (0, 0, 1.15)], cell=[12, 12, 12], pbc=True)


def boxed_slab() -> Atoms:
    slab = copper().repeat((1, 1, 2))
    slab.center(vacuum=8.0, axis=2)
    slab.positions[:, 2] += 20.0  # vacuum across the border of the cell, and atoms outside of it
    slab.pbc = True
    return slab


@pytest.mark.parametrize(
    ("make", "gap"), [(boxed_slab, "16.0 Å without an atom along cell vector 3"), (boxed_molecule, "12.0 Å")]
)
def test_vacuum_is_no_crystal(make, gap):
    names = [name for name in CHECKS if name not in ("dimers",)]
    result = validate(EMT(), make(), checks=names)
    assert result.result("equilibrium").quantity("volume per atom") is None, "its cell is not relaxed"
    for name in names[1:]:
        assert "but there is vacuum" in result.result(name).not_applicable
    assert gap in result.result("vacancy").not_applicable
    assert "5 not applicable" in str(result)


@pytest.mark.parametrize("crystal", [bulk("Cu"), bulk("Cs"), bulk("Ar"), bulk("Si", cubic=True), bulk("Mg")])
def test_crystals_have_no_vacuum(crystal):
    assert is_solid(crystal)


def test_a_bond_shorter_than_the_start_of_the_curve_is_no_hole():
    """Cr2 is 1.68 Å long, 0.6 times the sum of its radii."""
    calc = MorsePair(epsilon=1.5, r0=1.68, rho0=4.0, rcut1=8.0, rcut2=10.0)
    wall = validate(calc, molecule_of("Cr"), checks=["dimers"]).results[0].quantities[0]
    assert (wall.name, wall.verdict, wall.why) == ("Cr-Cr wall", "ok", "")
    energies = [dimer(("Cr", "Cr"), r, calc).get_potential_energy() for r in (0.5, 1.68)]
    assert wall.value == pytest.approx(energies[0] - energies[1], rel=1e-2)


@pytest.mark.parametrize("bottom", [0.4, 1.0])
def test_a_hole_is_one_with_and_without_a_bottom(bottom):
    """All of it is nearer than any bond: two atoms of copper have 2.22 Å."""
    wall = validate(MorsePair(epsilon=50.0, r0=bottom, rho0=4.0), molecule_of("Cu"), checks=["dimers"])
    (first, *_) = wall.results[0].quantities
    assert (first.verdict, first.value) == ("failed", 0.0)
    assert "atoms that get over the wall fuse" in first.why


def test_magnetic_moments_reach_the_supercells():
    seen: list[tuple[float, ...]] = []

    class Magnetic(EMT):
        def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
            super().calculate(atoms, properties, system_changes)
            seen.append(tuple(self.atoms.get_initial_magnetic_moments()))

    atoms = bulk("Ni", cubic=True)
    atoms.set_initial_magnetic_moments([1.0, 1.0, -1.0, -1.0])
    atoms.set_initial_charges([0.5, 0.5, -0.5, -0.5])
    found = validate(Magnetic(), atoms, checks=[Phonons(length=5.0)]).result("phonons")
    assert "of 32 atoms" in found.note
    supercells = [moments for moments in seen if len(moments) == 32]
    assert supercells
    assert {(moments.count(1.0), moments.count(-1.0)) for moments in supercells} == {(16, 16)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Diffusion(segments=1), r"Diffusion\(segments=1\)"),
        (lambda: Diffusion(picoseconds=0.02), "too short for 4 segments .* at least 0.1 ps"),
        (lambda: Diffusion(temperature=0), "temperature must be above 0"),
        (lambda: Diffusion(timestep=float("nan")), "timestep must be above 0"),
        (lambda: Diffusion(largest=1), "largest must be a whole number of at least 2"),
        (lambda: Dimers(points=2), "points must be a whole number"),
        (lambda: Vacancy(fmax=-1), "fmax must be above 0"),
        (lambda: Phonons(displacement=0), "displacement must be above 0"),
        (lambda: EquationOfState(strain=1.0), "strain must be below 1"),
        (lambda: ElasticConstants(strain=0), "strain must be above 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused_at_once(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_calculators_without_stress_are_not_failed():
    class NoStress(EMT):
        implemented_properties = ("energy", "forces")

        def get_stress(self, _atoms=None):
            raise PropertyNotImplementedError("stress")

    result = validate(NoStress(), copper(), checks=["equilibrium"])
    assert result.results[0].not_applicable
    assert (result.verdict, result.passed) == ("not judged", False)
    assert "nothing could be judged" in str(result)


def test_results_are_plain_values(tmp_path):
    result = validate(EMT(), copper(), against=EMT(), checks=["equation of state", "dimers"])
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["passed"] is True
    assert content["results"][0]["quantities"][1]["name"] == "bulk modulus"
    assert content["results"][0]["quantities"][1]["value"] == pytest.approx(134.4, abs=0.5)
    html = result._repr_html_()
    assert html.count("<tr>") == html.count("</tr>") > 6
    assert "bulk modulus" in html
    assert "<script" not in html
    assert repr(result).startswith("<Validation: 2 of 2 checks are ok")


def test_equal_calls_give_equal_results():
    one, two = (validate(EMT(), copper(), checks=[QUICK, "vacancy"]).to_dict() for _ in range(2))
    for content in (one, two):
        for item in content["results"]:
            del item["seconds"]
    assert one == two


def test_structures_come_from_files_and_keep_their_names(tmp_path):
    path = tmp_path / "crystals.extxyz"
    write(path, [bulk("Cu"), copper(), bulk("Ni")])
    result = validate(EMT(), path, checks=["equilibrium"])
    assert [item.structure for item in result.results] == ["Cu #1", "Cu #2", "Ni"]


def test_a_fine_tuned_calculator_knows_its_elements():
    calc = FinetunedCalculator(truth().double(), dtype="float64", device="cpu")
    calc.metadata["reference_offsets"] = {"Si": 0.1, "O": 0.2}
    result = validate(calc, checks=["equilibrium", "dimers"])
    assert [item.structure for item in result.results] == ["Si (diamond)", "pairs of elements"]
    assert [q.name for q in result.result("dimers").quantities[::2]] == ["O-O wall", "O-Si wall", "Si-Si wall"]


@pytest.mark.parametrize(
    ("structures", "options", "message"),
    [
        (None, {}, "which crystals shall be checked"),
        ([], {}, "the list of structures is empty"),
        ([Atoms("Cu", positions=[(np.nan, 0, 0)])], {}, "structure 0: position of atom 0"),
        ("nowhere.xyz", {}, "no structures can be read from nowhere.xyz"),
        (bulk("Cu"), {"checks": ["bulk modulus"]}, "there is no check 'bulk modulus'; there are 'equilibrium'"),
        (bulk("Cu"), {"checks": "dimers"}, "checks must be a list"),
        (bulk("Cu"), {"checks": []}, "the list of checks is empty"),
    ],
)
def test_unusable_arguments_are_named(structures, options, message):
    with pytest.raises(InputError, match=message):
        validate(EMT(), structures, **options)


@pytest.mark.slow
@pytest.mark.sevenn
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_silicon_of_sevennet_0(dtype):
    path_or_skip("7net-0")
    calc = FinetunedCalculator("7net-0", device="cpu", dtype=dtype)
    checks = [Diffusion(picoseconds=0.2) if name == "diffusion" else name for name in CHECKS]
    result = validate(calc, bulk("Si"), checks=checks)
    assert result.passed
    # Measured once; SevenNet-0 is softer than silicon (98 GPa; 166, 64 and 80 GPa; 15.5 THz).
    assert result.result("equation of state").quantity("bulk modulus").value == pytest.approx(94.6, abs=1)
    for name, expected in (("C11", 154.5), ("C12", 69.8), ("C44", 57.9)):
        assert result.result("elastic constants").quantity(name).value == pytest.approx(expected, abs=1.5)
    assert result.result("phonons").quantity("highest frequency").value == pytest.approx(12.5, abs=0.2)
    assert result.result("phonons").verdict == "ok"
    assert result.result("vacancy").quantity("formation energy").value == pytest.approx(2.2, abs=0.3)
    wall = result.result("dimers").quantity("Si-Si wall")
    assert (wall.verdict, wall.value) == ("suspicious", pytest.approx(15.1, abs=0.5))
    assert (result.result("equilibrium").quantity("noise of the forces").value > 1e-4) is (dtype == "float32")
