"""Relative links and their anchors lead somewhere; those to the network are looked at by `make docs-links`."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, ROOT

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """What GitHub and MyST call the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.strip().lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


def links(page: str) -> list[str]:
    return _LINK.findall(without_code((ROOT / page).read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES)
def test_relative_links(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_links_to_the_network_are_encrypted(page):
    outside = [link for link in links(page) if re.match(r"[a-z]+:", link)]
    assert all(link.startswith("https://") for link in outside)


def test_links_are_found():
    assert "docs/relaxations.md" in links("README.md")
    assert {"start.md", "recipes/index.md"} <= set(links("docs/index.md"))
    assert "which-gradient" in anchors((ROOT / "docs" / "relaxations.md").read_text())
