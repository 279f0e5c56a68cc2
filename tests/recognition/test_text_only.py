"""Classes that are known by text alone: their prior where base classes use no texts, and when they are muted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from vlltr_index.classes import add_class
from vlltr_index.heads.checkpoint import RuleParameters
from vlltr_index.heads.configuration import TextLevel
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.store.workspace import Workspace


def with_texts(model: Model, level: TextLevel, r2: float) -> Model:
    """The model with texts used up to a level; they predict class means by a scaled identity, or not at all."""
    parts = model.saved.parts
    assert parts is not None
    shared = parts.shared
    text_map = 3.0 * shared.basis if r2 else torch.zeros_like(shared.basis)
    centre = shared.text_centre[: len(shared.centre)]
    spread = 1000.0 * shared.spread  # so wide that the prior by text is likelier
    shared = replace(shared, spread=spread, kernel=None, text_centre=centre, text_map=text_map, text_r2=r2)
    weights = replace(parts.weights, text=0.2 if level == TextLevel.ATTENTION else 0.0)
    parts = replace(
        parts, shared=shared, shifts=None, told=None, text_level=level, weights=weights, text_trust=1.0
    )
    return replace(model.with_known(saved=replace(model.saved, parts=parts)), offsets={})


@pytest.fixture
def added(trained: Workspace, heldout: dict[str, list[str]]) -> Model:
    """The trained model with a text-only class, its last."""
    add_class(trained, min(heldout), heldout[min(heldout)])
    return Recognizer.open(trained).current()


def parts_of(model: Model) -> RuleParameters:
    """The model's parts."""
    assert model.saved.parts is not None
    return model.saved.parts


def is_mute(model: Model, features: torch.Tensor) -> bool:
    """Whether the score of the last class is out of reach of the others' for all images, however far they lie."""
    scores = model.exhaustive(features).log_scores
    return bool((scores[:, -1] < scores[:, :-1].amax(1) - 5e4).all())


def test_it_has_its_own_prior_where_base_classes_use_no_texts(added: Model, pictures: Path) -> None:
    """Its log-likelihood is that of the model with texts; those of base classes are of the model without."""
    plain, by_text = (with_texts(added, level, 0.3) for level in (TextLevel.NONE, TextLevel.PRIOR))
    features, _ = added.features(sorted(pictures.glob("known-*.png")))
    shared = parts_of(plain).shared
    prototype = F.normalize(added.bank.vectors.float(), dim=1)[
        added.bank.class_of_row == added.bank.num_classes - 1
    ]
    expected = (prototype.mean(0).double() - shared.text_centre) @ shared.text_map
    torch.testing.assert_close(plain.known.plda.prior[0][-1], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(plain.known.plda.prior[1][-1], shared.spread)
    assert not bool(plain.known.plda.prior[0][:-1].any())
    unit = F.normalize(features, dim=1)
    found = plain.known.plda.log_likelihoods(unit)
    known = by_text.known.plda.log_likelihoods(unit)
    torch.testing.assert_close(found[:, -1], known[:, -1])
    torch.testing.assert_close(found[:, :-1], by_text.known.plda.without_text.log_likelihoods(unit)[:, :-1])
    assert not torch.allclose(found[:, :-1], known[:, :-1])
    assert not parts_of(plain).texts_are_mute
    assert not is_mute(plain, features)


def test_it_is_muted_only_where_texts_predict_nothing(added: Model, pictures: Path) -> None:
    """Without a prior by text and without attention it gets no image; either of both suffices."""
    features, _ = added.features(
        [*sorted(pictures.glob("known-*.png")), *sorted(pictures.glob("unseen/*.png"))]
    )
    strange = torch.randn(50, features.shape[1], generator=torch.Generator().manual_seed(0))
    both = torch.cat([features, strange])
    cases = {
        (TextLevel.NONE, 0.0): True,
        (TextLevel.PRIOR, 0.0): True,
        (TextLevel.ATTENTION, 0.0): False,
        (TextLevel.NONE, 0.3): False,
    }
    for (level, r2), mute in cases.items():
        model = with_texts(added, level, r2)
        assert parts_of(model).texts_are_mute is mute
        assert is_mute(model, both) is mute
