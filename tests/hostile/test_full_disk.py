"""Full disks, closed folders and kills at every write: an error of ours, and the earlier files load."""

from __future__ import annotations

import errno
import signal
import sys

import pytest
import torch

from ase_finetune import FinetunedCalculator
from ase_finetune.continual import FisherInformation, load_fisher, pseudo_label, save_fisher
from ase_finetune.errors import OutputError
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials import MorsePotential, load_potential, save_potential
from tests import helpers, morse
from tests.hostile.failing import CODES, Failing, Killing, fail_at_every_write, no_parts

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and limits on files")


@pytest.mark.parametrize("code", CODES)
def test_saved_potential(tmp_path, monkeypatch, code):
    path = tmp_path / "model"
    old, new = MorsePotential([14], depth=1.0), MorsePotential([14], depth=2.0)
    save_potential(old, path)

    def check():
        depth = float(load_potential(path)[0].native["depth"][0].detach())
        assert depth in (1.0, 2.0)
        assert no_parts(path)

    writes = fail_at_every_write(monkeypatch, code, lambda: save_potential(new, path, overwrite=True), check)
    assert writes == 8
    assert len(list(path.iterdir())) == 2


def test_first_save_that_failed_can_be_repeated(tmp_path, monkeypatch):
    path = tmp_path / "model"
    with monkeypatch.context() as patch:
        Failing(patch, 7, errno.ENOSPC)
        with pytest.raises(OutputError, match=r"potential\.json cannot be written: No space left"):
            save_potential(MorsePotential([14]), path)
    assert [item.name[:8] for item in path.iterdir()] == ["weights-"]
    save_potential(MorsePotential([8]), path)
    assert load_potential(path)[0].numbers == (8,)


@needs_linux
@pytest.mark.parametrize("first", [True, False])
def test_save_killed_at_every_write(tmp_path, monkeypatch, first):
    from benchmarks.reliability.sandbox import attempt

    old, new = MorsePotential([14], depth=1.0), MorsePotential([14], depth=2.0)
    save_potential(old, tmp_path / "any")  # what is checked once per architecture
    found = []
    for number in range(1, 11):
        path = tmp_path / f"model-{number}"
        if not first:
            save_potential(old, path)

        def action(number=number, path=path):
            Killing(monkeypatch, number, 0)
            save_potential(new, path, overwrite=True)

        assert attempt(action).kind == "crash"
        if (path / "potential.json").exists():
            found.append(float(load_potential(path)[0].native["depth"][0].detach()))
        else:
            assert first
        save_potential(new, path, overwrite=not first or number == 10)
        assert float(load_potential(path)[0].native["depth"][0].detach()) == 2.0
        assert len(list(path.iterdir())) == 2
    assert found == ([2.0] if first else [1.0] * 9 + [2.0])


def exported():
    """Potentials of all backends that are here."""
    made = [pytest.param(lambda: MorsePotential([8, 14]), id="morse")]
    if helpers.HAS_SEVENN:
        made.append(pytest.param(helpers.build_sevennet, id="sevennet", marks=pytest.mark.sevenn))
    if helpers.HAS_MACE:
        from ase_finetune.potentials.mace import MACEPotential

        made.append(pytest.param(lambda: MACEPotential(helpers.build_mace()), id="mace", marks=pytest.mark.mace))
    return made


@pytest.mark.parametrize("build", exported())
def test_export(tmp_path, monkeypatch, build):
    calculator = FinetunedCalculator(build())
    path = tmp_path / "model.native"
    path.write_bytes(b"earlier")
    contents = []

    def check():
        contents.append(path.read_bytes())
        assert no_parts(tmp_path)

    action = lambda: calculator.export(path, overwrite=True)  # noqa: E731
    assert fail_at_every_write(monkeypatch, errno.ENOSPC, action, check) == 4
    assert contents[:4] == [b"earlier"] * 4
    assert len(path.read_bytes()) > 50


@pytest.mark.parametrize("code", CODES)
def test_fisher(tmp_path, monkeypatch, code):
    path = tmp_path / "fisher.safetensors"
    old, new = (FisherInformation({"a": torch.full((2,), value)}, {"kind": "gaussian"}) for value in (1.0, 2.0))
    save_fisher(old, path, model_hash="", data_hash="")

    def check():
        assert load_fisher(path).values["a"].tolist() in ([1, 1], [2, 2])
        assert no_parts(tmp_path)

    action = lambda: save_fisher(new, path, model_hash="", data_hash="", overwrite=True)  # noqa: E731
    assert fail_at_every_write(monkeypatch, code, action, check) == 4
    assert load_fisher(path).values["a"].tolist() == [2, 2]


@pytest.mark.parametrize("number", range(1, 6))
def test_cache_of_labels_costs_only_time(tmp_path, monkeypatch, number):
    potential = morse.pretrained()
    graphs = [AtomGraph.from_atoms(atoms, potential.cutoff) for atoms in morse.silicon(2, 1)]
    expected = pseudo_label(potential, graphs)
    with monkeypatch.context() as patch:
        Failing(patch, number, errno.ENOSPC)
        made = pseudo_label(potential, graphs, cache=tmp_path / "cache")
    assert all(torch.equal(a.forces, b.forces) for a, b in zip(made, expected, strict=True))
    assert no_parts(tmp_path)
    assert all(
        torch.equal(a.forces, b.forces)
        for a, b in zip(pseudo_label(potential, graphs, cache=tmp_path / "cache"), expected, strict=True)
    )


@needs_linux
@pytest.mark.parametrize("kind", ["save", "export", "fisher"])
def test_disk_that_is_really_full(tmp_path, kind):
    """Files may not grow beyond 100 bytes here, whoever runs the tests."""
    from benchmarks.reliability.sandbox import attempt

    calculator = FinetunedCalculator(MorsePotential([14], depth=1.0))
    fisher = FisherInformation({"a": torch.ones(100)}, {})
    actions = {
        "save": lambda: calculator.save(tmp_path / "model", overwrite=True),
        "export": lambda: calculator.export(tmp_path / "native", overwrite=True),
        "fisher": lambda: save_fisher(fisher, tmp_path / "fisher", model_hash="", data_hash="", overwrite=True),
    }
    actions[kind]()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def limited():
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        actions[kind]()

    outcome = attempt(limited)
    assert (outcome.kind, outcome.error) == ("refused", "OutputError"), outcome
    assert "File too large" in outcome.text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
