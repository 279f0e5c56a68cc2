"""Tables for others: `datasets` reads each by name, pandas and polars through Arrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.support.drawings import workspace as drawings
from vlltr_index.cli.main import vlltr
from vlltr_index.errors import InputError, MissingStepError, PretrainedError, UsageError, WorkspaceError
from vlltr_index.recognition.exported.writing import export_tables
from vlltr_index.store.workspace import Workspace


def load(folder: Path, name: str, cache: Path, split: str = "train") -> Any:
    """What `datasets` makes of one table."""
    import datasets

    found = datasets.load_dataset(str(folder), name, split=split, cache_dir=str(cache))
    assert isinstance(found, datasets.Dataset)
    return found


@pytest.mark.slow
def test_datasets_reads_each_table(trained: Workspace, tmp_path: Path) -> None:
    """Names, rows and columns are the workspace's; images of a Parquet source come decoded, split by split."""
    import datasets

    folder, cache = tmp_path / "tables", tmp_path / "cache"
    report = export_tables(trained, folder)
    snapshot = trained.snapshot()
    names = datasets.get_dataset_config_names(str(folder))
    assert sorted(names) == ["anchors", "classes", "images", "sentences"]
    classes = load(folder, "classes", cache)
    assert sorted(classes["name"]) == sorted(snapshot.class_table().names.values())
    sentences = load(folder, "sentences", cache)
    assert set(sentences["text"]) == set(snapshot.table("sentences", ["text"])["text"].to_pylist())
    anchors = load(folder, "anchors", cache)
    assert len(anchors) == snapshot.count("anchors") == report.rows["anchors"]
    assert len(anchors[0]["vector"]) == snapshot.commit.info.dim
    usable = 0
    for split in ("train", "val", "test"):
        images = load(folder, "images", cache, split)
        assert isinstance(images.features["image"], datasets.Image)
        first = images[0]
        assert isinstance(first["image"], Image.Image)
        assert first["image"].size == (first["width"], first["height"])
        assert first["class"] == snapshot.class_table().names[first["class_id"]]
        assert set(images["split"]) == {split}
        usable += len(images)
    assert usable == report.rows["images"] == snapshot.count("images", "problem IS NULL")


@pytest.mark.slow
def test_files_are_embedded_on_request(tmp_path: Path) -> None:
    """Image files come as their path here, or as their bytes; splits get names that `datasets` allows."""
    workspace = drawings(tmp_path)
    (tmp_path / "images" / "ring" / "broken.png").write_bytes(b"no")
    ingest = ["-w", str(workspace.path), "ingest", "images", str(tmp_path / "images"), "--split", "dev-set"]
    CliRunner().invoke(vlltr, ingest, catch_exceptions=False)
    report = export_tables(workspace, tmp_path / "paths")
    number = report.rows["images"]
    assert report.notes == (
        "Images that cannot be read, left out: 1.",
        f"Images named by their path on this machine: {number}; --embed-images puts them in.",
    )
    row = pq.read_table(tmp_path / "paths" / "images" / "dev_set.parquet").to_pylist()[0]
    assert row["image"]["bytes"] is None
    assert Path(row["image"]["path"]).is_file()
    whole = export_tables(workspace, tmp_path / "whole", embed_images=True)
    assert whole.rows == report.rows
    assert whole.notes == ("Images that cannot be read, left out: 1.",)
    row = pq.read_table(tmp_path / "whole" / "images" / "train.parquet").to_pylist()[0]
    assert row["image"]["bytes"].startswith(b"\x89PNG")
    assert "/" not in row["image"]["path"]
    images = load(tmp_path / "whole", "images", tmp_path / "cache", "dev_set")
    assert images[0]["image"].size == (32, 32)
    next((tmp_path / "images" / "cross").glob("*.png")).unlink()
    with pytest.raises(InputError, match=r"cannot read the image .*: no such file"):
        export_tables(workspace, tmp_path / "gone", embed_images=True)
    assert not (tmp_path / "gone").exists()


def test_the_command_writes_tables(tmp_path: Path) -> None:
    """Before anything is trained there are no anchors; a second run needs --force; classes there must be."""
    workspace = drawings(tmp_path)
    command = ["-w", str(workspace.path), "export", str(tmp_path / "out"), "--tables"]
    done = CliRunner().invoke(vlltr, command)
    assert "8 classes, " in done.stdout
    assert not (tmp_path / "out" / "anchors.parquet").exists()
    assert isinstance(CliRunner().invoke(vlltr, command).exception, PretrainedError)
    assert CliRunner().invoke(vlltr, [*command, "--force"]).exit_code == 0
    with pytest.raises(MissingStepError, match="there are no classes to export"):
        export_tables(Workspace.create(tmp_path / "empty", workspace.recipe), tmp_path / "none")


@pytest.mark.slow
def test_tables_as_arrow(trained: Workspace) -> None:
    """`Workspace.table` gives Arrow tables for pandas and polars, of the newest commit or an older one."""
    import polars

    sentences = trained.table("sentences")
    assert sentences.to_pandas().shape == (trained.snapshot().count("sentences"), sentences.num_columns)
    frame = polars.from_arrow(trained.table("classes", columns=["class_id", "name"]))
    assert isinstance(frame, polars.DataFrame)
    assert frame.columns == ["class_id", "name"]
    assert trained.table("anchors", at=1).num_rows == 0
    with pytest.raises(UsageError, match="no committed table 'birds'; there are classes, sentences"):
        trained.table("birds")
    with pytest.raises(UsageError, match="table 'classes' has no column 'colour'"):
        trained.table("classes", columns=["colour"])
    with pytest.raises(WorkspaceError, match="there is no commit 999"):
        trained.table("classes", at=999)
