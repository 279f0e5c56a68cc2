"""Tests of `vlltr_index.train.losses` against the released code's numbers and against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support import twins
from vlltr_index.errors import InputError
from vlltr_index.train.losses import (
    adjusted_cross_entropy,
    class_contrastive_loss,
    class_sigmoid_loss,
    distillation_loss,
    joint_log_adjustment,
    sampler_prior,
    text_classification_loss,
)

quick = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_contrastive_loss_equals_the_release(smoothing: float) -> None:
    """Both sides of the loss agree with the released code within 1e-6."""
    data = twins.parity("cvlp")
    features, scale = (data["image_features"], data["text_features"]), float(data["logit_scale"])
    vis, lin = class_contrastive_loss(*features, data["labels"], data["labels"], scale, smoothing)
    torch.testing.assert_close(vis, data[f"vis_smoothing_{smoothing}"], atol=1e-6, rtol=0)
    torch.testing.assert_close(lin, data[f"lin_smoothing_{smoothing}"], atol=1e-6, rtol=0)


def test_full_distillation_equals_the_release() -> None:
    """Whole-row distillation, mean of the two sides, agrees with the released code within 1e-6."""
    data = twins.parity("cvlp")
    student = data["logit_scale"] * twins.cosines(data["image_features"], data["text_features"])
    loss = distillation_loss(student, data["teacher_logits"])
    torch.testing.assert_close(loss, data["distillation_full_mean_of_two"], atol=1e-6, rtol=0)


@quick
@given(
    images=st.integers(1, 7),
    texts=st.integers(1, 7),
    dim=st.integers(2, 9),
    classes=st.integers(1, 5),
    scale=st.sampled_from([1.0, 14.3, 100.0, 1e4]),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**31),
)
def test_contrastive_loss_equals_its_twin(
    images: int, texts: int, dim: int, classes: int, scale: float, smoothing: float, seed: int
) -> None:
    """The loss agrees with loops, with unequal counts and rows that have no positive; gradients are finite."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(images, dim, generator=g, dtype=torch.float64, requires_grad=True)
    t = torch.randn(texts, dim, generator=g, dtype=torch.float64, requires_grad=True)
    image_labels = torch.randint(classes, (images,), generator=g)
    text_labels = torch.randint(classes, (texts,), generator=g)
    ours = class_contrastive_loss(x, t, image_labels, text_labels, scale, smoothing)
    naive = twins.contrastive(x, t, image_labels, text_labels, scale, smoothing)
    for mine, other in zip(ours, naive, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    for gradient in torch.autograd.grad(ours[0] + 2 * ours[1], (x, t)):
        assert bool(gradient.isfinite().all())


@quick
@given(
    images=st.integers(1, 6),
    texts=st.integers(1, 6),
    classes=st.integers(1, 4),
    scale=st.sampled_from([1.0, 100.0]),
    bias=st.sampled_from([0.0, -10.0]),
    seed=st.integers(0, 2**31),
)
def test_sigmoid_loss_equals_its_twin(
    images: int, texts: int, classes: int, scale: float, bias: float, seed: int
) -> None:
    """The sum over pairs by loops; same-class pairs are positive."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 5, generator=g, dtype=torch.float64, requires_grad=True)
    t = torch.randn(texts, 5, generator=g, dtype=torch.float64)
    image_labels = torch.randint(classes, (images,), generator=g)
    text_labels = torch.randint(classes, (texts,), generator=g)
    ours = class_sigmoid_loss(x, t, image_labels, text_labels, scale, bias)
    naive = 0.0
    for i in range(images):
        for j in range(texts):
            logit = scale * float(torch.cosine_similarity(x[i].detach(), t[j], dim=0)) + bias
            sign = 1 if image_labels[i] == text_labels[j] else -1
            naive += math.log1p(math.exp(-abs(logit))) + max(0.0, -sign * logit)
    assert ours.item() == pytest.approx(naive / images, rel=1e-9)
    assert bool(torch.autograd.grad(ours, x)[0].isfinite().all())


def test_contrastive_loss_survives_a_zero_vector_and_a_huge_scale() -> None:
    """Gradients stay finite in float32 with a zero feature and a scale of a million."""
    x = torch.randn(4, 8)
    x[1] = 0
    x.requires_grad_()
    labels = torch.tensor([0, 0, 1, 1])
    vis, lin = class_contrastive_loss(x, torch.randn(4, 8), labels, labels, 1e6)
    torch.autograd.backward(vis + lin)
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert math.isfinite((vis + lin).item())


@quick
@given(
    images=st.integers(1, 6),
    texts=st.integers(1, 6),
    mode=st.sampled_from(["full", "paired"]),
    scale=st.sampled_from([1.0, 100.0, 1e3]),
    seed=st.integers(0, 2**31),
)
def test_distillation_equals_its_twin(images: int, texts: int, mode: str, scale: float, seed: int) -> None:
    """Both modes agree with loops; no gradient reaches the teacher."""
    g = torch.Generator().manual_seed(seed)
    texts = images if mode == "paired" else texts
    student = (scale * torch.randn(images, texts, generator=g, dtype=torch.float64)).requires_grad_()
    teacher = (scale * torch.randn(images, texts, generator=g, dtype=torch.float64)).requires_grad_()
    ours = distillation_loss(student, teacher, mode)  # type: ignore[arg-type] # hypothesis draws a plain str
    naive = twins.distillation(student, teacher.detach(), mode)
    torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-12)
    torch.autograd.backward(ours)
    assert teacher.grad is None


def test_losses_keep_full_precision_under_autocast() -> None:
    """In float32, and under an ambient bfloat16 autocast, they are what float64 gives; gradients are finite."""
    g = torch.Generator().manual_seed(0)
    student, teacher = (100 * torch.randn(5, 5, generator=g, dtype=torch.float64) for _ in range(2))
    log_prior = torch.zeros(5, dtype=torch.float64)
    exact = [distillation_loss(student, teacher, m) for m in ("full", "paired")]
    exact.append(adjusted_cross_entropy(student, teacher.softmax(1), log_prior))
    labels = torch.tensor([0, 0, 1, 2, 1])
    exact += class_contrastive_loss(student, teacher, labels, labels, 30.0)
    narrow = student.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = [distillation_loss(narrow, teacher.float(), m) for m in ("full", "paired")]
        found.append(adjusted_cross_entropy(narrow, teacher.float().softmax(1), log_prior.float()))
        found += class_contrastive_loss(narrow, teacher.float(), labels, labels, 30.0)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
        (grad,) = torch.autograd.grad(one, narrow, retain_graph=True)
        assert bool(grad.isfinite().all())


def test_sampler_prior_is_the_mass_of_the_weights() -> None:
    """Weights n^-power a sample give mass n^(1 - power); classes without images have none."""
    counts = torch.tensor([100, 0, 4, 1])
    torch.testing.assert_close(sampler_prior(counts), torch.tensor([10, 0, 2, 1]).double() / 13)
    torch.testing.assert_close(sampler_prior(counts, 1.0), torch.tensor([1, 0, 1, 1]).double() / 3)
    torch.testing.assert_close(sampler_prior(counts, 0.0), counts.double() / 105)
    with pytest.raises(InputError):
        sampler_prior(torch.tensor([0, 0]))


def test_candidate_prior_is_what_sampling_gives() -> None:
    """pi = p / exp(adjustment) agrees with 30,000 simulated steps."""
    rng, batch, extra, steps = np.random.default_rng(0), 12, 8, 30_000
    prior = sampler_prior(torch.tensor([300 // (c + 1) + 1 for c in range(40)]))
    drawn = rng.choice(40, size=(steps, batch), p=prior.numpy())
    candidate = np.zeros((steps, 40), bool)
    candidate[np.arange(steps)[:, None], drawn] = True
    keys = np.where(candidate, 2.0, rng.random((steps, 40)))
    candidate |= keys <= np.partition(keys, extra - 1, axis=1)[:, extra - 1 : extra]
    seen = np.array([candidate[drawn[:, 0] != c, c].mean() for c in range(40)])
    found = prior.numpy() / joint_log_adjustment(prior, batch, extra).exp().numpy()
    np.testing.assert_allclose(found, seen, atol=0.015)


def test_candidate_prior_at_its_ends() -> None:
    """With enough extra classes all are candidates; one class or a batch of one stays finite."""
    prior = sampler_prior(torch.tensor([50, 3, 0, 1]))
    assert torch.equal(joint_log_adjustment(prior, 4, 100), prior.log())
    assert float(joint_log_adjustment(torch.ones(1), 8, 256)) == 0.0
    for batch, extra in ((4, 2), (1, 0)):
        adjustment = joint_log_adjustment(prior, batch, extra)
        assert adjustment[2] == -math.inf
        assert bool(adjustment[[0, 1, 3]].isfinite().all())


def test_text_classification_leaves_out_classes_without_images() -> None:
    """Minus infinity takes a candidate out of the denominator."""
    x, t = torch.randn(2, 4, requires_grad=True), torch.randn(3, 4)
    adjustment = torch.tensor([0.3, -math.inf, -0.2])
    loss = text_classification_loss(x, t, torch.tensor([0, 2]), adjustment, 50.0)
    kept = text_classification_loss(x, t[[0, 2]], torch.tensor([0, 1]), adjustment[[0, 2]], 50.0)
    torch.testing.assert_close(loss, kept)
    cosines = 50.0 * twins.cosines(x, t[[0, 2]]) + adjustment[[0, 2]]
    torch.testing.assert_close(kept, F.cross_entropy(cosines, torch.tensor([0, 1])))
    torch.autograd.backward(loss)
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_adjusted_cross_entropy() -> None:
    """It equals torch's cross-entropy of the adjusted logits, smoothing included, and tau 0 turns it off."""
    logits, targets = torch.randn(5, 3) * 1e4, torch.tensor([0, 2, 1, 1, 0])
    prior = torch.tensor([0.7, 0.2, 0.1]).log()
    torch.testing.assert_close(
        adjusted_cross_entropy(logits, targets, prior, 1.5, 0.1),
        F.cross_entropy(logits + 1.5 * prior, targets, label_smoothing=0.1),
    )
    empty = torch.tensor([0.0, 0.0, -math.inf])
    some = torch.tensor([0, 1, 1, 0, 0])
    torch.testing.assert_close(
        adjusted_cross_entropy(logits, some, empty, 0.0, 0.1),
        F.cross_entropy(logits[:, :2], some, label_smoothing=0.1),
    )


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(2, 6)),
    tau=st.sampled_from([0.0, 1.0]),
    scale=st.sampled_from([1.0, 100.0]),
    seed=st.integers(0, 2**31),
)
def test_cross_entropy_of_mixed_targets_equals_its_definition(
    size: tuple[int, int], tau: float, scale: float, seed: int
) -> None:
    """Sum over classes of target * log softmax, adjusted; with hard targets it is the plain one."""
    g = torch.Generator().manual_seed(seed)
    batch, classes = size
    logits = scale * torch.randn(batch, classes, generator=g, dtype=torch.float64)
    soft = torch.rand(batch, classes, generator=g, dtype=torch.float64).softmax(1)
    log_prior = torch.rand(classes, generator=g, dtype=torch.float64).log_softmax(0)
    loss = adjusted_cross_entropy(logits, soft, log_prior, tau)
    expected = torch.zeros((), dtype=torch.float64)
    for row, target in zip(logits, soft, strict=True):
        adjusted = row + tau * log_prior
        expected = expected - (target * (adjusted - torch.logsumexp(adjusted, 0))).sum() / batch
    torch.testing.assert_close(loss, expected)
    labels = torch.randint(0, classes, (batch,), generator=g)
    hard = F.one_hot(labels, classes).double()
    torch.testing.assert_close(
        adjusted_cross_entropy(logits, hard, log_prior, tau),
        adjusted_cross_entropy(logits, labels, log_prior, tau),
    )
