"""`vlltr embed --engine ray`: the same vectors as in one process, resumed by key, with errors that help."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import drawings
import pytest
import torch
from torch import Tensor

from tests.commands import run
from vlltr_index.embedding import vectors as embedding
from vlltr_index.embedding.ray_engine import RayEngine
from vlltr_index.errors import UsageError, VlltrError
from vlltr_index.pipelines.embed import embed
from vlltr_index.schemas.tables import image_vectors_name, sentence_vectors_name
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5  # of single numbers: the same arithmetic, but threads may be shared out otherwise


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches of a few drawings, so that both actors get some."""
    monkeypatch.setattr(embedding, "IMAGE_BATCH", 16)
    monkeypatch.setattr(embedding, "_TEXT_BATCH", 10)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a few drawings and an encoder with weights; nothing embedded."""
    folder = tmp_path_factory.mktemp("drawn")
    drawings.encoder().save(folder / "encoder")
    settings = (f"encoder.pretrained={folder / 'encoder'}", "lgr.views=2")
    return drawings.workspace(folder, *settings).path


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, whose workers have the priority of the test (Ray would put them behind all else)."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for left in (2, 1, 0):  # Ray gives itself 30 seconds to start
            try:
                ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
                break
            except Exception:
                ray.shutdown()
                if not left:
                    raise
        yield
        ray.shutdown()


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
    """The same keys, and vectors within the tolerance."""
    torch.testing.assert_close(stored(one), stored(other), atol=TOLERANCE, rtol=TOLERANCE)


def test_two_actors_give_the_local_vectors(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: None
) -> None:
    """Sentences, plain and augmented views agree; stdout is JSON alone; a second run does nothing."""
    import ray

    local, spread = (Workspace.open(shutil.copytree(drawn, tmp_path / name)) for name in ("local", "spread"))
    report = embed(local)
    assert (report.images, report.sentences > 20, report.unreadable) == (112, True, 0)
    args = ("-w", spread.path, "--json", "embed", "--engine", "ray", "--actors", "2")
    for again in (False, True):
        code, out, err = run(capsys, *args)
        assert code == 0, err
        done = json.loads(out)
        assert (done["images"], done["images_before"]) == ((0, 112) if again else (112, 0))
    assert ray.is_initialized()  # it was there before
    assert_same(spread, local)
    for workspace in (local, spread):
        commit = workspace.history.last()
        assert (commit.command, commit.info.views) == ("embed", 2)


def test_an_interrupted_run_goes_on_with_either_engine(drawn: Path, tmp_path: Path, cluster: None) -> None:
    """What one actor gave before the stop is kept without a commit; an unreadable image is kept aside."""
    workspace, whole = (Workspace.open(shutil.copytree(drawn, tmp_path / name)) for name in ("part", "whole"))
    before = workspace.history.last()

    def stop(step: str, done: int, total: int | None) -> None:
        if "images" in step and done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(workspace, engine="ray", actors=1, progress=stop)
    assert workspace.history.last() == before
    report = embed(workspace, engine="local")
    assert (report.images, report.images_before, report.sentences) == (48, 64, 0)
    embed(whole)
    assert_same(workspace, whole)


def test_errors_inside_actors_are_told(drawn: Path, tmp_path: Path, cluster: None) -> None:
    """An image that cannot be read is named; an actor that dies ends the run with a way on."""
    encoder = drawings.encoder()
    (tmp_path / "broken.png").write_bytes(b"no image")

    def die(pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        os._exit(1)

    good = str(next((drawn.parent / "images" / "ring").iterdir()))
    with RayEngine(encoder, die, actors=1) as engine:
        (found,) = engine.images([[("a", good), ("b", str(tmp_path / "broken.png"))]], [0])
        assert (found.ids, list(found.problems), found.vectors.shape) == (["a"], ["b"], (1, 1, encoder.dim))
        with pytest.raises(VlltrError) as caught:
            list(engine.images([[("a", good)]], [1]))
    assert caught.value.message.startswith("the ray engine lost an actor: ")
    assert caught.value.hint == (
        "What was embedded is kept. Run it again, with fewer --actors if memory ran out, or with --engine local."
    )


def test_ray_that_is_not_there(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the package, the extra that brings it is named, and nothing is written."""
    monkeypatch.setitem(sys.modules, "ray", None)
    before = Workspace.open(drawn).history.last()
    code, _, err = run(capsys, "-w", drawn, "embed", "--engine", "ray")
    assert code == 2
    assert err.endswith(
        "Error: --engine ray needs the package ray, which is not installed\n"
        'Install it: pip install "vlltr-index[ray]", or run it with --engine local\n'
    )
    assert Workspace.open(drawn).history.last() == before


def test_the_command_starts_ray_and_ends_it(drawn: Path, tmp_path: Path) -> None:
    """Without a cluster it has one of its own; an address that is none says so at once."""
    path = shutil.copytree(drawn, tmp_path / "workspace")
    command = [sys.executable, "-m", "vlltr_index.cli", "-w", str(path), "-q", "--json", "embed"]
    command += ["--views", "1", "--engine", "ray", "--actors", "1"]

    def start(**env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | env)

    lost = start(RAY_ADDRESS="nowhere")
    assert lost.returncode == 1
    assert "Error: ray at RAY_ADDRESS=nowhere cannot be reached: " in lost.stderr
    assert lost.stderr.endswith("Mend or unset RAY_ADDRESS, or run it with --engine local.\n")
    done = start(RAY_worker_niceness="0")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 56
    assert "Traceback" not in done.stderr


def test_engine_and_actors_must_go_together(drawn: Path) -> None:
    """An unknown engine and actors without Ray are refused before anything is loaded."""
    workspace = Workspace.open(drawn)
    with pytest.raises(UsageError) as unknown:
        embed(workspace, engine="spark")  # type: ignore[arg-type]  # that is the point
    assert str(unknown.value) == "no engine 'spark'\nThere are: local, ray."
    with pytest.raises(UsageError) as alone:
        embed(workspace, actors=2)
    assert alone.value.message == "--actors is for --engine ray"
