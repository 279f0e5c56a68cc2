"""Pictures that are answered together: their scores, their sentences, their order, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlltr_index.errors import UsageError
from vlltr_index.heads.fusion import visual_scores
from vlltr_index.recognition.answering import stream
from vlltr_index.recognition.model import Model, named
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.tensors import unit_rows


def correlated(model: Model, correlation: float) -> Model:
    """The model for images of a unit that are so alike, with a weight for each part."""
    parts = model.saved.parts
    assert parts is not None
    weights = replace(parts.weights, image=0.07, generative=0.03, text=0.05)
    saved = replace(model.saved, parts=replace(parts, weights=weights, correlation=correlation))
    return replace(model, saved=saved)


def twin(model: Model, features: Tensor, correlation: float) -> Tensor:
    """The probabilities [C] of one unit, written as the formula is."""
    parts = model.saved.parts
    assert parts is not None
    assert model.plda is not None
    size = len(features)
    worth = size / (1.0 + (size - 1) * correlation)
    mean, variance = model.plda.posterior
    noise = parts.shared.noise
    z = (unit_rows(features).double().mean(0) - parts.shared.centre) @ parts.shared.basis
    width = noise / worth + variance - noise
    likelihoods = -0.5 * ((z - mean).square() / width + width.log()).sum(1)[None]
    visual = worth * model.visual_logits(features).mean(0, keepdim=True)
    text = worth * model.text_logits(features).mean(0, keepdim=True)
    weights = parts.weights
    side = visual_scores(visual, likelihoods, model.trained, model.plda.counts > 0, weights)
    return model.fuse(side, text).probabilities[0]


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
@torch.no_grad()
def test_units_are_scored_as_the_formula_says(
    recognizer: Recognizer, pictures: Path, correlation: float
) -> None:
    """Units of one, two and three images, in any order; one image has the answer that it has by itself."""
    model = correlated(recognizer.current(), correlation)
    features = recognizer.features(sorted(pictures.glob("known-*.png")))[0]
    units = torch.tensor([2, 0, 1, 2, 1, 2])
    found = model.of_units(features, units).probabilities
    for unit in range(3):
        expected = twin(model, features[units == unit], correlation)
        torch.testing.assert_close(found[unit], expected.to(found), atol=1e-5, rtol=1e-3)
    alone = model.exhaustive(features).probabilities
    torch.testing.assert_close(found[0], alone[1], atol=1e-6, rtol=1e-4)
    each = model.of_units(features, torch.arange(6)).probabilities
    torch.testing.assert_close(each, alone, atol=1e-6, rtol=1e-4)


def test_copies_are_surer_the_less_alike_images_are(recognizer: Recognizer, pictures: Path) -> None:
    """With a correlation of 1 three copies say what one says; with less the best class is more probable."""
    features = recognizer.features([pictures / "known-0.png"])[0]
    copies = features.expand(3, -1)
    together = torch.zeros(3, dtype=torch.int64)
    chances = []
    for correlation in (1.0, 0.5, 0.0):
        model = correlated(recognizer.current(), correlation)
        chances.append(float(model.of_units(copies, together).probabilities.max()))
        if correlation == 1.0:
            assert chances[0] == pytest.approx(
                float(model.exhaustive(features).probabilities.max()), abs=1e-5
            )
    assert chances[0] < chances[1] < chances[2]


@torch.no_grad()
def test_the_parts_and_sentences_of_a_group_add_up(recognizer: Recognizer, pictures: Path) -> None:
    """Image part and text part are the log-odds; shares are the text score, which is what text adds by both parts."""
    model = correlated(recognizer.current(), 0.4)
    paths = [str(path) for path in sorted(pictures.glob("known-*.png"))[:3]]
    features = model.features(paths)[0]
    asked = PredictOptions(top=2, explain=1000)
    found = list(stream(model, named(paths), asked, dict.fromkeys(paths, "burst")))
    assert [one.image for one in found] == paths
    assert {(one.group, one.classes) for one in found} == {("burst", found[0].classes)}
    first, second = found[0].classes
    odds = torch.tensor(first.probability / second.probability).log()
    assert first.image_part + first.text_part == pytest.approx(float(odds), abs=1e-3)
    assert model.plda is not None
    weights = model.text_weights
    assert weights is not None
    worth = 3 / 1.8
    means = unit_rows(features).mean(0, keepdim=True)
    whole, blank = (
        of.of_means(worth).log_likelihoods(means)[0] for of in (model.plda, model.plda.without_text)
    )
    logits = model.text_logits(features).mean(0)
    for score in found[0].classes:
        column = model.column(score.name)
        text, generative = weights[column]
        expected = worth * text * logits[column] + generative * (whole - blank)[column]
        assert score.text_score == pytest.approx(float(expected), abs=1e-4)
        assert sum(one.share for one in score.sentences) == pytest.approx(score.text_score, abs=1e-4)
        assert score.cosine == pytest.approx(float(logits[column] / model.saved.head.logit_scale), abs=1e-5)


def test_answers_come_in_the_order_of_the_images(
    recognizer: Recognizer, pictures: Path, tmp_path: Path
) -> None:
    """Groups may be mixed; a broken picture is its own problem, also where a group has no other."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    known = sorted(pictures.glob("known-*.png"))[:4]
    images = [known[0], broken, known[1], known[2], known[0].read_bytes(), broken, known[3]]
    groups = ["a", "a", None, "b", "a", "c", "b"]
    found = recognizer.predict(images, groups=groups)
    assert [one.group for one in found] == groups
    assert [one.problem is not None for one in found] == [False, True, False, False, False, True, False]
    assert [one.image for one in found][:5] == [*map(str, images[:4]), "(bytes)"]
    assert found[0].classes == found[4].classes
    assert found[3].classes == found[6].classes
    alone = recognizer.predict([known[1]], PredictOptions(retrieval="exhaustive"))[0]
    assert [one.name for one in found[2].classes] == [one.name for one in alone.classes]
    assert found[2].classes[0].probability == pytest.approx(alone.classes[0].probability, abs=1e-5)
    assert recognizer.predict([], groups=[]) == []


def test_a_group_is_known_if_its_images_are_in_the_mean(recognizer: Recognizer, pictures: Path) -> None:
    images = [pictures / "known-0.png", pictures / "known-1.png"]
    asked = PredictOptions(reject=True)
    alone = [one.known_score for one in recognizer.predict(images, asked)]
    together = recognizer.predict(images, asked, groups=["one", "one"])
    assert together[0].known_score == pytest.approx(sum(one or 0.0 for one in alone) / 2, rel=1e-5)
    assert together[0].known == together[1].known


def test_a_group_has_one_vote(recognizer: Recognizer, pictures: Path) -> None:
    """Of how common the classes are, pictures of a group tell as much as one of them where they are of one class."""
    model = recognizer.current()
    features = recognizer.features([pictures / "known-0.png", pictures / "known-1.png"])[0]
    drawn = torch.randn(20, features.shape[1], generator=torch.Generator().manual_seed(0))
    moved = torch.cat([features, features[:1] + 0.05 * features.norm(dim=1).mean() / 4 * drawn])
    best = model.exhaustive(moved).probabilities.argmax(1)
    moved = moved[(best == best[0]) | (torch.arange(len(moved)) == 1)]
    grouped = ["burst", None, *["burst"] * (len(moved) - 2)]
    found = model.frequencies_among(moved, grouped)
    alone = model.frequencies_among(features)
    assert len(moved) > 10
    for name in (model.names[int(model.class_ids[int(best[n])])] for n in (0, 1)):
        assert found[name] == pytest.approx(alone[name], rel=0.2)


def test_what_cannot_be_answered_together_is_refused(recognizer: Recognizer, pictures: Path) -> None:
    image = pictures / "known-0.png"
    with pytest.raises(UsageError, match="2 images and 1 group"):
        recognizer.predict([image, image], groups=["a"])
    with pytest.raises(UsageError, match="an index is asked for one image"):
        recognizer.predict([image], PredictOptions(retrieval="faiss"), groups=["a"])


def test_a_protocol_takes_the_mean(recognizer: Recognizer, pictures: Path) -> None:
    """Under the rule of the release the logits of a group are means."""
    model = recognizer.current()
    model = model.with_rule(model.fusion.model_copy(update={"rule": "logits"}))
    features = recognizer.features(sorted(pictures.glob("known-*.png"))[:3])[0]
    found = model.of_units(features, torch.zeros(3, dtype=torch.int64))
    with torch.inference_mode():
        logits = model.visual_logits(features).mean(0) + model.text_logits(features).mean(0)
    torch.testing.assert_close(found.probabilities[0], logits.softmax(0), atol=1e-5, rtol=1e-4)
