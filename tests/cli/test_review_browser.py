"""The tab Review in a real Chromium, by keys alone, served by `vlltr ui` in a process of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_page_attacks import served as served_page
from tests.cli.test_page_browser import Page
from tests.support.browser import PATIENCE, Browser, page_address
from tests.support.reviews import Listing, group, keep
from tests.support.spoilt import spoilt_workspace
from vlltr_index.classes import Decisions, decide
from vlltr_index.pipelines.review.queue import Entry
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.chromium

PICTURES = 24
WRONG = 4  # of their labels


class Desk(Page):
    """A page whose tab Review is used as a person does: by keys, and by what is to be seen."""

    def enter(self, width: int = 1280) -> None:
        """Open the page and the tab."""
        self.open(width)
        self.browser.js(
            "[...document.querySelectorAll('[role=tab]')].find((tab) => tab.innerText === 'Review').click()"
        )
        self.wait(lambda: self.text(".vl-bar-row"))

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser.driver).send_keys(*keys).perform()

    def turn(self) -> str:
        """The number of the entry; empty at the end."""
        return str(self.browser.js("return document.querySelector('.vl-entry')?.dataset.turn ?? ''"))

    def decide(self, *keys: str) -> None:
        """Press keys, and wait for what is shown next."""
        before = self.turn()
        self.press(*keys)
        self.soon(lambda: self.turn() != before)

    def soon(self, condition: Callable[[], Any]) -> None:
        """Wait until it holds, and notice it at once."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, self.text("body")
            time.sleep(0.02)

    def focused(self) -> str:
        """What has the focus."""
        return str(
            self.browser.js("const a = document.activeElement; return a.id || a.className || a.tagName")
        )

    def save(self) -> None:
        """Press Shift and S, and wait for the report."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.browser.driver).key_down(Keys.SHIFT).send_keys("s").key_up(Keys.SHIFT).perform()
        self.wait(lambda: "To take it back" in self.text("#vl-review-report"))

    def shots(self, name: str) -> None:
        """Pictures of the page in two widths, light and dark; nothing is wider than the window."""
        for width in (1280, 390):
            for dark in (False, True):
                self.browser.size(width, dark=dark)
                time.sleep(0.3)
                self.browser.screenshot(f"review-{name}-{width}{'-dark' if dark else ''}")
                assert self.browser.sideways() <= 0
        self.browser.size(1280)


@contextmanager
def served(folder: Path, browser: Browser, *options: str, kill: bool = False) -> Iterator[Desk]:
    """The page, in the browser; it ends by Ctrl-C, or is killed."""
    with page_address(folder, *options, kill=kill) as address:
        yield Desk(address, Workspace.open(folder), browser)


@contextmanager
def served_here(folder: Path, browser: Browser) -> Iterator[Desk]:
    """The page, in the browser, by a server in this process, which has loaded what it needs."""
    workspace = Workspace.open(folder)
    with served_page(workspace) as site:
        yield Desk(str(site.client.base_url), workspace, browser)


@pytest.fixture
def folder(trained_once: Path, tmp_path: Path) -> Path:
    """A copy of the trained workspace."""
    return shutil.copytree(trained_once, tmp_path / "glyphs")


def classes(workspace: Workspace) -> dict[str, str]:
    """The class of each picture by where it comes from."""
    snapshot = workspace.snapshot()
    names = snapshot.class_table().names
    rows = snapshot.table("images", ["uri", "class_id"], "split = 'train'").to_pylist()
    return {row["uri"]: names[row["class_id"]] for row in rows}


def mislabelled(workspace: Workspace) -> tuple[dict[str, str], list[Entry]]:
    """The classes as they should be, and entries of 24 pictures, of which 4 have another class."""
    listing = Listing(workspace)
    right = classes(workspace)
    *own, other, third = listing.largest[:22]
    picked = [listing.entry("label", (own[n % 20],), (third, own[n % 20], other)) for n in range(PICTURES)]
    wrong = picked[:: PICTURES // WRONG]
    decide(workspace, "mislabel", Decisions({str(one.image_id): listing.names[other] for one in wrong}))
    with workspace.transaction("forget who said so") as tx:
        tx.delete_any("reviewed", "image_id", [one.image_id for one in wrong])
    after = classes(workspace)
    entries = [
        Entry(
            one.picture,
            "label",
            one.image_id,
            after[one.picture],
            one.split,
            0.9 if one in wrong else 0.1,
            one.likely,
        )
        for one in picked
    ]
    assert sum(after[uri] != name for uri, name in right.items()) == WRONG
    return right, entries


def review(desk: Desk, right: dict[str, str], most: int) -> None:
    """Look at entries until none is left, or at so many."""
    for _ in range(most):
        if not desk.turn():
            return
        picture = desk.text(".vl-path")
        if desk.text(".vl-now") == right[picture]:
            desk.decide("\n")
        else:
            names = desk.texts(".vl-choices .vl-name")
            desk.decide(str(names.index(right[picture]) + 1))


def test_many_pictures_by_keys_alone(chromium: Browser, folder: Path) -> None:
    """The page is killed in the middle and started again: nothing is asked twice or lost, and there is one commit."""
    workspace = Workspace.open(folder)
    right, entries = mislabelled(workspace)
    keep(workspace, entries)
    commits = workspace.history.ids()
    with served(folder, chromium, kill=True) as desk:
        desk.enter()
        desk.wait(desk.turn)
        assert "vl-entry" in desk.focused()
        desk.shots("label")
        review(desk, right, PICTURES // 2)
        assert desk.text("#vl-decided") == str(PICTURES // 2)
    assert workspace.history.ids() == commits
    with served_here(folder, chromium) as desk:
        desk.enter()
        desk.wait(desk.turn)
        assert desk.text("#vl-left") == desk.text("#vl-decided") == str(PICTURES // 2)
        review(desk, right, PICTURES)
        assert desk.text(".vl-end p") == "Nothing is left to decide: save what was decided."
        desk.shots("end")
        desk.save()
        report = desk.text("#vl-review-report")
        assert f"{WRONG} pictures relabelled, {PICTURES - WRONG} labels confirmed." in report
        assert f"vlltr rollback {commits[-1]}" in report
        desk.wait(lambda: str(PICTURES) not in desk.text("#vl-bar"))
        desk.shots("saved")
        desk.check()
    assert workspace.history.ids() == [*commits, commits[-1] + 1]
    assert classes(workspace) == right


def test_two_tabs_at_once(chromium: Browser, folder: Path) -> None:
    """What is decided in one tab is decided in the other, which goes on; U takes the last decision of either back."""
    workspace = Workspace.open(folder)
    listing = Listing(workspace)
    entries = [listing.entry("label", (n,)) for n in range(4)]
    keep(workspace, entries)
    with served_here(folder, chromium) as desk:
        driver = chromium.driver
        desk.enter()
        desk.wait(desk.turn)
        first = driver.current_window_handle
        driver.switch_to.new_window("tab")
        try:
            desk.enter()
            desk.wait(desk.turn)
            second = driver.current_window_handle
            assert desk.text(".vl-path") == entries[0].picture
            desk.decide("\n")
            assert desk.text(".vl-path") == entries[1].picture
            driver.switch_to.window(first)
            desk.wait(lambda: desk.text(".vl-path") == entries[1].picture)
            assert "decided on or changed since it was shown" in desk.text("#vl-said")
            desk.decide("2")
            desk.decide("\n")
            assert desk.text(".vl-path") == entries[3].picture
            driver.switch_to.window(second)
            desk.wait(lambda: desk.text(".vl-path") == entries[3].picture)
            desk.decide("u")
            assert desk.text(".vl-path") == entries[2].picture
            driver.switch_to.window(first)
            desk.wait(lambda: desk.text("#vl-decided") == "2")
            assert desk.text(".vl-path") == entries[3].picture, "an entry stays until it is decided on"
            desk.decide("\n")
            assert desk.text(".vl-path") == entries[2].picture
            desk.decide("s")
            desk.save()
            driver.switch_to.window(second)
            desk.wait(lambda: desk.text("#vl-left") == "1")
            desk.check()
        finally:
            driver.close()
            driver.switch_to.window(first)
    now = classes(workspace)
    assert [now[one.picture] for one in entries] == [
        entries[0].class_name,
        entries[1].likely[1][0],
        *(one.class_name for one in entries[2:]),
    ]


def test_keys_and_fields(chromium: Browser, folder: Path, pictures: Path) -> None:
    """Letters in a field are letters; Escape leaves it; a button with the focus is what Enter presses; a group becomes
    a class; near duplicates go.
    """
    from selenium.webdriver.common.keys import Keys

    workspace = Workspace.open(folder)
    listing = Listing(workspace)
    unseen = [str(path) for path in sorted((pictures / "unseen").glob("*.png"))]
    two, label = listing.entry("two classes", (3, 4)), listing.entry("label")
    lot = listing.entry("copies", (5, 5, 5))
    keep(workspace, [two, label, lot, group(unseen)])
    with served_here(folder, chromium) as desk:
        desk.enter()
        desk.wait(desk.turn)
        desk.shots("two-classes")
        desk.press("c")
        assert desk.focused() == "vl-other"
        desk.press("sku1 okapi")
        assert desk.browser.js("return document.querySelector('#vl-other').value") == "sku1 okapi"
        assert desk.text("#vl-says") == "No class has this name. Enter makes the new class sku1 okapi."
        desk.browser.screenshot("review-new-class")
        desk.press(Keys.ESCAPE)
        assert "vl-entry" in desk.focused()
        assert desk.turn() == "1"
        assert desk.browser.js("return document.activeElement.matches('.vl-entry')")
        desk.press("c")
        desk.browser.js("document.querySelector('#vl-other').value = ''")
        desk.press(listing.names[4].upper())
        assert desk.text("#vl-says") == f"Enter: the class {listing.names[4].upper()}."
        desk.decide("\n")
        assert f"Now '{listing.names[4]}': 1 picture." in desk.text("#vl-said")
        desk.browser.js("document.querySelector('[data-act=skip]').focus()")
        desk.decide("\n")
        assert "Skipped." in desk.text("#vl-said")  # which a progress time may precede
        desk.shots("copies")
        desk.decide("x")
        assert desk.text(".vl-path") == lot.beside[0].picture
        desk.decide("k")
        assert "2 near duplicates go" in desk.text("#vl-said")
        desk.press("2")
        desk.shots("group")
        assert desk.all("[data-drop='1'][aria-pressed='true']")
        desk.press("\n")
        assert desk.focused() == "vl-other"
        desk.press("dodo")
        assert (
            desk.text("#vl-says") == "No class has this name. Enter makes the new class dodo, of 3 pictures."
        )
        desk.decide("\n")
        desk.save()
        desk.check()
    now = classes(workspace)
    assert [now[one] for one in (two.picture, two.beside[0].picture)] == [listing.names[4]] * 2
    assert now[label.picture] == label.class_name
    assert [now.get(one) for one in (lot.picture, lot.beside[0].picture)] == [None, lot.class_name]
    assert [now.get(path) for path in unseen] == ["dodo", None, "dodo", "dodo"]


def test_the_list_is_made_on_request(chromium: Browser, tmp_path: Path) -> None:
    """With progress and a report; made again after a correction it says how answers moved."""
    with served_here(spoilt_workspace(tmp_path).path, chromium) as desk:
        desk.enter()
        assert "The first list takes a while." in desk.text("#vl-bar")
        desk.shots("first")
        desk.click("[data-do=make]")
        desk.wait(lambda: "Making the list" in desk.text("#vl-bar") or desk.turn())
        desk.browser.screenshot("review-making")
        desk.wait(desk.turn)
        assert desk.text("#vl-review-report")
        path = desk.text(".vl-path")
        desk.decide("2")
        desk.save()
        desk.click("[data-do=make]")
        desk.wait(lambda: "Since the list before" in desk.text("#vl-review-report"))
        desk.browser.screenshot("review-made-again")
        assert desk.text(".vl-path") != path
        desk.check()
