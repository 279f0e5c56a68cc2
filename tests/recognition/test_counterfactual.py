"""Tests of `recognition.counterfactual`: all classes without some sentences, against workspaces that lost them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.rounding import PROBABILITY
from vlltr_index.classes.editing import add_class, remove_sentences
from vlltr_index.errors import InputError, UsageError
from vlltr_index.recognition.answering import predict
from vlltr_index.recognition.counterfactual import Examination
from vlltr_index.recognition.exported.writing import export_model
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace


@pytest.fixture(
    scope="module",
    params=["ours", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("logits", "paper"))],
)
def answers(trained_once: Path, request: pytest.FixtureRequest) -> Model:
    """Of the trained workspace under each rule; under ours the text counts, whatever it was worth in so short a run."""
    found = Recognizer.open(Workspace.open(trained_once)).current()
    ruled = replace(found, fusion=FusionConfig(rule=request.param))
    parts = ruled.saved.parts
    assert parts is not None
    heard = replace(parts, weights=replace(parts.weights, text=0.5))
    return ruled.with_known(saved=replace(ruled.saved, parts=heard))


def like(model: Model, other: Model) -> Model:
    """The other commit's model with the rule and the weights of `model`."""
    return replace(other.with_known(saved=model.saved), fusion=model.fusion)


@pytest.fixture(scope="module")
def look(answers: Model, pictures: Path) -> Examination:
    """One picture of a known class."""
    return Examination.of(answers, pictures / "known-0.png")


def test_nothing_struck_out_is_what_predict_answers(
    look: Examination, answers: Model, pictures: Path
) -> None:
    """Classes, probabilities and parts are those of exhaustive scoring; sentences those of `explain`."""
    options = PredictOptions(top=4, retrieval="exhaustive")
    expected = predict(answers, [pictures / "known-0.png"], options)[0].classes
    best = look.best(4)
    assert [one.name for one in best] == [one.name for one in expected]
    for one, other in zip(best, expected, strict=True):
        assert one.probability == one.probability_before == pytest.approx(other.probability, abs=PROBABILITY)
        assert (one.image_part, one.text_part) == pytest.approx((other.image_part, other.text_part), abs=1e-4)
        assert one.unit == other.unit
        assert one.cosine == one.cosine_before == pytest.approx(other.cosine, abs=1e-5)
        assert one.sentences == ()
    shown = look.look(best[0].name).sentences
    whole = answers.explain(pictures / "known-0.png", best[0].name)
    assert best[0].text_score == pytest.approx(whole.text_score, abs=1e-4)
    explained = whole.sentences
    assert [s.text for s in shown] == [s.text for s in explained]
    assert [s.effect for s in shown] == pytest.approx([s.effect for s in explained], abs=1e-4)
    assert not any(s.struck for s in shown)


def test_striking_out_is_what_removing_gives(look: Examination, answers: Model, trained: Workspace) -> None:
    """Sentences of two classes at once, against the workspace without them; others come in for some of them."""
    first, second = (look.look(one.name) for one in look.best(2))
    struck = {first.sentences[0].sentence_id, first.sentences[2].sentence_id}
    other = {second.sentences[1].sentence_id}
    remove_sentences(trained, first.name, ids=sorted(struck))
    remove_sentences(trained, second.name, ids=sorted(other))
    without = like(answers, Recognizer.open(trained).current())
    expected = without.exhaustive(look.feature[None]).probabilities
    scores = look.scores(struck | other)
    torch.testing.assert_close(scores.probabilities, expected, rtol=0, atol=1e-5)
    assert torch.equal(scores.visual_part, look.scores().visual_part)  # images give what they gave
    found = look.look(first.name, struck | other)
    wanted = without.explained(look.feature, [first.class_id], None)[0]
    assert found.text_score == pytest.approx(wanted.text_score, abs=1e-4)
    assert found.text_score_before == first.text_score
    left = {s.text: s.share for s in found.sentences if not s.struck}
    assert left == pytest.approx({s.text: s.share for s in wanted.sentences}, abs=1e-4)
    assert {s.sentence_id for s in found.sentences if s.struck} == struck
    old = len(first.sentences)
    assert [s.sentence_id for s in found.sentences[:old]] == [s.sentence_id for s in first.sentences]
    assert len({s.group for s in found.sentences[old:]}) == len(found.sentences) - old > 0
    assert found.probability_before == first.probability


@pytest.fixture
def later(look: Examination, trained: Workspace, heldout: dict[str, list[str]]) -> Examination:
    """The same picture where two classes came by text alone."""
    for name in sorted(heldout)[:2]:
        add_class(trained, name, heldout[name])
    return Examination(like(look.model, Recognizer.open(trained).current()), look.feature)


def struck_out(found: Examination, name: str) -> set[str]:
    """All sentences of a class, anchors or not."""
    class_id = found.model.classes.lookup(name)
    rows = found.model.snapshot.table("sentences", ["sentence_id"], f"class_id = {class_id}")
    return set(rows["sentence_id"].to_pylist())


def test_a_class_without_pictures_loses_sentences(
    later: Examination, trained: Workspace, heldout: dict[str, list[str]]
) -> None:
    """As if they were removed, though its losses are against its own sentences; the visual scores know no text."""
    name = min(heldout)
    whole = later.look(name)
    struck = {s.sentence_id for s in whole.sentences[::2]}
    scores = later.scores(struck)
    assert torch.equal(scores.visual_part, later.scores().visual_part)
    assert later.look(name, struck).text_score != whole.text_score
    remove_sentences(trained, name, ids=sorted(struck))
    without = like(later.model, Recognizer.open(trained).current())
    expected = without.exhaustive(later.feature[None])
    torch.testing.assert_close(scores.probabilities, expected.probabilities, rtol=0, atol=1e-5)


def test_what_is_left_of_a_class_that_loses_all_its_sentences(
    later: Examination, heldout: dict[str, list[str]]
) -> None:
    """One with images is left to these; one that came by text alone is no answer."""
    best = later.best(1)[0].name
    struck = struck_out(later, best)
    one = later.look(best, struck)
    assert (one.cosine, one.text_score, one.gone) == (0.0, 0.0, False)
    assert all(s.struck for s in one.sentences)
    assert len(one.sentences) == len(struck)
    assert best in [seen.name for seen in later.best(99, struck)]
    name = min(heldout)
    struck = struck_out(later, name)
    gone = later.look(name, struck)
    assert (gone.probability, gone.image_part, gone.text_part, gone.gone) == (0.0, 0.0, 0.0, True)
    assert name not in [seen.name for seen in later.best(99, struck)]
    assert {s.sentence_id for s in gone.sentences} == struck


def test_a_sentence_that_came_in_can_be_struck_out_too(look: Examination) -> None:
    """It stays in the list, with no share; nothing else is called struck."""
    name = look.best(1)[0].name
    first = look.look(name).sentences[0].sentence_id
    (came,) = (s.sentence_id for s in look.look(name, {first}).sentences[len(look.look(name).sentences) :])
    both = look.look(name, {first, came})
    assert {s.sentence_id for s in both.sentences if s.struck} == {first, came}
    assert [s.share for s in both.sentences if s.struck] == [0.0, 0.0]
    assert len(both.sentences) == len({s.sentence_id for s in both.sentences})


def test_ids_of_no_sentence_change_nothing(look: Examination) -> None:
    """Whatever a browser sends."""
    for wrong in ({"none"}, {"' OR 1=1 --", "\0", "\ud800", "é", ""}):
        assert torch.equal(look.scores(wrong).probabilities, look.scores().probabilities)
        assert not any(s.struck for s in look.look(look.best(1)[0].name, wrong).sentences)


def test_two_classes_are_compared_by_what_speaks_for_each(look: Examination) -> None:
    """The gap is that of the text scores; sentences with a positive effect argue, but none that is struck out."""
    first, second = (look.look(one.name) for one in look.best(2))
    strongest = max(first.sentences, key=lambda s: s.effect)
    found = look.compare(first.name, second.name, {strongest.sentence_id})
    assert found.gap == found.first.text_score - second.text_score
    assert found.first.text_score != first.text_score
    assert strongest.sentence_id not in {s.sentence_id for s in found.for_first}
    for arguments in (found.for_first, found.for_second):
        effects = [s.effect for s in arguments]
        assert effects == sorted(effects, reverse=True)
        assert all(effect > 0 for effect in effects)


def test_what_cannot_be_examined(
    look: Examination, answers: Model, trained: Workspace, tmp_path: Path
) -> None:
    """A broken picture, a class against itself."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG nothing")
    with pytest.raises(InputError, match="or damaged"):
        Examination.of(answers, bad)
    export_model(trained, tmp_path / "model")
    exported = Examination(Recognizer.from_pretrained(tmp_path / "model").current(), look.feature)
    with pytest.raises(UsageError, match="in an exported folder no sentence can be struck out"):
        exported.best(1, {"any"})
    name = look.best(1)[0].name
    with pytest.raises(InputError) as error:
        look.compare(name, name)
    assert str(error.value) == f"class {name!r} cannot be compared with itself\nChoose another one."
