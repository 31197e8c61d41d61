from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_finetune.data import Frame, FrameSet, check_disjoint, read_frames, split_frames
from ase_finetune.errors import DataError, InputError
from tests.data.conftest import labelled, salt

ATOMS = salt(0)


def grouped(names: list[str]) -> FrameSet:
    return FrameSet("train", [Frame(ATOMS, energy=0.0, group=name, index=i) for i, name in enumerate(names)])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcdef"), min_size=2, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 2**31),
)
def test_splits_are_partitions(names, fraction, seed):
    frames = grouped(names)
    split = split_frames(frames, fraction, seed=seed)
    train, valid = ({frame.index for frame in part} for part in (split.train, split.valid))
    assert train
    assert valid
    assert not train & valid
    assert train | valid == set(range(len(names)))
    again = split_frames(frames, fraction, seed=seed)
    assert [frame.index for frame in again.valid] == [frame.index for frame in split.valid]
    if " block " not in split.description:
        assert not {frame.group for frame in split.train} & {frame.group for frame in split.valid}


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.data())
def test_unrelated_frames_give_the_number_wanted(total, data):
    count = data.draw(st.integers(1, total - 1))
    split = split_frames(grouped([str(i) for i in range(total)]), count)
    assert (len(split.train), len(split.valid)) == (total - count, count)


def test_one_trajectory_gives_its_last_block(trajectory):
    split = split_frames(read_frames(trajectory), 0.3)
    assert [frame.index for frame in split.valid] == [7, 8, 9]
    assert "3 of 10 frames of train, the last block of the one trajectory" in split.description
    assert (split.train.name, split.valid.name) == ("train", "valid")


def held_out(frames: FrameSet, valid: float, seeds: range) -> list[set[int]]:
    return [{frame.index for frame in split_frames(frames, valid, seed=seed).valid} for seed in seeds]


def test_each_seed_holds_out_another_block(trajectory):
    frames = read_frames(trajectory)
    assert held_out(frames, 0.3, range(5)) == [{7, 8, 9}, {4, 5, 6}, {1, 2, 3}, {7, 8, 9}, {4, 5, 6}]
    assert split_frames(frames, 0.3, seed=1).description.endswith("block 2 of 3 from the end of the one trajectory")
    assert held_out(frames, 6, range(2)) == [{4, 5, 6, 7, 8, 9}] * 2
    two = grouped(["a"] * 10 + ["b"] * 12)
    assert held_out(two, 0.2, range(2)) == [{8, 9, 20, 21}, {6, 7, 18, 19}]
    assert "block 2 of 5 from the end of each of 2 trajectories" in split_frames(two, 0.2, seed=1).description


@pytest.mark.parametrize(
    ("sizes", "valid", "folds"),
    [
        ([1] * 50, 0.1, 10),
        ([5] * 10, 0.2, 5),
        ([5] * 11, 10, 6),  # the last one half as large
        ([1, 2, 3, 4] * 10, 0.2, 4),
        ([90, 5, 5], 5, 2),
        ([20, 10, 10, 10], 5, 3),  # as small as none of those wanted
        ([2, 2, 3, 4, 4, 5], 2, 5),  # those that are larger come after those that fit
    ],
)
def test_seeds_are_folds_of_whole_trajectories(sizes, valid, folds):
    frames = grouped([str(group) for group, size in enumerate(sizes) for _ in range(size)])
    parts = held_out(frames, valid, range(folds))
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert all(2 * len(part) >= len(parts[0]) for part in parts)
    assert all(" block " not in split_frames(frames, valid, seed=seed).description for seed in range(folds))


def test_when_all_have_been_held_out_another_order_begins():
    frames = grouped([str(i) for i in range(40)])
    parts = held_out(frames, 0.25, range(12))
    assert all(set.union(*parts[start : start + 4]) == set(range(40)) for start in (0, 4, 8))
    assert len({frozenset(part) for part in parts}) == 12


def test_few_long_trajectories_give_the_last_block_of_each():
    split = split_frames(grouped(["a"] * 10 + ["b"] * 10), 0.2)
    assert [frame.index for frame in split.valid] == [8, 9, 18, 19]
    assert "the last block of each of 2 trajectories" in split.description


def test_whole_trajectories_and_the_seed():
    frames = grouped([name for name in "abcdefghij" for _ in range(5)])
    chosen = {frozenset(frame.group for frame in split_frames(frames, 0.2, seed=seed).valid) for seed in range(8)}
    assert all(len(groups) == 2 for groups in chosen)
    assert len(chosen) > 1
    assert "2 of 10 trajectories (" in split_frames(frames, 0.2).description


def test_the_first_useful_key_identifies_the_trajectory():
    frames = [labelled(seed) for seed in range(6)]
    for i, atoms in enumerate(frames):
        atoms.info.update(source="MPtrj", run=i // 2)
    assert [frame.group for frame in read_frames(frames)] == ["run=0"] * 2 + ["run=1"] * 2 + ["run=2"] * 2


def test_without_keys_consecutive_alike_frames_are_one_trajectory():
    bigger = labelled(5)
    bigger.set_cell(bigger.cell * 1.2)
    bigger.calc.atoms.set_cell(bigger.cell)
    frames = [labelled(0), labelled(1), labelled(2, "Li4Cl4"), labelled(3, "Li4Cl4"), labelled(4), bigger]
    groups = [frame.group for frame in read_frames(frames)]
    assert [groups.index(group) for group in groups] == [0, 0, 2, 2, 4, 5]


def test_group_by_a_key():
    frames = [labelled(seed) for seed in range(4)]
    for i, atoms in enumerate(frames):
        atoms.info["batch"] = "ab"[i % 2]
    split = split_frames(read_frames(frames), 2, group_by="batch")
    assert len({frame.atoms.info["batch"] for frame in split.valid}) == 1
    with pytest.raises(InputError, match=r"frame 0 of train \(list\) has no 'run' in info; its keys: batch"):
        split_frames(read_frames(frames), 2, group_by="run")


@pytest.mark.parametrize(
    ("valid", "message"),
    [
        (0.0, "must lie between 0 and 1"),
        (1.0, "must lie between 0 and 1"),
        (-0.1, "must lie between 0 and 1"),
        (float("nan"), "must lie between 0 and 1"),
        (0, "valid=0 frames cannot be taken from the 10 frames"),
        (10, "valid=10 frames cannot be taken"),
        (True, "must be a fraction or a number of frames"),
        ("half", "must be a fraction or a number of frames, got 'half'"),
    ],
)
def test_impossible_splits(trajectory, valid, message):
    with pytest.raises(InputError, match=message):
        split_frames(read_frames(trajectory), valid)


def test_one_frame_cannot_be_split(trajectory):
    with pytest.raises(InputError, match="train has 1 frames; a split needs at least 2"):
        split_frames(read_frames(trajectory[:1]), 0.5)


def test_shared_structures_are_named(trajectory):
    train, valid = read_frames(trajectory[:6]), read_frames(trajectory[4:], name="valid")
    with pytest.raises(DataError, match=r"share 2 structures: frame 0 of valid \(list\) is frame 4 of train \(list\)"):
        check_disjoint(train, valid)
    check_disjoint(train, valid[2:])


def test_labels_do_not_make_structures_different():
    with pytest.raises(DataError, match="share 1 structures"):
        check_disjoint(read_frames([labelled(0)]), read_frames([labelled(0, energy=5.0)]))
