"""Training the head again over the classes that have images by now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.support.changes import World
from vlltr_index.classes import NewClass, add_classes, merge_classes, remove_classes
from vlltr_index.cli.render import report_lines
from vlltr_index.pipelines.train_lgr import refit, train_lgr_stage
from vlltr_index.recognition.model import Model
from vlltr_index.store.workspace import Workspace


@pytest.fixture(scope="module")
def changed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world after changes: 10 added by images, 11 by text, 2 removed, 4 merged into 3."""
    workspace = Workspace.open(shutil.copytree(world.folder, tmp_path_factory.mktemp("refit") / "changed"))
    names = [world.classes[i].name for i in range(10)]
    wanted = [
        NewClass("seen", ("It is seen.",), images=tuple(map(Path, world.pictures[:3]))),
        NewClass("told", ("It is told.",)),
    ]
    add_classes(workspace, wanted)
    remove_classes(workspace, [names[2]])
    merge_classes(workspace, names[3], names[4])
    return workspace.path


@pytest.fixture
def small(changed: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    return Workspace.open(shutil.copytree(changed, tmp_path / "small"))


pytestmark = pytest.mark.slow


def test_all_classes_with_images_are_trained(small: Workspace) -> None:
    """The class known by images becomes a trained one, the class known by text stays so, merged rows become one."""
    before = small.history.last()
    assert Model.open(small.snapshot()).known.visual_sides()[10] == "images"
    report = refit(small, small.recipe.lgr)
    after = small.history.last()
    assert (report.classes, report.new_classes, report.text_only) == (9, ["seen"], 1)
    assert after.head == report.digest != before.head
    assert after.checkpoint == before.checkpoint
    scorer = Model.open(small.snapshot())
    assert scorer.saved.class_ids.tolist() == [0, 1, 3, 5, 6, 7, 8, 9, 10]
    assert scorer.class_ids[~scorer.trained].tolist() == [11]
    assert scorer.known.visual_sides() == dict.fromkeys([0, 1, 3, 5, 6, 7, 8, 9, 10], "trained")
    assert not scorer.known.merged
    assert report_lines(report)[1] == "New in it: seen. Known by text alone: 1 class."


def test_it_is_training_on_what_is_there(small: Workspace, tmp_path: Path) -> None:
    """The head, parts and weights are those of `train lgr` on the same workspace; tuning and mixing play no part."""
    other = Workspace.open(shutil.copytree(small.path, tmp_path / "other"))
    odd = small.recipe.lgr.model_copy(update={"tune": "visual", "mixup": 0.8, "views": 3})
    refit(small, odd)
    train_lgr_stage(other, other.recipe.lgr)
    one, two = (Model.open(w.snapshot()) for w in (small, other))
    features = torch.randn(5, one.saved.head.dim, generator=torch.Generator().manual_seed(0))
    assert one.saved.parts is not None
    assert two.saved.parts is not None
    assert one.saved.parts.weights == two.saved.parts.weights
    torch.testing.assert_close(one.exhaustive(features).probabilities, two.exhaustive(features).probabilities)
