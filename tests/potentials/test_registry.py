from __future__ import annotations

import contextlib
import io
import urllib.error
from pathlib import Path

import pytest
import torch

from ase_finetune.errors import (
    BackendNotInstalledError,
    CheckpointError,
    InputError,
    ModelNotAvailableError,
    UnknownModelError,
    UntrustedFileError,
)
from ase_finetune.potentials import MorsePotential, downloads, list_models, load_potential, registry, save_potential
from ase_finetune.potentials.catalog import CATALOG
from ase_finetune.potentials.mace import MACEPotential
from ase_finetune.potentials.registry import find_model, locate_model
from tests import helpers

needs_mace = pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")
needs_sevenn = pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of both backends, and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)

    def offline(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(downloads.urllib.request, "urlopen", offline)
    if not helpers.HAS_MACE:
        monkeypatch.setattr(registry, "_package", lambda _: tmp_path / "site-packages")
    return tmp_path


def availability(name):
    return {info.name: info for info in list_models()}[name].availability


def test_names_are_unique():
    names = [name for info in CATALOG for name in (info.name, *info.aliases)]
    assert len(names) == len(set(names))
    assert all(name == name.lower() for name in names)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("SevenNet-0", "7net-0"),
        ("7net-0_11July2024", "7net-0"),
        ("sevennet-mf-ompa", "7net-mf-ompa"),
        ("medium-mpa-0", "mace-mpa-0"),
        ("small-0b2", "mace-mp-0b2-small"),
        ("MACE-MP-0", "mace-mp-0-medium"),
        ("mh-1", "mace-mh-1"),
        ("small", None),  # of mace_mp() or of mace_off()?
    ],
)
def test_aliases(alias, name):
    info = find_model(alias)
    assert (info and info.name) == name


@needs_sevenn
@pytest.mark.sevenn
def test_sevenn_names_agree_with_sevenn():
    from ase_finetune.potentials.imports import import_backend

    util = import_backend("sevenn.util", "sevenn")
    for name in ("7net-0", "7net-0_22may2024", "7net-l3i5"):
        assert locate_model(name) == Path(util.pretrained_name_to_path(name))
        assert availability(name) == "shipped"


@needs_mace
@pytest.mark.mace
def test_mace_names_agree_with_mace(caches, monkeypatch):
    from ase_finetune.potentials.imports import import_backend

    models = import_backend("mace.calculators.foundations_models", "mace-torch")
    urls = {info.url: info for info in CATALOG}
    known = [*models.mace_mp_urls.values(), *models.mace_off_urls.values(), *models.polar_model_urls.values()]
    assert [url for url in known if url not in urls] == []
    # Where MACE itself would download to.
    asked = []

    def record(url, filename, *args):
        asked.append(Path(filename))
        return filename, {}

    class StopError(Exception):
        pass

    def stop(*args, **kwargs):
        raise StopError

    monkeypatch.setattr(models, "_urlretrieve_with_timeout", record)
    monkeypatch.setattr(models, "MACECalculator", stop)
    calls = [(models.download_mace_mp_checkpoint, key, url) for key, url in models.mace_mp_urls.items()]
    calls += [(models.mace_off, key, url) for key, url in models.mace_off_urls.items()]
    calls += [(models.mace_omol, "extra_large", find_model("mace-omol-0").url)]
    for function, key, url in calls:
        with contextlib.suppress(StopError):
            function(key)
        assert registry.places_of(urls[url])[-1][0] == asked[-1], key


def test_list_says_what_is_here(caches):
    info = find_model("7net-omat")
    path = caches / ".cache" / "sevennet" / info.file
    if helpers.HAS_SEVENN:
        assert availability("7net-omat") == "download"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    if helpers.HAS_SEVENN:
        assert availability("7net-omat") == "cached"
    assert locate_model("SEVENNET-OMAT", download=False) == path


def test_missing_backend_is_said(caches, monkeypatch):
    monkeypatch.setattr(registry, "_package", lambda _: None)
    models = {info.name: info for info in list_models()}
    assert models["7net-0"].availability == "unsupported"
    assert "ase_finetune[sevenn]" in models["7net-0"].note
    assert "ase_finetune[mace]" in models["mace-mpa-0"].note
    with pytest.raises(BackendNotInstalledError, match=r"mace-mpa-0 needs mace: pip install 'ase_finetune\[mace\]'"):
        load_potential("mace-mpa-0")


def test_unknown_name_suggests_near_ones():
    with pytest.raises(UnknownModelError, match=r"did you mean .*7net-l3i5.*list_models\(\)"):
        locate_model("7net-l3i6")
    with pytest.raises(UnknownModelError, match=r"no file and no pretrained model called 'xyzzy'; .*list_models\(\)"):
        load_potential("xyzzy")


def test_polar_models_are_known_but_refused():
    with pytest.raises(InputError, match="mace-polar-1-s is not supported: its long-range electrostatics"):
        load_potential("polar-1-s")


def test_offline_says_what_to_copy_where(caches, capsys):
    target = caches / "xdg" / "mace" / "20231203mace128L1_epoch199model"
    message = rf"download https://github.com/.*L1_epoch-199\.model elsewhere and copy it to {target}"
    with pytest.raises(ModelNotAvailableError, match=r"has not been downloaded yet; .*" + message):
        locate_model("mace-mp-0-medium", download=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(ModelNotAvailableError, match=r"could not be downloaded \(.*no route to host.*" + message):
        locate_model("mace-mp-0-medium")
    assert "Downloading mace-mp-0-medium" in capsys.readouterr().err
    assert list(target.parent.iterdir()) == []


def test_model_without_download(caches, monkeypatch):
    monkeypatch.setattr(registry, "_package", lambda _: caches / "site-packages")
    with pytest.raises(ModelNotAvailableError, match=r"7net-mf-0 is not here: it comes with later versions of sevenn"):
        locate_model("7net-mf-0")


def test_download_of_a_login_page(caches, monkeypatch):
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"<html>Please log in"))
    with pytest.raises(ModelNotAvailableError, match="web page"):
        locate_model("mace-off23-small")
    assert list((caches / "xdg" / "mace").iterdir()) == []


def test_cache_that_cannot_be_made(caches, monkeypatch):
    (caches / "xdg").write_text("a file in the way")
    with pytest.raises(ModelNotAvailableError, match="could not be downloaded"):
        locate_model("mace-off23-small")


def test_potential_is_used_as_it_is():
    potential = MorsePotential().double()
    loaded, metadata = load_potential(potential)
    assert loaded is potential
    assert metadata == {}
    with pytest.raises(InputError, match="head='pbe' was asked for"):
        load_potential(potential, head="pbe")


def test_saved_folder(tmp_path):
    save_potential(MorsePotential([8]).double(), tmp_path / "saved", metadata={"a": 1})
    loaded, metadata = load_potential(tmp_path / "saved")
    assert (loaded.numbers, loaded.dtype, metadata) == ((8,), torch.float32, {"a": 1})
    assert load_potential(str(tmp_path / "saved"), dtype=None)[0].dtype == torch.float64


def test_folder_named_as_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_load_named", lambda *_: MorsePotential([1]))
    (tmp_path / "7net-0").mkdir()
    assert load_potential("7net-0")[1] == {"model": "7net-0"}
    (tmp_path / "7net-0").rmdir()
    (tmp_path / "7net-0").write_text("some notes on it")
    assert load_potential("7net-0")[1] == {"model": "7net-0"}
    (tmp_path / "7net-0").unlink()
    save_potential(MorsePotential([8]), tmp_path / "7net-0")
    assert load_potential("7net-0")[0].numbers == (8,)


def test_output_folder_of_a_run(tmp_path, monkeypatch):
    """As a run leaves it: ``run.json`` from its first step on, the errors of the result once it has ended."""
    run = tmp_path / "first"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"^the run in .*first has not ended: go on with it by resume=True$"):
        load_potential(run)
    save_potential(MorsePotential([8]), run / "model", metadata={"stages": []})
    with pytest.raises(CheckpointError, match=r"has not ended.*; its best model so far is .*first.model$"):
        load_potential(run)
    save_potential(MorsePotential([8]), run / "model", metadata={"stages": [1], "errors": {}}, overwrite=True)
    loaded, metadata = load_potential(run)
    assert (loaded.numbers, metadata) == ((8,), {"stages": [1], "errors": {}})
    # A run that is called as a pretrained model does not hide that.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_load_named", lambda *_: MorsePotential([1]))
    run.rename(tmp_path / "7net-0")
    assert load_potential("7net-0")[0].numbers == (1,)
    assert load_potential(tmp_path / "7net-0")[0].numbers == (8,)


@pytest.mark.sevenn
def test_sevennet_checkpoint(tiny_sevennet, tmp_path):
    tiny_sevennet().save_native(tmp_path / "own.pth")
    loaded, metadata = load_potential(tmp_path / "own.pth", dtype=torch.float64)
    assert (loaded.backend, loaded.dtype) == ("sevenn", torch.float64)
    assert metadata == {"model": str(tmp_path / "own.pth")}


@pytest.mark.sevenn
def test_checkpoint_of_another_sevenn(tiny_sevennet, tmp_path):
    potential = tiny_sevennet()
    potential.config["radial_basis"] = {"radial_basis_name": "of the future"}
    potential.save_native(tmp_path / "new.pth")
    with pytest.raises(CheckpointError, match=r"sevenn cannot build the model of .*new\.pth"):
        load_potential(tmp_path / "new.pth")


@needs_sevenn
@pytest.mark.sevenn
def test_pretrained_by_name():
    potential, metadata = load_potential("SevenNet-0")
    assert metadata == {"model": "7net-0"}
    assert potential.numbers == find_model("7net-0").elements


@pytest.mark.mace
def test_mace_file_needs_trust(tiny_mace, tmp_path):
    MACEPotential(tiny_mace()).save_native(tmp_path / "own.model")
    with pytest.raises(UntrustedFileError, match="trust_pickle=True"):
        load_potential(tmp_path / "own.model")
    assert load_potential(tmp_path / "own.model", trust_pickle=True)[0].backend == "mace"


@pytest.mark.parametrize(
    ("content", "description"),
    [
        (b"", "an empty file"),
        (b"12\nLattice", "a text file"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"PK\x03\x04 torn", "cut off"),
        (b"\x80\x04N.", "a pickle"),
        (b"\x89HDF\0", "a binary file"),
    ],
)
def test_foreign_file(tmp_path, content, description):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.pth is no model file: it looks like .*{description}"):
        load_potential(tmp_path / "model.pth")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torch_file_of_another_program(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="a torch file of another program"):
        load_potential(tmp_path / "a.pth")
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="a TorchScript file"):
        load_potential(tmp_path / "b.pt")


def test_folder_without_potential(tmp_path):
    with pytest.raises(CheckpointError, match=r"without potential\.json"):
        load_potential(tmp_path)
