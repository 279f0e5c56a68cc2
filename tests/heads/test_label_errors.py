"""Tests of `vlltr_index.heads.label_errors`: labels that are probably wrong, and how many."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlltr_index.heads import label_errors as module
from vlltr_index.heads.dealing import FOLDS, deal_groups, row_keys
from vlltr_index.heads.label_errors import label_errors
from vlltr_index.heads.moments import Moments
from vlltr_index.heads.plda_fit import fit_plda
from vlltr_index.heads.weighing import fit_temperature, image_weights
from vlltr_index.tensors import unit_rows


def answers(counts: list[int], sharp: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities [M, C] of images of so many in each class, and their classes; `sharp`: how far apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = sharp * torch.eye(len(counts))
    images = centres[labels] + torch.randn(len(labels), len(counts), generator=generator)
    return (-0.5 * torch.cdist(images, centres).square()).log_softmax(1), labels


def swapped(labels: Tensor, share: float, seed: int = 0) -> Tensor:
    """Give a share of the labels another class at random."""
    generator = torch.Generator().manual_seed(seed)
    classes = int(labels.max()) + 1
    some = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    moved = labels.clone()
    moved[some] = (labels[some] + torch.randint(1, classes, (len(some),), generator=generator)) % classes
    return moved


def average_precision(scores: Tensor, wrong: Tensor) -> float:
    """Mean over the wrong labels of the share of wrong ones at or before each; no two scores are alike."""
    found = wrong[scores.argsort(descending=True)].double()
    precision = found.cumsum(0) / torch.arange(1, len(found) + 1)
    return float((precision * found).sum() / found.sum())


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_wrong_labels_are_found_and_counted(share: float) -> None:
    """Where classes are told apart, nearly all of the list's head is wrong, and its length is about their number."""
    level, labels = answers([40, 40, 30, 20, 20, 10, 10, 10, 5, 5], 6.0)
    given_labels = swapped(labels, share)
    wrong = given_labels != labels
    found = label_errors(level, given_labels)
    count = round(float(found.sum()))
    assert average_precision(found, wrong) > 0.97
    assert 0.6 * int(wrong.sum()) <= count <= 1.2 * int(wrong.sum())
    head = found.argsort(descending=True)[:count]
    assert float(wrong[head].double().mean()) > 0.95


def test_right_labels_are_not_flagged() -> None:
    """Also where the answers miss one image in five, no more than a few labels in a hundred are called wrong."""
    for sharp in (6.0, 2.5):
        level, labels = answers([40, 40, 30, 20, 20, 10, 10, 10, 5, 5], sharp)
        found = label_errors(level, labels)
        assert round(float(found.sum())) <= 0.04 * len(labels)


def test_vague_answers_for_a_rare_class_are_no_sign_of_wrong_labels() -> None:
    """A wrong label that another class contradicts comes before labels of two images that no class is sure of."""
    level, labels = answers([40, 40, 40, 40, 40, 2], 6.0)
    rare = labels == 5
    level[rare] = torch.tensor([0.3, 0.25, 0.2, 0.14, 0.1, 0.01]).log()
    labels[0] = 1
    found = label_errors(level, labels)
    assert float(found[0]) > float(found[rare].max())
    assert float(found[rare].max()) < 0.5


def test_a_class_that_takes_anothers_images_is_found_by_its_confusions() -> None:
    """Wrong labels that are all of one neighbour are found though the answers give that neighbour some probability."""
    level, labels = answers([40] * 6, 5.0)
    near = level.exp()
    near[:, 1] += 0.1 * near[:, 0]  # class 0 looks like class 1
    level = (near / near.sum(1, keepdim=True)).log()
    given_labels = labels.clone()
    given_labels[:4] = 1
    found = label_errors(level, given_labels)
    assert average_precision(found, given_labels != labels) > 0.9


def explained(level: Tensor, labels: list[int]) -> tuple[list[float], list[float]]:
    """Compute what `_explanations` does, image by image and class by class; each image weighs one."""
    classes = range(level.shape[1])
    chances = level.double().exp().tolist()
    totals = [0.5 + labels.count(c) for c in classes]
    frequency = [total / sum(totals) for total in totals]
    confusions = {}
    for true in classes:
        own = [row for row, label in zip(chances, labels, strict=True) if label == true]
        for other in classes:
            if other != true:
                more = frequency[other] / (1 - frequency[true])
                confusions[true, other] = sum(row[other] for row in own) + more
        whole = sum(confusions[true, other] for other in classes if other != true)
        for other in classes:
            if other != true:
                confusions[true, other] /= whole
    random = []
    confused = []
    for row, label in zip(chances, labels, strict=True):
        rest = [c for c in classes if c != label]
        random.append(sum(row[c] * frequency[c] for c in rest) / (1 - frequency[label]))
        confused.append(sum(row[c] * totals[c] * confusions[c, label] for c in rest) / totals[label])
    return random, confused


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 6))
def test_explanations_are_those_of_the_plain_sums(seed: int, classes: int) -> None:
    """Also in parts, the last of which is smaller, and with a class that no label has."""
    level, labels = answers([5] * classes, 2.0, seed)
    kept = labels != classes - 1
    if classes > 2:
        level, labels = level[kept], labels[kept]
    wanted = explained(level, labels.tolist())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_AT_ONCE", 4)
        found = module._explanations(level, labels, torch.ones(len(labels), dtype=torch.float64))
    for have, want in zip(found, wanted, strict=True):
        assert have.tolist() == pytest.approx(want, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), sharp=st.sampled_from([0.0, 1.0, 4.0, 20.0]))
def test_the_order_of_images_and_of_classes_does_not_matter(seed: int, sharp: float) -> None:
    """Probabilities lie between 0 and 1, also by answers at chance level."""
    level, labels = answers([12, 9, 6, 3], sharp, seed)
    labels = swapped(labels, 0.1, seed)
    found = label_errors(level, labels)
    assert bool(((found >= 0.0) & (found <= 1.0)).all())
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    names = torch.randperm(4, generator=generator)
    moved = torch.empty_like(level)
    moved[:, names] = level
    other = label_errors(moved[order], names[labels[order]])
    assert torch.allclose(other, found[order], atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_images_of_a_unit_count_as_one(seed: int) -> None:
    """Copies in the unit of an image change no probability."""
    level, labels = answers([12, 9, 6, 3], 3.0, seed)
    labels = swapped(labels, 0.1, seed)
    copies = torch.randint(1, 4, (len(labels),), generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(len(labels)).repeat_interleave(copies)
    found = label_errors(level[rows], labels[rows], [str(row) for row in rows.tolist()])
    assert torch.allclose(found, label_errors(level, labels)[rows], atol=1e-3)


def test_without_images_or_other_classes_nothing_is_wrong() -> None:
    """No image gives no probability; with one class no other could be meant."""
    nothing = label_errors(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert nothing.tolist() == []
    alone = label_errors(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    assert alone.tolist() == [0.0] * 4


def collection(seed: int, spread: float) -> tuple[Tensor, Tensor]:
    """Features [N, 16] of twenty classes, of 2 to 60 images each, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([round(2 * 30 ** (n / 19)) for n in range(20)])
    centres = torch.randn(20, 16, generator=generator)
    labels = torch.arange(20).repeat_interleave(counts)
    return centres[labels] + spread * torch.randn(len(labels), 16, generator=generator), labels


def held_out_answers(features: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities [N, C] by the PLDA without a fold of the images, calibrated on all of them."""
    images = unit_rows(features)
    numbered = torch.arange(len(labels))
    classes = int(labels.max()) + 1
    fold = deal_groups(labels, [str(n) for n in numbered.tolist()], row_keys(features), FOLDS)
    likelihoods = torch.empty(len(labels), classes)
    for number in range(FOLDS):
        rest = fold != number
        moments = Moments.of(images[None, rest], labels[rest], numbered[: int(rest.sum())], classes)
        model = fit_plda(moments, torch.zeros(classes, features.shape[1]), 1.0)
        likelihoods[~rest] = model.log_likelihoods(images[~rest])
    weights = image_weights(labels, torch.bincount(labels), numbered)
    return (fit_temperature(likelihoods, labels, weights) * likelihoods).log_softmax(1)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.6, 1.0])
@pytest.mark.parametrize("alike", [False, True])
def test_the_ranking_is_level_with_the_best_of_cleanlab(spread: float, alike: bool) -> None:
    """On the same held-out answers, wrong labels at random or of the nearest class; means over six collections."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    ours = []
    theirs: dict[str, list[float]] = {"self_confidence": [], "normalized_margin": []}
    flagged = []
    for seed in range(6):
        features, labels = collection(seed, spread)
        moved = swapped(labels, 0.08, seed)
        if alike:
            means = torch.stack([features[labels == c].mean(0) for c in range(20)])
            nearest = torch.cdist(means, means).fill_diagonal_(math.inf).argmin(1)
            moved = torch.where(moved == labels, labels, nearest[labels])
        wrong = moved != labels
        log_probabilities = held_out_answers(features, moved)
        found = label_errors(log_probabilities, moved)
        ours.append(average_precision(found, wrong))
        chances = log_probabilities.exp().numpy()
        for method, kept in theirs.items():
            quality = get_label_quality_scores(moved.numpy(), chances, method=method)
            kept.append(average_precision(-torch.from_numpy(quality), wrong))
        issues = torch.from_numpy(find_label_issues(moved.numpy(), chances, n_jobs=1))
        head = torch.zeros_like(wrong)
        head[found.argsort(descending=True)[: int(issues.sum())]] = True
        flagged.append([int((wrong & head).sum()), int((wrong & issues).sum())])
    best = max(sum(kept) for kept in theirs.values())
    assert sum(ours) / 6 >= best / 6 - 0.02
    here, there = (sum(numbers) for numbers in zip(*flagged, strict=True))
    assert here >= 0.95 * there
