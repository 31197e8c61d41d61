from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

from ase_finetune.data import PairSet, pair_report, read_frames, read_pairs
from ase_finetune.errors import DataError, InputError
from tests.data.conftest import labelled, salt

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
ENDS = [EXAMPLES / f"crystal_pairs_{end}.extxyz" for end in ("initial", "relaxed")]


def ends(count: int = 4, key: str | None = "structure_id") -> tuple[list[Atoms], list[Atoms]]:
    """Initial structures and labelled relaxed ones; their Na-Na distances tell them apart."""
    initial, relaxed = [salt(seed) for seed in range(count)], [labelled(100 + seed) for seed in range(count)]
    for number, atoms in enumerate(zip(initial, relaxed, strict=True)):
        for end in atoms:
            end.info.update({} if key is None else {key: f"salt-{number}"})
    return initial, relaxed


def positions(pairs: PairSet) -> list[tuple[bytes, bytes]]:
    return [(pair.initial.positions.tobytes(), pair.relaxed.positions.tobytes()) for pair in pairs]


def expected(initial: list[Atoms], relaxed: list[Atoms]) -> list[tuple[bytes, bytes]]:
    return [(a.positions.tobytes(), b.positions.tobytes()) for a, b in zip(initial, relaxed, strict=True)]


def test_two_files():
    pairs = read_pairs(ENDS)
    relaxed = read_frames(ENDS[1])
    assert len(pairs) == 12
    assert pairs[0].name == "LiSiAs_YPPt_187"
    assert [pair.energy for pair in pairs] == [frame.energy for frame in relaxed]
    source = "crystal_pairs_initial.extxyz, crystal_pairs_relaxed.extxyz"
    assert pairs.describe(3) == f"pair 3 '{pairs[3].name}' of relaxations ({source})"
    assert pairs.notes == ("initial and relaxed structures are paired by 'structure_id'",)
    assert positions(read_pairs(tuple(map(str, ENDS)))) == positions(pairs)


@pytest.mark.parametrize("kind", ["lists", "pairs", "tuple of pairs", "generator", "one", "set"])
def test_sources(kind):
    initial, relaxed = ends(1 if kind == "one" else 3, key=None)
    couples = list(zip(initial, relaxed, strict=True))
    source = {
        "lists": (initial, relaxed),
        "pairs": couples,
        "tuple of pairs": tuple(couples),
        "generator": (couple for couple in couples),
        "one": couples[0],
        "set": read_pairs(couples, name="other"),
    }[kind]
    pairs = read_pairs(source, name="mine")
    assert positions(pairs) == expected(initial, relaxed)
    assert pairs.name == "mine"
    assert pairs.describe(0) == "pair 0 of mine (list)"
    assert [pair.energy for pair in pairs] == [atoms.calc.results["energy"] for atoms in relaxed]


@pytest.mark.parametrize("key", ["structure_id", "id", "material_id", "mp_id", "name"])
def test_ids_match_whatever_the_order(key):
    initial, relaxed = ends(5, key)
    pairs = read_pairs((initial, relaxed[::-1]))
    assert positions(pairs) == expected(initial, relaxed)
    assert [pair.name for pair in pairs] == [f"salt-{i}" for i in range(5)]
    assert f"by '{key}'" in pairs.notes[0]


def test_tuples_stay_as_they_are_given():
    initial, relaxed = ends(2)
    pairs = read_pairs([(initial[0], relaxed[1]), (initial[1], relaxed[0])])
    assert positions(pairs) == expected(initial, relaxed[::-1])
    assert [pair.name for pair in pairs] == ["pair 0", "pair 1"]


def test_repeated_ids_in_one_order_match_by_order():
    initial, relaxed = ends(4)
    for atoms in (*initial, *relaxed):
        atoms.info["structure_id"] = atoms.info["structure_id"].replace("3", "2")
    pairs = read_pairs((initial, relaxed))
    assert positions(pairs) == expected(initial, relaxed)
    assert "by their order" in pairs.notes[0]
    assert pairs[3].name == "salt-2"
    with pytest.raises(DataError, match=r"values of 'structure_id' repeat, and not in the same order"):
        read_pairs((initial, relaxed[::-1]))


def test_a_later_key_that_is_unique_wins_over_one_that_repeats():
    initial, relaxed = ends(4)
    for end in (initial, relaxed):
        for number, atoms in enumerate(end):
            atoms.info.update(structure_id=f"half-{number % 2}", id=number)
    assert positions(read_pairs((initial, relaxed[::-1]))) == expected(initial, relaxed)


def test_a_constant_name_is_no_identity():
    initial, relaxed = ends(3, key=None)
    for atoms in initial:
        atoms.info["name"] = "start"
    for atoms in relaxed:
        atoms.info["name"] = "end"
    assert positions(read_pairs((initial, relaxed))) == expected(initial, relaxed)


def test_ids_of_one_end_only_are_listed():
    initial, relaxed = ends(9)
    relaxed[0].info["structure_id"] = "other"
    message = r"matched by 'structure_id', but 1 initial ones have no partner \(salt-0\) and 1 relaxed ones .*\(other\)"
    with pytest.raises(DataError, match=message):
        read_pairs((initial, relaxed))
    with pytest.raises(DataError, match=re.escape("7 initial ones have no partner (salt-2, salt-3, salt-4, salt-5, ")):
        read_pairs((initial, [*ends(2)[1]]))


def test_without_ids_there_must_be_as_many():
    initial, relaxed = ends(4, key=None)
    with pytest.raises(DataError, match=r"relaxations \(list\): 4 initial and 3 relaxed structures; without ids"):
        read_pairs((initial, relaxed[:3]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pairs.extxyz", "got 'pairs.extxyz' of type str"),
        (salt(0), r"got Atoms.* of type Atoms"),
        ([salt(0), salt(1)], "expected two sources"),
        ([(salt(0), salt(1)), salt(0)], r"expected two sources.* got Atoms"),
        ([(salt(0), salt(1), salt(0))], "of type tuple"),
        (["a.xyz", "b.xyz", "c.xyz"], "expected two sources"),
        (3, "got 3 of type int"),
        ([[salt(0), salt(0)], [salt(1), salt(1)]], "can be read in two ways; write pairs as tuples"),
    ],
)
def test_other_sources_are_refused(source, message):
    with pytest.raises(InputError, match=message):
        read_pairs(source)


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match="the list holds no pairs"):
        read_pairs([])
    with pytest.raises(DataError, match=r"relaxations, initial structures: there is no file '.*nothing\.xyz'"):
        read_pairs([tmp_path / "nothing.xyz", tmp_path / "nothing.xyz"])


def test_broken_pairs_are_named():
    initial, relaxed = ends(3)
    relaxed[1].symbols[2] = "K"
    relaxed[1].calc.atoms.symbols[2] = "K"
    message = r"pair 1 'salt-1' of train \(list\): atom 2 is Na in the initial structure and K in the relaxed one"
    with pytest.raises(DataError, match=message):
        read_pairs((initial, relaxed), name="train")


def test_initial_structures_keep_constraints_and_lose_labels():
    initial, relaxed = labelled(0), labelled(1)
    initial.info["energy"] = -1.0
    initial.set_constraint(FixAtoms([0, 3]))
    relaxed.set_constraint(FixAtoms([1]))
    (pair,) = read_pairs((initial, relaxed))
    assert pair.initial.calc is None
    assert pair.relaxed.calc is None
    assert "energy" not in pair.initial.info
    assert pair.initial.constraints[0].index.tolist() == [0, 3]
    assert not pair.relaxed.constraints
    # The pair is a copy: later changes do not reach it.
    initial.constraints[0].index[:] = 5
    initial.positions += 1
    assert pair.initial.constraints[0].index.tolist() == [0, 3]
    assert pair.initial.positions[0, 0] != initial.positions[0, 0]


def test_a_stale_calculator_of_the_initial_structure_does_not_matter():
    initial, relaxed = labelled(0), labelled(1)
    initial.positions += 0.01
    assert len(read_pairs((initial, relaxed))) == 1
    relaxed.positions += 0.01
    with pytest.raises(DataError, match="another geometry"):
        read_pairs((initial, relaxed))


def test_files_keep_fixed_atoms(tmp_path):
    initial, relaxed = ends(2)
    initial[0].set_constraint(FixAtoms([1]))
    initial[1].set_constraint(FixAtoms([2]))
    columns = ["symbols", "positions", "move_mask"]
    for name, structures in (("a", initial), ("b", relaxed)):
        write(tmp_path / f"{name}.extxyz", structures, columns=columns if name == "a" else None)
    pairs = read_pairs([tmp_path / "a.extxyz", tmp_path / "b.extxyz"])
    assert [pair.initial.constraints[0].index.tolist() for pair in pairs] == [[1], [2]]


def test_missing_energies():
    initial, relaxed = ends(3)
    relaxed[1].calc = None
    relaxed[2].calc = SinglePointCalculator(relaxed[2], free_energy=-3.0, energy=-2.0)
    pairs = read_pairs((initial, relaxed))
    assert [pair.energy for pair in pairs][1:] == [None, -3.0]
    assert pairs.num_energies == 2


def test_a_set_is_a_sequence():
    pairs = read_pairs(ends(4))
    assert [pair.index for pair in pairs.select([3, 1])] == [3, 1]
    assert pairs.select([0], name="one").name == "one"
    assert isinstance(pairs[1:3], PairSet)
    assert [pair.name for pair in pairs[1:3]] == ["salt-1", "salt-2"]
    assert pairs.elements == (11, 17)
    assert repr(pairs) == "PairSet('relaxations', 4 pairs, 4 with energies)"


def test_the_digest_sees_structures_constraints_and_energies_only():
    pairs = read_pairs(ends(3))
    assert read_pairs(ends(3, "name"), name="other").digest() == pairs.digest()
    digests = {pairs.digest(), pairs.select([1, 0, 2]).digest(), pairs[:2].digest()}
    for change in ("initial", "relaxed", "constraint", "energy", "cell"):
        initial, relaxed = ends(3)
        if change == "initial":
            initial[1].positions[2, 0] += 1e-7
        elif change == "relaxed":
            relaxed[1].positions[2, 0] += 1e-7
        elif change == "constraint":
            initial[1].set_constraint(FixAtoms([0]))
        elif change == "cell":
            initial[0].cell[0, 0] += 1e-7
        else:
            relaxed[1].calc.results["energy"] += 1e-6
        digests.add(read_pairs((initial, relaxed)).digest())
    assert len(digests) == 8


def test_the_report():
    initial, relaxed = ends(3)
    relaxed[2].calc = None
    relaxed[1].calc = None
    relaxed[1].set_cell(relaxed[1].cell[:] * 1.1, scale_atoms=True)
    initial[0].set_constraint(FixAtoms([0]))
    first, second, third, *rest = pair_report(read_pairs((initial, relaxed))).splitlines()
    assert first == "relaxations: 3 pairs of 8 atoms, Na Cl; 1 with energies"
    assert re.fullmatch(r"furthest atom moves 0\.\d\d Å \(median\), 0\.\d\d to 0\.\d\d Å", second)
    assert third == "2 of 3 keep their cell; volumes change by +0.0 % (median), +0.0 to +33.1 %"
    assert rest == ["1 of 3 have constraints", "initial and relaxed structures are paired by 'structure_id'"]


def test_the_report_of_molecules_and_of_nothing():
    initial, relaxed = (Atoms("OH", positions=[(0, 0, 0), (0, 0, z)]) for z in (1.0, 1.2))
    pairs = read_pairs((initial, relaxed))
    assert "1 of 1 keep their cell\n" in pair_report(pairs)
    assert "0.10 Å (median)" in pair_report(pairs)
    assert pair_report(pairs[:0]) == "relaxations: no pairs"


def test_notes_on_doubtful_pairs_are_few():
    couples = []
    for seed in range(8):
        initial, relaxed = salt(seed), salt(100 + seed, spread=0.15)
        relaxed.positions[[0, 1]] = relaxed.positions[[1, 0]]
        relaxed.positions[7] += (0.7, 0, 0)
        couples.append((initial, relaxed))
    notes = read_pairs(couples).notes
    assert len(notes) == 7
    assert notes[1].startswith("pair 0 of relaxations (list): atoms 0 and 1 (Na) may be swapped")
    assert notes[-1] == "3 more such pairs"


@pytest.mark.data
@pytest.mark.parametrize(("stem", "count"), [("crystal_pairs_train", 500), ("crystal_pairs_valid", 120)])
def test_real_relaxations_of_crystals(data_folder, stem, count):
    pairs = read_pairs([data_folder / f"{stem}_{end}.extxyz" for end in ("initial", "relaxed")])
    assert len(pairs) == pairs.num_energies == count
    assert pairs.notes == ("initial and relaxed structures are paired by 'structure_id'",)
    assert f"0 of {count} keep their cell" in pair_report(pairs)


@pytest.mark.data
def test_real_relaxations_with_ion_hops(data_folder):
    pairs = read_pairs([data_folder / f"argyrodite_pairs_train_{end}.extxyz" for end in ("initial", "relaxed")])
    assert len(pairs) == 54
    assert pairs.notes == ("initial and relaxed structures are paired by their order",)
    assert "54 of 54 keep their cell; volumes change by +0.0 % (median), +0.0 to +0.0 %" in pair_report(pairs)
    furthest = max(np.abs(pair.initial.positions - pair.relaxed.positions).max() for pair in pairs)
    assert furthest > 1.5


def test_digest_knows_masses():
    """They weigh the distance between structures."""
    initial, relaxed = bulk("Si"), bulk("Si", a=5.5)
    before = read_pairs([(initial, relaxed)]).digest()
    initial.set_masses([1.0, 2.0])
    assert read_pairs([(initial, relaxed)]).digest() != before
