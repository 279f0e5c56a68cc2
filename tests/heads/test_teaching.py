"""Tests of `vlltr_index.heads.teaching` against loops, whole covariance matrices, and drawn classes."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlltr_index.heads import teaching
from vlltr_index.heads.moments import Moments
from vlltr_index.heads.plda import SharedGaussian
from vlltr_index.heads.plda_fit import fit_plda
from vlltr_index.heads.teaching import alike_groups, join_by_average, most_teaching, same_class_ratios

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)


def some_shared(dim: int, seed: int) -> SharedGaussian:
    """Parameters at random, of classes without text."""
    g = torch.Generator().manual_seed(seed)
    spread = torch.rand(dim, generator=g, dtype=torch.float64) * 3.0 + 0.05
    return SharedGaussian(
        centre=torch.randn(dim, generator=g, dtype=torch.float64) * 0.1,
        basis=torch.randn(dim, dim, generator=g, dtype=torch.float64),
        spread=spread,
        text_centre=torch.zeros(dim, dtype=torch.float64),
        text_map=torch.zeros(dim, dim, dtype=torch.float64),
    )


def distances(features: Tensor, shared: SharedGaussian) -> Tensor:
    """Distances of pictures [N, N], at most 1, which is that of pictures of different classes."""
    rows = features.double() / features.double().norm(dim=1, keepdim=True)
    z = (rows - shared.centre) @ shared.basis
    weights = shared.blank / (1.0 + shared.blank)
    usual = (weights * 2.0 * (1.0 + shared.blank)).sum()
    squared = (weights * (z[:, None] - z).square()).sum(2) / usual
    return squared.clamp(max=1.0).sqrt()


def plain_order(doubt: Tensor, features: Tensor, units: list[str], shared: SharedGaussian) -> list[int]:
    """The order of `most_teaching` by loops over whole pairs."""
    distance = distances(features, shared)
    asked = [
        max((n for n, own in enumerate(units) if own == unit), key=lambda n: float(doubt[n]))
        for unit in dict.fromkeys(units)
    ]
    order: list[int] = []
    while asked:
        scores = [
            float(doubt[n]) * min((float(distance[n, other]) for other in order), default=1.0) for n in asked
        ]
        order.append(asked.pop(scores.index(max(scores))))
    others = [[m for m, unit in enumerate(units) if unit == units[n] and m != n] for n in order]
    return order + [m for some in others for m in some]


@quick
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8), wanted=st.integers(1, 40), seed=seeds)
def test_pictures_are_in_the_order_of_doubt_times_distance(sizes: list[int], wanted: int, seed: int) -> None:
    """As by loops; one picture of each unit before the second of any."""
    g = torch.Generator().manual_seed(seed)
    shared = some_shared(6, seed)
    units = [f"unit {n}" for n, size in enumerate(sizes) for _ in range(size)]
    features = torch.randn(len(units), 6, generator=g)
    answers = torch.randn(len(units), 4, generator=g, dtype=torch.float64).log_softmax(1)
    two = answers.sort(1, descending=True).values[:, :2].exp()
    found = most_teaching(answers, features, units, shared, wanted)
    assert found.tolist() == plain_order(two[:, 1] / two[:, 0], features, units, shared)[:wanted]
    assert sorted(most_teaching(answers, features, units, shared).tolist()) == list(range(len(units)))


def test_of_many_pictures_the_first_are_chosen_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are in the order of their doubt times their distance to these."""
    g = torch.Generator().manual_seed(0)
    shared = some_shared(6, 1)
    features = torch.randn(30, 6, generator=g)
    answers = torch.randn(30, 4, generator=g).log_softmax(1)
    two = answers.sort(1, descending=True).values[:, :2].exp()
    units = [str(n) for n in range(30)]
    exact = most_teaching(answers, features, units, shared)
    monkeypatch.setattr(teaching, "_ONE_BY_ONE", 10)
    found = most_teaching(answers, features, units, shared)
    assert found[:10].tolist() == exact[:10].tolist()
    score = two[:, 1] / two[:, 0] * distances(features, shared)[:, exact[:10]].amin(1)
    others = sorted(set(range(30)) - set(exact[:10].tolist()), key=lambda n: -float(score[n]))
    assert found[10:].tolist() == others


def test_a_copy_comes_after_what_is_new() -> None:
    """Of two equally doubtful pictures the one that is far from those before; a near copy in another unit is last."""
    shared = some_shared(4, 2)
    features = torch.eye(4)[[0, 0, 1, 2]]
    features[1, 3] = 1e-3
    answers = torch.tensor([[0.5, 0.5], [0.51, 0.49], [0.6, 0.4], [0.6, 0.4]]).log()
    found = most_teaching(answers, features, list("abcd"), shared).tolist()
    assert found[0] == 0
    assert found[-1] == 1


@quick
@given(dim=st.integers(1, 5), seed=seeds)
def test_ratios_are_those_of_whole_densities(dim: int, seed: int) -> None:
    """One mean for both pictures, or one for each: normal densities of both pictures with their whole covariance."""
    shared = some_shared(dim, seed)
    g = torch.Generator().manual_seed(seed)
    z = 3.0 * torch.randn(4, dim, generator=g, dtype=torch.float64)
    noise = torch.eye(dim, dtype=torch.float64)
    blank = shared.blank.diag()
    zero = torch.zeros(2 * dim, dtype=torch.float64)
    alone = torch.block_diag(noise + blank, noise + blank)
    joint = alone.clone()
    joint[:dim, dim:] = joint[dim:, :dim] = blank
    found = same_class_ratios(z, shared)
    for one, other in combinations(range(4), 2):
        both = torch.cat([z[one], z[other]])
        same, apart = (
            torch.distributions.MultivariateNormal(zero, covariance).log_prob(both)
            for covariance in (joint, alone)
        )
        torch.testing.assert_close(found[one, other], same - apart, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found[other, one], found[one, other])


def plain_joins(likeness: Tensor, least: float) -> set[frozenset[int]]:
    """Groups of average linkage, joined one pair after the other."""
    groups = [frozenset([n]) for n in range(len(likeness))]

    def mean(pair: tuple[frozenset[int], frozenset[int]]) -> float:
        return float(likeness[sorted(pair[0])][:, sorted(pair[1])].mean())

    while len(groups) > 1:
        one, other = max(combinations(groups, 2), key=mean)
        if mean((one, other)) <= least:
            break
        groups = [group for group in groups if group not in (one, other)] + [one | other]
    return set(groups)


@quick
@given(count=st.integers(2, 14), least=st.floats(-1.0, 1.0), seed=seeds)
def test_groups_are_those_of_average_linkage(count: int, least: float, seed: int) -> None:
    """Average linkage finds what joining the closest pair again and again does."""
    g = torch.Generator().manual_seed(seed)
    half = torch.randn(count, count, generator=g, dtype=torch.float64)
    likeness = half + half.T
    found = join_by_average(likeness, least)
    groups = {frozenset((found == n).nonzero()[:, 0].tolist()) for n in range(int(found.max()) + 1)}
    assert groups == plain_joins(likeness, least)


def drawn(classes: int, images: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features [C * n, D] about class means, and labels."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, dim, generator=g)
    labels = torch.arange(classes).repeat_interleave(images)
    return means[labels] + 0.3 * torch.randn(len(labels), dim, generator=g), labels


def fitted(features: Tensor, labels: Tensor, classes: int) -> SharedGaussian:
    """The parameters of classes without text."""
    rows = torch.nn.functional.normalize(features)
    moments = Moments.of(rows[None], labels, torch.arange(len(rows)), classes)
    return fit_plda(moments, torch.zeros(classes, features.shape[1])).shared


def test_unknown_classes_are_found() -> None:
    """Each is a group of its own, the one with the most units first; two pictures of a class are none."""
    features, labels = drawn(24, 12, 24, seed=0)
    known = labels < 20
    shared = fitted(features[known], labels[known], 20)
    sizes = torch.tensor([0] * 20 + [6, 12, 9, 2])
    rejected = torch.arange(len(labels)) % 12 < sizes[labels]
    units = [str(n) for n in range(int(rejected.sum()))]
    found = alike_groups(features[rejected], units, shared)
    assert [labels[rejected][group].unique().tolist() for group in found] == [[21], [22], [20]]
    assert [len(group) for group in found] == [12, 9, 6]


def test_units_count_not_pictures() -> None:
    """Many pictures of two units are no group; with a third unit they are, all of them."""
    features, labels = drawn(21, 10, 24, seed=1)
    shared = fitted(features[labels < 20], labels[labels < 20], 20)
    unknown = features[labels == 20]
    assert alike_groups(unknown, list("aaaaabbbbb"), shared) == []
    (group,) = alike_groups(unknown, list("aaaaabbbbc"), shared)
    assert group.tolist() == list(range(10))
    assert alike_groups(unknown[:0], [], shared) == []
