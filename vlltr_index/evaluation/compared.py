"""Figures of an evaluation, computed from each row's answers: tensors in, records out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlltr_index.evaluation.metrics import (
    METHOD,
    AccuracyReport,
    Interval,
    Measure,
    accuracy_report,
    bin_masks,
    expected_calibration_error,
    paired_difference,
    under,
)

OWN_ROWS = (METHOD, "image branch", "text branch")
ADJUSTED = "image-only + logit adjustment"
"""The strongest image-only row: what the method is compared with unless another row is named."""


@dataclass(frozen=True, eq=False)
class RowAnswers:
    """Answers of one row of the table.

    Attributes:
        best: int64 [N, K], K at most 5: columns of the best classes, best first; -1 for a class that is gone.
        right: bool [N], whether the best is right.
        confidence: float [N], the best's probability; None for a row without probabilities.
    """

    best: Tensor
    right: Tensor
    confidence: Tensor | None


@dataclass(frozen=True, eq=False)
class Asked:
    """N images that were asked about.

    Attributes:
        labels: Int64 [N], columns of their classes.
        counts: Int64 [C], training images of each class.
        units: Int64 [N], the unit of each image.
        models: Int64 [N], the model that answered each image.
    """

    labels: Tensor
    counts: Tensor
    units: Tensor
    models: Tensor


def compared(
    answers: Mapping[str, RowAnswers],
    asked: Asked,
    against: str | None,
    priors: Sequence[str],
    rules: Sequence[str],
) -> dict[str, Any]:
    """Return accuracy and calibration error of each row, and the method less another row, as fields of the report.

    Args:
        answers: Of each row.
        asked: What was asked.
        against: A baseline or a branch that the method is compared with; None: see `pipelines.evaluate.evaluation`.
        priors: Names of the priors that there are answers of the method under, that of its own row first.
        rules: The baselines that the method may be compared with by default; each has a row.
    """
    labels = asked.labels
    units = asked.units
    rows = {
        name: accuracy_report(row.best, labels, asked.counts, units=units, models=asked.models)
        for name, row in answers.items()
    }
    measures = []
    for prior in priors:
        row = METHOD if prior == priors[0] else under(METHOD, prior)
        rule = _beside(rows, prior, against, rules)
        beside = less = None
        if rule is not None:
            beside = _row_under(rows, rule, prior)
            right = answers[row].right, answers[beside].right
            alike = labels if rows[row].alike(prior) else None
            less = paired_difference(*right, units=units, labels=alike)
        measures.append(Measure(prior, row, rule, beside, less))
    shown = measures[0].against
    return {
        "rows": rows,
        "calibration_error": {
            name: expected_calibration_error(
                row.confidence, row.right, labels if rows[name].alike(priors[0]) else None
            )
            for name, row in answers.items()
            if row.confidence is not None and not rows[name].top1["overall"].few
        },
        "differences": {} if shown is None else _differences(answers, shown, asked),
        "measures": tuple(measures),
        "against_asked": against is not None,
    }


def _beside(
    rows: Mapping[str, AccuracyReport], prior: str, against: str | None, rules: Sequence[str]
) -> str | None:
    """Return what the method is compared with under a prior, by default the baseline whose answers are best there."""
    if against is not None:
        return against
    if ADJUSTED in rules:
        return ADJUSTED
    return max(
        rules, key=lambda rule: rows[_row_under(rows, rule, prior)].measured(prior).value, default=None
    )


def _row_under(rows: Mapping[str, AccuracyReport], rule: str, prior: str) -> str:
    """Return the row of a rule's answers under a prior; if it knows none, its only row."""
    return under(rule, prior) if under(rule, prior) in rows else rule


def _differences(answers: Mapping[str, RowAnswers], against: str, asked: Asked) -> dict[str, Interval]:
    """Return the accuracy of the method less that of another row by bin, and with each class counted alike."""
    mine = answers[METHOD].right
    theirs = answers[against].right
    units = asked.units
    whole = paired_difference(mine, theirs, units=units)
    alike = paired_difference(mine, theirs, units=units, labels=asked.labels)
    masks = bin_masks(asked.labels, asked.counts, "release")
    del masks["overall"]
    parts = {
        name: paired_difference(mine[mask], theirs[mask], units=units[mask]) for name, mask in masks.items()
    }
    return {"overall": whole, "balanced": alike} | parts
