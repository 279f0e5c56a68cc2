"""The page in a real Chromium, served by `vlltr ui` in a process of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import PATIENCE, Browser, page_address
from vlltr_index.classes import NewClass, add_classes, remove_classes
from vlltr_index.store.workspace import Workspace

HOSTILE = "<img src=x onerror=alert(1)> ${1+1} {{value}}"
GRADIO = (  # what Gradio itself says: a warning that means nothing, and that it asks again on a machine that is busy
    '"Method not implemented."',
    "AbortError: signal is aborted without reason",
    "errored out. ",
)

pytestmark = pytest.mark.chromium


@dataclass
class Page:
    """What is served where, and the browser that has it open."""

    address: str
    workspace: Workspace
    browser: Browser

    def open(self, width: int) -> None:
        """Go to the page, and wait until it stands."""
        self.browser.size(width)
        self.browser.open(self.address)
        self.wait(lambda: self.all("#vl-picture input[type=file]") and self.text("#vl-status"))

    def all(self, selector: str) -> list[Any]:
        """The elements that fit."""
        return list(self.browser.driver.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        """What the first element that fits says; nothing if there is none."""
        script = f"return document.querySelector({selector!r})?.innerText ?? ''"
        return str(self.browser.js(script))

    def texts(self, selector: str) -> list[str]:
        """What all of them say."""
        return list(
            self.browser.js(f"return [...document.querySelectorAll({selector!r})].map(e => e.innerText)")
        )

    def click(self, selector: str) -> None:
        """Click the first element that fits, wherever it stands; again where the page drew it anew meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException

        def clicked() -> bool:
            try:
                self.browser.js(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
                self.all(selector)[0].click()
            except StaleElementReferenceException:
                return False
            return True

        self.wait(clicked)

    def give(self, selector: str, path: Path) -> None:
        """Choose a file."""
        self.all(f"{selector} input[type=file]")[0].send_keys(str(path))

    def choose(self, selector: str, name: str) -> None:
        """Choose in a list."""
        self.click(f"{selector} input")
        self.browser.js(f"document.querySelector('{selector} input').select()")
        self.all(f"{selector} input")[0].send_keys(name)
        self.wait(lambda: any(name in text for text in self.texts("ul[role=listbox] li")))
        self.all(f"{selector} input")[0].send_keys("\n")

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Until it holds."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser.driver, PATIENCE).until(lambda _: condition())

    def check(self) -> None:
        """Nothing was fetched from elsewhere, the console is clean, nothing is wider than the window."""
        here = ("http://127.0.0.1:", "blob:http://127.0.0.1:")  # a page of another test may still ask, too
        assert [a for a in self.browser.requests() if not a.startswith(here)] == []
        said = self.browser.console()
        assert [line for line in said if not any(words in line for words in GRADIO)] == []
        assert self.browser.sideways() <= 0


@contextmanager
def served(folder: Path, browser: Browser, *options: str) -> Iterator[Page]:
    """The page, in the browser."""
    with page_address(folder, *options) as address:
        yield Page(address, Workspace.open(folder), browser)


@pytest.fixture(scope="module")
def page(chromium: Browser, trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of a copy of the trained workspace, for this machine alone."""
    folder = shutil.copytree(trained_once, tmp_path_factory.mktemp("page") / "glyphs")
    with served(folder, chromium) as made:
        assert made.address.startswith("http://127.0.0.1:")
        yield made


def test_others_enter_by_the_link(
    chromium: Browser, trained_once: Path, tmp_path: Path, pictures: Path
) -> None:
    """The link leads to the page and leaves no token in the address; without it there is nothing to see."""
    folder = shutil.copytree(trained_once, tmp_path / "glyphs")
    with served(folder, chromium, "--host", "0.0.0.0") as page:
        port, token = page.address.rpartition(":")[2].split("/?token=")
        page.address = f"http://127.0.0.1:{port}/"
        chromium.open(page.address)
        assert page.text("body").strip() == "Open the link that vlltr ui printed: it has a token."
        chromium.open(f"{page.address}?token={token}")
        assert chromium.js("return location.href") == page.address
        page.open(1280)
        page.give("#vl-picture", pictures / "known-0.png")
        page.wait(lambda: len(page.texts("#vl-best .vl-name")) == 5)
        page.browser.screenshot("ui-link")
        page.check()


@pytest.mark.parametrize("width", [1280, 390])
def test_an_answer_is_taken_apart(page: Page, pictures: Path, width: int) -> None:
    """A picture is classified, a sentence is struck out and put back, two classes are compared."""
    page.open(width)
    page.browser.screenshot(f"ui-empty-{width}")
    page.give("#vl-picture", pictures / "known-0.png")
    page.wait(lambda: len(page.texts("#vl-best .vl-name")) == 5)
    names = page.texts("#vl-best .vl-name")
    page.wait(lambda: page.text("#vl-sentences .vl-head b") == names[0])
    before = page.texts("#vl-sentences [data-score]")
    assert not any("was" in score for score in before)
    page.click("#vl-sentences [data-strike]")
    page.wait(lambda: "was" in page.text('#vl-sentences [data-score="text score"]'))
    after = page.texts("#vl-sentences [data-score]")
    assert [score.rpartition("was ")[2] for score in after] == before
    assert "1 struck out" in page.text("#vl-sentences .vl-head")
    assert len(page.all("#vl-sentences tr.vl-struck")) == 1
    assert page.browser.js("return document.activeElement.checked") is True
    page.browser.screenshot(f"ui-struck-{width}")
    page.click("#vl-put-back")
    page.wait(lambda: page.texts("#vl-sentences [data-score]") == before)
    page.click("#vl-best li:nth-child(2) button")
    page.wait(lambda: page.text("#vl-sentences .vl-head b") == names[1])
    page.choose("#vl-second", names[2])
    page.wait(lambda: page.texts("#vl-comparison .vl-head b")[:2] == [names[0], names[2]])
    page.browser.screenshot(f"ui-compared-{width}")
    page.check()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_class_is_added_recognised_and_undone(
    page: Page, pictures: Path, heldout: dict[str, list[str]], width: int
) -> None:
    """Under a name that is hostile if it is not escaped; the report shows what it did to the others."""
    page.open(width)
    page.give("#vl-picture", pictures / "unseen" / "0.png")
    page.wait(lambda: len(page.texts("#vl-best .vl-name")) == 5)
    before = page.texts("#vl-best .vl-name")
    page.all("#vl-new-name input, #vl-new-name textarea")[0].send_keys(HOSTILE)
    told = " ".join([f"{HOSTILE} is its name.", *heldout[min(heldout)]])
    page.all("#vl-new-text textarea")[0].send_keys(told)
    page.give("#vl-new-pictures", pictures / "unseen" / "0.png")
    page.wait(lambda: ".png" in page.text("#vl-new-pictures"))
    page.click("#vl-add")
    page.wait(lambda: page.text("#vl-report .vl-notice"))
    report = page.text("#vl-report")
    assert f"Added '{HOSTILE}' (class " in report
    assert "Nearest by " in report
    assert "% before, " in report
    page.wait(lambda: page.texts("#vl-best .vl-name")[:1] == [HOSTILE])
    page.wait(lambda: page.text("#vl-undo") == f"Undo: add '{HOSTILE}'")
    assert page.text("#vl-sentences .vl-head b") == HOSTILE
    assert page.all('img[src="x"]') == []
    page.browser.screenshot(f"ui-added-{width}")
    page.click("#vl-undo")
    page.wait(lambda: "Undone: " in page.text("#vl-report"))
    page.wait(lambda: page.texts("#vl-best .vl-name") == before)
    page.wait(lambda: page.text("#vl-undo") == "Nothing to undo")
    page.browser.screenshot(f"ui-undone-{width}")
    page.check()


def test_errors_are_messages(page: Page, tmp_path: Path, pictures: Path) -> None:
    """A broken picture and a name that is taken: words and a hint beside what was done, and the page goes on."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG nothing")
    page.open(1280)
    page.give("#vl-picture", bad)
    page.wait(lambda: "or damaged" in page.text("#vl-notice"))
    assert "Give JPEG, PNG, WebP" in page.text("#vl-notice")
    name = min(page.workspace.snapshot().class_table().names.values())
    page.all("#vl-new-name input, #vl-new-name textarea")[0].send_keys(name)
    page.click("#vl-add")
    page.wait(lambda: "there is a class " in page.text("#vl-report"))
    assert "or damaged" in page.text("#vl-notice")
    page.browser.screenshot("ui-errors")
    assert "Traceback" not in page.text("body")


def test_the_page_follows_newer_commits(page: Page, pictures: Path) -> None:
    """A class that another program adds and removes comes and goes; only the page's own commits can be undone."""
    page.open(1280)
    page.give("#vl-picture", pictures / "unseen" / "2.png")
    page.wait(lambda: len(page.texts("#vl-best .vl-name")) == 5)
    before = page.texts("#vl-best .vl-name")
    images = tuple(sorted((pictures / "unseen").glob("*.png")))
    add_classes(page.workspace, [NewClass("okapi", ("It has a long tail.",), images=images)])
    page.wait(lambda: "okapi" in page.texts("#vl-best .vl-name"))
    assert page.text("#vl-undo") == "Nothing to undo"
    remove_classes(page.workspace, ["okapi"])
    page.wait(lambda: page.texts("#vl-best .vl-name") == before)
    page.check()
