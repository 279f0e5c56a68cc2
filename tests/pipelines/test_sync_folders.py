"""`--sync` of folders with links out of them, and of class folders in another case."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.sources import RECIPE, images, put, relabel, rename, sentences
from vlltr_index.errors import InputError
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.schemas.tables import CLASSES
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace whose recipe has a prompt."""
    return Workspace.create(tmp_path / "ws", RECIPE)


def test_links_are_followed_where_that_is_asked(workspace: Workspace, tmp_path: Path) -> None:
    """To files and to folders, not in circles; else the message says that they are links."""
    put(tmp_path / "far/a.png", 1)
    put(tmp_path / "far/deep/b.png", 2)
    (tmp_path / "data/owl").mkdir(parents=True)
    (tmp_path / "data/owl/a.png").symlink_to(tmp_path / "far/a.png")
    (tmp_path / "data/owl/deep").symlink_to(tmp_path / "far/deep")
    (tmp_path / "data/owl/round").symlink_to(tmp_path / "data")
    with pytest.raises(InputError, match="but links that leave it: 2 links") as caught:
        ingest_images(workspace, tmp_path / "data", "train")
    assert caught.value.hint == "To read what they lead to: --follow-links"
    assert ingest_images(workspace, tmp_path / "data", "train", follow_links=True).added == 2
    assert set(images(workspace)) == {"owl/a.png", "deep/b.png"}
    put(tmp_path / "data/owl/c.png", 3)
    report = ingest_images(
        workspace, tmp_path / "data", "train", sync=True
    )  # the source's links stay followed
    assert (report.gone, report.added) == (0, 1)
    report = ingest_images(workspace, tmp_path / "data", "train", sync=True, follow_links=False, agree=print)
    assert (report.gone, set(images(workspace))) == (2, {"owl/c.png"})
    (tmp_path / "list.txt").write_text("owl/a.png owl\n")
    report = ingest_images(
        workspace, tmp_path / "list.txt", "test", list_root=tmp_path / "data", follow_links=True
    )
    assert report.skipped == 0


def test_a_class_folder_in_another_case_renames_its_class(workspace: Workspace, tmp_path: Path) -> None:
    """The class keeps its number, pictures, groups, corrections, texts and what was removed; its prompts are of the
    new name. Nothing is moved, gone or new."""
    data = tmp_path / "data"
    for number in range(8):
        put(data / ("owl" if number < 5 else "tit") / f"{number}.png", number)
    texts = tmp_path / "t.json"
    texts.write_text(json.dumps({"owl": ["It hoots."], "tit": ["It sings."]}))
    ingest_text(workspace, texts, sync=True)
    ingest_images(workspace, data, "train", sync=True)
    relabel(workspace, str(data / "owl/0.png"), 1)
    with workspace.transaction("images remove") as tx:
        tx.delete("images", f"uri = '{data / 'owl/1.png'}'")
    (data / "owl").rename(data / "OWL")
    expected = {f"OWL/{n}.png": ("OWL", "train") for n in (2, 3, 4)} | {"OWL/0.png": ("tit", "train")}
    expected |= {f"tit/{n}.png": ("tit", "train") for n in (5, 6, 7)}
    for again in (False, True):
        report = ingest_images(workspace, data, "train", sync=True)
        assert (report.moved, report.gone, report.added, report.classes_added) == (0, 0, 0, 0)
        assert (report.corrected, report.removed) == (1, 1)
        assert ("class 'owl' is renamed to 'OWL', as in the source" in report.notes) != again
        assert images(workspace) == expected
        table = workspace.snapshot().class_table()
        assert ([table.names[i] for i in table.ids], table.lookup("owl")) == (["OWL", "tit"], 0)
        assert ingest_text(workspace, texts, sync=True).gone == 0
        assert sentences(workspace) == {("OWL", "It hoots."), ("tit", "It sings.")}
        prompts = workspace.snapshot().table("sentences", ["text"], "source = 'prompt' AND class_id = 0")
        assert prompts["text"].to_pylist() == ["a photo of an OWL."]


def test_what_else_a_folder_in_another_case_may_mean(workspace: Workspace, tmp_path: Path) -> None:
    """A class that was renamed by hand keeps its name, one that was removed stays removed, and a folder beside the one
    of the other case is a class of its own."""
    data = tmp_path / "data"
    for number in range(6):
        put(data / ("owl", "tit", "wren")[number // 2] / f"{number}.png", number)
    ingest_images(workspace, data, "train", sync=True)
    rename(workspace, 0, "barn owl")
    with workspace.transaction("classes remove") as tx:
        tx.delete("images", "class_id = 1")
        (row,) = tx.table("classes", where="class_id = 1").to_pylist()
        tx.upsert("classes", pa.Table.from_pylist([{**row, "retired_at": "2026"}], CLASSES))
    for name in ("owl", "tit"):
        (data / name).rename(data / name.title())
    put(data / "Wren/7.png", 7)
    for _ in range(2):
        report = ingest_images(workspace, data, "train", sync=True)
        assert (report.moved, report.gone, report.removed) == (0, 0, 2)
        owners = {"Owl": "barn owl", "wren": "wren", "Wren": "Wren"}
        assert {Path(path).parts[0]: owner for path, (owner, _) in images(workspace).items()} == owners
    assert len(workspace.snapshot().class_table()) == 3


def test_what_a_link_out_of_the_folder_has_replaced_is_gone(workspace: Workspace, tmp_path: Path) -> None:
    """A picture, a folder of pictures, a picture of a list and a text; the report names each link. A link that leads
    nowhere leaves its picture in."""
    data = tmp_path / "data"
    for number in range(12):
        put(data / "owl" / f"{number}.png", number)
    put(data / "owl/deep/12.png", 12)
    (tmp_path / "list.csv").write_text("path,class\n" + "".join(f"data/owl/{n}.png,owl\n" for n in range(12)))
    (data / "texts").mkdir()
    for name in ("owl", "tit", "wren", "finch"):
        (data / "texts" / f"{name}.txt").write_text(f"It is a {name}.")
    ingest_images(workspace, data, "train", sync=True)
    ingest_images(workspace, tmp_path / "list.csv", "test", sync=True)
    ingest_text(workspace, data / "texts", sync=True)
    away = tmp_path / "away"
    away.mkdir()
    for name in ("owl/0.png", "owl/deep", "texts/tit.txt"):
        (data / name).rename(away / Path(name).name)
        (data / name).symlink_to(away / Path(name).name)
    (data / "owl/1.png").unlink()
    (data / "owl/1.png").symlink_to(away / "not mounted.png")
    report = ingest_images(workspace, data, "train", sync=True)
    assert report.gone == 2
    for name in ("owl/0.png", "owl/deep"):
        assert f"left out: {data / name}: a link that leaves the folder" in report.notes
    listed = ingest_images(workspace, tmp_path / "list.csv", "test", sync=True, list_root=tmp_path)
    assert listed.gone == 0, "the link does not leave the folder of the list"
    shutil.move(away, tmp_path.parent / f"{tmp_path.name} away")
    (data / "owl/0.png").unlink()
    (data / "owl/0.png").symlink_to(tmp_path.parent / f"{tmp_path.name} away" / "0.png")
    assert ingest_images(workspace, tmp_path / "list.csv", "test", sync=True).gone == 1
    assert set(images(workspace)) == {f"owl/{number}.png" for number in range(1, 12)}
    (data / "texts/tit.txt").unlink()
    (data / "texts/tit.txt").symlink_to(tmp_path.parent / f"{tmp_path.name} away" / "tit.txt")
    assert ingest_text(workspace, data / "texts", sync=True).gone == 1
    assert {name for name, _ in sentences(workspace)} == {"owl", "wren", "finch"}
