"""Which pickles are loaded without being asked for: those that are known to be official."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import io
import json
import threading

import pytest

from ase_finetune.errors import CheckpointError, ModelNotAvailableError, OutputError, UntrustedFileError
from ase_finetune.files import file_hash
from ase_finetune.potentials import downloads, load_potential, registry
from ase_finetune.potentials.catalog import CATALOG, ModelInfo
from ase_finetune.potentials.downloads import record_path
from ase_finetune.potentials.mace import MACEPotential
from ase_finetune.potentials.published_hashes import PUBLISHED_SHA256
from ase_finetune.potentials.registry import find_model, locate_model


@pytest.fixture
def model(tiny_mace, tmp_path):
    """A MACE model on a server."""
    path = tmp_path / "served" / "tiny.model"
    path.parent.mkdir()
    MACEPotential(tiny_mace()).save_native(path)
    return path


@pytest.fixture
def official(model, monkeypatch):
    """Put the model into the catalogue, on a server of our own; returns how it is registered."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=model.parent)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{model.name}"
    info = ModelInfo("tiny", (), "mace", "tinymodel", url, "MIT")

    def register(sha256=None):
        monkeypatch.setattr(registry, "CATALOG", (dataclasses.replace(info, sha256=sha256),))
        return registry.places_of(info)[-1][0]

    register()
    yield register
    server.shutdown()
    server.server_close()


def put(content: bytes, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def test_published_hashes_are_of_models_in_the_catalogue():
    assert sorted(info.sha256 for info in CATALOG if info.sha256) == sorted(PUBLISHED_SHA256.values())
    assert all(len(bytes.fromhex(value)) == 32 for value in PUBLISHED_SHA256.values())
    assert find_model("mace-mpa-0").sha256.startswith("75428afe3a1d")
    assert all(info.url.startswith("https://") for info in CATALOG if info.url)


@pytest.mark.mace
def test_first_download_is_trusted_and_kept(official, model, capsys):
    target = official()
    assert load_potential("tiny")[0].backend == "mace"
    assert json.loads(record_path(target).read_text())["sha256"] == file_hash(model)
    assert sorted(path.name for path in target.parent.iterdir()) == ["tinymodel", "tinymodel.sha256.json"]
    assert load_potential("tiny")[0].backend == "mace"
    assert capsys.readouterr().err.count("Downloading") == 1


@pytest.mark.mace
def test_a_download_that_was_changed_is_refused(official, model):
    target = official()
    locate_model("tiny")
    put(model.read_bytes() + b"more", target)
    with pytest.raises(UntrustedFileError, match=rf"its SHA-256 is {file_hash(target)}, that of the file downloaded"):
        load_potential("tiny")


@pytest.mark.mace
def test_a_file_of_nobody_is_refused(official, model):
    target = official()
    put(model.read_bytes(), target)
    with pytest.raises(UntrustedFileError, match=rf"{target} may not be the official tiny.*{file_hash(model)}.*trust_"):
        load_potential("tiny")
    assert load_potential("tiny", trust_pickle=True)[0].backend == "mace"


@pytest.mark.mace
@pytest.mark.parametrize("record", ["", "{", "[]", '{"sha256": 1}', "\xff"])
def test_a_damaged_record_is_none(official, model, record):
    target = official()
    put(model.read_bytes(), target)
    put(record.encode("latin-1"), record_path(target))
    with pytest.raises(UntrustedFileError, match="was not downloaded by this package"):
        load_potential("tiny")


@pytest.mark.mace
def test_a_known_hash_needs_no_record(official, model):
    target = official(file_hash(model))
    put(model.read_bytes(), target)
    assert load_potential("tiny")[0].backend == "mace"


@pytest.mark.mace
def test_a_record_does_not_outdo_a_known_hash(official, model):
    target = official("0" * 64)
    put(model.read_bytes(), target)
    put(json.dumps({"sha256": file_hash(model)}).encode(), record_path(target))
    with pytest.raises(UntrustedFileError, match=f"that of the official file is {'0' * 64}"):
        load_potential("tiny")


@pytest.mark.mace
def test_a_download_with_another_hash_is_not_kept(official, model):
    target = official("0" * 64)
    with pytest.raises(ModelNotAvailableError, match=f"its SHA-256 is {file_hash(model)} instead of 000"):
        load_potential("tiny")
    assert list(target.parent.iterdir()) == []


@pytest.mark.mace
def test_what_comes_with_mace_is_installed_code(official, model, monkeypatch, tmp_path):
    official()
    monkeypatch.setattr(registry, "_package", lambda _: tmp_path / "mace")
    put(model.read_bytes(), tmp_path / "mace" / "calculators" / "foundations_models" / "tiny.model")
    assert load_potential("tiny")[0].backend == "mace"


class Answer(io.BytesIO):
    """What a server gives, from another address than it was asked for."""

    def geturl(self):
        return "http://example.org/model"


def test_a_download_is_not_sent_on_to_where_it_is_not_encrypted(monkeypatch, tmp_path):
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda *_, **__: Answer(b"PK"))
    with pytest.raises(OSError, match="not encrypted"):
        downloads.download(find_model("mace-omol-0"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_download_writes_the_file_and_its_hash(monkeypatch, tmp_path):
    content = b"PK" * (1 << 20)
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(content))
    downloads.download(find_model("mace-omol-0"), tmp_path / "new" / "model")
    assert (tmp_path / "new" / "model").read_bytes() == content
    record = json.loads(record_path(tmp_path / "new" / "model").read_text())
    assert record == {"url": find_model("mace-omol-0").url, "sha256": hashlib.sha256(content).hexdigest()}


def test_download_onto_a_full_disk(monkeypatch, tmp_path):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"PK"))
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        downloads.download(find_model("mace-omol-0"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.mace
def test_a_file_names_its_hash(model):
    with pytest.raises(CheckpointError, match=rf"{model} .*its SHA-256 is {file_hash(model)}.*trust_pickle=True"):
        load_potential(model)
