"""Attacks on the tab Review of the running page: what a client can name, decide and see beyond what it is shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_page_attacks import JOIN, Site, served
from tests.support.reviews import Listing, keep
from vlltr_index.pipelines.review.queue import Entry
from vlltr_index.pipelines.review.sitting import Sitting
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow  # Gradio is of [test-all]

ACTS = ("confirm", "correct", "skip", "keep", "add", "undo", "save", "make", "", "__class__", "../x")


class Visitor:
    """A browser tab: it calls what the page lists, as itself."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.name = name
        kinds = {component["id"]: component["type"] for component in site.config()["components"]}
        self.functions = {
            f["targets"][0][1]: f["id"]
            for f in site.config()["dependencies"]
            if f["targets"] and kinds.get(f["targets"][0][0]) in ("html", "tabitem")
        }

    def call(self, function: str, **event: Any) -> str:
        """What the page draws after an event; the function does not fail."""
        asked = self.site.call(
            self.functions[function], self._data(function), session_hash=self.name, event_data=event or None
        )
        assert asked.status_code == 200, asked.text
        said = self.site.messages(self.name)
        assert [one["success"] for one in said if one["msg"] == "process_completed"] == [True], (
            function,
            event,
        )
        return json.dumps(said)

    def _data(self, function: str) -> list[None]:
        listed = self.site.config()["dependencies"]
        return [None for one in listed if one["id"] == self.functions[function] for _ in one["inputs"]]

    def act(self, act: str, **more: Any) -> str:
        return self.call("act", act=act, **more)


@pytest.fixture(scope="module")
def made(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, list[Entry]]:
    """A workspace with a list of three entries."""
    workspace = Workspace.open(shutil.copytree(trained_once, tmp_path_factory.mktemp("review") / "glyphs"))
    listing = Listing(workspace)
    entries = [listing.entry("label", (n,)) for n in range(2)]
    entries.append(listing.entry("copies", (5, 5)))
    keep(workspace, entries)
    return workspace, entries


@pytest.fixture
def site(made: tuple[Workspace, list[Entry]]) -> Iterator[Site]:
    """Its page."""
    with served(made[0]) as page:
        yield page


def test_a_client_names_nothing(site: Site, made: tuple[Workspace, list[Entry]]) -> None:
    """Paths, keys, ids and odd turns in an event decide nothing, and show no file."""
    workspace, entries = made
    visitor = Visitor(site, "guest")
    assert "vl-entry" in visitor.call("select", value="Review", index=1)
    foreign = ("/etc/passwd", "../../x.png", entries[1].image_id or "", f"label: {entries[1].image_id}", "\0")
    for name in foreign:
        for turn in ("", "0", "2", "999999", "-1", "1 ", "１", name):
            for act in ("confirm", "skip", "undo"):
                drawn = visitor.act(act, turn=turn, entry=name, picture=name, image_id=name, number=name)
                assert "data:image" not in drawn
    for act in ACTS[3:]:
        drawn = visitor.act(
            act, turn="1", entry=foreign[2], number="99", dropped="1 x ² 99999999999999999999"
        )
        assert "data:image" not in drawn, act
    assert Sitting(workspace, entries).decided() == {}
    assert "root:" not in drawn


def test_events_of_other_kinds_are_refused(site: Site) -> None:
    """Lists, long texts and numbers that are none of a tab are no events of the page."""
    visitor = Visitor(site, "odd")
    for event in (
        {"turn": ["1"]},
        {"turn": 1.5},
        {"turn": -1},
        {"turn": 1001},
        {"name": "x" * 1001},
        {"a": None},
    ):
        body = {
            "data": [None],
            "fn_index": visitor.functions["act"],
            "session_hash": "odd",
            "event_data": event,
        }
        assert site.ask("POST", JOIN, json=body).status_code == 400, event
    for event in ({}, {"turn": 1, "act": True}, {"act": "confirm"}):
        visitor.call("act", **event)


def test_a_name_is_a_name(site: Site, made: tuple[Workspace, list[Entry]]) -> None:
    """Markup in the name of a new class is shown as it is written, and taken back."""
    workspace, entries = made
    visitor = Visitor(site, "writer")
    visitor.call("select", value="Review", index=1)
    drawn = visitor.act("correct", turn="1", name="<img src=x onerror=alert(1)>")
    assert "<img src=x" not in drawn
    assert "&lt;img src=x onerror=alert(1)&gt;" in drawn
    assert len(Sitting(workspace, entries).decided()) == 1
    visitor.act("undo", turn="2")
    assert Sitting(workspace, entries).decided() == {}
    assert "There is no decision to take back." in visitor.act("undo", turn="3")


def test_for_reading_only_nothing_is_decided(made: tuple[Workspace, list[Entry]]) -> None:
    """Whatever is called; and there is no function that saves."""
    workspace, entries = made
    with served(workspace, read_only=True) as site:
        visitor = Visitor(site, "reader")
        assert "save" not in visitor.functions
        assert "vl-entry" in visitor.call("select", value="Review", index=1)
        for turn in range(1, 5):
            for act in ACTS:
                drawn = visitor.act(act, turn=str(turn), name="okapi", number="1")
                assert "since it was shown" not in drawn
    assert Sitting(workspace, entries).decided() == {}


def test_the_tab_needs_the_link(made: tuple[Workspace, list[Entry]]) -> None:
    """Its events are refused without the token, and under another name."""
    with served(made[0], token="sesame", names={"lab"}) as site:
        body = {"data": [None], "fn_index": 0, "session_hash": "a"}
        assert site.ask("POST", JOIN, json=body).status_code == 403
        cookie = {"cookie": f"vlltr-{site.client.base_url.port}=sesame"}
        assert site.ask("POST", JOIN, json=body, headers=cookie | {"host": "example.org"}).status_code == 421
        assert site.ask("POST", JOIN, json=body, headers=cookie | {"host": "lab"}).status_code == 200
