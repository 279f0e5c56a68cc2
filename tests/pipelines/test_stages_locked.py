"""`train cvlp` with `tune = "text"`: stored vectors are used, missing ones made, and all of them stay valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import drawings
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import ConfigError
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.store.workspace import Workspace

SETTINGS = ("cvlp.tune=text", "cvlp.epochs=2", "cvlp.batch_size=14", "cvlp.precision=fp32", *drawings.QUICK)
pytestmark = pytest.mark.slow


@pytest.fixture
def drawn(tmp_path: Path) -> Workspace:
    """The drawings with the shipped encoder, nothing embedded."""
    return drawings.workspace(tmp_path, *SETTINGS, "encoder.pretrained=glyphs")


def trained(workspace: Workspace) -> tuple[Encoder, set[str]]:
    """Run stage 1; its encoder, and the steps that were shown."""
    steps = set[str]()
    config = workspace.recipe.cvlp
    train_cvlp_stage(workspace, config, lambda step, done, total: steps.add(step))
    return Encoder.open(
        workspace.objects.path("checkpoints", str(workspace.history.last().checkpoint))
    ), steps


def test_vectors_are_made_once_and_stay_valid(drawn: Workspace) -> None:
    """The first run embeds the images, `embed` after it the sentences alone, and a second run no image again."""
    encoder, steps = trained(drawn)
    assert steps == {"embed train images", "train cvlp"}
    assert len(drawn.history.ids()) == 3  # texts, images, stage 1
    start = Encoder.load("vlltr-tiny", "glyphs")
    assert encoder.image_fp == start.image_fp
    assert encoder.text_fp != start.text_fp
    report = embed(drawn)
    assert (report.images, report.images_before, report.image_fp) == (0, 56, start.image_fp)
    assert report.sentences > 0
    again, steps = trained(drawn)
    assert steps == {"train cvlp"}
    assert drawings.same_weights(again, encoder)
    train_all(drawn, drawn.recipe)
    assert evaluate(drawn, "train").images == 56


def test_a_tower_from_scratch_is_not_locked(tmp_path: Path) -> None:
    """It knows nothing yet; the error says so."""
    workspace = drawings.workspace(tmp_path, *SETTINGS)
    with pytest.raises(ConfigError) as caught:
        train_cvlp_stage(workspace, workspace.recipe.cvlp)
    assert caught.value.message == (
        "cvlp.tune=text leaves the visual tower as it is, and that of vlltr-tiny starts from scratch"
    )
    assert caught.value.hint == (
        "Name its weights in recipe.encoder.pretrained of vlltr.toml, or use --set cvlp.tune=full"
    )
