"""Decisions about pictures become one commit: labels, new classes, new pictures, and what goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.support.changes import World
from tests.support.pictures import encoded, put
from vlltr_index.classes import Decisions, add_images, decide, relabel_images, remove_images
from vlltr_index.cli.render import report_lines
from vlltr_index.data.files import LINK
from vlltr_index.data.image_readers import read_images
from vlltr_index.errors import InputError, MissingStepError
from vlltr_index.pipelines.history import rollback
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.records import Skipped
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace that was not trained, with six pictures of two classes."""
    made = Workspace.create(tmp_path / "ws", Recipe(name="test", prompts=("a photo of a {}.",)))
    for number in range(6):
        data = encoded(Image.new("RGB", (4, 4), (40 * number, 0, 0)))
        put(tmp_path / "data" / ("owl", "tit")[number % 2] / f"{number}.png", data)
    ingest_images(made, tmp_path / "data", "train")
    return made


def stored(workspace: Workspace) -> dict[str, tuple[str, str]]:
    """The id and the class of each picture by its file's name."""
    snapshot = workspace.snapshot()
    names = snapshot.class_table().names
    rows = snapshot.table("images", ["image_id", "uri", "class_id"]).to_pylist()
    return {Path(row["uri"]).name: (row["image_id"], names[row["class_id"]]) for row in rows}


def said(workspace: Workspace) -> dict[str, str]:
    """What a person said of each picture, by its file's name."""
    snapshot = workspace.snapshot()
    names = snapshot.class_table().names
    rows = {row["image_id"]: names[row["class_id"]] for row in snapshot.table("reviewed").to_pylist()}
    return {name: rows[key] for name, (key, _) in stored(workspace).items() if key in rows}


def test_one_commit_of_all_kinds(workspace: Workspace, tmp_path: Path) -> None:
    """A correction, a confirmation, a class that is made, a new picture, and one that goes; a second time nothing."""
    ids = {name: key for name, (key, _) in stored(workspace).items()}
    new = put(tmp_path / "else" / "new.png", encoded(Image.new("RGB", (5, 5), "green")))
    broken = put(tmp_path / "else" / "broken.png", b"no picture")
    decisions = Decisions(
        labels={ids["0.png"]: "tit", ids["1.png"]: "tit", ids["2.png"]: "wren"},
        added={new: "wren", broken: "no class"},
        removed=[ids["5.png"]],
    )
    commit = workspace.history.last().id
    report = decide(workspace, "review", decisions)
    assert workspace.history.last().id == commit + 1
    first, left = report.notes
    assert first == (
        "2 pictures relabelled, 1 label confirmed, 1 picture added, 1 picture removed, 1 class made."
    )
    assert left.startswith(f"Left out: {broken}: ")
    classes = {name: owner for name, (_, owner) in stored(workspace).items() if name != "broken.png"}
    assert classes == {
        "0.png": "tit", "1.png": "tit", "2.png": "wren", "3.png": "tit", "4.png": "owl", "new.png": "wren",
    }  # fmt: skip
    assert said(workspace) == {"0.png": "tit", "1.png": "tit", "2.png": "wren", "new.png": "wren"}
    again = decide(workspace, "review", Decisions(labels={ids["0.png"]: "tit"}))
    assert not again.changed
    assert "1 label confirmed." in report_lines(again)


def test_one_content_in_two_classes_is_left_out(workspace: Workspace, tmp_path: Path) -> None:
    """Whichever is right, nobody can tell; a folder is no picture."""
    data = encoded(Image.new("RGB", (5, 5), "green"))
    one, other = (put(tmp_path / "else" / f"{n}.png", data) for n in range(2))
    report = decide(
        workspace, "review", Decisions(added={one: "owl", other: "tit", tmp_path / "data": "owl"})
    )
    assert not report.changed
    first, *left = report.notes
    assert first == "Nothing was changed."
    assert sum("two classes for one picture" in line for line in left) == 2
    assert len(left) == 3


def test_names_that_differ_by_case_are_one_class(workspace: Workspace) -> None:
    """A known one is found; two new ones are refused, and nothing is written."""
    ids = [key for key, _ in stored(workspace).values()]
    decide(workspace, "review", Decisions(labels={ids[0]: "OWL"}))
    assert len(workspace.snapshot().class_table()) == 2
    commit = workspace.history.last().id
    with pytest.raises(InputError, match="class 'wren' is given twice"):
        decide(workspace, "review", Decisions(labels={ids[0]: "Wren", ids[1]: "wren"}))
    assert workspace.history.last().id == commit


def test_a_file_takes_pictures_in(workspace: Workspace, tmp_path: Path) -> None:
    """`--add`: pictures that the workspace does not have, by their paths; what is not there is named."""
    put(tmp_path / "else" / "new.png", encoded(Image.new("RGB", (5, 5), "green")))
    file = tmp_path / "queue.csv"
    file.write_text("path,class\nelse/new.png,owl\ndata/owl/0.png,tit\nelse/no.png,owl\ndata/owl/2.png,\n")
    plain = relabel_images(workspace, file)
    assert (plain.added_images, plain.not_found, plain.unsaid) == (0, 2, 1)
    report = relabel_images(workspace, file, add=True)
    assert (report.added_images, report.not_found, report.same) == (1, 1, 1)
    assert report_lines(report)[0] == (
        f"{file}: 0 pictures relabelled, 1 of that class already, 1 not found, 1 without a class, 1 added."
    )
    assert stored(workspace)["new.png"][1] == "owl"
    assert relabel_images(workspace, file, add=True).same == 2
    empty = Workspace.create(tmp_path / "empty", Recipe(name="test"))
    assert relabel_images(empty, file, add=True, create_classes=True).added_images == 2
    with pytest.raises(MissingStepError, match="no pictures to relabel"):
        relabel_images(Workspace.create(tmp_path / "other", Recipe(name="test")), file)


def test_a_file_takes_in_what_lies_in_its_root_alone(workspace: Workspace, tmp_path: Path) -> None:
    """`--add`: no path and no link leaves the folder, as for `ingest images`; the root may be named through a link."""
    tables = tmp_path / "tables"
    for number, place in enumerate(("tables/in.png", "out/a.png", "out/b.png", "out/c.png", "out/d.png")):
        put(tmp_path / place, encoded(Image.new("RGB", (5 + number, 5), "green")))
    (tables / "link.png").symlink_to(tmp_path / "out" / "c.png")
    (tables / "folder").symlink_to(tmp_path / "out")
    outside = ["../out/a.png", str(tmp_path / "out/b.png"), "link.png", "folder/d.png"]
    file = tables / "queue.csv"
    file.write_text("path,class\n" + "".join(f"{path},owl\n" for path in ["in.png", *outside]))
    commit = workspace.history.last().id
    leaving = f"the path leaves the folder {tables}; another is named by --root DIR"
    reasons = [leaving, leaving, LINK, LINK]
    report = relabel_images(workspace, file, add=True)
    assert report.left_out == [
        f"{file}:{line}: {path}: {why}"
        for line, (path, why) in enumerate(zip(outside, reasons, strict=True), 3)
    ]
    assert (report.added_images, report.not_found) == (1, 4)
    read = read_images(file, "train")
    assert [one.why for one in read if isinstance(one, Skipped)] == [
        f"{path}: {why}" for path, why in zip(outside, reasons, strict=True)
    ]
    file.write_text(f"path,class\n{outside[1]},owl\n")
    with pytest.raises(
        InputError, match=r"can be relabelled, for example .*: the path leaves .*\n.*--root DIR$"
    ):
        relabel_images(workspace, file, add=True)
    assert workspace.history.last().id == commit + 1
    (tmp_path / "way").symlink_to(tmp_path)
    linked = [str(tmp_path / "way" / "out" / f"{name}.png") for name in "abcd"]
    file.write_text("path,class\n" + "".join(f"{path},owl\n" for path in linked))
    report = relabel_images(workspace, file, add=True, list_root=tmp_path / "way" / "out")
    assert (report.added_images, report.left_out) == (4, [])
    assert {Path(uri).parent for uri in stored_uris(workspace) if "out" in uri} == {tmp_path / "out"}


def test_an_upload_is_taken_in_by_its_name(workspace: Workspace, tmp_path: Path) -> None:
    """`--add`: it lies in whatever folder of the root; one whose content the workspace has is not added again."""
    put(tmp_path / "shots" / "deep" / "new.png", encoded(Image.new("RGB", (5, 5), "green")))
    put(tmp_path / "shots" / "deep" / "copy.png", (tmp_path / "data" / "owl" / "0.png").read_bytes())
    file = tmp_path / "shots" / "tasks.csv"
    rows = [f"/data/upload/3/0a1b2c3d-{name}.png,owl" for name in ("new", "copy")]
    file.write_text("\n".join(["image,choice", *rows]))
    report = relabel_images(workspace, file, add=True)
    assert (report.added_images, report.same, report.left_out) == (1, 1, [])


def stored_uris(workspace: Workspace) -> list[str]:
    """The paths of all pictures."""
    uris: list[str] = workspace.snapshot().table("images", ["uri"])["uri"].to_pylist()
    return uris


def test_a_trained_workspace_is_as_after_single_commands(
    small: Workspace, world: World, tmp_path: Path
) -> None:
    """Statistics of the classes are those after relabelling, adding and removing one after the other."""
    names = [one.name for one in world.classes.values()]
    rows = small.snapshot().table("images", ["image_id", "uri", "class_id"]).to_pylist()
    of = {row["uri"]: row["image_id"] for row in rows}
    moved, gone = sorted(world.classes[3].pictures)[:2]
    new = Path(world.pictures[0])
    decide(
        small, "review", Decisions(labels={of[moved]: names[1]}, added={new: names[2]}, removed=[of[gone]])
    )
    together = small.snapshot().table("class_stats").sort_by("class_id").to_pylist()
    file = tmp_path / "fix.csv"
    rollback(small, small.history.last().parent or 0)
    file.write_text(f"path,class\n{moved},{names[1]}\n")
    relabel_images(small, file)
    add_images(small, names[2], [new])
    remove_images(small, [of[gone]])
    apart = small.snapshot().table("class_stats").sort_by("class_id").to_pylist()
    assert together == apart
