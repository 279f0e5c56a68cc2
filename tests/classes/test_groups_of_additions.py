"""Pictures that are given to a class are grouped as those of the workspace are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.objects import put
from tests.support.pictures import timed
from vlltr_index.classes import NewClass, add_class, add_classes, add_images
from vlltr_index.data.decoding import open_image
from vlltr_index.heads.checkpoint import load_head, save_head
from vlltr_index.store.tables import one_of
from vlltr_index.store.workspace import Workspace


def groups(workspace: Workspace, class_name: str) -> list[str | None]:
    """The groups of a class's training images, in the order of their files' names."""
    class_id = workspace.snapshot().class_table().lookup(class_name)
    rows = workspace.snapshot().table("images", ["uri", "group"], one_of("class_id", [class_id]))
    return [row["group"] for row in rows.sort_by("uri").to_pylist()]


def observations(workspace: Workspace, class_name: str) -> int:
    """As how many observations the images of a class count."""
    class_id = workspace.snapshot().class_table().lookup(class_name)
    (row,) = workspace.snapshot().table("class_stats", ["images"], f"class_id = {class_id}").to_pylist()
    return int(row["images"])


def note(workspace: Workspace, **rules: str) -> None:
    """Note rules as `ingest images --group` does, by source."""
    with workspace.transaction("test") as tx:
        tx.note(groupings=rules)


def count_units_by(workspace: Workspace, correlation: float) -> None:
    """Make the head count images as if those of a unit were alike by this."""
    saved = load_head(workspace.objects.whole("heads", workspace.snapshot().commit.head or ""))
    assert saved.parts is not None
    saved = replace(saved, parts=replace(saved.parts, unit_correlation=correlation))
    with workspace.transaction("another head") as tx:
        tx.set(head=put(workspace, "heads", lambda folder: save_head(saved, folder)))


@pytest.fixture
def okapi(pictures: Path, tmp_path: Path) -> Path:
    """Two pictures in a folder of their own, two in others."""
    for number, place in enumerate(["night/a_1", "night/a_2", "a_3", "b_1"]):
        target = tmp_path / "okapi" / f"{place}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "unseen" / f"{number}.png", target)
    return tmp_path / "okapi"


@pytest.mark.slow
def test_by_the_rule_that_was_last_said(trained: Workspace, okapi: Path) -> None:
    """A folder below the class's own, or what the names say; observations are counted so."""
    count_units_by(trained, 1.0)
    note(trained, birds=r"name:^(.+)_\d", more="auto")
    add_class(trained, "okapi", images=okapi)
    assert groups(trained, "okapi") == ["a", "b", "a", "a"]
    assert observations(trained, "okapi") == 2
    note(trained, birds="folder")
    zebra = Path(shutil.copytree(okapi, okapi.with_name("zebra")))
    add_classes(trained, [NewClass("zebra", images=(zebra,))])
    assert groups(trained, "zebra") == [None, None, str(zebra / "night"), str(zebra / "night")]
    alone = Path(shutil.copy(zebra / "a_3.png", okapi.with_name("z.png")))
    add_images(trained, "zebra", [alone])
    assert groups(trained, "zebra")[0] is None, "a file by itself is in no folder of the source"


def test_by_the_path_as_in_a_folder_of_class_folders(trained: Workspace, okapi: Path) -> None:
    """With the folders below the class's own; a file by itself lies in none."""
    note(trained, birds=r"path:^([^/]+/[^_.]+)")
    add_class(trained, "okapi", images=okapi)
    assert groups(trained, "okapi") == ["okapi/a", "okapi/b", "okapi/night/a", "okapi/night/a"]
    alone = Path(shutil.copy(okapi / "a_3.png", okapi.with_name("a_9.png")))
    add_images(trained, "okapi", [alone])
    assert groups(trained, "okapi").count("okapi/a") == 2


def test_as_many_as_the_head_counts_them(trained: Workspace, okapi: Path) -> None:
    """Three pictures of a group are three where those of a unit are no more alike than others."""
    count_units_by(trained, 0.0)
    note(trained, birds=r"name:^(.+)_\d")
    add_class(trained, "okapi", images=okapi)
    assert observations(trained, "okapi") == 4


@pytest.mark.slow
def test_folders_of_one_name_are_not_one(trained: Workspace, okapi: Path, tmp_path: Path) -> None:
    """Neither is a name with a slash a folder, nor are folders of one name in two folders that were given."""
    note(trained, birds="folder")
    add_class(trained, "Laridae/Larus", images=okapi)
    assert groups(trained, "Laridae/Larus") == [None, None, *[str(okapi / "night")] * 2]
    another = Path(shutil.copytree(okapi, tmp_path / "another"))
    for number, path in enumerate(sorted(another.rglob("*.png"))):
        path.write_bytes(path.read_bytes() + bytes([number]))  # another content
    add_images(trained, "Laridae/Larus", [another])
    assert set(groups(trained, "Laridae/Larus")) == {None, str(okapi / "night"), str(another / "night")}


def test_by_time(trained: Workspace, pictures: Path, tmp_path: Path) -> None:
    """Pictures of one folder, each taken soon after the one before, which their bytes say."""
    count_units_by(trained, 1.0)
    note(trained, birds="seconds:10")
    (tmp_path / "okapi").mkdir()
    for number, second in enumerate(["00", "09", "40"]):
        image = open_image((pictures / "unseen" / f"{number}.png").read_bytes()).convert("RGB")
        (tmp_path / "okapi" / f"{number}.jpg").write_bytes(timed(f"2024:05:06 12:00:{second}", image=image))
    add_class(trained, "okapi", images=tmp_path / "okapi")
    first, second, third = groups(trained, "okapi")
    assert first == second != third
    assert observations(trained, "okapi") == 2


@pytest.mark.parametrize("rules", [{}, {"a": "folder", "b": "name:.+"}, {"a": "column:herd"}])
def test_where_rules_differ_or_there_is_none_images_are_compared(
    trained: Workspace, okapi: Path, rules: dict[str, str]
) -> None:
    """No group is made up; neither is one by a column, which a folder has not."""
    note(trained, **rules)
    add_class(trained, "okapi", images=okapi)
    assert groups(trained, "okapi") == [None] * 4
