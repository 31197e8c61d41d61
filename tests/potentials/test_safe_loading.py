"""Neither the import of this package nor loading models changes what torch loads for the rest of the process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from ase_finetune.errors import CheckpointError
from ase_finetune.potentials.bounds import BoundedBuild, check_numbers
from ase_finetune.potentials.imports import safe_globals
from ase_finetune.potentials.torch_files import load_torch_file, write_torch_file
from tests import helpers

ROOT = Path(__file__).parents[2]

CODE = """
import io, os, pickle, sys
import torch
safe = torch.serialization.get_safe_globals
before, allowed = (dict(os.environ), torch.get_default_dtype(), torch.load), set(safe())
from ase_finetune import FinetunedCalculator
from ase_finetune.continual import load_fisher
folder = "tests/released/format-1/"
for name in sys.argv[2:]:
    FinetunedCalculator(folder + name).export(sys.argv[1] + name + ".pth")
    FinetunedCalculator(sys.argv[1] + name + ".pth", trust_pickle=True)
FinetunedCalculator(folder + "morse")
load_fisher(folder + "fisher.safetensors")
assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
assert before == (dict(os.environ), torch.get_default_dtype(), torch.load)
assert all(getattr(item, "__module__", "").startswith("torch") for item in set(safe()) ^ allowed)
class Evil:
    def __reduce__(self):
        return os.system, ("echo executed",)
file = io.BytesIO()
torch.save(Evil(), file)
file.seek(0)
try:
    torch.load(file)
except pickle.UnpicklingError:
    print("refused")
"""


def test_the_process_stays_as_it_was(tmp_path):
    names = [name for name, here in (("sevennet", helpers.HAS_SEVENN), ("mace", helpers.HAS_MACE)) if here]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_FORCE")}
    done = subprocess.run(  # noqa: S603  # our own code
        [sys.executable, "-W", "ignore", "-c", CODE, f"{tmp_path}/", *names],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # torch before 2.6 loads everything unless it is asked not to, with or without this package.
    newer = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6)
    assert done.stdout.splitlines()[-1:] == ["refused"] or not newer


def test_threads_do_not_take_what_others_allowed():
    failures = []

    class Mine:
        pass

    def allow(number):
        for _ in range(50):
            with safe_globals([Mine] if number % 2 else [Path]):
                found = torch.serialization.get_safe_globals()
                if (Mine if number % 2 else Path) not in found:
                    failures.append(number)

    threads = [threading.Thread(target=allow, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Mine not in torch.serialization.get_safe_globals()


def test_torch_file_round_trip(tmp_path):
    shared = torch.arange(6.0)
    content = {"a": shared, "b": [shared[2:], torch.ones((), dtype=torch.int8)], "c": {"d": None, "e": 1.5}}
    write_torch_file(tmp_path / "file", content)
    read = load_torch_file(tmp_path / "file", "file")
    assert torch.equal(read["a"], shared)
    assert torch.equal(read["b"][0], shared[2:])
    assert read["b"][0].untyped_storage().data_ptr() == read["a"].untyped_storage().data_ptr()
    assert read["c"] == {"d": None, "e": 1.5}


def test_torch_file_with_a_flipped_bit(tmp_path):
    write_torch_file(tmp_path / "file", {"a": torch.ones(1000)})
    data = bytearray((tmp_path / "file").read_bytes())
    data[data.index(torch.ones(10).numpy().tobytes()) + 500] ^= 1
    (tmp_path / "file").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "file") as archive:
        assert archive.testzip() is not None
    with pytest.raises(CheckpointError, match=r"file is not a readable thing: the checksum of archive/data/0"):
        load_torch_file(tmp_path / "file", "thing")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(10**9),
        lambda: torch.empty(10**5, 10**5),
        lambda: torch.ones((10**9,)),
        lambda: torch.full((10**9,), 1.0),
        lambda: torch.randn(10**9),
        lambda: torch.rand(10**9),
        lambda: torch.eye(10**5),
        lambda: torch.arange(10**9),
        lambda: torch.linspace(0, 1, 10**9),
        lambda: torch.zeros(1).new_zeros(10**9),
        lambda: torch.nn.Linear(10**5, 10**5),
        lambda: [torch.zeros(10**6) for _ in range(10**4)],
        lambda: torch.ones(4096, 1) * torch.ones(1, 4096),
    ],
)
def test_nothing_large_is_built(make):
    with pytest.raises(CheckpointError, match="model does not describe its weights"), BoundedBuild({}, "model"):
        make()


def test_what_the_weights_need_is_built():
    with BoundedBuild({"a": torch.zeros(3000, 4000)}, "model"):
        assert torch.nn.Linear(3000, 4000).weight.shape == (4000, 3000)
    with BoundedBuild({}, "model"):
        view = torch.zeros(10).expand(10**9, 10)
        assert view.shape == (10**9, 10)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"channel": 5000}, "'channel' is 5000, at most 4096"),
        ({"cutoff": 10**400}, "'cutoff' is 1000"),
        ({"a": {"lmax": 12}}, "'a.lmax' is 12"),
        ({"correlation": [3, 9]}, "'correlation' is 9"),
        ({"gate": "x" * 20_000}, "'gate' is a text of 20000 characters"),
        ({"hidden_irreps": "5000x0e"}, "'hidden_irreps' is '5000x0e'"),
        ({"hidden_irreps": "8x12o"}, "'hidden_irreps' is '8x12o'"),
        ({"irreps_manual": ["8x0e", "8x0e+" * 500]}, "'irreps_manual' is '8x0e"),
    ],
)
def test_numbers_of_no_model(architecture, message):
    with pytest.raises(CheckpointError, match=f"^model.json describes no model: {message}"):
        check_numbers(architecture, "model.json")


def test_numbers_of_models():
    check_numbers({"hidden_irreps": "1024x0e + 1024x1o", "max_ell": 3, "channel": 128, "cutoff": 6.0, "x": None}, "m")
