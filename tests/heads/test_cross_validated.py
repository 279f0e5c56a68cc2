"""Held-out answers in closed form: nobody answers what it was fitted to."""

from __future__ import annotations

import torch
from torch import Tensor

from vlltr_index.heads.cross_validated import cross_validate
from vlltr_index.heads.dealing import answerable, deal_units
from vlltr_index.heads.moments import Moments
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import fit_model
from vlltr_index.heads.units import number_observations
from vlltr_index.heads.weighing import SHRINKAGES, Covariances, fit_temperature, image_weights
from vlltr_index.tensors import unit_rows

CLASSES = 4
DIM = 8


def clouds(each: int, seed: int = 0, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Features of classes about orthogonal means, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(each)
    means = torch.eye(CLASSES, DIM)
    return means[labels] + spread * torch.randn(len(labels), DIM, generator=generator), labels


def test_each_fold_is_answered_by_a_model_of_the_others() -> None:
    """As one model a fold gives, under one of the candidate settings, calibrated on what it answers."""
    features, labels = clouds(12)
    units = [str(n) for n in range(len(labels))]
    prototypes = torch.zeros(CLASSES, DIM)
    found = cross_validate(features, labels, units, prototypes)
    fold = deal_units(labels, units, 5)
    assert torch.equal(found.asked, answerable(labels, fold).nonzero()[:, 0])
    images = unit_rows(features)
    weights = image_weights(labels, torch.bincount(labels), torch.arange(len(labels)), power=1.0)
    twins = []
    for shrinkage in SHRINKAGES:
        for step in range(-12, 17):
            likelihoods = torch.empty(len(labels), CLASSES)
            for number in range(5):
                rest = fold != number
                numbered = number_observations(labels[rest], [str(n) for n in range(int(rest.sum()))])
                moments = Moments.of(images[None, rest], labels[rest], numbered, CLASSES)
                shared = fit_model(moments, prototypes, shrinkage).shared
                model = Covariances(shrinkage, 2.0 ** (step / 4)).noisy(
                    PLDA(shared, moments.counts, moments.sums, prototypes)
                )
                likelihoods[fold == number] = model.log_likelihoods(images[fold == number])
            twins.append((fit_temperature(likelihoods, labels, weights) * likelihoods).log_softmax(1))
    assert min(float((twin - found.log_probabilities).abs().max()) for twin in twins) < 1e-4


def test_wrong_labels_do_not_vouch_for_themselves() -> None:
    """An image under another class's label is answered as what it shows; copies of it under that label do not help."""
    features, labels = clouds(15, spread=0.15)
    features[3:6] = features[0]
    labels[[0, 3, 4, 5]] = 2
    units = ["copies" if n in (0, 3, 4, 5) else str(n) for n in range(len(labels))]
    found = cross_validate(features, labels, units, torch.zeros(CLASSES, DIM))
    answers = dict(zip(found.asked.tolist(), found.log_probabilities.argmax(1).tolist(), strict=True))
    assert [answers[n] for n in (0, 3, 4, 5)] == [0, 0, 0, 0]


def test_what_cannot_be_held_out_is_not_asked() -> None:
    """A class of one unit, and where there is no other, nothing at all."""
    features, labels = clouds(5)
    units = ["one" if owner == 0 else str(n) for n, owner in enumerate(labels.tolist())]
    found = cross_validate(features, labels, units, torch.zeros(CLASSES, DIM))
    assert found.asked.tolist() == list(range(5, 20))
    assert torch.allclose(found.log_probabilities.exp().sum(1), torch.ones(15), atol=1e-5)
    alone = cross_validate(features, labels, ["one"] * 20, torch.zeros(CLASSES, DIM))
    assert (alone.asked.shape, alone.log_probabilities.shape) == ((0,), (0, CLASSES))
