"""`train lgr` over a workspace: tuning the visual tower, classes it does not know, where its classifier starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.support import drawings
from vlltr_index.errors import MissingStepError
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.status import status
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.anchors import read_anchors
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import WorkspaceConfig
from vlltr_index.schemas.recipes import override
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained workspace of a few drawings, others to test on, and more of no class."""
    folder = tmp_path_factory.mktemp("drawn")
    workspace = drawings.workspace(folder, "cvlp.epochs=4", "cvlp.batch_size=28", *drawings.QUICK)
    ingest_images(workspace, drawings.write(folder / "others", 1), "test")
    train_all(workspace, workspace.recipe)
    (drawings.write(folder / "none", 2) / "ring").rename(folder / "okapi")
    return folder


@pytest.fixture
def few(drawn: Path, tmp_path: Path) -> Workspace:
    """A copy of the workspace that a test may change."""
    return Workspace.open(shutil.copytree(drawn / "workspace", tmp_path / "few"))


def test_tuning_the_visual_tower(few: Workspace, drawn: Path) -> None:
    """The commit names a new encoder and image fingerprint; texts, anchors and index stay; embed has to follow."""
    config = override(few.recipe, ("lgr.tune=visual", "lgr.epochs=1")).lgr
    before = few.history.last()
    keys = read_anchors(few.snapshot()).keys
    report = train_lgr_stage(few, config)
    after = few.history.last()
    assert (after.head, after.id) == (report.digest, before.id + 1)
    assert after.checkpoint != before.checkpoint
    assert after.image_fp != before.image_fp
    assert (after.text_fp, after.index) == (before.text_fp, before.index)
    assert torch.equal(read_anchors(few.snapshot()).keys, keys)
    assert status(few).next == "vlltr embed"
    with pytest.raises(MissingStepError, match="are not in content_vectors_"):
        evaluate(few)
    embed(few)
    assert evaluate(few).images == 56
    assert Recognizer.open(few).predict([drawn / "others" / "ring" / "0.png"])[0].problem is None
    assert not list((few.path / "runs").glob("lgr-*"))
    assert train_lgr_stage(few, config).digest == report.digest  # from the untuned tower again


def test_a_stopped_decision_goes_on(trained: Workspace) -> None:
    """Stopped in its final head, the same command goes on there and commits the head of a run that was not stopped."""
    sets = ("lgr.lr=3e-2", "lgr.projection_lr=3e-2", "lgr.batch_size=32", "lgr.views=1")
    config, calls = override(trained.recipe, sets).lgr, list[int]()
    whole = train_lgr_stage(trained, config, lambda _, done, __: calls.append(done))
    assert len(whole.notes) == 3
    assert whole.epochs > 1
    assert not whole.resumed
    left = [len(calls) - 1]

    def stop(step: str, done: int, total: int | None) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lgr_stage(trained, config, stop)
    again = list[int]()
    report = train_lgr_stage(trained, config, lambda _, done, __: again.append(done))
    assert report.resumed
    assert len(again) < len(calls)
    assert (report.digest, report.notes) == (whole.digest, whole.notes)
    assert not list((trained.path / "runs").glob("lgr-*"))


def test_classes_without_anchors_are_named(few: Workspace, drawn: Path, tmp_path: Path) -> None:
    """A class that came after the selection stops the training of a protocol with the command that mends it; by our
    rule it is known by its images."""
    shutil.copytree(drawn / "okapi", tmp_path / "more" / "okapi")
    ingest_images(few, tmp_path / "more", "train")
    embed(few)
    train_lgr_stage(few, few.recipe.lgr)
    scorer, names = Recognizer.open(few).current(), few.snapshot().class_table().names
    assert names[int(scorer.class_ids[-1])] == "okapi"
    assert scorer.known.visual_sides()[int(scorer.class_ids[-1])] == "images"
    few.write_config(WorkspaceConfig(recipe=override(few.recipe, ("fusion.rule=paper",))))
    with pytest.raises(MissingStepError) as caught:
        train_lgr_stage(few, few.recipe.lgr)
    assert caught.value.message == "1 class with training images has no anchor sentence: 'okapi'"
    assert caught.value.hint == "Select again: vlltr embed, then vlltr select"
