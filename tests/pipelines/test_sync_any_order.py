"""Ingestion with `sync` in any order of changes, beside a plain twin of the workspace."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.support.sources import RECIPE, png, put, relabel, rename
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.schemas.fingerprint import digest_bytes
from vlltr_index.store.workspace import Workspace


class Row(NamedTuple):
    """An image in the plain twin."""

    content: int
    label: str
    given: int
    holds: int


class Folder(RuleBasedStateMachine):
    """A folder that changes, a workspace that is synced with it, and a plain twin of the workspace."""

    labels = st.sampled_from(["owl", "tit", "wren"])
    names = st.sampled_from(["1.png", "2.png", "3.png"])
    contents = st.integers(0, 6)
    some = st.integers(0, 100)

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.workspace = Workspace.create(self.place / "ws", RECIPE)
        self.there: dict[str, int] = {}
        self.rows: dict[str, Row] = {}
        self.classes: dict[int, str] = {}
        self.count = 0
        self.other: dict[str, tuple[int, int]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    @rule(label=labels, name=names, content=contents)
    def add_or_rewrite(self, label: str, name: str, content: int) -> None:
        put(self.place / "data" / label / name, content)
        self.there[f"{label}/{name}"] = content

    @precondition(lambda self: self.there)
    @rule(which=some, label=labels, name=names)
    def move(self, which: int, label: str, name: str) -> None:
        path = sorted(self.there)[which % len(self.there)]
        target = self.place / "data" / label / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.place / "data" / path).rename(target)
        self.there[f"{label}/{name}"] = self.there.pop(path)

    @precondition(lambda self: len(self.there) > 1)
    @rule(which=some)
    def delete(self, which: int) -> None:
        path = sorted(self.there)[which % len(self.there)]
        (self.place / "data" / path).unlink()
        del self.there[path]

    @precondition(lambda self: self.rows)
    @rule(which=some, to=some)
    def correct(self, which: int, to: int) -> None:
        path = sorted(self.rows)[which % len(self.rows)]
        chosen = sorted(self.classes)[to % len(self.classes)]
        relabel(self.workspace, str(self.place / "data" / path), chosen)
        self.rows[path] = self.rows[path]._replace(holds=chosen)

    @precondition(lambda self: self.classes)
    @rule(which=some)
    def rename(self, which: int) -> None:
        chosen = sorted(self.classes)[which % len(self.classes)]
        self.classes[chosen] = f"renamed {self.count}"
        self.count += 1
        rename(self.workspace, chosen, self.classes[chosen])

    @precondition(lambda self: self.classes)
    @rule(which=some, name=names, content=contents)
    def bring_another_folder(self, which: int, name: str, content: int) -> None:
        chosen = sorted(self.classes)[which % len(self.classes)]
        path = f"{self.classes[chosen]}/other {name}"
        put(self.place / "other" / path, content)
        ingest_images(self.workspace, self.place / "other", "train")
        self.other[path] = (content, chosen)

    @precondition(lambda self: self.there)
    @rule()
    def sync(self) -> None:
        report = ingest_images(self.workspace, self.place / "data", "train", sync=True, agree=lambda _: None)
        was = self.rows
        given = self.resolved(was)
        left = dict(was)
        past: dict[str, Row] = {}
        for path, content in self.there.items():
            if path in left and left[path].content == content:
                past[path] = left.pop(path)
        for path in sorted(self.there.keys() - past.keys()):
            same = sorted(old for old in left if left[old].content == self.there[path])
            if same:
                past[path] = left.pop(same[0])
        for path in sorted(self.there.keys() - past.keys()):
            if path in left:
                past[path] = left.pop(path)
        self.rows = {}
        moved = 0
        for path, content in self.there.items():
            label = path.partition("/")[0]
            old = past.get(path)
            # A correction is of a picture: another one under its name is what the folder says.
            stays = old is not None and (old.label, old.content) == (label, content)
            holds = old.holds if old is not None and stays else given[label]
            moved += old is not None and old.holds != holds
            self.rows[path] = Row(content, label, given[label], holds)
        used = {row.holds for row in self.rows.values()} | {owner for _, owner in self.other.values()}
        lost = {row.holds for row in was.values()}
        self.classes = {i: name for i, name in self.classes.items() if i in used or i not in lost}
        assert (report.moved, report.gone, report.added) == (moved, len(left), len(self.there) - len(past))

    def resolved(self, was: dict[str, Row]) -> dict[str, int]:
        """The class of each label, made where it is new."""
        given: dict[str, int] = {}
        ids = self.workspace.snapshot().class_table()
        for label in sorted({path.partition("/")[0] for path in self.there}):
            by_name = [i for i, name in self.classes.items() if name == label]
            by_row = [row.given for row in was.values() if row.label == label and row.given in self.classes]
            given[label] = next(iter(by_name or by_row), -1)
            if given[label] < 0:
                given[label] = ids.lookup(label)
                self.classes[given[label]] = label
        return given

    @rule()
    def compare(self) -> None:
        snapshot = self.workspace.snapshot()
        names = snapshot.class_table().names
        rows = snapshot.table("images", ["uri", "class_id", "content_hash"]).to_pylist()
        found = {r["uri"]: (names[r["class_id"]], r["content_hash"]) for r in rows}
        assert len(found) == len(rows)
        expected = {f"{self.place}/data/{p}": (row.holds, row.content) for p, row in self.rows.items()}
        expected |= {f"{self.place}/other/{p}": (i, content) for p, (content, i) in self.other.items()}
        digests = [digest_bytes(png(number)) for number in range(7)]
        assert found == {uri: (self.classes[i], digests[n]) for uri, (i, n) in expected.items()}


TestFolder = Folder.TestCase
TestFolder.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
