"""Corrections from a file: which pictures get another class, what is said, and that the workspace is as if built so."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.changes import World, anchors, probabilities, rebuilt
from tests.support.pictures import encoded, put
from vlltr_index.classes import ChangeOptions, relabel_images
from vlltr_index.cli.render import report_lines
from vlltr_index.errors import InputError, MissingStepError, UnknownClassError
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.schemas.config import Recipe
from vlltr_index.store.workspace import Workspace

RECIPE = Recipe(name="test", prompts=("a photo of a {}.",))


def classes(workspace: Workspace) -> dict[str, str]:
    """The class of each image, by its folder and name."""
    snapshot = workspace.snapshot()
    names = snapshot.class_table().names
    rows = snapshot.table("images", ["uri", "class_id"]).to_pylist()
    return {"/".join(Path(row["uri"]).parts[-2:]): names[row["class_id"]] for row in rows}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace that was not trained, with six pictures of two classes."""
    made = Workspace.create(tmp_path / "ws", RECIPE)
    for number in range(6):
        data = encoded(Image.new("RGB", (4, 4), (40 * number, 0, 0)))
        put(tmp_path / "data" / ("owl", "tit")[number % 2] / f"{number}.png", data)
    ingest_images(made, tmp_path / "data", "train")
    return made


def test_by_path_by_content_and_what_is_left_out(workspace: Workspace, tmp_path: Path) -> None:
    """Each picture is named; before training, too; a second run changes nothing."""
    put(tmp_path / "else" / "copy.png", (tmp_path / "data/owl/2.png").read_bytes())
    put(tmp_path / "else" / "other.png")
    file = tmp_path / "fix.csv"
    file.write_text(
        "path,class\ndata/owl/0.png,TIT\nelse/copy.png,tit\ndata/tit/1.png,tit\nelse/other.png,owl\n"
        "data/no.png,owl\ndata/tit/3.png,owl\ndata/tit/3.png,tit\ndata/tit/5.png,\n"
    )
    commit = workspace.history.last().id
    dry = relabel_images(workspace, file, options=ChangeOptions(dry_run=True))
    assert workspace.history.last().id == commit
    report = relabel_images(workspace, file)
    assert workspace.history.last().id == commit + 1
    assert dry.relabelled == report.relabelled
    data = tmp_path / "data"
    assert [(one.image, one.before, one.now) for one in report.relabelled] == [
        (str(data / "owl/0.png"), "owl", "tit"),
        (str(data / "owl/2.png"), "owl", "tit"),
    ]
    twice = f"data/tit/3.png: two classes for one picture: 'owl' ({file}:7) and 'tit' ({file}:8)"
    assert report.left_out == [
        f"{file}:5: else/other.png: the workspace has it neither by its path nor by its content",
        f"{file}:6: data/no.png: the workspace has no picture of this path, and there is no such file",
        f"{file}:7: {twice}",
    ]
    assert (report.same, report.not_found, report.unsaid) == (1, 2, 1)
    first, *lines = report_lines(report)
    assert (
        first
        == f"{file}: 2 pictures relabelled, 1 of that class already, 2 not found, 1 without a class, 1 left out."
    )
    assert f"  {data / 'owl/0.png'}: owl -> tit" in lines
    again = relabel_images(workspace, file)
    assert (again.changed, again.relabelled, again.same) == (False, [], 3)
    assert list(classes(workspace).values()).count("tit") == 5


def test_classes_that_are_called_by_digits(workspace: Workspace, tmp_path: Path) -> None:
    """Each is the class of just that text, whose leading zeros count; -1 is no class unless one is called so."""
    for name in ("1", "00001", "-1"):
        put(tmp_path / "data" / name / "a.png", encoded(Image.new("RGB", (4, 4), (0, len(name), 0))))
    file = tmp_path / "fix.csv"
    file.write_text("path,class\ndata/owl/0.png,00001\ndata/owl/2.png,1\ndata/owl/4.png,-1\n")
    with pytest.raises(UnknownClassError, match=r"no class is called .*'00001' \(.*:2\)\n"):
        relabel_images(workspace, file)
    ingest_images(workspace, tmp_path / "data", "train")
    assert [one.now for one in relabel_images(workspace, file).relabelled] == ["00001", "1", "-1"]
    assert ingest_images(workspace, file, "train").classes_added == 0
    assert [classes(workspace)[f"owl/{n}.png"] for n in (0, 2, 4)] == ["00001", "1", "-1"]


def test_it_outlives_the_folder_until_that_moves_the_picture(workspace: Workspace, tmp_path: Path) -> None:
    """The rule of sources."""
    file = tmp_path / "fix.txt"
    file.write_text("data/owl/0.png tit\n")
    relabel_images(workspace, file)
    data = tmp_path / "data"
    for sync in (False, True):
        assert ingest_images(workspace, data, "train", sync=sync).corrected == 1
        assert classes(workspace)["owl/0.png"] == "tit"
    put(data / "wren" / "0.png", (data / "owl/0.png").read_bytes())
    (data / "owl/0.png").unlink()
    assert ingest_images(workspace, data, "train", sync=True).overruled == 1
    assert classes(workspace)["wren/0.png"] == "wren"


def test_what_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    """Names that no class has, unless they are to be made; files that name no picture of the workspace; no pictures."""
    file = tmp_path / "fix.csv"
    file.write_text("path,class\ndata/owl/0.png,owll\ndata/owl/2.png,titt\ndata/owl/4.png,owll\n")
    with pytest.raises(UnknownClassError) as unknown:
        relabel_images(workspace, file)
    assert str(unknown.value) == (
        f"no class is called 'owll' ({file}:2), 'titt' ({file}:3)\n"
        "Mend the file, or make classes of these names: --create-classes"
    )
    report = relabel_images(workspace, file, create_classes=True)
    assert report.classes_added == ["owll", "titt"]
    assert [classes(workspace)[f"owl/{n}.png"] for n in (0, 2, 4)] == ["owll", "titt", "owll"]
    assert workspace.snapshot().count("sentences", "class_id = 2") == 1
    for text, why in (
        (
            "x.png,owl",
            "names can be relabelled, for example .*:2: x.png.*\nName the folder .*: --root DIR; or .*: --add",
        ),
        (
            "data/owl/0.png,a\ndata/owl/0.png,b\ndata/owl/0.png,c",
            r"'a' \(.*:2\), 'b' \(.*:3\) and 1 more\nMend its rows: ",
        ),
        ("data/owl/0.png,", "no row of .* names a class\n"),
        ("", "fix.csv has no row\n"),
    ):
        file.write_text(f"path,class\n{text}\n")
        with pytest.raises(InputError, match=why):
            relabel_images(workspace, file)
    file.write_text("path,class\nx.png,owl\n")
    with pytest.raises(InputError, match=r"--root DIR$"):
        relabel_images(workspace, file, add=True)
    with pytest.raises(InputError, match="unknown kind of file of corrections"):
        relabel_images(workspace, put(tmp_path / "fix.md"))
    file.write_text("path,class\ndata/owl/0.png,owl\n")
    with pytest.raises(MissingStepError, match=r"no pictures to relabel"):
        relabel_images(Workspace.create(tmp_path / "empty", RECIPE), file)


def test_exports(workspace: Workspace, tmp_path: Path) -> None:
    """Label Studio knows uploads by their names; FiftyOne copies pictures."""
    annotation = {"result": [{"type": "choices", "value": {"choices": ["tit"]}}], "was_cancelled": False}
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-0.png"}, "annotations": [annotation]},
        {"id": 2, "data": {"image": "/data/local-files/?d=data/owl/2.png"}, "annotations": [annotation]},
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    assert len(relabel_images(workspace, tmp_path / "tasks.json").relabelled) == 2
    put(tmp_path / "fo" / "data" / "000001.png", (tmp_path / "data/owl/4.png").read_bytes())
    (tmp_path / "fo" / "labels.json").write_text('{"classes": ["owl", "tit"], "labels": {"000001": 1}}')
    assert len(relabel_images(workspace, tmp_path / "fo").relabelled) == 1
    assert set(classes(workspace).values()) == {"tit"}


def test_a_trained_workspace_is_as_if_built_so(small: Workspace, world: World, tmp_path: Path) -> None:
    """Anchors, scores and statistics are those of the final list; a class made by it is known by its image."""
    source = 3
    target = 1
    world = deepcopy(world)
    one, two = sorted(world.classes[source].pictures)[:2]
    file = tmp_path / "fix.csv"
    file.write_text(f"path,class\n{one},{world.classes[target].name}\n{two},okapi\n")
    report = relabel_images(small, file, create_classes=True)
    assert {c.name: c.images for c in report.classes}["okapi"] == 1
    okapi = type(world.classes[source])("okapi")
    okapi.prompt()
    world.classes[small.snapshot().class_table().lookup("okapi")] = okapi
    for picture, owner in ((one, world.classes[target]), (two, okapi)):
        world.classes[source].pictures.remove(picture)
        owner.pictures.add(picture)
    built = rebuilt(world, small, tmp_path / "built")
    assert anchors(small) == anchors(built)
    features = torch.randn(4, small.history.last().info.dim, generator=torch.Generator().manual_seed(0))
    for mine, theirs in zip(probabilities(small, features), probabilities(built, features), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
