"""Fits without a workspace: they do not depend on any order, and bad input is answered as the method says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from vlltr_index.data.glyphs import glyph_files
from vlltr_index.errors import InputError
from vlltr_index.heads.checkpoint import RuleParameters
from vlltr_index.heads.configuration import TEMPERED, TextLevel
from vlltr_index.heads.dealing import deal_groups
from vlltr_index.heads.fusion import PartWeights
from vlltr_index.pipelines.estimator import recipe_encoder
from vlltr_index.pipelines.in_memory import Images, Sentences, fit_in_memory, picture_features
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.recipes import load_recipe

COUNTS = (9, 8, 7, 6, 5, 4, 3, 3, 2, 2, 2, 1)
CLASSES = len(COUNTS)
NEAR = 1e-6
ROUNDED = 5e-6  # float32 rounds log-likelihoods of some thousands, and with them a probability by a millionth or two


class Drawn(NamedTuple):
    """Characters: features of images and sentences, real ones.

    Attributes:
        features: Float32 [N, D], of N images of `CLASSES` classes.
        labels: Int64 [N].
        queries: Float32 [Q, D], of other images.
        names: Of the classes.
        said: Sentences of each class.
        recipe: The recipe, with the encoder that made the features.
    """

    features: Tensor
    labels: Tensor
    queries: Tensor
    names: list[str]
    said: list[list[str]]
    recipe: Recipe


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    recipe = load_recipe(None, ("lgr.views=1",), "vlltr-tiny:glyphs")
    encoder = recipe_encoder(recipe.encoder)
    files = glyph_files(fast=True)
    texts = json.loads(files.texts.read_text(encoding="utf-8"))
    names = sorted(texts)[:CLASSES]
    wanted = [("split", "==", "train"), ("label", "in", names)]
    images = dict[str, list[bytes]]()
    for row in pq.read_table(files.images, columns=["label", "image", "split"], filters=wanted).to_pylist():
        images.setdefault(row["label"], []).append(row["image"])
    kept = [images[name][:count] for name, count in zip(names, COUNTS, strict=True)]
    labels = torch.tensor([number for number, some in enumerate(kept) for _ in some])
    features = picture_features(encoder, [image for some in kept for image in some])
    queries = picture_features(encoder, [image for name in names for image in images[name][-2:]])
    return Drawn(features, labels, queries, names, [texts[name][:5] for name in names], recipe)


def sentences_of(drawn: Drawn, place: Tensor, kind: str, order: list[int]) -> Sentences:
    """Sentences of renumbered classes, in some order: as they are, or vectors that say what a class looks like."""
    old = place.argsort().tolist()
    if kind == "sentences":
        encoder = recipe_encoder(drawn.recipe.encoder)
        said = {new: [drawn.said[c][n] for n in order] for new, c in enumerate(old)}
        return Sentences.of_texts(said, [drawn.names[c] for c in old], encoder, drawn.recipe)
    if kind == "nothing":
        return Sentences.of_vectors({}, drawn.features.shape[1], 20.0)
    g = torch.Generator().manual_seed(0)
    means = torch.stack([drawn.features[drawn.labels == c].mean(0) for c in range(CLASSES)])
    shape = (CLASSES, len(order), means.shape[1])
    vectors = means[:, None] + 0.05 * means.std() * torch.randn(shape, generator=g)
    return Sentences.of_vectors({new: vectors[c, order] for new, c in enumerate(old)}, means.shape[1], 20.0)


def fitted(
    drawn: Drawn,
    kind: str,
    rows: Tensor | None = None,
    place: Tensor | None = None,
    order: tuple[int, ...] = (),
) -> tuple[Model, list[str], Tensor]:
    """The model of permuted images, classes and sentences; the notes; its answers in the usual order of classes.

    Args:
        drawn: The characters.
        kind: Of sentences.
        rows: The images in their order; None: as they are.
        place: The new number of each class; None: as they are.
        order: The order of each class's sentences; default: as they are.
    """
    rows = torch.arange(len(drawn.labels)) if rows is None else rows
    place = torch.arange(CLASSES) if place is None else place
    labels = place[drawn.labels[rows]]
    images = Images.of_features(drawn.features[rows], labels, [None] * len(labels))
    sentences = sentences_of(drawn, place, kind, list(order) or [0, 1, 2, 3, 4])
    scorer, decision = fit_in_memory(images, sentences, CLASSES, drawn.recipe)
    notes = decision.notes
    return scorer, notes, scorer.exhaustive(drawn.queries).probabilities[:, place]


def parts_of(scorer: Model) -> RuleParameters:
    """What was chosen."""
    assert scorer.saved.parts is not None
    return scorer.saved.parts


def likelihoods(scorer: Model, queries: Tensor, place: Tensor | None = None) -> Tensor:
    """beta g in float64, in the usual order of classes."""
    unit = torch.nn.functional.normalize(queries.double(), dim=1)
    found = parts_of(scorer).weights.generative * scorer.known.plda.log_likelihoods(unit)
    return found if place is None else found[:, place]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sentences", "vectors"])
def test_no_order_matters(drawn: Drawn, kind: str) -> None:
    """That of the images, the classes, or a class's sentences: all that is chosen is the same, and so are the answers.

    Computed in float64 they are within 1e-6; float32 adds its rounding.
    """
    whole, notes, answers = fitted(drawn, kind)
    parts = parts_of(whole)
    assert parts.text_level == (TextLevel.PRIOR if kind == "sentences" else TextLevel.ATTENTION)
    g = torch.Generator().manual_seed(1)
    rows, place = torch.randperm(len(drawn.labels), generator=g), torch.randperm(CLASSES, generator=g)
    expected = likelihoods(whole, drawn.queries).softmax(1)
    for how in (
        {"rows": rows},
        {"place": place},
        {"order": (4, 2, 0, 1, 3)},
        {"rows": rows.flip(0), "place": place.flip(0), "order": (1, 0, 4, 3, 2)},
    ):
        other, same_notes, found = fitted(drawn, kind, **how)  # type: ignore[arg-type]  # mypy joins the values
        torch.testing.assert_close(found, answers, rtol=0, atol=ROUNDED)
        moved = likelihoods(other, drawn.queries, how.get("place")).softmax(1)  # type: ignore[arg-type]
        torch.testing.assert_close(moved, expected, rtol=0, atol=NEAR)
        again = parts_of(other)
        assert same_notes == notes
        assert again.text_level == parts.text_level
        assert again.weights.generative == pytest.approx(parts.weights.generative, rel=NEAR)
        assert again.weights.text == pytest.approx(parts.weights.text, rel=1e-5)
        assert again.ood_threshold == pytest.approx(parts.ood_threshold, abs=0.01)
        assert (again.unknown_accepted, again.correlation) == (parts.unknown_accepted, parts.correlation)


def test_one_more_image_moves_only_groups_of_its_class(drawn: Drawn) -> None:
    """Of real images, by the contents that a fit without a workspace knows them by."""
    one = drawn.queries[:1]
    images = Images.of_features(drawn.features, drawn.labels, [None] * len(drawn.labels))
    labels = torch.cat([drawn.labels, torch.tensor([3])])
    more = Images.of_features(torch.cat([drawn.features, one]), labels, [None] * len(labels))
    before = deal_groups(drawn.labels, images.units, images.contents, 5)
    after = deal_groups(labels, more.units, more.contents, 5)[:-1]
    others = drawn.labels != 3
    assert torch.equal(before[others], after[others])


def taken(drawn: Drawn, counts: list[int], groups: list[str | None] | None = None) -> Images:
    """So many images of the first classes."""
    kept = torch.cat([(drawn.labels == c).nonzero()[:n, 0] for c, n in enumerate(counts)])
    return Images.of_features(drawn.features[kept], drawn.labels[kept], groups or [None] * len(kept))


def fitted_on(
    drawn: Drawn, images: Images, classes: int, kind: str = "vectors"
) -> tuple[Model, list[str], Tensor]:
    """The model, the notes, and the answers for the queries."""
    sentences = sentences_of(drawn, torch.arange(CLASSES), kind, [0, 1, 2, 3, 4])
    known = sentences.owner < classes
    rows = known.nonzero()[:, 0].tolist()
    sentences = replace(
        sentences,
        vectors=sentences.vectors[known],
        owner=sentences.owner[known],
        prompts=sentences.prompts[known],
        ids=[sentences.ids[n] for n in rows],
        hashes=[sentences.hashes[n] for n in rows],
        texts=[sentences.texts[n] for n in rows],
    )
    scorer, decision = fit_in_memory(images, sentences, classes, drawn.recipe)
    notes = decision.notes
    found = scorer.exhaustive(drawn.queries).probabilities
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)), rtol=0, atol=1e-5)
    return scorer, notes, found


NOTHING_CHOSEN = PartWeights(image=0.0, generative=TEMPERED, text=0.0)


def test_one_class_is_certain(drawn: Drawn) -> None:
    """Lambda is the identity, and P = 1."""
    scorer, _, found = fitted_on(drawn, taken(drawn, [6]), 1)
    assert found.tolist() == [[1.0]] * len(found)
    shared = parts_of(scorer).shared
    assert shared.spread.tolist() == pytest.approx([1.0] * len(shared.spread))


def test_one_image_per_class_gives_no_table(drawn: Drawn) -> None:
    """beta = 1/12 and gamma = 0; there is no accuracy, no threshold, and no guarantee."""
    scorer, notes, _ = fitted_on(drawn, taken(drawn, [1] * 8), 8)
    parts = parts_of(scorer)
    assert (parts.weights, parts.text_level) == (NOTHING_CHOSEN, TextLevel.PRIOR)
    assert (parts.held_out, parts.ood_threshold) == (None, None)
    assert notes == ["No image could be held out: nothing was chosen, and the accuracy is not measured."]
    images = taken(drawn, [1] * 8)
    own = scorer.exhaustive(images.features[0]).probabilities.argmax(1)
    assert torch.equal(own, images.labels)


def test_one_image_in_all_has_an_identity_as_covariance(drawn: Drawn) -> None:
    """S = I also outside of its span: the whitening is the identity, so that distances are those of the features."""
    images = taken(drawn, [1])
    scorer, _, found = fitted_on(drawn, images, 1)
    shared = parts_of(scorer).shared
    eye = torch.eye(len(shared.basis), dtype=torch.float64)
    torch.testing.assert_close(shared.basis @ shared.basis.T, eye, rtol=0, atol=1e-5)
    assert float(found.min()) == 1.0


def test_one_group_is_one_observation(drawn: Drawn) -> None:
    """All images of all classes in one group: it cannot be held out, as no class would be left."""
    images = taken(drawn, [5] * 4, ["site"] * 20)
    scorer, notes, _ = fitted_on(drawn, images, 4)
    assert parts_of(scorer).weights == NOTHING_CHOSEN
    assert parts_of(scorer).held_out is None
    assert len(notes) == 1


@pytest.mark.parametrize("kind", ["sentences", "nothing"])
def test_copies_are_one_image(drawn: Drawn, kind: str) -> None:
    """A class of copies is a class of one image; the answers are those of one image each."""
    one = taken(drawn, [1] * 6)
    copies = Images.of_features(
        one.features[0].repeat_interleave(4, 0), one.labels.repeat_interleave(4), [None] * 24
    )
    scorer, _, found = fitted_on(drawn, copies, 6, kind)
    _, _, expected = fitted_on(drawn, one, 6, kind)
    assert parts_of(scorer).weights == NOTHING_CHOSEN
    assert parts_of(scorer).held_out is None
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDED)


def test_without_texts_images_decide(drawn: Drawn) -> None:
    scorer, notes, _ = fitted_on(drawn, taken(drawn, list(COUNTS)), CLASSES, kind="nothing")
    parts = parts_of(scorer)
    assert parts.text_level == TextLevel.NONE
    assert (parts.weights.text, parts.shared.text_r2) == (0.0, 0.0)
    assert "There is no sentence: images alone decide." in notes


def permuted(sentences: Sentences, seed: int) -> Sentences:
    """The sentences, each class with those of another."""
    owner = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed))[sentences.owner]
    order = owner.argsort(stable=True)
    return replace(
        sentences,
        vectors=sentences.vectors[order],
        owner=owner[order],
        prompts=sentences.prompts[order],
        ids=[sentences.ids[n] for n in order.tolist()],
        hashes=[sentences.hashes[n] for n in order.tolist()],
    )


@pytest.mark.parametrize("seed", range(3))
def test_texts_of_other_classes_are_not_used(drawn: Drawn, seed: int) -> None:
    """Vectors that say what classes look like, permuted, predict nothing: the answers are those without any text."""
    images = taken(drawn, list(COUNTS))
    right = sentences_of(drawn, torch.arange(CLASSES), "vectors", [0, 1, 2, 3, 4])
    scorer, decision = fit_in_memory(images, permuted(right, seed), CLASSES, drawn.recipe)
    notes = decision.notes
    parts = parts_of(scorer)
    assert parts.text_level == TextLevel.NONE or parts.shared.text_r2 == 0.0
    assert parts.weights.text == 0.0
    assert any(note.startswith("Texts are not used for classes that have images") for note in notes)
    _, _, expected = fitted_on(drawn, images, CLASSES, kind="nothing")
    found = scorer.exhaustive(drawn.queries).probabilities
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDED)


@pytest.mark.parametrize("kind", ["vectors", "nothing"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_numbers_are_refused(drawn: Drawn, kind: str, value: float) -> None:
    """With the first thing that they make impossible: the choice of anchors, or the fit."""
    features = drawn.features.clone()
    features[5, 3] = value
    images = Images.of_features(features, drawn.labels, [None] * len(features))
    with pytest.raises(
        InputError, match="features must be finite" if kind == "nothing" else "is not a number"
    ):
        fitted_on(drawn, images, CLASSES, kind)
