"""Labels that are probably wrong, from answers for images that were held out: tensors in, tensors out.

Two questions are answered apart. How probable wrong labels are: a wrong label is any other class's, or that of a class
with which the answers confuse the true one; how common either is, is found by expectation-maximisation. In what order
the labels are looked at: by the margin p_other - p_label, to which the margin of the logarithms is added as far as
labels contradict the answers altogether, and as the answers can be trusted. A small p_label alone says little: where
few images are learned from, right labels have it too. A logistic curve over the margin tells the probability.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlltr_index.heads.units import number_observations
from vlltr_index.heads.weighing import balanced_accuracy

_FIRST = 0.02  # share of each kind of wrong labels that the estimate starts from
_ROUNDS = 100
_LOGARITHMS = 3.0
"""Weight of the margin of the logarithms, times the share of contradicted labels and the accuracy squared."""
_NOTHING = 1e-6
_AT_ONCE = 4096


def label_errors(log_probabilities: Tensor, labels: Tensor, units: Sequence[str] | None = None) -> Tensor:
    """Estimate how probably each label is wrong, from answers that were held out: float64 [M].

    Args:
        log_probabilities: Float [M, C], of all classes as equally common; with one class no label is wrong.
        labels: Int64 [M], 0 to C - 1.
        units: The unit of each image: the images of a unit that have one label count as one. None: each is a unit.
    """
    if not len(labels) or log_probabilities.shape[1] < 2:
        return torch.zeros(len(labels), dtype=torch.float64)
    names = [str(n) for n in range(len(labels))] if units is None else units
    observations = number_observations(labels, names)
    weights = 1.0 / torch.bincount(observations)[observations].double()
    best = log_probabilities.scatter(1, labels[:, None], -torch.inf).amax(1).double()
    own = log_probabilities.gather(1, labels[:, None])[:, 0].double()
    random, confused = _explanations(log_probabilities, labels, weights)
    right = own.exp()
    contradicted = _mixture(right, random[:, None], weights) @ weights / weights.sum()
    accuracy = balanced_accuracy(log_probabilities, labels, observations)
    trust = _LOGARITHMS * float(contradicted) * accuracy**2
    margin = best.exp() - right + trust * (best - own)
    return _logistic(margin, _mixture(right, torch.stack([random, confused], 1), weights), weights)


def _explanations(log_probabilities: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the likelihoods of images, float64 [M] each, if their labels are wrong at random, or by a confusion.

    At random the true class is another one, as common as labels are. By a confusion, of the images of a class so many
    have each other class's label as the answers for that class give it probability.
    """
    count, classes = log_probabilities.shape
    totals = torch.full((classes,), 0.5, dtype=torch.float64).index_add_(0, labels, weights)
    frequency = totals / totals.sum()
    rest = 1.0 - frequency
    parts = torch.arange(count).split(_AT_ONCE)
    confusions = (frequency / rest[:, None]).float()  # as of one more image of each class
    for rows in parts:
        answers = log_probabilities[rows].float().exp() * weights[rows, None].float()
        confusions.index_add_(0, labels[rows], answers)
    confusions.fill_diagonal_(0.0)
    confusions *= (totals / confusions.sum(1).double()).float()[:, None]
    to_label = confusions.T / totals.float()[:, None]  # [label, true class]
    random = list[Tensor]()
    confused = list[Tensor]()
    for rows in parts:
        at = labels[rows]
        answers = log_probabilities[rows].float().exp().scatter(1, at[:, None], 0.0)
        random.append((answers @ frequency.float()).double() / rest[at])
        confused.append((answers * to_label[at]).sum(1).double())
    return torch.cat(random), torch.cat(confused)


def _mixture(right: Tensor, wrong: Tensor, weights: Tensor) -> Tensor:
    """Compute the probability that a label is wrong in one of K ways, each as common as is likeliest, float64 [M].

    Args:
        right: Float64 [M], the likelihood of each image if its label is right.
        wrong: Float64 [M, K], if it is wrong in each way.
        weights: Float64 [M], the weight of each image.
    """
    shares = torch.full((wrong.shape[1],), _FIRST, dtype=torch.float64)
    for _ in range(_ROUNDS):
        weighted = shares * wrong
        total = (1.0 - shares.sum()) * right + weighted.sum(1)
        posterior = weighted / total[:, None]
        shares = weights @ posterior / weights.sum()
    return posterior.sum(1)


def _logistic(margin: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Fit probabilities that rise with the margin to estimated ones; their weighted mean stays, float64 [M].

    The logarithm of the slope, for a standard deviation of the margin, has a standard normal prior.

    Args:
        margin, target, weights: Float64 [M].
    """
    shares = weights / weights.sum()
    centred = margin - shares @ margin
    scaled = centred / (shares @ centred.square()).sqrt().clamp(min=_NOTHING)
    wanted = target.clamp(_NOTHING, 1.0 - _NOTHING)
    offset = (shares @ wanted).logit().requires_grad_()
    log_slope = torch.zeros((), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([log_slope, offset], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        odds = log_slope.exp() * scaled + offset
        value = F.binary_cross_entropy_with_logits(odds, wanted, weights, reduction="sum")
        value = value + 0.5 * log_slope.square()
        value.backward()
        return value

    search.step(loss)
    return (log_slope.exp() * scaled + offset).sigmoid().detach()
