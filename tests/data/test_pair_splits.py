from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_finetune.data import Pair, PairSet, check_disjoint_pairs, read_pairs, split_pairs
from ase_finetune.errors import DataError, InputError
from tests.data.conftest import salt

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
SYMBOLS = {"a": "Na4Cl4", "b": "K4Cl4", "c": "Li4F4", "d": "K6Cl2", "e": "Na2F6"}


def pairs_of(names: str, spread: float = 0.05) -> PairSet:
    made = []
    for index, name in enumerate(names):
        ends = [salt(seed, spread=spread) for seed in (index, 1000 + index)]
        for atoms in ends:
            atoms.symbols = SYMBOLS[name]
        made.append(Pair(*ends, name=f"{name}-{index}", index=index))
    return PairSet("relaxations", made)


def formulas(pairs: PairSet) -> set[str]:
    return {str(pair.initial.symbols.formula.reduce()[0].format("hill")) for pair in pairs}


@settings(max_examples=40, deadline=None)
@given(st.text("abcde", min_size=2, max_size=30), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_splits_are_partitions(names, fraction, seed):
    pairs = pairs_of(names)
    train, valid, text = split_pairs(pairs, fraction, seed=seed)
    parts = [pair.index for pair in train], [pair.index for pair in valid]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == list(range(len(names)))
    assert [*map(list, parts)] == [sorted(part) for part in parts]
    shared = formulas(train) & formulas(valid)
    assert bool(shared) == ("too few formulas" in text)
    assert [pair.index for pair in split_pairs(pairs, fraction, seed=seed)[1]] == parts[1]


def test_formulas_stay_together():
    train, valid, text = split_pairs(pairs_of("abcde" * 4), 0.2)
    assert (len(train), len(valid)) == (16, 4)
    assert (train.name, valid.name) == ("relaxations", "valid")
    assert len(formulas(valid)) == 1
    assert text == ("validation: 4 of 20 pairs of relaxations, 1 of 5 reduced formulas, none of them in both sets")


def test_the_formula_is_the_reduced_one():
    single, double = salt(0), salt(0).repeat((1, 1, 2))
    moved = [single.copy(), double.copy()]
    for atoms in moved:
        atoms.rattle(0.1)
    _, _, text = split_pairs(read_pairs(list(zip([single, double], moved, strict=True))), 1)
    assert "both sets have ClNa" in text


def test_one_formula():
    pairs = pairs_of("a" * 10)
    for pair in pairs:
        pair.initial.info["run"] = pair.index // 2
    train, valid, text = split_pairs(pairs, 0.2)
    assert len(valid) == 2
    assert len({pair.initial.info["run"] for pair in valid}) == 1
    assert not {pair.initial.info["run"] for pair in valid} & {pair.initial.info["run"] for pair in train}
    assert text.endswith("too few formulas to keep them apart, so both sets have ClNa")


def test_the_seed_chooses():
    pairs = pairs_of("abcde" * 2)
    chosen = [formulas(split_pairs(pairs, 0.2, seed=seed)[1]) for seed in range(5)]
    assert len(set.union(*chosen)) == sum(map(len, chosen)) == 5


def test_one_formula_in_one_trajectory_gives_another_block_to_each_seed():
    pairs = pairs_of("a" * 9)
    for pair in pairs:
        pair.initial.info["run"] = 0
    blocks = [[pair.index for pair in split_pairs(pairs, 3, seed=seed)[1]] for seed in range(4)]
    assert blocks == [[6, 7, 8], [3, 4, 5], [0, 1, 2], [6, 7, 8]]


@pytest.mark.parametrize(
    ("valid", "message"),
    [(0.0, "between 0 and 1"), (3, r"valid=3 pairs cannot be taken from the 3 pairs of relaxations"), (True, "pairs")],
)
def test_impossible_splits(valid, message):
    with pytest.raises(InputError, match=message):
        split_pairs(pairs_of("abc"), valid)
    with pytest.raises(InputError, match="relaxations has 1 pairs; a split needs at least 2"):
        split_pairs(pairs_of("a"), valid)


def test_the_examples_split():
    pairs = read_pairs([EXAMPLES / f"crystal_pairs_{end}.extxyz" for end in ("initial", "relaxed")])
    train, valid, _ = split_pairs(pairs, 0.25)
    assert (len(train), len(valid)) == (9, 3)
    assert not formulas(train) & formulas(valid)
    check_disjoint_pairs(train, valid)


def test_shared_structures_are_named():
    pairs = pairs_of("aab")
    other = PairSet("valid", pairs_of("aab").select([1]))
    # Half a digit of rounding further on: equal structures need not have equal digits.
    other[0].initial.positions += 5e-5
    message = r"share 1 initial structures: pair 1 'a-1' of valid \(list\) is pair 1 'a-1' of relaxations \(list\)"
    with pytest.raises(DataError, match=message):
        check_disjoint_pairs(pairs, other)
    other[0].initial.positions[0, 0] += 1e-3
    check_disjoint_pairs(pairs, other)


def test_other_cells_and_many_shared_ones():
    pairs, other = pairs_of("a" * 8), pairs_of("a" * 8)
    with pytest.raises(DataError, match=r"share 8 initial structures: .*; and 3 more"):
        check_disjoint_pairs(pairs, other)
    for pair in other:
        pair.initial.cell[0, 0] += 1e-2
    check_disjoint_pairs(pairs, other)


@pytest.mark.data
def test_the_real_sets_are_disjoint_and_split(data_folder):
    train, valid = (
        read_pairs([data_folder / f"crystal_pairs_{part}_{end}.extxyz" for end in ("initial", "relaxed")], name=part)
        for part in ("train", "valid")
    )
    check_disjoint_pairs(train, valid)
    rest, taken, _ = split_pairs(train, 0.1)
    assert not formulas(rest) & formulas(taken)
    assert len(taken) == pytest.approx(50, abs=2)
    assert np.intersect1d([p.index for p in rest], [p.index for p in taken]).size == 0
