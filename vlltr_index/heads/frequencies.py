"""How common classes are among images without labels: expectation-maximisation on their scores.

The classes' frequencies among N images are those under which the images' scores are likeliest (Saerens, Latinne and
Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities", 2002), drawn to equal ones by a
symmetric Dirichlet prior. How much it draws is chosen on answers for held-out images, in collections made of these with
few classes and with all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlltr_index.heads.tree import HeldOutAnswers
from vlltr_index.heads.weighing import level_with_best

BEST = 64
"""Classes of an image that can have a part of its vote: those with the highest scores."""
_STRENGTHS = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
_LEAST_VOTES = 50.0  # of fewer images the prior draws as of so many
_ROUNDS = 100
_SIZES = (5, 20, 100)  # classes in a collection that the strength is tried on; and all
_DRAWS = 6
_MOST_LOST = 0.005
_NOTHING = 1e-7


def estimate(scores: Tensor, columns: Tensor, classes: int, votes: Tensor, strength: float) -> Tensor:
    """Estimate the logarithm of how common each class is among N images, float64 [C].

    Args:
        scores: Float [N, K], log-scores of the K best classes of each image, were all equally common.
        columns: Int64 [N, K], these classes.
        classes: Number of classes, C.
        votes: Float64 [N], the weight of each image.
        strength: Each class gets this many votes more, in units of the votes that a class has in the mean.
    """
    more = strength * (float(votes.sum()) + _LEAST_VOTES) / classes
    likely = scores.double()
    log_frequency = likely.new_full((classes,), 1.0 / classes).log()
    for _ in range(_ROUNDS):
        shares = (likely + log_frequency[columns]).softmax(1) * votes[:, None]
        counts = likely.new_full((classes,), more).index_add_(0, columns.flatten(), shares.flatten())
        before = log_frequency
        log_frequency = (counts / counts.sum()).log()
        if float((log_frequency - before).abs().max()) < 1e-4:
            break
    return log_frequency


def choose_strength(held_out: HeldOutAnswers) -> float | None:
    """Choose how strongly frequencies are drawn to equal ones.

    Collections of 5, 20, 100 and all classes, each class as common as the others, are made of the held-out images, each
    size several times. Of the strengths at which no size loses more than half a point of accuracy in the mean, the
    greatest is chosen whose gain is within a standard error of the best; None if there is none.

    Args:
        held_out: Answers, were all classes equally common.
    """
    there = held_out.labels.unique()
    # In an order that does not depend on the classes' numbers.
    there = there[held_out.probabilities[:, there].double().sum(0).argsort()]
    likely = held_out.probabilities.double().clamp(min=_NOTHING).log()
    generator = torch.Generator().manual_seed(0)
    sizes = [*(size for size in _SIZES if size < len(there)), len(there)]
    gains = torch.zeros(len(_STRENGTHS), len(sizes), _DRAWS, dtype=torch.float64)
    for column, size in enumerate(sizes):
        for number in range(_DRAWS):
            some = torch.isin(held_out.labels, there[torch.randperm(len(there), generator=generator)[:size]])
            gains[:, column, number] = _gains(likely[some], held_out.labels[some])
    harmless = (gains.mean(2) >= -_MOST_LOST).all(1)
    if not bool(harmless.any()):
        return None
    tried = gains[harmless].flatten(1)
    ones = torch.ones(tried.shape[1], dtype=torch.float64)
    level = level_with_best(-tried, ones, torch.arange(tried.shape[1]))
    return [strength for strength, good in zip(_STRENGTHS, harmless, strict=True) if good][int(level[0])]


def _gains(likely: Tensor, labels: Tensor) -> Tensor:
    """Measure what each strength gains in accuracy on images [N], each class counting alike."""
    counts = torch.bincount(labels)
    votes = 1.0 / counts[labels].double()
    best = likely.topk(min(BEST, likely.shape[1]))
    votes = votes * len(votes) / votes.sum()
    before = (likely.argmax(1) == labels).double()
    gains = []
    for strength in _STRENGTHS:
        found = estimate(best.values, best.indices, likely.shape[1], votes, strength)
        after = ((likely + found).argmax(1) == labels).double()
        gains.append(float(((after - before) * votes).sum() / votes.sum()))
    return torch.tensor(gains, dtype=torch.float64)
