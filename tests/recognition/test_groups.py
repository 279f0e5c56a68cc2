"""Pictures that are answered together: their scores, their sentences, their order, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.rounding import same_order
from vlltr_index.errors import UsageError
from vlltr_index.heads.checkpoint import load_head, save_head
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.recognition.answering import predict, stream
from vlltr_index.recognition.frequencies import frequencies_among
from vlltr_index.recognition.model import Model, named
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace


def correlated(model: Model, correlation: float) -> Model:
    """The model for images of a unit that are so alike, with a weight for each part."""
    parts = model.saved.parts
    assert parts is not None
    weights = replace(parts.weights, image=0.07, generative=0.03, text=0.05)
    saved = replace(model.saved, parts=replace(parts, weights=weights, correlation=correlation))
    return model.with_known(saved=saved)


def test_copies_are_surer_the_less_alike_images_are(recognizer: Recognizer, pictures: Path) -> None:
    """With a correlation of 1 three copies say what one says; with less the best class is more probable."""
    path = str(pictures / "known-0.png")
    copies = [path] * 3
    chances = []
    for correlation in (1.0, 0.5, 0.0):
        model = correlated(recognizer.current(), correlation)
        chances.append(predict(model, copies, groups=["a"] * 3)[0].classes[0].probability)
        if correlation == 1.0:
            alone = predict(model, [path])[0].classes[0]
            assert chances[0] == pytest.approx(alone.probability, abs=1e-5)
    assert chances[0] < chances[1] < chances[2]


@torch.no_grad()
def test_the_parts_and_sentences_of_a_group_add_up(recognizer: Recognizer, pictures: Path) -> None:
    """Image part and text part are the log-odds; shares are the text score, which is what text adds by both parts."""
    model = correlated(recognizer.current(), 0.4)
    paths = [str(path) for path in sorted(pictures.glob("known-*.png"))[:3]]
    asked = PredictOptions(top=2, explain=1000)
    found = list(stream(model, named(paths), asked, dict.fromkeys(paths, "burst")))
    assert [one.image for one in found] == paths
    assert {(one.group, one.classes) for one in found} == {("burst", found[0].classes)}
    first, second = found[0].classes
    odds = torch.tensor(first.probability / second.probability).log()
    assert first.image_part + first.text_part == pytest.approx(float(odds), abs=1e-3)
    alone = predict(model, paths, PredictOptions(top=1000, explain=1000))
    for score in found[0].classes:
        own = [next(one for one in image.classes if one.name == score.name) for image in alone]
        assert score.text_score == pytest.approx(sum(one.text_score or 0.0 for one in own) / 3, abs=1e-4)
        assert sum(one.share for one in score.sentences) == pytest.approx(score.text_score, abs=1e-4)
        assert score.cosine == pytest.approx(sum(one.cosine for one in own) / 3, abs=1e-5)


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
    every = PredictOptions(top=len(recognizer.classes_), retrieval="exhaustive")
    alone = recognizer.predict([known[1]], every)[0]
    assert len(found[2].classes) == 5
    chances = {one.name: one.probability for one in alone.classes}
    assert same_order([one.name for one in found[2].classes], chances)
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
    moved = torch.cat([features, features[:1] + 0.005 * features.norm(dim=1).mean() / 4 * drawn])
    best = model.exhaustive(moved).probabilities.argmax(1)
    moved = moved[(best == best[0]) | (torch.arange(len(moved)) == 1)]
    grouped = ["burst", None, *["burst"] * (len(moved) - 2)]
    found = frequencies_among(model, moved, grouped)
    alone = frequencies_among(model, features)
    assert len(moved) > 10
    for name in (model.names[int(model.class_ids[int(best[n])])] for n in (0, 1)):
        assert found[name] == pytest.approx(alone[name], rel=0.2)


def test_what_cannot_be_answered_together_is_refused(recognizer: Recognizer, pictures: Path) -> None:
    image = pictures / "known-0.png"
    with pytest.raises(UsageError, match="2 images and 1 group"):
        recognizer.predict([image, image], groups=["a"])


def test_groups_by_an_index(trained: Workspace, pictures: Path) -> None:
    """Each image is asked of the index; with the best classes scored exactly the answer is the exhaustive one."""
    index_anchors(trained, "flat")
    images = sorted(pictures.glob("known-*.png"))
    groups = ["a", "b", "a", None, "b", "b"]
    by_index, exact = (
        Recognizer.open(trained).predict(images, PredictOptions(top=1, retrieval=how), groups)
        for how in ("faiss", "exhaustive")
    )
    for one, other in zip(by_index, exact, strict=True):
        assert (one.retrieval, other.retrieval) == ("faiss", "exhaustive")
        assert one.classes[0].name == other.classes[0].name
        assert one.classes[0].probability == pytest.approx(other.classes[0].probability, abs=1e-2)
        assert 0.0 <= one.residual < 0.1


def test_among_some_classes(recognizer: Recognizer, pictures: Path) -> None:
    """As if there were no others."""
    images = sorted(pictures.glob("known-*.png"))[:2]
    names = recognizer.classes_.tolist()[:3]
    found = recognizer.predict(images, PredictOptions(only=names), groups=["a", "a"])[0]
    assert {one.name for one in found.classes} == set(names)
    assert sum(one.probability for one in found.classes) == pytest.approx(1.0, abs=1e-5)


def test_a_head_keeps_how_alike_images_are(recognizer: Recognizer, tmp_path: Path) -> None:
    """The intraclass correlations of answers and of vectors are in its file."""
    saved = correlated(recognizer.current(), 0.35).saved
    assert saved.parts is not None
    save_head(replace(saved, parts=replace(saved.parts, unit_correlation=0.25)), tmp_path)
    parts = load_head(tmp_path).parts
    assert parts is not None
    assert (parts.correlation, parts.unit_correlation) == (0.35, 0.25)
