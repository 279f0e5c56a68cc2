"""Evaluation over a workspace: each row is what its name says, on exactly the commit's images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vlltr_index.classes import add_class
from vlltr_index.errors import MissingStepError
from vlltr_index.loading import image_set
from vlltr_index.recipe import override
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.scoring import load_scorer
from vlltr_index.stages.embed import embed
from vlltr_index.stages.evaluate import evaluate
from vlltr_index.stages.ingest import ingest_images
from vlltr_index.stages.train_baseline import train_baseline_stage
from vlltr_index.workspace import Workspace


def test_the_text_row_is_the_text_branch_alone(trained: Workspace, heldout: dict[str, list[str]]) -> None:
    """Also beside classes without a visual row, whose text probability fusion does not weigh by 1 - alpha."""
    for name in sorted(heldout)[:3]:
        add_class(trained, name, heldout[name])
    with trained.transaction("test") as tx:
        tx.set(fusion=FusionConfig(alpha=0.9))
    report = evaluate(trained, bootstrap=10)
    scorer, data = load_scorer(trained, trained.snapshot()), image_set(trained.snapshot(), "test")
    text = scorer.saved.head.text_logits(data.features, scorer.bank)
    right = scorer.class_ids[text.argmax(1)] == data.class_ids
    assert report.rows["text branch"].top1["overall"].value == pytest.approx(float(right.double().mean()))


def test_an_earlier_commit_is_evaluated_on_its_own_images(
    trained: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """Method and baseline see the images of that commit, not those that came later."""
    train_baseline_stage(trained, override(trained.recipe, ("baseline.epochs=1",)).baseline)
    last = trained.history.last()
    assert last is not None
    before = evaluate(trained, bootstrap=10)
    folder = tmp_path / "more" / trained.snapshot().class_table().names[0]
    shutil.copytree(pictures / "unseen", folder)
    ingest_images(trained, tmp_path / "more", "test")
    embed(trained)
    assert evaluate(trained, bootstrap=10).images == before.images + 4
    assert evaluate(trained, at=last.id, bootstrap=10) == before


def test_images_of_a_class_without_anchors_are_refused(
    trained: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """A class that came after the selection cannot be answered; the message names the command that mends it."""
    shutil.copytree(pictures / "unseen", tmp_path / "more" / "okapi")
    ingest_images(trained, tmp_path / "more", "test", create_classes=True)
    embed(trained)
    with pytest.raises(MissingStepError) as caught:
        evaluate(trained, bootstrap=10)
    assert caught.value.message == "1 classes of split 'test' have no anchor sentence, for example 'okapi'"
    assert caught.value.hint == "Select again: vlltr embed, then vlltr select"
