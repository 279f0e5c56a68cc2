"""`--engine ray`: the same vectors and answers as in one process, from all sources, though a machine is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import drawings
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from obstore.store import from_url
from torch import Tensor

from tests.buckets import Bucket
from tests.commands import run
from vlltr_index.embedding import ray_engine
from vlltr_index.embedding.ray_engine import RayEngine
from vlltr_index.embedding.vectors import StoredImages
from vlltr_index.errors import VlltrError
from vlltr_index.pipelines import embed as stages
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.schemas.tables import image_vectors_name, sentence_vectors_name
from vlltr_index.store.workspace import Workspace
from vlltr_index.train.augment import ViewAugment

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5  # of single numbers: the same arithmetic, but threads may be shared out otherwise
NOTICED = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
ONE_CPU = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def places(server: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Other drawings of the same classes: a folder, a Parquet file, a prefix in object storage; each with a broken one."""
    folder = tmp_path_factory.mktemp("places")
    for seed, name in enumerate("abc", 1):
        drawings.write(folder / name, seed)
        (folder / name / "ring" / "broken.png").write_bytes(b"no image")
    rows = [(p.parent.name, p.read_bytes()) for p in sorted((folder / "b").rglob("*.png"))]
    table = pa.table({"image": [data for _, data in rows], "label": [label for label, _ in rows]})
    pq.write_table(table, folder / "b.parquet", row_group_size=10)
    address = f"{server.address()}/shots"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        store = from_url(address)
        for path in (folder / "c").rglob("*.png"):
            obstore.put(store, path.relative_to(folder / "c").as_posix(), path.read_bytes())
        yield {"folder": str(folder / "a"), "parquet": str(folder / "b.parquet"), "objects": address}


@pytest.fixture(scope="module")
def drawn(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained workspace of a few drawings, with images in all kinds of places of which none is embedded."""
    folder = tmp_path_factory.mktemp("drawn")
    drawings.encoder().save(folder / "encoder")
    settings = (f"encoder.pretrained={folder / 'encoder'}", "lgr.views=2", "lgr.epochs=1", "baseline.epochs=1")
    workspace = drawings.workspace(folder, *settings)
    train_all(workspace, workspace.recipe)
    for place in places.values():
        ingest_images(workspace, place if "://" in place else Path(place), "test")
    next((Path(places["folder"]) / "arch").iterdir()).unlink()  # it was there when it came in
    return workspace.path


@pytest.fixture(scope="module")
def cluster(places: dict[str, str]) -> Iterator[Any]:
    """Ray on this machine: the command's node without a CPU, and two workers with one each."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Ray would put them behind all else
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={**ONE_CPU, "num_cpus": 0, "include_dashboard": False, "_system_config": NOTICED})
        for _ in range(2):
            made.add_node(**ONE_CPU)
        ray.init(address=made.address, log_to_driver=False, logging_level="error")
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches of a few drawings."""
    monkeypatch.setattr(ray_engine, "_BATCH", 8)
    monkeypatch.setattr(ray_engine, "_PART", 1)


def stored(workspace: Workspace) -> dict[str, Tensor]:
    """Every stored vector by its key."""
    commit = workspace.history.last()
    assert commit.text_fp is not None
    assert commit.image_fp is not None
    texts, images = sentence_vectors_name(commit.text_fp), image_vectors_name(commit.image_fp)
    found = {}
    for name, column in ((texts, "text_hash"), (images, "vector_key")):
        keys = sorted(workspace.store.keys(name, column))
        _, vectors = workspace.store.vectors(name, column, keys)
        assert len(keys) == workspace.store.count(name)
        found.update(zip(keys, vectors, strict=True))
    return found


def assert_same(one: Workspace, other: Workspace) -> None:
    """The same keys, and vectors within the tolerance; the same images set aside for the same reasons."""
    torch.testing.assert_close(stored(one), stored(other), atol=TOLERANCE, rtol=TOLERANCE)
    aside = [w.table("images", columns=["image_id", "problem"]).sort_by("image_id") for w in (one, other)]
    assert aside[0].equals(aside[1])


class Killing:
    """A progress callback that kills a worker when the first images are done."""

    def __init__(self, cluster: Any) -> None:
        self.cluster, self.killed = cluster, False

    def __call__(self, step: str, done: int, total: int | None) -> None:
        if not self.killed and step != "embed sentences":
            self.killed = True
            self.cluster.remove_node(self.cluster.list_all_nodes()[-1], allow_graceful=False)


def slowly(transform: Any) -> Any:
    """The preprocessing with a rest after each image, so that a worker dies in the middle."""

    def work(image: Any) -> Tensor:
        time.sleep(0.05)
        made: Tensor = transform(image)
        return made

    return work


def test_two_workers_give_the_local_vectors(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: Any
) -> None:
    """Sentences, plain and augmented views agree, from all kinds of places; stdout is JSON alone; again does nothing."""
    import ray

    local, spread = (Workspace.open(shutil.copytree(drawn, tmp_path / name)) for name in ("local", "spread"))
    report = embed(local)
    assert (report.images, report.images_before, report.unreadable) == (167, 112, 1)
    args = ("-w", spread.path, "--json", "embed", "--engine", "ray", "--actors", "2")
    for again in (False, True):
        code, out, err = run(capsys, *args)
        assert code == 0, err
        done = json.loads(out)
        assert (done["images"], done["images_before"]) == ((0, 279) if again else (167, 112))
    assert ray.is_initialized()  # it was there before
    assert_same(spread, local)


def test_a_killed_worker_changes_no_vector(
    drawn: Path, tmp_path: Path, cluster: Any, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the cluster goes in the middle: the table is that of one process."""
    local, spread = (Workspace.open(shutil.copytree(drawn, tmp_path / name)) for name in ("local", "spread"))
    embed(local)
    opened = stages.open_encoder

    def slow(*args: Any, **options: Any) -> Any:
        encoder = opened(*args, **options)
        encoder.transform = slowly(encoder.transform)
        return encoder

    monkeypatch.setattr(stages, "open_encoder", slow)
    killing = Killing(cluster)
    try:
        report = embed(spread, engine="ray", actors=2, progress=killing)
    finally:
        cluster.add_node(**ONE_CPU)
    assert killing.killed
    assert (report.images, report.unreadable) == (167, 1)
    assert_same(spread, local)
