"""A generative model that reads likeness to other texts: stored, explained by sentences, struck out, exported."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from vlltr_index.classes import add_class
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.checkpoint import ToldMeans, load_head, save_head
from vlltr_index.heads.plda import prior_means
from vlltr_index.heads.text_prior import TextKernel, class_features
from vlltr_index.pipelines.fit import fit
from vlltr_index.recognition.answering import predict
from vlltr_index.recognition.counterfactual import Examination
from vlltr_index.recognition.exported.onnx_folder import export_onnx
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions


@pytest.fixture(scope="module")
def model(recognizer: Recognizer) -> Model:
    """The trained model with a kernel, a map from it, and a shift of each class, all drawn at random."""
    found = recognizer.current()
    parts = found.saved.parts
    assert parts is not None
    kernel = TextKernel.of(found.anchors.with_words)
    assert kernel is not None
    g = torch.Generator().manual_seed(0)
    marks, dim = len(kernel.landmarks), found.saved.head.dim
    centre = class_features(found.anchors.with_words, kernel).double().mean(0)[dim:]
    shared = replace(
        parts.shared,
        kernel=kernel,
        text_centre=torch.cat([parts.shared.text_centre[:dim], centre]),
        text_map=torch.cat([parts.shared.text_map[:dim], torch.randn(marks, dim, generator=g).double()]),
    )
    shifts = torch.randn(len(found.saved.class_ids), dim, generator=g).double()
    weights = replace(parts.weights, generative=0.03, text=0.05)
    parts = replace(parts, shared=shared, shifts=shifts, weights=weights)
    return found.with_known(saved=replace(found.saved, parts=parts))


def test_a_head_keeps_its_kernel(model: Model, pictures: Path, tmp_path: Path) -> None:
    """What is saved and read again answers alike."""
    save_head(model.saved, tmp_path)
    again = model.with_known(saved=load_head(tmp_path))
    features = model.features([pictures / "known-0.png", pictures / "known-1.png"])[0]
    expected = model.exhaustive(features).probabilities
    torch.testing.assert_close(again.exhaustive(features).probabilities, expected, rtol=1e-4, atol=1e-5)


def test_a_head_keeps_what_texts_told(model: Model, pictures: Path, tmp_path: Path) -> None:
    """Prior means that the head has are taken for classes with the same anchors; of others they are computed."""
    anchors = model.anchors
    parts = model.saved.parts
    assert parts is not None
    means = prior_means(anchors.with_words, parts.shared)
    digests = anchors.digests.clone()
    digests[3] += 1
    kept = means.clone()
    kept[3:5] = 7.0
    told = ToldMeans(anchors.bank.class_ids[1:], digests[1:], kept[1:].half())
    save_head(replace(model.saved, parts=replace(parts, told=told)), tmp_path)
    again = model.with_known(saved=load_head(tmp_path))
    assert bool((again.known.plda.predicted[4] == 7.0).all()), "the kept one is taken"
    torch.testing.assert_close(again.known.plda.predicted[:4], means[:4], rtol=1e-2, atol=1e-2)
    kept[4] = means[4]
    told = ToldMeans(anchors.bank.class_ids[1:], digests[1:], kept[1:])
    again = model.with_known(saved=replace(model.saved, parts=replace(parts, told=told)))
    features = model.features([pictures / "known-0.png", pictures / "known-1.png"])[0]
    for one in (again, again.with_known(anchors=replace(anchors, keys=anchors.keys + 1))):
        torch.testing.assert_close(one.known.plda.predicted, means, rtol=1e-4, atol=1e-5)
        found = one.exhaustive(features).probabilities
        torch.testing.assert_close(found, model.exhaustive(features).probabilities, rtol=1e-4, atol=1e-5)


def test_any_other_anchors_have_another_digest(model: Model) -> None:
    """Also without the first anchor of all, whose key is 0."""

    def digest(keys: list[int]) -> int:
        count = len(keys)
        bank = AnchorBank.build(torch.ones(count, 2), torch.zeros(count).long(), torch.tensor([0]))
        return int(replace(model.anchors, bank=bank, keys=torch.tensor(keys)).digests[0])

    sets = ([0], [1], [0, 1], [-1], [-1, 1], [0, 2], [2])
    assert len({digest(keys) for keys in sets}) == len(sets)
    assert digest([1, 0]) == digest([0, 1])


def test_prior_means_are_those_of_all_sentences(model: Model) -> None:
    """Block by block they are what the mean of all features of a class tells."""
    parts = model.saved.parts
    assert parts is not None
    bank = model.anchors.with_words
    expected = parts.shared.tell(class_features(bank, parts.shared.kernel).double())
    torch.testing.assert_close(prior_means(bank, parts.shared).double(), expected, rtol=1e-4, atol=1e-4)


def test_sentences_explain_it_exactly(model: Model, pictures: Path) -> None:
    """The shares of a class's anchors add up to what its text adds by both parts that read it."""
    features = model.features([pictures / "known-0.png"])[0]
    assert model.saved.parts is not None
    combined = model.saved.parts.weights.combined  # all are base classes
    unit = F.normalize(features.double(), dim=1)
    shifts = (model.known.plda.log_likelihoods(unit) - model.known.plda.without_text.log_likelihoods(unit))[0]
    with torch.no_grad():
        logits = model.saved.head.text_logits(features, model.bank)[0]
    for position in (0, 7, 31):
        score = model.explain(pictures / "known-0.png", model.names[int(model.bank.class_ids[position])])
        expected = combined * (0.05 * float(logits[position]) + 0.03 * float(shifts[position]))
        assert sum(s.share for s in score.sentences) == pytest.approx(expected, abs=1e-3)
        assert score.text_score == pytest.approx(expected, abs=1e-3)


def test_a_struck_sentence_is_gone_from_the_prior(model: Model, pictures: Path) -> None:
    """The class's texts are those of the anchors that are left; the other classes' are as they were."""
    best = predict(model, [pictures / "known-0.png"], PredictOptions(top=1))[0].classes[0]
    place = model.explainer.places[best.class_id]
    struck = model.anchors.sentence_ids[model.bank.bounds[place]]
    looked = Examination.of(model, pictures / "known-0.png")
    left = looked._left([struck]).model
    assert struck not in left.anchors.sentence_ids
    moved = (left.known.plda.predicted - model.known.plda.predicted).abs().amax(1)
    column = int((model.class_ids == best.class_id).nonzero()[0])
    assert float(moved[column]) > 1e-3
    moved[column] = 0.0
    assert float(moved.max()) < 1e-5


SHAPES = ("disc", "ring", "square", "bar", "triangle")
MANNERS = ("small", "large", "doubled", "framed", "crossed")
HELD = ("small bar", "large ring", "doubled square", "framed disc", "crossed triangle")


def shaped(name: str, seed: int) -> Image.Image:
    """A black shape on white in some manner, a little moved."""
    manner, shape = name.split()
    image = Image.new("L", (96, 96), 255)
    draw = ImageDraw.Draw(image)
    move = random.Random(f"{name}{seed}")
    size = {"small": 12, "large": 38}.get(manner, 20) + move.randint(-2, 2)
    middle = move.randint(44, 52), move.randint(44, 52)
    centres = [middle] if manner != "doubled" else [(middle[0] - 24, middle[1]), (middle[0] + 24, middle[1])]
    for x, y in centres:
        box = (x - size, y - size, x + size, y + size)
        if shape == "disc":
            draw.ellipse(box, fill=0)
        elif shape == "ring":
            draw.ellipse(box, outline=0, width=5)
        elif shape == "square":
            draw.rectangle(box, fill=0)
        elif shape == "bar":
            draw.rectangle((x - size, y - 4, x + size, y + 4), fill=0)
        else:
            draw.polygon([(x, y - size), (x - size, y + size), (x + size, y + size)], fill=0)
    if manner == "framed":
        draw.rectangle((6, 6, 90, 90), outline=0, width=4)
    if manner == "crossed":
        draw.line((6, 90, 90, 6), fill=128, width=6)
    return image


@pytest.mark.slow
def test_new_combinations_of_known_words_are_found(tmp_path: Path) -> None:
    """Of shapes in some manner, five are added by their names alone; exports answer as the workspace does."""
    for name in (f"{manner} {shape}" for manner in MANNERS for shape in SHAPES):
        place = tmp_path / ("new" if name in HELD else "photos") / name
        place.mkdir(parents=True)
        for number in range(6):
            shaped(name, number).save(place / f"{number}.png")
    made = fit(tmp_path / "photos", encoder="vlltr-tiny:glyphs")
    recognizer = Recognizer.open(made.workspace)
    parts = recognizer.current().saved.parts
    assert parts is not None
    assert parts.shared.kernel is not None
    assert parts.weights.text == 0.0  # the text tower never read these words
    for name in HELD:
        add_class(made.workspace, name, [f"a {name}."])
    pictures = sorted((tmp_path / "new").rglob("*.png"))
    answers = recognizer.predict(pictures, PredictOptions(only=HELD))
    right = [
        answer.classes[0].name == path.parent.name for answer, path in zip(answers, pictures, strict=True)
    ]
    assert sum(right) >= 0.9 * len(right)  # by chance a fifth
    recognizer.export(tmp_path / "export")
    again = Recognizer.from_pretrained(tmp_path / "export").predict_proba(pictures)
    assert abs(again - recognizer.predict_proba(pictures)).max() < 1e-4
    (note,) = export_onnx(made.workspace, tmp_path / "graph").notes
    assert "for 64 of 64 pictures" in note
