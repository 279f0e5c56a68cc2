"""The folds of a head that together have all training images, see `Folds.covering`."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from vlltr_index.embedding.loading import image_vectors_of, numbers, usable_images
from vlltr_index.heads.units import number_names
from vlltr_index.recognition.folds import Folds, open_folds
from vlltr_index.recognition.model import Model
from vlltr_index.store.workspace import Workspace


class Training:
    """The training images of a workspace, with its model and folds."""

    def __init__(self, workspace: Workspace) -> None:
        snapshot = workspace.snapshot()
        folds = open_folds(snapshot)
        assert folds is not None
        self.folds: Folds = folds
        self.model = Model.open(snapshot)
        self.rows: pa.Table = usable_images(snapshot, "train", ["content_hash"])
        self.ids: list[str] = self.rows["image_id"].to_pylist()
        self.owners = numbers(self.rows, "class_id")
        self.features = image_vectors_of(snapshot, self.ids)
        self.groups = list(self.ids)  # each image is a group

    def covering(self, features: Tensor | None = None) -> list[tuple[Model, Tensor]]:
        """Return the models and the positions of their images."""
        features = self.features if features is None else features
        return list(self.folds.covering(self.model, self.rows, features, self.groups))


@pytest.fixture
def training(trained: Workspace) -> Training:
    """A head after a stage 1, which has a single held-out part."""
    return Training(trained)


def test_each_image_is_in_one_fold(training: Training) -> None:
    """Only images of classes with a single image are left out; images of the table keep their fold's model."""
    found = training.covering()
    places = torch.cat([asked for _, asked in found])
    several = training.owners.bincount()[training.owners] > 1
    assert torch.equal(places.sort()[0], several.nonzero()[:, 0])
    for number in range(training.folds.number):
        fold = training.folds.open(training.model, number)
        judge, asked = found[number]
        assert {training.ids[place] for place in asked.tolist()} <= set(fold.image_ids)
        assert judge.saved.parts == fold.model.saved.parts
    for judge, _ in found[training.folds.number :]:
        assert judge.saved.parts is not None
        weights = judge.saved.parts.weights
        assert (weights.image, weights.combined) == (0.0, 1.0)


def test_statistics_of_classes_are_without_the_fold(training: Training) -> None:
    """They do not change with the vectors of the groups that are asked, and do with those of others."""
    fold = training.folds.open(training.model, 0)
    inside = training.ids.index(fold.image_ids[0])
    outside = next(place for place, one in enumerate(training.ids) if one not in fold.without)
    training.groups[outside] = training.groups[inside]  # one of them is in the out-of-fold table
    numbered = number_names(training.groups)
    found = training.covering()
    (number,) = {n for n, (_, asked) in enumerate(found) if inside in asked or outside in asked}
    assert number >= training.folds.number
    judge, asked = found[number]
    mine = torch.isin(numbered, numbered[asked])
    for changed, same in ((mine, True), (~mine, False)):
        features = training.features.clone()
        features[changed] = features[changed].flip(1)
        sums = training.covering(features)[number][0].stats.sums
        assert torch.equal(sums, judge.stats.sums) == same
