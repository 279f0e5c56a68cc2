"""Tests of `recognition.counterfactual`: all classes without some sentences, against banks that never had them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.recognition.counterfactual import Examination
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace


@pytest.fixture(scope="module", params=["ours", "logits", "paper"])
def answers(trained_once: Path, request: pytest.FixtureRequest) -> Model:
    """Of the trained workspace under each rule; under ours the text counts, whatever it was worth in so short a run."""
    found = Recognizer.open(Workspace.open(trained_once)).current()
    ruled = found.with_rule(FusionConfig(rule=request.param))
    parts = ruled.saved.parts
    assert parts is not None
    heard = replace(parts, weights=replace(parts.weights, text=0.5))
    return replace(ruled, saved=replace(ruled.saved, parts=heard))


@pytest.fixture(scope="module")
def look(answers: Model, pictures: Path) -> Examination:
    """One picture of a known class."""
    return Examination.of(answers, pictures / "known-0.png")


def probabilities_without(scorer: Model, feature: Tensor, ids: set[str]) -> Tensor:
    """The naive twin: all scores again, with a bank that lacks the sentences."""
    kept = [n for n, i in enumerate(scorer.anchors.sentence_ids) if i not in ids]
    bank = scorer.bank
    left = AnchorBank.build(
        bank.vectors[kept],
        bank.class_ids[bank.class_of_row[kept]],
        bank.class_ids.tolist(),
        bank.losses[kept],
    )
    without = replace(scorer, anchors=replace(scorer.anchors, bank=left))
    return without.exhaustive(feature[None]).probabilities[0]


def test_nothing_struck_out_is_what_predict_answers(
    look: Examination, answers: Model, pictures: Path
) -> None:
    """Classes, probabilities and parts are those of exhaustive scoring; sentences those of `explain`."""
    options = PredictOptions(top=4, retrieval="exhaustive")
    expected = answers.predict([pictures / "known-0.png"], options)[0].classes
    best = look.best(4)
    assert [one.name for one in best] == [one.name for one in expected]
    for one, other in zip(best, expected, strict=True):
        assert one.probability == one.probability_before == pytest.approx(other.probability, abs=1e-6)
        assert (one.image_part, one.text_part) == pytest.approx((other.image_part, other.text_part), abs=1e-4)
        assert one.unit == other.unit
        assert one.cosine == one.cosine_before == pytest.approx(other.cosine, abs=1e-6)
        assert one.sentences == ()
    shown = look.look(best[0].name).sentences
    explained = answers.explain(pictures / "known-0.png", best[0].name).sentences
    assert [s.text for s in shown] == [s.text for s in explained]
    assert [s.effect for s in shown] == pytest.approx([s.effect for s in explained], abs=1e-6)
    assert not any(s.struck for s in shown)


def test_striking_out_moves_all_probabilities_as_a_bank_without_the_sentences_does(
    look: Examination, answers: Model
) -> None:
    """Sentences of two classes at once; the effect of one alone is the fall of the cosine."""
    first, second = (look.look(one.name) for one in look.best(2))
    struck = {first.sentences[0].sentence_id, first.sentences[2].sentence_id, second.sentences[1].sentence_id}
    expected = probabilities_without(answers, look.feature, struck)
    assert torch.allclose(look.scores(struck).probabilities[0], expected, atol=1e-5)
    alone = look.look(first.name, {first.sentences[0].sentence_id})
    assert alone.cosine == pytest.approx(first.cosine - first.sentences[0].effect, abs=1e-9)
    assert alone.logit < alone.logit_before == first.logit
    assert alone.probability_before == first.probability
    assert alone.text_part < first.text_part
    assert alone.probability <= first.probability
    assert [s.struck for s in alone.sentences] == [n == 0 for n in range(len(alone.sentences))]


def test_two_classes_are_compared_by_what_speaks_for_each(look: Examination) -> None:
    """The gap is that of the cosines; sentences with a positive effect argue, but none that is struck out."""
    first, second = (look.look(one.name) for one in look.best(2))
    strongest = max(first.sentences, key=lambda s: s.effect)
    found = look.compare(first.name, second.name, {strongest.sentence_id})
    assert found.gap == pytest.approx(first.cosine - strongest.effect - second.cosine, abs=1e-9)
    assert strongest.sentence_id not in {s.sentence_id for s in found.for_first}
    for arguments in (found.for_first, found.for_second):
        effects = [s.effect for s in arguments]
        assert effects == sorted(effects, reverse=True)
        assert all(effect > 0 for effect in effects)


def test_what_cannot_be_examined(look: Examination, answers: Model, tmp_path: Path) -> None:
    """A broken picture, a class against itself."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG nothing")
    with pytest.raises(InputError, match="or damaged"):
        Examination.of(answers, bad)
    name = look.best(1)[0].name
    with pytest.raises(InputError) as error:
        look.compare(name, name)
    assert str(error.value) == f"class {name!r} cannot be compared with itself\nChoose another one."
