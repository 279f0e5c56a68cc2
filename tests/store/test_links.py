"""No write follows a link that somebody laid into a workspace, and colleagues can read what is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from tests.support.objects import put
from tests.support.wikis import FakeWiki, serving
from vlltr_index.data.glyphs import glyph_files, write_part, write_sample
from vlltr_index.data.wikipedia import Wiki
from vlltr_index.errors import VlltrError
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.ingest import ingest_text
from vlltr_index.pipelines.predict import predict_to_file
from vlltr_index.pipelines.report import write_report
from vlltr_index.pipelines.wikipedia import ingest_wikipedia
from vlltr_index.recognition.exported.place import new_folder
from vlltr_index.recognition.sheet import Panel, Picture, write_sheet
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import Recipe
from vlltr_index.store.workspace import Workspace


def writes(workspace: Workspace, picture: Path) -> Iterator[tuple[Path, Callable[[], object]]]:
    """Files whose names can be known beforehand, and what writes each."""
    path, newest = workspace.path, workspace.history.ids()[-1]
    answers = Recognizer.open(workspace).current()

    def nothing() -> None:
        with workspace.transaction("nothing"):
            pass

    def commit() -> None:
        with workspace.transaction("something") as tx:
            tx.note(views=7)

    def export() -> None:
        with new_folder(workspace, path.parent / "model"):
            pass

    with new_folder(workspace, path.parent / "model"):
        (note,) = path.glob("runs/export-*")
    glyphs = glyph_files(fast=True)
    name = min(glyphs.heldout_classes("dev"))
    yield path / "lock", nothing
    yield path / "lock.holder", nothing
    yield path / "vlltr.toml", workspace.write_config
    yield path / "history" / f"{newest + 1}.json", commit
    yield path / "reports" / f"evaluate-val-{newest}.json", lambda: evaluate(workspace, "val")
    yield path / "reports" / f"report-val-{newest}.html", lambda: write_report(workspace, split="val")
    for ending in ("", ".part", ".lock", ".new"):
        for kind in (".csv", ".parquet"):
            out = path / f"answers-{ending[1:]}{kind}"
            yield out.with_name(out.name + ending), partial(predict_to_file, answers, [str(picture)], out)
    yield (
        path / "sheet.png",
        lambda: write_sheet(path / "sheet.png", "x", [Panel("", (Picture(b"", ("x",)),))]),
    )
    for file in (glyphs.images.name, glyphs.texts.name):
        yield path / "data" / file, lambda: write_part(glyphs, 9, path / "data")
    sample = path / "samples" / "x.png"
    yield sample, lambda: write_sample(glyphs.images, "dev_test", name, sample)
    yield note, export


def wiki_writes(folder: Path) -> Iterator[tuple[Path, Callable[[], object]]]:
    """Files that are kept of a wiki's answers, and what writes each."""
    workspace = Workspace.create(folder / "birds", Recipe(name="test"))
    (folder / "birds.json").write_text('{"kestrel": ["It hovers."]}', encoding="utf-8")
    ingest_text(workspace, folder / "birds.json")
    with serving(FakeWiki()) as server:
        wiki = Wiki(server.url, folder / "birds" / "cache" / "wikipedia", refresh=True)
        wiki.pages(["Kite"])
        (page,) = wiki.folder.glob("*.json")
        yield page, lambda: wiki.pages(["Kite"])

        def take() -> None:
            ingest_wikipedia(workspace, wiki, titles={"kestrel": "Kite"})

        take()
        (titles,) = wiki.folder.glob("titles-*.json")
        yield titles, take


def test_no_write_follows_a_link(
    small: Workspace, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it points to stays, also where there was nothing; what writes there replaces the link, or says why not."""
    monkeypatch.setattr("vlltr_index.data.wikipedia.sleep", lambda seconds: None)
    mine, missing = tmp_path / "mine", tmp_path / "missing"
    for file, write in chain(writes(small, pictures / "known-0.png"), wiki_writes(tmp_path)):
        for target in (mine, missing):
            mine.write_text("mine")
            file.parent.mkdir(parents=True, exist_ok=True)
            before = file.read_bytes() if file.exists() else None
            file.unlink(missing_ok=True)
            file.symlink_to(target)
            with suppress(VlltrError):
                write()
            assert mine.read_text() == "mine", file
            assert not missing.exists(), file
            if file.is_symlink():
                file.unlink()
            if before is not None and not file.exists():
                file.write_bytes(before)


def test_folders_may_be_links(small: Workspace, tmp_path: Path) -> None:
    """Of a workspace and in it: who has little room puts them elsewhere."""
    for name in ("heads", "lance", "history"):
        (small.path / name).rename(tmp_path / name)
        (small.path / name).symlink_to(tmp_path / name)
    (tmp_path / "linked").symlink_to(small.path)
    workspace = Workspace.open(tmp_path / "linked")
    with workspace.transaction("something") as tx:
        tx.set(head=put(workspace, "heads", lambda folder: (folder / "head.json").write_text("x")))
    assert (tmp_path / "history" / f"{tx.result_commit.id}.json").is_file()
    assert (tmp_path / "heads" / str(tx.result_commit.head)[:16] / "head.json").read_text() == "x"


@pytest.mark.skipif(os.name == "nt", reason="modes")
def test_colleagues_can_read_what_is_written(trained_once: Path) -> None:
    """Every file of a trained workspace has the mode that the umask gives, whatever library wrote it."""
    mask = os.umask(0)
    os.umask(mask)
    modes = {
        p.relative_to(trained_once): p.stat().st_mode & 0o777 for p in trained_once.rglob("*") if p.is_file()
    }
    assert {p.parts[0] for p in modes} >= {
        "heads",
        "checkpoints",
        "index",
        "lance",
        "history",
        "lock",
        "vlltr.toml",
    }
    assert {path: mode for path, mode in modes.items() if mode != 0o666 & ~mask} == {}
