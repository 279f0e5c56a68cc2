"""Which images sentences are scored against: splits, augmented views, and what is said where there are none."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vlltr_index.errors import MissingStepError
from vlltr_index.loading import image_set
from vlltr_index.recipe import override
from vlltr_index.schemas.config import Recipe, SelectConfig
from vlltr_index.selection import score_images, select
from vlltr_index.stages.embed import embed
from vlltr_index.workspace import Workspace


def losses(workspace: Workspace) -> dict[str, float]:
    rows = workspace.snapshot().table("sentence_scores", ["sentence_id", "loss"])
    return dict(zip(rows["sentence_id"].to_pylist(), rows["loss"].to_pylist(), strict=True))


def test_the_validation_split_may_select(trained: Workspace) -> None:
    """As the release does on ImageNet-LT and Places-LT: other images, other losses."""
    before = losses(trained)
    report = select(trained, trained.recipe.select.model_copy(update={"split": "val"}))
    kept = score_images(trained.snapshot(), SelectConfig(split="val"))
    assert report.images == len(kept.ids)
    assert set(kept.ids) <= set(image_set(trained.snapshot(), "val").image_ids)
    assert losses(trained) != before


def test_augmented_views_may_select(trained: Workspace) -> None:
    """As the release does on iNaturalist: the same images through the training augmentation."""
    plain = trained.recipe.select
    select(trained, plain)
    before, images = losses(trained), score_images(trained.snapshot(), plain)
    report = select(trained, plain.model_copy(update={"augmented": True}))
    augmented = score_images(trained.snapshot(), SelectConfig(augmented=True))
    assert augmented.ids == images.ids
    assert augmented.digest != images.digest
    assert augmented.view.startswith("1-")
    assert report.images == len(images.ids)
    assert losses(trained) != before


def test_missing_images_and_views_are_named(trained: Workspace) -> None:
    """A split without images, and a workspace without augmented views, say which command mends it."""
    with pytest.raises(MissingStepError) as error:
        select(trained, SelectConfig(split="holdout"))
    assert error.value.message == (
        "sentences are selected by the images of split 'holdout' (select.split), which has none"
    )
    assert error.value.hint == (
        "Run: vlltr ingest images PATH --split holdout, or use --set select.split=train"
    )
    embed(trained, views=1)
    with pytest.raises(MissingStepError, match=r"augmented views of the images \(select.augmented\)"):
        select(trained, SelectConfig(augmented=True))


def test_augmented_selection_needs_training_images_and_views() -> None:
    """The configuration refuses other splits, and a recipe that stores the plain view alone."""
    with pytest.raises(ValidationError, match="augmented views exist of split train alone"):
        SelectConfig(split="val", augmented=True)
    with pytest.raises(ValidationError, match=r"lgr\.views of 2 or more"):
        Recipe.model_validate({"name": "x", "select": {"augmented": True}, "lgr": {"views": 1}})
    recipe = override(Recipe(name="x"), ("select.augmented=true", "lgr.views=2"))
    assert recipe.select.augmented
