"""finetune() gives what it gave: histories, steps of the optimizer, weights and outcomes of every method.

Bit for bit on one thread where torch's version and the instruction set it uses (``torch.backends.cpu``) are those that
the files were written with; elsewhere to a relative 1e-9, see ``comparison``. A failure names the case and, of each
part of its outputs, the first difference: the epoch or step, and the key. ``python -m tests.golden`` writes the files
anew.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests import helpers
from tests.golden import comparison, together
from tests.golden.cases import CASES, MACE, RESUMED, SEVENNET, TOGETHER
from tests.golden.comparison import differences, read
from tests.golden.outputs import outputs


def case(name: str, *further: Any) -> Any:
    missing = (name in SEVENNET and not helpers.HAS_SEVENN) or (name in MACE and not helpers.HAS_MACE)
    marks = [pytest.mark.skip(reason="needs sevenn or mace-torch")] if missing else []
    return pytest.param(name, *further, marks=marks, id=name)


@pytest.mark.parametrize("name", [case(name) for name in CASES])
def test_run(name, tmp_path):
    told = differences(name, outputs(name, tmp_path))
    assert not told, told


@pytest.mark.parametrize(("name", "stops"), [case(*item) for item in RESUMED.items()])
def test_resumed_run(name, stops, tmp_path):
    """Interrupted after a step, and gone on with, it gives what the run does that was not."""
    told = differences(name, outputs(name, tmp_path, stops))
    assert not told, told


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    # Another order of sets and dictionaries of hashes than in this process, and than in the other runs of this test.
    place = tmp_path_factory.mktemp("together")
    return together.launch(place, XDG_CACHE_HOME=str(place / "cache"), PYTHONHASHSEED="random")


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes(name, two_processes):
    for folder in two_processes:
        told = differences(f"{name}{comparison.TOGETHER}", json.loads((folder / f"{name}.json").read_text()))
        assert not told, told


def test_two_processes_resumed(two_processes):
    """One of them is sent a signal."""
    for folder in two_processes:
        told = differences(f"{TOGETHER[-1]}{comparison.TOGETHER}", json.loads((folder / "resumed.json").read_text()))
        assert not told, told


def test_every_file_belongs_to_a_case():
    expected = {*CASES, *(f"{name}{comparison.TOGETHER}" for name in TOGETHER)}
    assert {file.stem for file in comparison.FOLDER.iterdir()} == expected


def test_files_show_what_their_names_say():
    """Steps are skipped, runs stop early, weights are drawn back: what is compared is not the same run many times."""
    assert [row["skipped_steps"] for row in read("naive-skipped")["history"]] == [1, 1, 1]
    assert len(read("naive-early-stopping")["history"]) < 4
    assert "drawn back" in read("reewc-bound")["metadata"][0]["outcome"]
    assert sum(row["train_skipped"] for row in read("bptt-guided")["history"]) > 0
    strengths = [row["ewc_lambda"] for row in read("ewc-bound")["history"]]
    assert len(set(strengths)) > 1
    steps = {name: json.dumps(read(name)["steps"]) for name in CASES}
    alike = [{name for name in steps if steps[name] == steps[other]} for other in steps]
    # What only watches, chooses among epochs or reports leaves the steps alone.
    allowed = {"naive", "naive-few", "naive-report", "naive-watched", "naive-without-validation"}
    assert [names for names in alike if len(names) > 1 and names != allowed] == []


# The comparison


def test_the_first_difference_is_named():
    found = read("reewc")
    assert differences("reewc", found) == ""
    spoiled = copy.deepcopy(found)
    spoiled["history"][1]["valid_loss"] *= 1 + 2e-16
    spoiled["history"][2]["penalty"] = 0.0
    spoiled["steps"][4]["gradient_norm"] = -0.0
    del spoiled["metadata"][0]["outcome"]
    before, now = (each["history"][1]["valid_loss"] for each in (found, spoiled))
    assert differences("reewc", spoiled).splitlines() == [
        f"reewc: history, frames, epoch 2, valid_loss: {before!r} in the file, {now!r} in the run",
        "reewc: metadata, 0, outcome: only in the file",
        f"reewc: steps, step 5, gradient_norm: {found['steps'][4]['gradient_norm']!r} in the file, -0.0 in the run",
    ]


def test_elsewhere_rounding_is_no_difference():
    found = read("reewc") | {"cpu": "another"}
    found["steps"][0]["weights"] = "0" * 16
    found["steps"][0]["norm"] *= 1 + 1e-10
    found["history"][0]["replay_loss"] += 1e-12
    assert differences("reewc", found) == ""
    found["steps"][1]["norm"] *= 1 + 1e-8
    assert differences("reewc", found).startswith("reewc: steps, step 2, norm: ")


@pytest.mark.slow
@pytest.mark.skipif(not (helpers.HAS_SEVENN and helpers.HAS_MACE), reason="needs sevenn and mace-torch")
@pytest.mark.parametrize("order", ["1", "2"])
def test_the_generator_writes_these_files(order, tmp_path):
    """Whatever the order of sets is in a process."""
    environment = os.environ | {"PYTHONHASHSEED": order, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.golden", str(tmp_path)]
    subprocess.run(command, cwd=together.ROOT, env=environment, check=True, timeout=600)  # noqa: S603  # our own script
    for file in comparison.FOLDER.iterdir():
        told = differences(file.stem, json.loads((tmp_path / file.name).read_text()))
        assert not told, told
