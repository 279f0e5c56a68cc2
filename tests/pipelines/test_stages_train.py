"""`train lgr` over a workspace: tuning the visual tower, classes it does not know, where its classifier starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from vlltr_index.errors import MissingStepError
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.status import status
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.state import ModelState
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import WorkspaceConfig
from vlltr_index.schemas.recipes import override
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow


def test_tuning_the_visual_tower(trained: Workspace, pictures: Path) -> None:
    """The commit names a new encoder and image fingerprint; texts, anchors and index stay; embed has to follow."""
    config = override(trained.recipe, ("lgr.tune=visual", "lgr.epochs=1")).lgr
    before = trained.history.last()
    keys = ModelState(trained.snapshot()).anchors.keys
    report = train_lgr_stage(trained, config)
    after = trained.history.last()
    assert (after.head, after.id) == (report.digest, before.id + 1)
    assert after.checkpoint != before.checkpoint
    assert after.image_fp != before.image_fp
    assert (after.text_fp, after.index) == (before.text_fp, before.index)
    assert torch.equal(ModelState(trained.snapshot()).anchors.keys, keys)
    assert status(trained).next == "vlltr embed"
    with pytest.raises(MissingStepError, match="are not in content_vectors_"):
        evaluate(trained)
    embed(trained)
    assert evaluate(trained).images == 360
    assert Recognizer.open(trained).predict([pictures / "known-0.png"])[0].problem is None
    assert not list((trained.path / "runs").glob("lgr-*"))
    assert train_lgr_stage(trained, config).digest == report.digest  # from the untuned tower again


def test_a_stopped_decision_goes_on(trained: Workspace) -> None:
    """Stopped in its final head, the same command goes on there and commits the head of a run that was not stopped."""
    sets = ("lgr.lr=3e-2", "lgr.projection_lr=3e-2", "lgr.batch_size=32", "lgr.views=1")
    config, calls = override(trained.recipe, sets).lgr, list[int]()
    whole = train_lgr_stage(trained, config, lambda _, done, __: calls.append(done))
    assert len(whole.notes) == 2
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


def test_classes_without_anchors_are_named(trained: Workspace, pictures: Path, tmp_path: Path) -> None:
    """A class that came after the selection stops the training of a protocol with the command that mends it; by our
    rule it is known by its images."""
    shutil.copytree(pictures / "unseen", tmp_path / "more" / "okapi")
    ingest_images(trained, tmp_path / "more", "train")
    embed(trained)
    train_lgr_stage(trained, trained.recipe.lgr)
    scorer, names = Recognizer.open(trained).current(), trained.snapshot().class_table().names
    assert names[int(scorer.class_ids[-1])] == "okapi"
    assert scorer.visual_sides()[int(scorer.class_ids[-1])] == "images"
    trained.write_config(WorkspaceConfig(recipe=override(trained.recipe, ("fusion.rule=paper",))))
    with pytest.raises(MissingStepError) as caught:
        train_lgr_stage(trained, trained.recipe.lgr)
    assert caught.value.message == "1 class with training images has no anchor sentence: 'okapi'"
    assert caught.value.hint == "Select again: vlltr embed, then vlltr select"
