"""Ingestion with groups and bursts: what is stored, what is told, and what a second run remembers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.support.commands import run
from tests.support.pictures import COLOURS, encoded, put, timed
from vlltr_index.cli.render import report_lines
from vlltr_index.embedding.loading import image_units
from vlltr_index.errors import InputError, UsageError
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.schemas.config import Recipe
from vlltr_index.store.workspace import Workspace

RECIPE = Recipe(name="test", prompts=("a photo of a {}.",))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    return Workspace.create(tmp_path / "workspace", RECIPE)


def picture(number: int, second: int | None = None) -> bytes:
    """A picture of its own, taken at that second of an hour."""
    image = Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8))
    if second is None:
        return encoded(image)
    return timed(f"2024:05:06 12:{second // 60:02}:{second % 60:02}", image=image)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes: a burst of three, a pair, two pictures alone, and one without a time."""
    data = tmp_path / "data"
    for number, (name, second) in enumerate(
        [
            ("owl/a_1", 0),
            ("owl/a_2", 1),
            ("owl/b_1", 3),
            ("owl/x/c_1", 3),
            ("tit/d_1", 9),
            ("tit/d_2", 11),
            ("tit/e_1", 60),
        ]
    ):
        put(data / f"{name}.jpg", picture(number, second))
    put(data / "tit/f_1.png", picture(9))
    return data


def groups(workspace: Workspace) -> dict[str, str | None]:
    """The group of each image by the name of its file."""
    rows = workspace.snapshot().table("images", ["uri", "group"]).to_pylist()
    return {Path(row["uri"]).stem: row["group"] for row in rows}


def test_bursts_are_found_and_told(workspace: Workspace, folder: Path) -> None:
    """By the times that are stored beside the images."""
    report = ingest_images(workspace, folder, "train")
    assert (report.grouping, report.groups, report.in_bursts) == ("auto", 0, 5)
    told = "5 of 8 pictures lie within two seconds of another: they are held out together (--group seconds:N"
    assert f"{told} changes that)." in report_lines(report)
    rows = workspace.snapshot().table("images", ["uri", "taken", "thumbnail"]).to_pylist()
    taken = {Path(row["uri"]).stem: row["taken"] for row in rows}
    assert taken["d_2"] - taken["a_1"] == 11
    assert taken["f_1"] is None
    assert {len(row["thumbnail"]) for row in rows} == {1024}
    again = ingest_images(workspace, folder, "train")
    assert (again.in_bursts, again.updated, again.unchanged) == (5, 0, 8)


def test_groups_are_told_and_remembered(workspace: Workspace, folder: Path) -> None:
    """For that source, until another way is given; it takes no more than a run of `ingest images`."""
    report = ingest_images(workspace, folder, "train", group="name:^[a-z]")
    assert "In 6 groups, which are held out together (--group name:^[a-z]): 8 of 8 pictures." in report_lines(
        report
    )
    assert groups(workspace)["a_1"] == "a"
    put(folder / "owl" / "a_3.jpg", picture(20))
    report = ingest_images(workspace, folder, "train", sync=True)
    assert (report.grouping, report.added, report.unchanged) == ("name:^[a-z]", 1, 8)
    assert groups(workspace)["a_3"] == "a"
    report = ingest_images(workspace, folder, "train", group="folder")
    assert {name for name, group in groups(workspace).items() if group} == {"c_1"}
    assert report.updated == 9
    assert workspace.history.last().command.endswith("--group folder")
    ingest_images(workspace, folder, "train", group="auto")
    assert set(groups(workspace).values()) == {None}


def test_groups_that_names_suggest_are_told(workspace: Workspace, tmp_path: Path) -> None:
    """As long as none are said."""
    for number, name in enumerate(["owl/1", "owl/1_aug", "owl/2", "owl/2_aug"]):
        put(tmp_path / "data" / f"{name}.png", picture(number))
    (told,) = ingest_images(workspace, tmp_path / "data", "train").notes
    assert told.startswith("by their names 4 pictures are in 2 groups of several")
    hint = told.partition("--group ")[2].strip("'")
    said = ingest_images(workspace, tmp_path / "data", "train", group=hint)
    assert (said.groups, said.notes) == (2, [])


def test_groups_of_several_classes_are_told(workspace: Workspace, tmp_path: Path) -> None:
    """Files of class folders that only have like names are easily taken for one group."""
    for number, name in enumerate(["owl/1", "owl/1_aug", "tit/1", "tit/2"]):
        put(tmp_path / "data" / f"{name}.png", picture(number))
    mixed = ingest_images(workspace, tmp_path / "data", "train", group="name:^[^_.]+")
    assert (mixed.groups, mixed.mixed_groups) == (2, 1)
    (told,) = [line for line in report_lines(mixed) if line.startswith("Of several classes: 1 group.")]
    hint = told.partition("--group ")[2].strip("'")
    assert hint.startswith("path:")
    apart = ingest_images(workspace, tmp_path / "data", "train", group=hint)
    assert (apart.groups, apart.mixed_groups) == (3, 0)
    assert not any("several classes" in line for line in report_lines(apart))


def test_seconds_of_another_number(workspace: Workspace, folder: Path) -> None:
    """Pictures alone are said to be alone, so that nothing more is looked for."""
    report = ingest_images(workspace, folder, "train", group="seconds:1", sync=True)
    found = groups(workspace)
    assert found["a_1"] == found["a_2"] != found["b_1"]
    assert found["b_1"] is not None
    assert found["f_1"] is None
    assert (report.groups, report.grouped, report.in_bursts) == (6, 7, 0)


def test_a_moved_picture_has_the_group_of_its_new_place(workspace: Workspace, folder: Path) -> None:
    """Where groups are made of places."""
    ingest_images(workspace, folder, "train", group="folder", sync=True)
    (folder / "owl/x/c_1.jpg").rename(folder / "owl/c_1.jpg")
    report = ingest_images(workspace, folder, "train", sync=True)
    assert report.gone == report.added == 0
    assert set(groups(workspace).values()) == {None}


def test_groups_are_held_out_whole(workspace: Workspace, tmp_path: Path) -> None:
    """Whatever says which they are."""
    for number in range(40):
        put(tmp_path / "data/owl" / f"{number // 4}_{number}.png", picture(number))
    report = ingest_images(workspace, tmp_path / "data", "train", hold_out=0.25, group="name:^[0-9]+")
    assert report.splits == {"train": 32, "test": 8}
    rows = workspace.snapshot().table("images", ["group", "split"]).to_pylist()
    assert len({(row["group"], row["split"]) for row in rows}) == 10


def test_a_column_of_a_table(workspace: Workspace, tmp_path: Path) -> None:
    """`group` where nothing is said; numbers are names, too."""
    path = tmp_path / "p.parquet"
    columns = {
        "image": [picture(n) for n in range(3)],
        "label": ["owl"] * 3,
        "group": ["a", "a", None],
        "camera": [7, 8, 8],
    }
    pq.write_table(pa.table(columns), path)
    report = ingest_images(workspace, path, "train")
    assert (report.groups, report.grouped) == (1, 2)
    assert "In 1 group, which are held out together: 2 of 3 pictures." in report_lines(report)
    assert sorted(ingest_images(workspace, path, "train", group="column:camera").splits.items()) == [
        ("train", 3)
    ]
    rows = workspace.snapshot().table("images", ["group"])["group"].to_pylist()
    assert sorted(rows) == ["7", "8", "8"]
    with pytest.raises(InputError, match="no column 'place'; it has 'image', 'label', 'group', 'camera'"):
        ingest_images(workspace, path, "train", group="column:place")
    with pytest.raises(UsageError, match=r"--group column:camera: .* has no columns"):
        ingest_images(workspace, tmp_path, "train", group="column:camera")


def test_the_command_line(workspace: Workspace, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Takes the same, and refuses what is no way with 2."""
    place = ("-w", workspace.path, "ingest", "images", folder, "--split", "train", "--group")
    code, out, err = run(capsys, *place, "folder")
    assert code == 0
    assert "In 1 group" in out + err
    code, out, err = run(capsys, *place, "camera")
    assert code == 2
    assert "--group camera: not a way to group pictures" in err


def test_a_grouping_that_finds_nothing_is_refused(workspace: Workspace, shots: Path) -> None:
    """Before anything is committed: it would replace the groups that there are."""
    before = workspace.history.last()
    with pytest.raises(UsageError, match="--group name:ZZZ puts none of the 15 pictures of ") as refused:
        ingest_images(workspace, shots, "train", group="name:ZZZ")
    assert refused.value.hint is not None
    assert "--group auto" in refused.value.hint
    assert workspace.history.last() == before


def test_copies_belong_together_across_groups_and_classes(workspace: Workspace, tmp_path: Path) -> None:
    """They are not held out apart."""
    for place in ("owl/north/1.png", "owl/south/2.png", "tit/3.png"):
        put(tmp_path / "data" / place)
    put(tmp_path / "data" / "owl/south/4.png", encoded(COLOURS.rotate(180)))
    put(tmp_path / "data" / "tit/5.png", encoded(COLOURS.rotate(90)))
    ingest_images(workspace, tmp_path / "data", "train", group="folder")
    rows = workspace.snapshot().table("images", ["image_id", "class_id", "uri"]).sort_by("uri")
    owners = torch.tensor(rows["class_id"].to_pylist())
    units = image_units(workspace.snapshot(), rows["image_id"].to_pylist(), owners, None)
    assert units[0] == units[1] == units[2] == units[3] != units[4]
