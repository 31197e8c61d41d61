"""The site as Sphinx builds it: no warning, every public name on it, nothing from the network."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.docs.test_docstrings import ROOMS

pytest.importorskip("sphinx", reason="needs the extra docs")
pytest.importorskip("myst_parser", reason="needs the extra docs")
pytest.importorskip("furo", reason="needs the extra docs")
pytest.importorskip("latex2mathml", reason="needs the extra docs")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """As `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-n", "-q", "-b", "html", "-d", str(folder / "doctrees")]
    answer = subprocess.run(  # noqa: S603  # our own pages
        [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(folder / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return folder / "html"


class Links(HTMLParser):
    """What a page makes a browser load, and where its links lead."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "video", "audio", "source") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon"):
            self.loaded.append(values["href"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.names |= {values[name] for name in ("id", "name") if name in values}


@pytest.fixture(scope="module")
def read(site) -> dict[Path, Links]:
    return {path: Links(path) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_the_network(site, read):
    for path, found in read.items():
        outside = [item for item in found.loaded if re.match(r"(https?:)?//", item)]
        assert not outside, f"{path.relative_to(site)}: {outside}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_links_inside_lead_somewhere(site, read):
    for path, found in read.items():
        for link in found.links:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if anchor and target.suffix == ".html":
                assert anchor in read[target].names, f"{path.relative_to(site)}: {link}"


def test_equations_are_drawn_by_the_browser(site):
    text = (site / "mathematics.html").read_text(encoding="utf-8")
    assert text.count("<math ") > 60
    assert "\\frac" not in text
    assert "MathJax" not in text


def test_every_public_name_is_on_the_site(site):
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    known = {line.split()[0] for line in zlib.decompress(content).decode().splitlines()}
    short = {name.split(".")[-1] for name in known}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in getattr(module, "__all__", ()):
            # Aliases of types are shown as what they stand for.
            plain = inspect.isclass(item := getattr(module, name)) or inspect.isfunction(item)
            assert name in short or not plain, f"{room}.{name}"


def test_help_texts_are_on_the_site(site):
    text = (site / "command_line.html").read_text(encoding="utf-8")
    assert "usage: ase-finetune fit" in text
    assert text.count("usage: ase-finetune") >= 10
