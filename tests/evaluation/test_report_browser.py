"""The report in a real Chromium, from a file: nothing fetched, nothing complained of, readable on a phone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.reports import spoil
from vlltr_index.pipelines.report import write_report
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def page(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report with a baseline and a class that means harm."""
    folder = tmp_path_factory.mktemp("report")
    workspace = Workspace.open(shutil.copytree(trained_once, folder / "workspace"))
    write_report(spoil(workspace, folder), folder / "report.html")
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_opens_without_network_or_complaint(
    chromium: Browser, page: str, width: int, dark: bool
) -> None:
    """One request, the file itself; a quiet console; no sideways scrolling; the colours of the scheme."""
    chromium.size(width, dark=dark)
    chromium.open(page)
    assert chromium.requests() == [page]
    assert chromium.console() == []
    assert chromium.sideways() == 0
    paper = chromium.js("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
    shown = chromium.js("return [...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(shown) > 10
    assert all(shown)
    chromium.screenshot(f"report-{width}-{'dark' if dark else 'light'}")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_charts_can_be_read(chromium: Browser, page: str, width: int) -> None:
    """Text in charts is at least 9 pixels high and stays inside its chart."""
    chromium.size(width)
    chromium.open(page)
    assert chromium.js("return document.querySelectorAll('svg.chart').length") == 6
    low = chromium.js(
        "return Math.min(...[...document.querySelectorAll('svg.chart text')].map(t =>"
        " parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getBoundingClientRect().width"
        " / t.ownerSVGElement.viewBox.baseVal.width))"
    )
    assert low >= 9
    outside = chromium.js(
        "return [...document.querySelectorAll('svg.chart text')].filter(t => {"
        " const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();"
        " return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1"
        "}).map(t => t.textContent)"
    )
    assert outside == []


def test_hostile_names_stay_text(chromium: Browser, page: str) -> None:
    """A script in a class's name is shown, not run, and brings no element of its own."""
    chromium.open(page)
    assert "<script>" in chromium.js("return document.querySelector('#anchors').textContent")
    assert chromium.js("return document.scripts.length") == 0
    assert chromium.js("return document.querySelectorAll('[onload], [onerror]').length") == 0
    assert chromium.js("return window.harmed === undefined")
