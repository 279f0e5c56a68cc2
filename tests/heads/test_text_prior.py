"""What texts tell of class means: by their vectors, and by how alike they are to other classes' texts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import twins
from vlltr_index.data.words import number_words
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.moments import Moments
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import better_kernel, fit_plda, predict
from vlltr_index.heads.text_prior import (
    TextKernel,
    class_features,
    fit_text,
    sentence_features,
    weighted_mean,
)

RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
TEMPLATES = ("a {}.", "the {} of a class.")
quick = settings(max_examples=15, deadline=None)


def told(texts: list[str], dim: int, seed: int, unread: bool = True) -> AnchorBank:
    """Two sentences a class around its text, by an encoder that reads nothing in them, or in a random way."""
    g = torch.Generator().manual_seed(seed)
    sentences = [template.format(text) for text in texts for template in TEMPLATES]
    owner = torch.arange(len(texts)).repeat_interleave(len(TEMPLATES))
    vectors = torch.randn(1 if unread else len(sentences), dim, generator=g).expand(len(sentences), dim)
    return AnchorBank.build(vectors, owner, list(range(len(texts))), words=number_words(sentences))


def pairs(colours: int, things: int) -> list[str]:
    """Names of two words."""
    return [f"colour{a} thing{b}" for a in range(colours) for b in range(things)]


def moments_of(means: Tensor, each: int, seed: int) -> Moments:
    """Statistics of some images of each class."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(means)).repeat_interleave(each)
    features = means[labels] + 0.5 * torch.randn(len(labels), means.shape[1], generator=g)
    return Moments.of(features[None], labels, torch.arange(len(labels)), len(means))


def composed(colours: int, things: int, dim: int, seed: int) -> Tensor:
    """Class means that are the sum of a part for each word, [C, D]."""
    g = torch.Generator().manual_seed(seed)
    first, second = torch.randn(colours, dim, generator=g), torch.randn(things, dim, generator=g)
    return (first[:, None] + second[None]).flatten(0, 1)


def left_out(alike: Tensor, apart: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The plain twin: the regression fitted again without each class; residuals, shifts about the mean of all, and the
    map of all."""
    w = weights[:, None]
    own = (w * alike).T @ alike
    level = own.trace() / len(own)
    eye = torch.eye(len(own), dtype=own.dtype)
    mean = (w * apart).sum(0) / w.sum()
    best: tuple[float, Tensor, Tensor, Tensor] | None = None
    for ridge in RIDGES:
        penalty = ridge * level * eye
        whole = torch.linalg.solve(own + penalty, (w * alike).T @ (apart - mean))
        missed, shifts = torch.zeros_like(apart), torch.zeros_like(apart)
        for c in range(len(alike)):
            v = w.clone()
            v[c] = 0.0
            x0, y0 = (v * alike).sum(0) / v.sum(), (v * apart).sum(0) / v.sum()
            centred = alike - x0
            found = torch.linalg.solve((v * centred).T @ centred + penalty, (v * centred).T @ (apart - y0))
            missed[c] = apart[c] - y0 - (alike[c] - x0) @ found
            shifts[c] = (alike[c] - x0) @ found - alike[c] @ whole
        cost = float((w * missed.square()).sum())
        if best is None or cost < best[0]:
            best = cost, missed, shifts, whole
    assert best is not None
    return best[1:]


@quick
@given(seed=st.integers(0, 2**31), some=st.booleans())
def test_classes_are_left_out_exactly(seed: int, some: bool) -> None:
    """Residuals and shifts are those of fits without each class; classes without a text do not count."""
    g = torch.Generator().manual_seed(seed)
    means = composed(5, 4, 3, seed).double() + 0.1 * torch.randn(20, 3, generator=g).double()
    weights = torch.rand(20, generator=g).double() + 0.1
    bank = told(pairs(5, 4), 3, seed)
    kernel = TextKernel.of(bank)
    assert kernel is not None
    texts = class_features(bank, kernel).double()[:, 3:]
    if some:
        weights[::6] = 0.0
    share = weights[:, None] / weights.sum()
    alike = torch.where(weights[:, None] > 0, texts - (share * texts).sum(0), 0.0) @ kernel.root
    seen = means - (share * means).sum(0)
    fit = fit_text(torch.zeros(20, 3).double(), alike, seen, weights)
    residuals, shifts, mapped = left_out(alike, seen, weights)
    has = weights > 0
    assert fit.r2 > 0.3
    torch.testing.assert_close(fit.residuals[has], residuals[has], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fit.shifts[has], shifts[has], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fit.of_alike, mapped, rtol=1e-6, atol=1e-7)


@quick
@given(
    classes=st.sampled_from([3, 4, 9, 30]),
    dim=st.sampled_from([1, 5, 12]),
    known=st.sampled_from([0.0, 0.5, 3.0]),
    turned=st.booleans(),
    some=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_vectors_predict_classes_that_are_left_out_exactly(
    classes: int, dim: int, known: float, turned: bool, some: bool, seed: int
) -> None:
    """The closed form equals fits without each class: residuals, the map and R^2.

    With fewer classes than dimensions and more, where a multiple of the identity suffices and where it does not, also
    where classes have no text.
    """
    g = torch.Generator().manual_seed(seed)
    vectors, noise = torch.randn(2, classes, dim, generator=g, dtype=torch.float64)
    mapped = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64)).Q
    seen = known * (vectors @ mapped if turned else vectors) + noise
    weights = torch.rand(classes, generator=g, dtype=torch.float64) + 0.1
    if some and classes > 4:
        weights[::4] = 0.0
    seen = seen - weighted_mean(seen, weights)
    vectors = torch.where(weights[:, None] > 0, vectors - weighted_mean(vectors, weights), 0.0)
    fit = fit_text(vectors, torch.zeros(classes, 0).double(), seen, weights)
    has = [bool(weight) for weight in weights]
    expected, residuals, r2 = twins.text_fit(list(vectors), list(seen), weights.tolist(), has)
    assert fit.r2 == pytest.approx(r2, abs=1e-9)
    eye = torch.eye(dim, dtype=torch.float64)
    torch.testing.assert_close(fit.of_vectors(eye), expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(
        fit.residuals[weights > 0], torch.stack(residuals)[weights > 0], rtol=1e-7, atol=1e-8
    )
    assert not bool(fit.shifts.any())


def test_the_order_of_the_classes_does_not_matter() -> None:
    """Nor do the order of the sentences, and the axes of the features, to 1e-9."""
    g = torch.Generator().manual_seed(0)
    vectors, noise = torch.randn(2, 40, 8, generator=g, dtype=torch.float64)
    weights = torch.rand(40, generator=g, dtype=torch.float64)
    fit = fit_text(vectors, torch.zeros(40, 0).double(), vectors + noise, weights)
    order = torch.randperm(40, generator=g)
    axes = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64)).Q
    moved = (rows[order] @ axes for rows in (vectors, vectors + noise))
    other, seen = moved
    again = fit_text(other, torch.zeros(40, 0).double(), seen, weights[order])
    assert fit.r2 > 0.1
    assert again.r2 == pytest.approx(fit.r2, abs=1e-9)
    torch.testing.assert_close(again.residuals, fit.residuals[order] @ axes, rtol=1e-9, atol=1e-9)


def test_words_tell_what_no_encoder_read() -> None:
    """Each class is found among new ones by the words that other classes have too; by permuted ones nothing is told."""
    names, means = pairs(9, 9), composed(9, 9, 6, 1)
    old = torch.ones(81, dtype=torch.bool)
    old[::8] = False
    bank = told(names, 6, 0)
    kernel = TextKernel.of(bank.select(old.nonzero()[:, 0]))
    texts = class_features(bank, kernel)
    moments = moments_of(means[old], 5, 2)
    model = fit_plda(moments, texts[old], kernel=kernel)
    assert model.shared.text_r2 > 0.5
    assert model.shared.kernel is kernel
    new = int((~old).sum())
    nothing = torch.zeros(new, dtype=torch.int64), torch.zeros(new, 6, dtype=torch.float64)
    later = PLDA(model.shared, *nothing, predict(model.shared, texts[~old]))
    assert (later.log_likelihoods(means[~old]).argmax(1) == torch.arange(new)).float().mean() > 0.7
    order = torch.randperm(int(old.sum()), generator=torch.Generator().manual_seed(0))
    other = fit_plda(moments, texts[old][order], kernel=kernel)
    assert other.shared.kernel is None
    assert other.shared.text_r2 < 0.05
    assert other.shared.text_map.shape == (6, 6)


def test_a_class_is_told_of_as_if_it_were_left_out() -> None:
    """Its prior mean is what the others tell of it: nearly that of a fit without its images."""
    names, means = pairs(9, 9), composed(9, 9, 6, 1)
    bank = told(names, 6, 0)
    kernel = TextKernel.of(bank)
    texts = class_features(bank, kernel)
    model = fit_plda(moments_of(means, 5, 2), texts, kernel=kernel)
    own = replace_images(moments_of(means, 5, 2), 7)
    without = fit_plda(own, texts, kernel=kernel)

    def told_of(fitted: PLDA) -> Tensor:
        fitted = fitted.whole
        prior = fitted.prior[0][7]
        return fitted.shared.centre + prior @ torch.linalg.inv(fitted.shared.basis)

    assert model.shifts is not None
    itself = model.shared.centre + (model.prior[0][7] - model.shifts[7]) @ torch.linalg.inv(
        model.shared.basis
    )
    near, far = ((told_of(without) - other).norm() for other in (told_of(model), itself))
    assert near < 0.5 * far


def test_likeness_in_many_dimensions_equals_the_whole_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer images than dimensions the fit is that in all dimensions, also of texts outside the images' span."""
    names, means = pairs(6, 6), composed(6, 6, 120, 1).double()
    kernel = TextKernel.of(told(names, 120, 0))
    assert kernel is not None
    texts = class_features(told(names, 120, 0), kernel).double()
    images = means + torch.randn(36, 120, generator=torch.Generator().manual_seed(3)).double()
    models = []
    for few in (True, False):
        if not few:
            monkeypatch.setattr("vlltr_index.heads.moments.row_span", lambda rows: None)
        model = fit_plda(moments_of(means[:35], 2, 2), texts[:35], kernel=kernel)
        assert (model.shared.outside is not None) == few
        assert model.shared.kernel is kernel
        models.append(model)
    for one in (models[0], models[0].whole):
        torch.testing.assert_close(
            one.log_likelihoods(images), models[1].log_likelihoods(images), rtol=1e-8, atol=1e-8
        )
    later = [replace(model, predicted=predict(model.shared, texts[1:]), shifts=None) for model in models]
    found, expected = (model.prior[0] @ model.prior[0].T for model in later)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def replace_images(moments: Moments, place: int) -> Moments:
    """The statistics without a class's images, the covariances as they were."""
    counts, sums = moments.counts.clone(), moments.sums.clone()
    counts[place], sums[place] = 0, 0.0
    return Moments(counts, sums, moments.within, moments.sampling, moments.freedom)


@quick
@given(seed=st.integers(0, 2**31))
def test_a_class_s_text_is_the_mean_of_its_sentences(seed: int) -> None:
    """In one piece or sentence by sentence, with a kernel and without; a bank without words has none."""
    bank = told(pairs(3, 5), 4, seed, unread=False)
    g = torch.Generator().manual_seed(seed)
    bank = replace(bank, readings=torch.randn(len(bank.vectors), 3, generator=g))
    for kernel in (None, TextKernel.of(bank), TextKernel.of(bank, with_readings=False)):
        rows = [sentence_features(bank, slice(a, b), kernel).mean(0) for a, b in pairwise(bank.bounds)]
        torch.testing.assert_close(class_features(bank, kernel), torch.stack(rows))
    assert TextKernel.of(told(pairs(3, 3), 4, seed)) is None
    plain = AnchorBank.build(bank.vectors, bank.class_ids[bank.class_of_row], bank.class_ids)
    assert TextKernel.of(plain) is None


@pytest.mark.parametrize("known", [True, False])
def test_readings_are_taken_where_they_tell_more(known: bool) -> None:
    """Where no two classes share a word, those of a model that knows what the words mean; not those of any other."""
    means = composed(6, 6, 8, 1)
    bank = told([f"word{number}" for number in range(36)], 8, 0)
    g = torch.Generator().manual_seed(2)
    meant = means + 0.1 * torch.randn(means.shape, generator=g) if known else torch.randn(36, 8, generator=g)
    bank = replace(bank, readings=meant.repeat_interleave(len(TEMPLATES), 0))
    plain, reading = (TextKernel.of(bank, with_readings=one) for one in (False, True))
    assert plain is not None
    assert reading is not None
    moments = moments_of(means, 5, 3)
    one, other = ((kernel, class_features(bank, kernel)) for kernel in (reading, plain))
    assert better_kernel(moments, one, other) is (reading if known else plain)
    assert bank.words is not None
    assert plain.alike(bank.vectors, bank.words, bank.readings).equal(plain.alike(bank.vectors, bank.words))


def test_all_blocks_count_alike() -> None:
    """Vectors and readings a thousand times as long change nothing, nor do the same sentences in another order."""
    bank = told(pairs(4, 4), 4, 3, unread=False)
    bank = replace(
        bank, readings=torch.randn(len(bank.vectors), 3, generator=torch.Generator().manual_seed(0))
    )
    assert bank.readings is not None
    long = AnchorBank.build(
        1000.0 * bank.vectors, bank.class_ids[bank.class_of_row], bank.class_ids, words=bank.words
    )
    long = replace(long, readings=1000.0 * bank.readings)
    kernels = [TextKernel.of(one) for one in (bank, long)]
    assert kernels[0] is not None
    torch.testing.assert_close(class_features(bank, kernels[0]), class_features(long, kernels[1]))
    sizes = [
        part.square().sum(1).mean()
        for part in ((class_means(bank) - kernels[0].centre) * kernels[0].scale).split([4, 512, 3], 1)
    ]
    assert [float(size) for size in sizes] == pytest.approx([1.0, 1.0, 1.0], rel=1e-4)


def class_means(bank: AnchorBank) -> Tensor:
    """Mean unit vector, mean unit row of words and mean unit reading of each class."""
    assert bank.words is not None
    assert bank.readings is not None
    rows = torch.zeros(len(bank.words), 513)
    for row, words in zip(rows, bank.words.tolist(), strict=True):
        for word in words:
            row[abs(word)] += (word > 0) - (word < 0)
    parts = (bank.vectors, rows[:, 1:], bank.readings)
    unit = torch.cat([torch.nn.functional.normalize(part, dim=1) for part in parts], 1)
    return unit.view(bank.num_classes, -1, 4 + 512 + 3).mean(1)
