"""A model that is fitted on fewer images than dimensions, in their span: it is that of all dimensions, also stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from vlltr_index.heads.checkpoint import RuleParameters, SavedHead, load_head, save_head
from vlltr_index.heads.configuration import SHRINKAGES, TextLevel
from vlltr_index.heads.explanation import explain_prior
from vlltr_index.heads.fusion import PartWeights
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.moments import Moments, class_sums
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import fit_plda, predict
from vlltr_index.heads.rejection import fit_parts
from vlltr_index.tensors import unit_rows

quick = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**31)
CLASSES, DIM = 9, 120


def fitted(seed: int = 0, each: int = 3, shrinkage: float = 1.0) -> tuple[PLDA, Tensor, Tensor]:
    """A model of classes whose texts predict their means; its images and texts.

    The first class has a single image, the second no text.
    """
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, DIM, generator=g, dtype=torch.float64)
    counts = torch.tensor([1] + [each] * (CLASSES - 1))
    labels = torch.arange(CLASSES).repeat_interleave(counts)
    noise = torch.randn(len(labels), DIM, generator=g, dtype=torch.float64)
    features = unit_rows(centres[labels] + 0.5 * noise)
    texts = unit_rows(centres + 0.2 * torch.randn(CLASSES, DIM, generator=g, dtype=torch.float64))
    texts[1] = 0.0
    moments = Moments.of(features[None], labels, torch.arange(len(labels)), CLASSES)
    return fit_plda(moments, texts, shrinkage), features, texts


def with_added(model: PLDA, texts: Tensor, seed: int) -> tuple[PLDA, Tensor]:
    """The model with three classes more, by images, by a text, and by both, which lie outside of its span; queries."""
    g = torch.Generator().manual_seed(seed)
    own = torch.tensor([0, 0, 2])
    images = unit_rows(torch.randn(3, DIM, generator=g, dtype=torch.float64))
    more = unit_rows(torch.randn(3, DIM, generator=g, dtype=torch.float64)) * torch.tensor(
        [[0.0], [1.0], [1.0]]
    )
    counts, sums = class_sums(images, own, 3)
    whole = PLDA(
        model.shared,
        torch.cat([model.counts, counts]),
        torch.cat([model.sums, sums]),
        predict(model.shared, torch.cat([texts, more])),
        torch.tensor([1.0] * (CLASSES + 1) + [0.5, 0.25]).double(),
    )
    return whole, torch.cat([images, unit_rows(torch.randn(4, DIM, generator=g, dtype=torch.float64))])


@quick
@given(seed=seeds, each=st.integers(1, 5), shrinkage=st.sampled_from(SHRINKAGES))
def test_the_span_gives_the_numbers_of_all_dimensions(seed: int, each: int, shrinkage: float) -> None:
    """Likelihoods, which prior each class has, rejection, and the answer without any text, to 1e-8."""
    fit, features, texts = fitted(seed, each, shrinkage)
    assert fit.shared.outside is not None
    model, queries = with_added(fit, texts, seed + 1)
    whole = model.whole
    assert whole.shared.outside is None
    assert whole.shared.basis.shape == (DIM, DIM)
    images = torch.cat([features, queries])
    near = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(model.log_likelihoods(images), whole.log_likelihoods(images), **near)
    torch.testing.assert_close(fit_parts(model, images), fit_parts(whole, images), **near)
    has_text = [(one.prior[1] - one.shared.blank).abs().amax(1) > 1e-6 for one in (model, whole)]
    assert torch.equal(*has_text)
    plain = [one.without_text.log_likelihoods(images) for one in (model, whole)]
    torch.testing.assert_close(*plain, **near)


def test_the_choice_of_a_prior_counts_all_dimensions() -> None:
    """A class has the blank prior from the same wrongness of its text on, with all dimensions and in the span.

    By the dimensions of the span alone it would be another one.
    """
    fit, _, texts = fitted()
    assert fit.shared.text_r2 > 0.1
    has_text, without_outside = list[bool](), list[bool]()
    for wrong in torch.linspace(0.0, 2.0, 81).tolist():
        texts[-1] = (1.0 - wrong) * fitted()[2][-1]
        one = replace(fit, predicted=predict(fit.shared, texts))
        chosen = [
            [bool((variance != model.shared.blank).any()) for variance in model.prior[1]]
            for model in (one, one.whole)
        ]
        assert chosen[0] == chosen[1]
        assert chosen[0][:2] == [True, False]  # one image; no text
        has_text.append(chosen[0][-1])
        dims = fit.shared.basis.shape[1]
        seen = fit.shared.coordinates(fit.sums[-1] / fit.counts[-1])[:dims]
        by_text, by_none = (
            -0.5 * (rows.square() / (spread + 1 / 3) + (spread + 1 / 3).log()).sum()
            for rows, spread in (
                (seen - one.predicted[-1, :dims], fit.shared.spread[:dims]),
                (seen, fit.shared.blank[:dims]),
            )
        )
        without_outside.append(bool(by_text >= by_none))
    assert has_text == sorted(has_text, reverse=True)
    assert has_text[0]
    assert not has_text[-1]
    assert has_text != without_outside


@quick
@given(seed=seeds)
def test_shares_of_sentences_count_what_lies_outside(seed: int) -> None:
    """Of classes of the fit and of added ones: shares and effects are those of all dimensions."""
    fit, _, texts = fitted(seed)
    model, queries = with_added(fit, texts, seed + 1)
    whole = model.whole
    g = torch.Generator().manual_seed(seed)
    sentences = unit_rows(torch.randn(4, DIM, generator=g, dtype=torch.float64))
    for position in (0, 3, CLASSES + 1, CLASSES + 2):
        found, expected = (
            explain_prior(one, position, one.map_sentences(position, one.shared.tell(sentences)), queries[0])
            for one in (model, whole)
        )
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-7)


def head_of(fit: PLDA, identity: bool = True) -> SavedHead:
    """A head with the model's parameters, and something in all that is stored."""
    torch.manual_seed(0)
    head = LGRHead(DIM, CLASSES).eval()
    if not identity:
        with torch.no_grad():
            head.query_proj.weight[0, 1] = 0.25
    parts = RuleParameters(
        fit.shared,
        PartWeights(0.1, 0.2, 0.3),
        text_level=TextLevel.PRIOR,
        ood_threshold=-3.0,
        ratio_weight=0.4,
    )
    return SavedHead(head, torch.arange(CLASSES), text_fp="text", image_fp="image", parts=parts)


def test_a_head_is_stored_in_its_span(tmp_path: Path) -> None:
    """What is saved and read again gives the same scores, of classes and images outside the span, too."""
    fit, features, texts = fitted()
    save_head(head_of(fit), tmp_path)
    again = load_head(tmp_path).parts
    assert again is not None
    assert again.shared.outside is not None
    assert fit.shared.outside is not None
    dims = fit.shared.basis.shape[1]
    assert load_file(tmp_path / "head.safetensors")["generative.span"].shape == (DIM, dims)
    for name in ("scale", "text_scale"):
        assert getattr(again.shared.outside, name) == getattr(fit.shared.outside, name)
    assert again.shared.text_r2 == fit.shared.text_r2
    assert (again.weights, again.text_level) == (PartWeights(0.1, 0.2, 0.3), TextLevel.PRIOR)
    assert (again.ood_threshold, again.ratio_weight) == (-3.0, 0.4)
    model, queries = with_added(fit, texts, 1)
    stored = PLDA(again.shared, model.counts, model.sums, model.predicted, model.trust)
    images = torch.cat([features, queries])
    for one in (stored, stored.whole):  # the file has float32
        found, expected = one.log_likelihoods(images), model.log_likelihoods(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)


def test_a_head_of_all_dimensions_has_no_span(tmp_path: Path) -> None:
    fit, _, _ = fitted()
    save_head(head_of(fit.whole), tmp_path)
    assert "generative.span" not in load_file(tmp_path / "head.safetensors")
    again = load_head(tmp_path).parts
    assert again is not None
    assert again.shared.outside is None


@pytest.mark.parametrize("identity", [True, False])
def test_identity_projections_are_not_stored(tmp_path: Path, identity: bool) -> None:
    """They come back as they were; a projection that was trained is stored."""
    saved = head_of(fitted()[0], identity)
    save_head(saved, tmp_path)
    stored = load_file(tmp_path / "head.safetensors")
    assert ("head.query_proj.weight" in stored) is not identity
    assert "head.key_proj.weight" not in stored
    again = load_head(tmp_path).head
    for name, value in saved.head.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert torch.equal(again.key_proj.weight, torch.eye(DIM))
