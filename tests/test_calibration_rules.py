"""Fitting fusion under each rule: what is fitted is what that rule uses."""

from __future__ import annotations

import pytest
import torch
from test_calibration import branches

from vlltr_index.calibration import fit_fusion
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
