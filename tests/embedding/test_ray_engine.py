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

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests.support import drawings
from tests.support.buckets import Bucket
from tests.support.commands import run
from tests.support.exports import check_same
from vlltr_index.embedding import pixels, ray_engine
from vlltr_index.embedding.ray_engine import RayData, RayEngine
from vlltr_index.embedding.vectors import StoredImages
from vlltr_index.errors import InputError, UsageError, VlltrError, WorkspaceError
from vlltr_index.pipelines import embed as stages
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.predict import OnRay, predict_to_file
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.schemas.tables import image_vectors_name, sentence_vectors_name
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5  # of single numbers: the same arithmetic, but threads may be shared out otherwise
NOTICED = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}
ONE_CPU = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def places(server: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Other drawings of the same classes: a folder, a Parquet file and objects; each with a broken one."""
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
        shots = folder / "c"
        server.put(address, {p.relative_to(shots).as_posix(): p.read_bytes() for p in shots.rglob("*.png")})
        yield {"folder": str(folder / "a"), "parquet": str(folder / "b.parquet"), "objects": address}


@pytest.fixture(scope="module")
def drawn(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained workspace of a few drawings, with images in all kinds of places of which none is embedded."""
    folder = tmp_path_factory.mktemp("drawn")
    drawings.encoder().save(folder / "encoder")
    settings = (
        f"encoder.pretrained={folder / 'encoder'}",
        "lgr.views=2",
        "lgr.epochs=1",
        "baseline.epochs=1",
    )
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
        made = Cluster(
            initialize_head=True,
            head_node_args={**ONE_CPU, "num_cpus": 0, "include_dashboard": False, "_system_config": NOTICED},
        )
        for _ in range(2):
            made.add_node(**ONE_CPU)
        ray.init(address=made.address, log_to_driver=False, logging_level="error")
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches of a few drawings, the same in this process."""
    monkeypatch.setattr(pixels, "IMAGE_BATCH", 8)
    monkeypatch.setattr(ray_engine, "_BATCH", 8)
    monkeypatch.setattr(ray_engine, "_PART", 1)


def stored(workspace: Workspace) -> dict[str, Tensor]:
    """Every stored vector by its key."""
    commit = workspace.history.last()
    texts, images = sentence_vectors_name(str(commit.text_fp)), image_vectors_name(str(commit.image_fp))
    found = {}
    for name, column in ((texts, "text_hash"), (images, "vector_key")):
        keys = sorted(workspace.store.keys(name, column))
        vectors = workspace.store.vectors(name, column, keys)
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


def test_an_address_without_ray_is_refused_at_once(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As long as this process has no cluster, the variable says where it is."""
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    code, _, err = run(capsys, "-w", drawn, "-q", "embed", "--engine", "ray", "--actors", "1")
    assert code == 1
    assert "Error: ray at RAY_ADDRESS=nowhere cannot be reached: " in err
    assert err.endswith("Mend or unset RAY_ADDRESS, or run it with --engine local.\n")


def test_two_workers_go_on_where_it_stopped_and_one_is_killed(
    drawn: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cluster: Any,
    small: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the cluster goes in the middle: the vectors, from all kinds of places, are those of one process; the
    command then finds nothing to do.
    """
    import ray

    local, spread = (Workspace.open(shutil.copytree(drawn, tmp_path / name)) for name in ("local", "spread"))
    report = embed(local)
    assert (report.images, report.images_before, report.unreadable) == (167, 112, 1)

    def stop(step: str, done: int, total: int | None) -> None:
        if "images" in step and done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # in one process: Ray goes on
        embed(spread, progress=stop)
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
    assert 60 < report.images < 167
    assert_same(spread, local)
    args = ("-w", spread.path, "--json", "embed", "--engine", "ray", "--actors", "2")
    code, out, err = run(capsys, *args)
    assert code == 0, err
    done = json.loads(out[out.index("{") :])  # Ray may tell before of the worker killed above
    assert (done["images"], done["images_before"]) == (0, 279)
    assert ray.is_initialized()  # it was there before


def assert_same_answers(*files: Path) -> None:
    """The same pictures in the same order, with the same classes and sentences."""
    check_same(*([json.loads(line) for line in f.read_text(encoding="utf-8").splitlines()] for f in files))


def test_a_killed_worker_changes_no_answer(
    drawn: Path, places: dict[str, str], tmp_path: Path, cluster: Any, small: None
) -> None:
    """Answers for a folder, Parquet rows and objects come in their order, broken pictures too."""
    answers, paths = Recognizer.open(drawn).current(), list(places.values())
    report = predict_to_file(answers, paths, tmp_path / "local.jsonl", PredictOptions(top=3, explain=1))
    assert (report.images, report.unreadable) == (170, 3)
    answers.encoder.transform = slowly(answers.encoder.transform)
    killing = Killing(cluster)
    try:
        spread = predict_to_file(
            answers,
            paths,
            tmp_path / "ray.jsonl",
            PredictOptions(top=3, explain=1),
            progress=killing,
            ray=OnRay(str(drawn), 2),
        )
    finally:
        cluster.add_node(**ONE_CPU)
    assert killing.killed
    assert (spread.images, spread.unreadable) == (170, 3)
    assert_same_answers(tmp_path / "ray.jsonl", tmp_path / "local.jsonl")


def test_the_ray_engine_goes_on_where_the_local_one_stopped(
    drawn: Path, places: dict[str, str], tmp_path: Path, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command finishes a file that was begun in one process; exit code 1 tells of broken pictures."""
    answers, out = Recognizer.open(drawn).current(), tmp_path / "out.jsonl"
    predict_to_file(answers, [*places.values()], tmp_path / "whole.jsonl")

    def stop(step: str, done: int, total: int | None) -> None:
        if done == 70:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_to_file(answers, [*places.values()], out, progress=stop)
    args = ("-w", drawn, "--json", "predict", *places.values(), "--out", out)
    code, printed, err = run(capsys, *args, "--engine", "ray", "--actors", "1")
    assert code == 1, err
    assert "3 of 170 images cannot be read." in err
    done = json.loads(printed[printed.index("{") :])  # Ray may tell before of the worker killed above
    assert (done["images"], done["there_before"] >= 60, done["unreadable"]) == (170, True, 3)
    assert_same_answers(out, tmp_path / "whole.jsonl")


def test_errors_inside_workers_are_told(
    drawn: Path, places: dict[str, str], tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours come out as they are; a picture that ends its process ends the run with a way on, after a while."""
    workspace, encoder = Workspace.open(drawn), drawings.encoder()
    ids = workspace.snapshot().table("images", ["image_id"], "split = 'train'")["image_id"].to_pylist()[:2]
    images = StoredImages(workspace.store, ids)

    def refuse(pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        raise InputError("no view of this", "Take another.")

    with RayEngine(encoder, refuse, actors=1) as engine, pytest.raises(InputError) as refused:
        list(engine.images(images, [1]))
    assert str(refused.value) == "no view of this\nTake another."

    def die(pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        os._exit(1)

    monkeypatch.setattr(ray_engine, "_STALLED", 20.0)
    monkeypatch.setattr(ray_engine, "_TRIES", 1)
    with RayEngine(encoder, die, actors=1) as engine, pytest.raises(VlltrError) as stalled:
        list(engine.images(images, [1]))
    assert stalled.value.message.startswith(
        "the ray engine stood still or lost a machine 1 times without a result"
    )
    assert stalled.value.hint == (
        "What was done is kept. Run it again, with fewer --actors if memory ran out, or with --engine local."
    )
    monkeypatch.undo()
    answers, gone = Recognizer.open(drawn).current(), tmp_path / "gone"
    with pytest.raises(WorkspaceError) as elsewhere:
        predict_to_file(answers, [places["folder"]], tmp_path / "out.csv", ray=OnRay(str(gone), 1))
    assert f": {gone} is not a workspace" in elsewhere.value.message
    assert elsewhere.value.hint == (
        "All machines must see the workspace under the same path, or in object storage (s3://...)."
    )


@pytest.mark.parametrize("command", ["embed", "predict"])
def test_ray_that_is_not_there(
    drawn: Path,
    places: dict[str, str],
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without the package, the extra that brings it is named, and nothing is written."""
    monkeypatch.setitem(sys.modules, "ray", None)
    before = Workspace.open(drawn).history.last()
    args = (places["folder"], "--out", tmp_path / "out.csv") if command == "predict" else ()
    code, _, err = run(capsys, "-w", drawn, command, *args, "--engine", "ray")
    assert code == 2
    assert err.endswith(
        "Error: --engine ray needs the package ray, which is not installed\n"
        'Install it: pip install "vlltr-index[ray]", or run it with --engine local\n'
    )
    assert Workspace.open(drawn).history.last() == before
    assert not list(tmp_path.iterdir())


def test_the_command_starts_ray_and_ends_it(drawn: Path, tmp_path: Path) -> None:
    """Without a cluster it has one of its own."""
    path = shutil.copytree(drawn, tmp_path / "workspace")
    command = [sys.executable, "-m", "vlltr_index.cli", "-w", str(path), "-q", "--json", "embed"]
    command += ["--engine", "ray", "--actors", "1"]
    own = {"RAY_worker_niceness": "0", "RAY_ADDRESS": "local"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 167
    assert not [line for line in done.stderr.splitlines() if "Traceback" in line or "Warning" in line]


def test_no_actor_at_all() -> None:
    """At least one has to compute."""
    with pytest.raises(UsageError) as none:
        RayData(actors=0)
    assert str(none.value) == "the ray engine needs one actor at least, got 0"
