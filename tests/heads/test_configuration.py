"""The choice of configuration and scalars by drawn out-of-fold tables."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest
import torch
from torch import Tensor

from vlltr_index.heads.configuration import (
    SHRINKAGES,
    TEMPERED,
    Chosen,
    Configuration,
    OutOfFold,
    TextLevel,
    choose,
)
from vlltr_index.heads.fusion import PartWeights
from vlltr_index.heads.weighing import fit_factors, image_weights, paired_mean, robust_nll

CLASSES = 4
NONE, PRIOR, ATTENTION = TextLevel


def drawn(
    images: int = 80,
    plain: float = 1.5,
    by_text: float = 2.0,
    wide: float = 0.0,
    text: float | None = 2.0,
    linear: float | None = None,
    burst: int = 1,
    seed: int = 0,
) -> OutOfFold:
    """Five folds of images, in groups of `burst`; each number is how well a part knows the class.

    Args:
        images: Number of images.
        plain: Of the PLDA without texts.
        by_text: Of the PLDA with texts.
        wide: What a stronger shrinkage adds to both.
        text: Of the text logits; None: there are none.
        linear: Of the linear classifier's logits; None: there is none.
        burst: Images in a group, which have the same scores.
        seed: Of the draw.
    """
    g = torch.Generator().manual_seed(seed)
    groups = torch.arange(images) // burst
    labels = torch.randint(0, CLASSES, (images,), generator=g)[groups]
    right = torch.nn.functional.one_hot(labels, CLASSES).double()
    noise = torch.randn(4, images, CLASSES, generator=g, dtype=torch.float64)[:, groups]
    known = {(k, told): by_text if told else plain for k in SHRINKAGES for told in (False, True)}
    return OutOfFold(
        labels=labels,
        folds=groups % 5,
        groups=groups,
        weights=image_weights(labels, torch.bincount(labels, minlength=CLASSES), groups),
        likelihoods={
            (k, told): 4.0
            * (
                (size + wide * (k > 1.0)) * right
                + noise[1 if told else 0]
                + SHRINKAGES.index(k) * noise[3] / 2.0
            )
            for (k, told), size in known.items()
        },
        text=None if text is None else text * right + noise[2],
        linear=None if linear is None else linear * right + noise[3],
    )


def plain_choice(table: OutOfFold) -> Chosen:
    """The rule written plainly: each fold's loss under scalars of the other folds, with all folds and without each."""

    def scalars(one: Configuration, rows: Tensor) -> list[float]:
        likely = table.likelihoods[one.shrinkage, one.level > NONE][rows]
        text = table.text[rows] if one.level == ATTENTION and table.text is not None else None
        known = table.labels[rows], table.weights[rows]
        factors = fit_factors([likely], text, *known)
        if table.linear is None:
            return factors
        u = factors[0] * likely if text is None else factors[0] * likely + factors[1] * text
        combined, linear = fit_factors([u, table.linear[rows]], None, *known)
        if not linear:
            return [*factors, 0.0, 1.0]
        return [*(combined * factor for factor in factors), linear, combined]

    def scores(one: Configuration, factors: list[float], rows: Tensor) -> Tensor:
        parts = [table.likelihoods[one.shrinkage, one.level > NONE][rows]]
        if one.level == ATTENTION and table.text is not None:
            parts.append(table.text[rows])
        parts += [] if table.linear is None else [table.linear[rows]]
        return sum(f * part for f, part in zip(factors, parts, strict=False)).log_softmax(1)  # type: ignore[union-attr]

    def best_among(folds: list[int]) -> Configuration:
        losses = dict[Configuration, Tensor]()
        inside = torch.isin(table.folds, torch.tensor(folds))
        for level in (NONE, PRIOR, ATTENTION):
            if level == ATTENTION and table.text is None:
                continue
            for shrinkage in SHRINKAGES:
                one = Configuration(shrinkage, level)
                loss = torch.zeros(len(table.labels), dtype=torch.float64)
                for fold in folds:
                    rows = table.folds == fold
                    given = scores(one, scalars(one, inside & ~rows), rows)
                    loss[rows] = robust_nll(given, table.labels[rows])
                losses[one] = loss[inside]
        weights, groups = table.weights[inside], table.groups[inside]
        kept = list[Configuration]()
        for level in dict.fromkeys(one.level for one in losses):
            best = Configuration(1.0, level)
            for wide in (Configuration(2.0, level), Configuration(math.inf, level)):
                worse, error = paired_mean((losses[best] - losses[wide])[None], weights, groups)
                best = wide if float(worse) > float(error) else best
            kept.append(best)
        return min(kept, key=lambda one: float(losses[one] @ weights))

    of_folds, answers = {}, torch.zeros(len(table.labels), CLASSES).double()
    everything = torch.ones_like(table.labels, dtype=torch.bool)

    def weights_of(one: Configuration, factors: list[float]) -> PartWeights:
        linear, combined = (0.0, 1.0) if table.linear is None else factors[-2:]
        text = factors[1] / combined if one.level == ATTENTION else 0.0
        return PartWeights(linear, factors[0] / combined, text, combined)

    for fold in range(5):
        one = best_among([other for other in range(5) if other != fold])
        factors = scalars(one, table.folds != fold)
        of_folds[fold] = one, weights_of(one, factors)
        answers[table.folds == fold] = scores(one, factors, table.folds == fold)
    chosen = best_among(list(range(5)))
    return Chosen(chosen, weights_of(chosen, scalars(chosen, everything)), of_folds, answers)


def same(one: PartWeights, other: PartWeights) -> bool:
    """Whether the scalars are equal up to rounding."""
    return all(
        a == pytest.approx(b, rel=1e-6, abs=1e-9) for a, b in zip(astuple(one), astuple(other), strict=True)
    )


@pytest.mark.parametrize(
    "table",
    [
        drawn(by_text=1.0, text=2.0, seed=1),
        drawn(text=None, seed=1),
        drawn(plain=2.5, by_text=0.5, text=-0.2, seed=2),
        drawn(linear=2.0, wide=0.4, text=None, seed=3),
        drawn(images=120, burst=3, seed=4),
    ],
    ids=["texts", "no attention", "wrong texts", "linear classifier", "bursts"],
)
def test_the_choice_equals_its_twin(table: OutOfFold) -> None:
    found, expected = choose(table), plain_choice(table)
    assert found.configuration == expected.configuration
    assert same(found.weights, expected.weights)
    for fold, (one, weights) in expected.of_folds.items():
        assert found.of_folds[fold][0] == one
        assert same(found.of_folds[fold][1], weights)
    torch.testing.assert_close(found.log_probabilities, expected.log_probabilities, rtol=1e-6, atol=1e-8)


def test_what_is_chosen_for_a_fold_does_not_depend_on_its_labels() -> None:
    """Nor does it on its scores; what is chosen for the others does."""
    table = drawn(60, by_text=1.6, wide=0.2, text=None)
    whole = choose(table)
    for fold in (0, 3):
        rows = table.folds == fold
        labels = torch.where(rows, (table.labels + 1) % CLASSES, table.labels)
        likelihoods = {
            key: torch.where(rows[:, None], -part, part) for key, part in table.likelihoods.items()
        }
        for other in (replace(table, labels=labels), replace(table, likelihoods=likelihoods)):
            found = choose(other)
            assert found.of_folds[fold][0] == whole.of_folds[fold][0]
            assert same(found.of_folds[fold][1], whole.of_folds[fold][1])
            other_fold = (fold + 1) % 5
            assert not same(found.of_folds[other_fold][1], whole.of_folds[other_fold][1])
        relabelled = choose(replace(table, labels=labels))
        torch.testing.assert_close(
            relabelled.log_probabilities[rows], whole.log_probabilities[rows], rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize(("images", "burst"), [(29, 1), (290, 10), (1, 1)])
def test_below_30_groups_nothing_is_chosen(images: int, burst: int) -> None:
    """Whatever the number of images: k = 1, the prior, beta = 1/12, gamma = lambda = 0, for each fold too."""
    table = drawn(images, plain=9.0, by_text=-3.0, wide=5.0, linear=3.0, burst=burst)
    found = choose(table)
    usual = Configuration(1.0, PRIOR)
    weights = PartWeights(image=0.0, generative=TEMPERED, text=0.0)
    assert (found.configuration, found.weights) == (usual, weights)
    assert set(found.of_folds) == set(table.folds.tolist())
    assert all(one == (usual, weights) for one in found.of_folds.values())
    expected = (TEMPERED * table.likelihoods[1.0, True]).log_softmax(1)
    torch.testing.assert_close(found.log_probabilities, expected)
    without = {key: part for key, part in table.likelihoods.items() if not key[1]}
    found = choose(replace(table, likelihoods=without, text=None))
    assert found.configuration == Configuration(1.0, NONE)
    assert choose(drawn(30 * burst, plain=9.0, by_text=-3.0, text=None, burst=burst)).weights != weights


def test_covariances_are_shrunk_more_only_where_that_is_clearly_likelier() -> None:
    """By more than a standard error: seldom by chance."""
    assert choose(drawn(wide=2.0, text=None)).configuration.shrinkage > 1.0
    assert choose(drawn(wide=-2.0, text=None)).configuration.shrinkage == 1.0
    chosen = [choose(drawn(60, wide=0.05, text=None, seed=seed)).configuration for seed in range(6)]
    assert [one.shrinkage for one in chosen].count(1.0) >= 4


def test_texts_are_used_as_far_as_they_make_answers_likelier() -> None:
    """Attention where it adds to the prior, the prior alone where it does not, neither where both are worse."""
    levels = {
        (2.0, 2.0): ATTENTION,
        (2.5, 0.0): PRIOR,
        (0.2, 0.0): NONE,
        (0.2, -1.0): NONE,
    }
    for (by_text, text), level in levels.items():
        found = choose(drawn(200, plain=1.5, by_text=by_text, text=text))
        if level == PRIOR and found.configuration.level == ATTENTION:
            assert found.weights.text < 0.1  # next to nothing: both levels give the same answers
            continue
        assert found.configuration.level == level
        assert (found.weights.text > 0.0) is (level == ATTENTION)


def test_the_linear_classifier_has_a_factor_where_there_is_one() -> None:
    assert choose(drawn(40, text=None)).weights.image == 0.0
    found = choose(drawn(40, linear=2.0, text=None))
    assert found.weights.image > 0.0
    assert all(weights.image > 0.0 for _, weights in found.of_folds.values())


def test_the_order_of_the_rows_does_not_matter() -> None:
    """Nor do the numbers of the classes, the groups, and the folds."""
    table = drawn(wide=0.3, by_text=1.7)
    found = choose(table)
    g = torch.Generator().manual_seed(0)
    rows, columns = torch.randperm(80, generator=g), torch.randperm(CLASSES, generator=g)
    place = columns.argsort()

    def moved(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[rows][:, columns]

    other = OutOfFold(
        labels=place[table.labels[rows]],
        folds=4 - table.folds[rows],
        groups=200 - table.groups[rows],
        weights=table.weights[rows],
        likelihoods={key: part[rows][:, columns] for key, part in table.likelihoods.items()},
        text=moved(table.text),
        linear=None,
    )
    again = choose(other)
    assert again.configuration == found.configuration
    assert same(again.weights, found.weights)
    assert all(again.of_folds[4 - fold][0] == one for fold, (one, _) in found.of_folds.items())
    torch.testing.assert_close(
        again.log_probabilities, found.log_probabilities[rows][:, columns], rtol=1e-6, atol=1e-8
    )
