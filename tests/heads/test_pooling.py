"""Images of a unit together: means, parts, and what is taken at once."""

from __future__ import annotations

from functools import partial
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlltr_index.heads.fusion import FusedScores
from vlltr_index.heads.pooling import log_means, together, worths
from vlltr_index.heads.weighing import fit_correlation


def scores(features: Tensor, prior: bool = False) -> FusedScores:
    """Scores of three classes, by the features [N, 6] themselves."""
    visual, text = features[:, :3], features[:, 3:]
    common = 0.5 * features[:, :3].sin() if prior else None
    whole = visual + text if common is None else visual + text + common
    return FusedScores(whole.softmax(1), visual, text, visual.softmax(1), text.softmax(1), 2 * text, common)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    correlation=st.sampled_from([0.0, 0.4, 1.0]),
    prior=st.booleans(),
    spread=st.sampled_from([1.0, 300.0]),
    seed=st.integers(0, 99),
)
def test_units_are_scored_as_the_formula_says(
    sizes: list[int], correlation: float, prior: bool, spread: float, seed: int
) -> None:
    """Also where probabilities are rounded to zero. A unit of one image is the image."""
    g = torch.Generator().manual_seed(seed)
    units = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    units = units[torch.randperm(len(units), generator=g)]
    features = spread * torch.randn(len(units), 6, generator=g, dtype=torch.float64)
    found = together(lambda rows: scores(rows, prior), features, units, "ours", correlation)
    every = scores(features, prior)
    for unit, size in enumerate(sizes):
        own = units == unit
        worth = size / (1.0 + (size - 1.0) * correlation)
        whole = (every.visual_part + every.text_part)[own].log_softmax(1).logsumexp(0)
        image = every.visual_part[own].log_softmax(1).logsumexp(0)
        expected = worth * (whole - torch.tensor(size).log())
        if every.prior_part is not None:
            expected = expected + every.prior_part[own].mean(0)
        close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)  # scores of 1,000 cancel
        close(found.log_scores[unit], expected)
        close(found.probabilities[unit], expected.softmax(0))
        close(found.visual_part[unit], worth * (image - torch.tensor(size).log()))
        torch.testing.assert_close(found.text_logits[unit], every.text_logits[own].mean(0))
        if size == 1:
            torch.testing.assert_close(found.probabilities[unit], every.probabilities[own][0])
        if not prior and spread == 1.0:
            mean = (every.visual_part + every.text_part)[own].softmax(1).mean(0)
            assert int(found.probabilities[unit].argmax()) == int(mean.argmax())


@pytest.mark.parametrize("rule", ["ours", "paper", "logits"])
def test_parts_of_many_images_add_up(rule: Literal["ours", "paper", "logits"]) -> None:
    """More images than are scored at once, units lying across; the score is asked for so many at most."""
    g = torch.Generator().manual_seed(0)
    features = torch.randn(1300, 6, generator=g, dtype=torch.float64)
    units = torch.arange(1300) % 7
    asked = []

    def score(rows: Tensor) -> FusedScores:
        asked.append(len(rows))
        return scores(rows)

    found = together(score, features, units, rule, 0.2)
    assert max(asked) < 1300 == sum(asked)
    for unit in range(7):
        alone = together(
            scores, features[units == unit], torch.zeros(int((units == unit).sum())).long(), rule, 0.2
        )
        for one, other in zip(found.tensors, alone.tensors, strict=True):
            torch.testing.assert_close(one[unit], other[0])
    if rule == "paper":
        torch.testing.assert_close(found.probabilities[0], scores(features[units == 0]).probabilities.mean(0))


def test_what_units_are_worth() -> None:
    """From one, for copies, to the number of images."""
    units = torch.tensor([0, 1, 1, 1, 1])
    assert worths(units, 1.0).tolist() == [1.0, 1.0]
    assert worths(units, 0.0).tolist() == [1.0, 4.0]
    assert worths(units, 0.5).tolist() == [1.0, 1.6]
    shares = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(log_means(shares.log(), units).exp(), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))


def test_the_correlation_of_units_is_found() -> None:
    """Images of a unit share a part of their error, or none; without units of several images it is 1."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(400)
    units = torch.arange(1200) // 4
    own = torch.randn(300, 3, generator=g)[units]
    noise = torch.randn(1200, 3, generator=g)
    found = []
    for alike in (0.0, 0.5, 0.99):
        error = alike**0.5 * own + (1.0 - alike) ** 0.5 * noise
        evidence = (
            torch.nn.functional.one_hot(labels, 3) + 1.5 * error
        )  # log-odds of 1 / 1.5^2 a unit of evidence
        found.append(fit_correlation(evidence / 2.25, labels, units, torch.ones(1200).double() / 4))
    assert found[0] < found[1] < found[2]
    assert found[0] < 0.15
    assert found[2] > 0.85
    assert fit_correlation(evidence, labels, torch.arange(1200), torch.ones(1200).double()) == 1.0
