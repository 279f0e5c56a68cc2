"""The documentation site: it builds without a warning, holds every page, and asks no other host for anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from benchmarks.shapes import MODULES, public, shapes
from tests.support.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted({str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")} | {"shapes"})
_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def elements(path: Path) -> list[tuple[str, dict[str, str | None]]]:
    """The elements of a page."""
    return Page(path.read_text(encoding="utf-8")).elements


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `zensical build --strict` makes it from a copy of docs/ and the page of shapes."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "docs" / "shapes.md").write_text(shapes(), encoding="utf-8")
    shutil.copy(ROOT / "zensical.toml", folder)
    command = [sys.executable, "-c", "from zensical.main import cli; cli()", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return folder / "site"


def named(nav: list[str | dict[str, object]]) -> Iterator[str]:
    """The files that the navigation names."""
    for entry in nav:
        for value in [entry] if isinstance(entry, str) else entry.values():
            if isinstance(value, str):
                yield value
            else:
                assert isinstance(value, list)
                yield from named(value)


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site: Path) -> None:
    """No page of docs/ is left out, and each became a page with a heading."""
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(named(config["nav"])) == [f"{page}.md" for page in PAGES]
    for page in PAGES:
        assert "<h1" in (site / f"{page}.html").read_text(encoding="utf-8"), page


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """Scripts, styles, images and fonts lie beside the pages."""
    for page in site.rglob("*.html"):
        for tag, given in elements(page):
            address = given.get(_LOADS.get(tag, ""))
            assert not urlsplit(address or "").netloc, f"{page.name}: {address}"
    for style in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", style.read_text(encoding="utf-8")):
            assert address.startswith("data:") or not urlsplit(address).netloc, f"{style.name}: {address}"


@pytest.mark.slow
def test_links_and_anchors_lead_somewhere(site: Path) -> None:
    """Within the site every link names a page, and the part after # one of its headings."""
    pages = {str(path.relative_to(site)): elements(path) for path in site.rglob("*.html")}
    anchors = {name: {given.get("id") for _, given in found} for name, found in pages.items()}
    for name in (f"{page}.html" for page in PAGES):
        for link in (given.get("href") or "" for tag, given in pages[name] if tag == "a"):
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            page = os.path.normpath(Path(name).parent / unquote(target.path)) if target.path else name
            if page in (".", ".."):
                continue
            assert page in pages, f"{name}: {link}"
            assert not target.fragment or unquote(target.fragment) in anchors[page], f"{name}: {link}"


def test_the_page_of_shapes_names_every_public_function() -> None:
    """Each has an entry under its module, and says the shapes of its tensors."""
    page = shapes()
    for path in MODULES:
        section = page.split(f"\n## vlltr_index.{path}\n")[1].split("\n## ")[0]
        for name, _ in public(import_module(f"vlltr_index.{path}")):
            assert f"\n### {name}\n" in section
    entries = [entry.split("```", 2) for entry in page.split("\n### ")[1:]]
    silent = [e[0].strip() for e in entries if "Tensor" in e[1] and not re.search(r"\[|calar|See `", e[2])]
    assert not silent, "no shape is stated"


def test_files_that_the_pages_name_are_there() -> None:
    """A claim names its test or result file; the file exists."""
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:tests|benchmarks)/[\w/.-]+\.\w+)`", text):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
