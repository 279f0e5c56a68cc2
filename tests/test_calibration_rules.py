"""Fitting fusion under each rule: what is fitted is what that rule uses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_calibration import branches

from vlltr_index.calibration import BranchLogits, balanced_accuracy, fit_fusion, fit_imprints
from vlltr_index.errors import InputError
from vlltr_index.fusion import FusionParams, Rule, fuse


@pytest.mark.parametrize("rule", ["ours", "paper", "logits"])
def test_the_fit_is_for_the_rule_asked_for(rule: Rule) -> None:
    """The parameters carry it, the accuracy is that rule's, and the sum of raw logits keeps them raw."""
    old, new = branches(3, 300, 14, 10), branches(4, 150, 14, 10, only_new=True)
    trained, rows = torch.arange(14) < 10, torch.arange(10)
    fit = fit_fusion(old, new, rows, trained, rule=rule)
    assert fit.params.rule == rule
    if rule == "logits":
        assert fit.params == FusionParams(margin=fit.params.margin, rule=rule)
    else:
        assert (fit.params.tau_visual, fit.params.tau_text) != (1.0, 1.0)
    answers = fuse(old.visual, old.text, rows, trained, fit.params).probabilities.argmax(1)
    right = (answers == old.labels).double()
    per_class = [right[old.labels == c].mean() for c in old.labels.unique().tolist()]
    assert fit.old_with_new == pytest.approx(float(torch.stack(per_class).mean()))


def imprinted_world(seed: int) -> tuple[BranchLogits, BranchLogits, torch.Tensor, torch.Tensor]:
    """Ten trained classes with rows and four with imprinted ones, whose logits stand two nats too low."""
    old, new = branches(seed, 300, 14, 10), branches(seed + 1, 150, 14, 10, only_new=True)
    generator = torch.Generator().manual_seed(seed)

    def rows(images: BranchLogits) -> BranchLogits:
        extra = torch.randn(len(images.labels), 4, generator=generator, dtype=torch.float64) - 2
        extra += 4 * torch.nn.functional.one_hot(images.labels, 14)[:, 10:]
        return replace(images, visual=torch.cat([images.visual, 3 * extra], 1))

    return rows(old), rows(new), torch.arange(14), torch.arange(14) < 10


@pytest.mark.parametrize("seed", [5, 6])
def test_imprinted_rows_are_as_good_as_any_on_the_grid(seed: int) -> None:
    """No strength and lift does more for the new classes without costing the old ones more than allowed."""
    old, new, rows, trained = imprinted_world(seed)
    params = FusionParams(0.5, margin=1.0)
    fit = fit_imprints(old, new, rows, trained, -1.0, params, max_loss=0.05)
    assert replace(fit.params, imprint_strength=0.8, imprint_lift=1.0) == params
    alone = fuse(old.visual[:, :10], old.text[:, :10], rows[:10], trained[:10], params).probabilities

    def answers(images: BranchLogits, strength: float, lift: float) -> torch.Tensor:
        visual = images.visual.clone()
        visual[:, 10:] = -1.0 + lift + strength * (visual[:, 10:] + 1.0)
        return fuse(visual, images.text, rows, trained, params).probabilities

    def allowed(strength: float, lift: float) -> bool:
        share = 1 / torch.bincount(old.labels)[old.labels].double() / len(old.labels.unique())
        lost = (alone.argmax(1) == old.labels).double()
        lost -= (answers(old, strength, lift).argmax(1) == old.labels).double()
        loss = (share * lost).sum()
        return float(loss + 1.645 * (share * (lost - loss)).square().sum().sqrt()) <= 0.05

    best = (fit.params.imprint_strength, fit.params.imprint_lift)
    assert allowed(*best)
    assert fit.new == pytest.approx(balanced_accuracy(answers(new, *best), new.labels))
    assert fit.old_with_new == pytest.approx(balanced_accuracy(answers(old, *best), old.labels))
    text = fuse(new.visual[:, :10], new.text, rows[:10], trained, params).probabilities
    assert fit.new_from_text == pytest.approx(balanced_accuracy(text, new.labels))
    for strength in (0.2, 0.5, 0.8, 1.0, 1.2):
        for lift in (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0):
            if allowed(strength, lift):
                assert balanced_accuracy(answers(new, strength, lift), new.labels) <= fit.new + 1e-9


def test_imprinted_rows_where_none_is_cheap_enough() -> None:
    """Then the cheapest is taken; and there is nothing to fit without images or rows."""
    old, new, rows, trained = imprinted_world(7)
    fit = fit_imprints(old, new, rows, trained, -1.0, FusionParams(0.5, margin=-3.0), max_loss=0.0)
    loose = fit_imprints(old, new, rows, trained, -1.0, FusionParams(0.5, margin=-3.0), max_loss=1.0)
    assert fit.old_with_new > loose.old_with_new
    assert fit.new < loose.new
    nothing = BranchLogits(new.visual[:0], new.text[:0], new.labels[:0])
    for case in ((old, nothing, rows), (nothing, new, rows), (old, new, torch.where(trained, rows, -1))):
        with pytest.raises(InputError, match="imprinted rows are fitted on such rows, and on images of"):
            fit_imprints(*case, trained, -1.0, FusionParams())
