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

BRANCHES = (METHOD, "image branch", "text branch")
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
    answers: Mapping[str, RowAnswers], asked: Asked, against: str | None, priors: Sequence[str]
) -> dict[str, Any]:
    """Return accuracy and calibration error of each row, and the method less another row, as fields of the report.

    Args:
        answers: Of each row.
        asked: What was asked.
        against: A baseline or a branch that the method is compared with; None: see `pipelines.evaluate.evaluation`.
        priors: Names of the priors that there are answers of the method under, that of its own row first.
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
        beside = _beside(rows, prior, against)
        less = None
        if beside is not None:
            whole = labels if prior == "balanced" else None
            right = answers[row].right, answers[beside].right
            less = paired_difference(*right, units=units, labels=whole)
        measures.append(Measure(prior, row, beside, less))
    shown = measures[0].against
    return {
        "rows": rows,
        "calibration_error": {
            name: expected_calibration_error(row.confidence, row.right)
            for name, row in answers.items()
            if row.confidence is not None and not rows[name].top1["overall"].few
        },
        "differences": {} if shown is None else _differences(answers, shown, asked),
        "against": shown,
        "measures": tuple(measures),
    }


def _beside(rows: dict[str, AccuracyReport], prior: str, against: str | None) -> str | None:
    """Return the row that the method is compared with under a prior, by default the best baseline.

    A baseline that was named is taken under the same prior, if it knows it; of the others, some may be better without.
    """
    for named in (against, ADJUSTED):
        if named is not None and named in rows:
            return under(named, prior) if under(named, prior) in rows else named
    own = (*BRANCHES, *(under(METHOD, prior) for prior in ("balanced", "training")))
    ends = under("", "training")
    found = [name for name in rows if name not in own and (prior == "training" or not name.endswith(ends))]
    return max(found, key=lambda name: rows[name].measured(prior).value, default=None)


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
