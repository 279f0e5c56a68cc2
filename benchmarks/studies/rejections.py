"""Rejection of unknown images on small collections: related unknown classes, and foreign ones.

    python -m benchmarks rejections run
    python -m benchmarks rejections table

Random collections, by the shipped encoder's vectors; the PLDA is fitted by `train lgr`'s own function, without texts.
Related are ten other classes of the same source, foreign the classes of another one: icons for glyphs. The score of
`predict --reject` is the sum of two, each divided by its spread over held-out pictures: the best log-likelihood, and
its ratio to the likelihood under a class of which nothing is known, N(centre, Sigma + Lambda_0). Both are compared
alone, and so is the largest probability. The score was chosen on the draws 0 to 39, so that others are measured.
*Strays*: one in a hundred of the training pictures is a foreign one, under the label of the picture that it replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.collections.sources import draw
from benchmarks.intervals import normal
from benchmarks.kept import draws_of
from benchmarks.studies.vectors import features_of_kinds, fitted
from benchmarks.study import Results, Setting, Study, table
from vlltr_index.heads.checkpoint import RuleParameters
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.rejection import fit_parts, fit_scores
from vlltr_index.tensors import unit_rows

COLLECTIONS = (
    ("heldout", "10x5"),
    ("heldout", "40x8"),
    ("train", "10x20"),
    ("train", "200x3"),
    ("icons", "10x20"),
    ("icons", "40x8"),
    ("icons", "99x3"),
    ("icons", "60xall"),
)
SCORE, LIKELIHOOD, RATIO, LARGEST = SCORES = (
    "the sum",
    "best log-likelihood",
    "ratio to an unknown class",
    "largest probability",
)
_SEEDS = range(40, 48)
UNKNOWN = ("related", "foreign")
_FOREIGN = "20x5"
_STRAYS = 0.01


def settings() -> list[Setting]:
    """Return the collections."""
    return [
        Setting(f"{source}-{size}", _SEEDS, partial(measured, source, size)) for source, size in COLLECTIONS
    ]


def measured(source: str, size: str, number: int) -> dict[str, Any]:
    """Return how each score tells one draw's test pictures from unknown ones, and what `--reject` would let in."""
    drawn = draw(source, size, number)
    elsewhere = draw("heldout" if source == "icons" else "icons", _FOREIGN, number)
    train, labels = features_of_kinds(drawn.kinds, test=False)
    known, _ = features_of_kinds(drawn.kinds)
    unknown = {
        "related": features_of_kinds(drawn.others)[0],
        "foreign": features_of_kinds(elsewhere.kinds)[0],
    }
    model, parts = fitted(train, labels, len(drawn.kinds))
    level = parts.ood_threshold
    assert level is not None
    own = scores(model, parts, known)
    found: dict[str, Any] = {
        "images": len(train),
        "foreseen": parts.unknown_accepted,
        "known": _share(own[SCORE] >= level),
    }
    for what, pictures in unknown.items():
        other = scores(model, parts, pictures)
        found[what] = {"accepted": _share(other[SCORE] >= level)}
        truth = torch.cat([torch.ones(len(known)), torch.zeros(len(pictures))]).bool()
        for name, values in own.items():
            both = torch.cat([values, other[name]])
            found[what][name] = [round(auroc(both, truth), 4), round(fpr95(both, truth), 4)]
    strange, _ = features_of_kinds(elsewhere.kinds, test=False)
    model, parts = fitted(_with_strays(train, strange, number), labels, len(drawn.kinds))
    level = parts.ood_threshold
    assert level is not None
    found["foreign"]["beside strays"] = _share(scores(model, parts, unknown["foreign"])[SCORE] >= level)
    return found


def _with_strays(train: Tensor, foreign: Tensor, number: int) -> Tensor:
    """Put foreign pictures in the place of one in a hundred, at least one."""
    chance = torch.Generator().manual_seed(number)
    some = max(1, round(_STRAYS * len(train)))
    spoiled = train.clone()
    spoiled[torch.randperm(len(train), generator=chance)[:some]] = foreign[
        torch.randperm(len(foreign), generator=chance)[:some]
    ]
    return spoiled


def scores(model: PLDA, parts: RuleParameters, features: Tensor) -> dict[str, Tensor]:
    """Return each score of images [N, D], float64 [N]; larger means more likely known."""
    images = unit_rows(features).double()
    likelihoods = model.log_likelihoods(images)
    chances = (parts.weights.generative * likelihoods).softmax(1)
    found = fit_parts(model, images)
    best, ratio = found.unbind(1)
    return {
        SCORE: fit_scores(found, parts.ratio_weight),
        LIKELIHOOD: best,
        RATIO: ratio,
        LARGEST: chances.amax(1),
    }


def auroc(scores: Tensor, positives: Tensor) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    Args:
        scores: Float [N], larger means more likely positive.
        positives: Bool [N]; for rejection: the image is of a known class.

    Raises:
        ValueError: Lengths differ, a score is NaN, or one of the two sides is empty.
    """
    values, right = _two_sides(scores, positives)
    ordered = values[~right].sort().values
    above = torch.searchsorted(ordered, values[right]) + torch.searchsorted(
        ordered, values[right], right=True
    )
    return float(above.double().mean() / (2 * len(ordered)))


def fpr95(scores: Tensor, positives: Tensor) -> float:
    """Share of negatives accepted at the highest threshold that accepts at least 95 % of the positives.

    Args:
        scores: Float [N], larger means more likely positive; a score at the threshold is accepted.
        positives: Bool [N].

    Raises:
        ValueError: As `auroc`.
    """
    values, right = _two_sides(scores, positives)
    accepted = values[right].sort(descending=True).values
    threshold = accepted[-(-95 * len(accepted) // 100) - 1]
    return float((values[~right] >= threshold).double().mean())


def _two_sides(scores: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    right = positives.bool()
    if bool(scores.isnan().any()) or not bool(right.any()) or bool(right.all()):
        raise ValueError("scores must be numbers, with at least one positive and one negative")
    return scores.double(), right


def _share(accepted: Tensor) -> float:
    return round(float(accepted.double().mean()), 4)


def generated(results: Results) -> str:
    """Return the tables as Markdown."""
    lines = [
        "AUROC / percentage of unknown images accepted where 95% of the known ones are, by score; then the percentages"
        " that `--reject` accepts, also with strays, and the false-accept rate that `train lgr` estimates from classes"
        " that it leaves out. Means over draws, each with its own classes.",
        "",
        *table(
            ["collection", "draws", "unknown", *SCORES, "known", "unknown", "with strays", "estimated"],
            [
                _line(f"{source} {size}", draws_of(results[f"{source}-{size}"]), what)
                for source, size in COLLECTIONS
                if f"{source}-{size}" in results
                for what in UNKNOWN
            ],
        ),
        "",
        *_paired([draw for unit in results.values() for draw in draws_of(unit)]),
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, draws: Sequence[dict[str, Any]], what: str) -> list[str]:
    cells = [name, str(len(draws)), what]
    for score in SCORES:
        area, accepted = np.mean([draw[what][score] for draw in draws], axis=0)
        cells.append(f"{area:.3f} / {100 * accepted:.0f}")
    strays = [draw[what]["beside strays"] for draw in draws if "beside strays" in draw[what]]
    estimated = [draw["foreseen"] for draw in draws if draw["foreseen"] is not None and what == "related"]
    return [
        *cells,
        _percent([draw["known"] for draw in draws]),
        _percent([draw[what]["accepted"] for draw in draws]),
        _percent(strays),
        _percent(estimated),
    ]


def _percent(shares: Sequence[float]) -> str:
    return f"{100 * np.mean(shares):.0f}" if shares else "-"


def _paired(draws: Sequence[dict[str, Any]]) -> list[str]:
    """Return by how much the AUROC of scores differs, with 95% intervals over draws."""
    rows = []
    for one, other in ((SCORE, LIKELIHOOD), (SCORE, RATIO), (RATIO, LIKELIHOOD)):
        for what in UNKNOWN:
            gains = [draw[what][one][0] - draw[what][other][0] for draw in draws]
            rows.append([one, other, what, normal(gains).shown(3, 1.0)])
    return table(["AUROC of", "less that of", "unknown", f"{len(draws)} draws"], rows)


STUDY = Study({"results/reject.md": generated}, settings)
