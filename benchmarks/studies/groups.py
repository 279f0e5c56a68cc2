"""Pictures of a unit that are answered together, beside what is simpler: each alone, a vote, the mean of answers.

    python -m benchmarks groups run
    python -m benchmarks groups table

The kinds of collections are those of `honest_figure`; vectors of the shipped encoder, which suits drawings on plain
ground alone; the generative model is fitted by `train lgr`'s own function, without texts. Asked are whole new units.
*Density of the mean* asks the generative model for the mean of the pictures' vectors, its variance falling as they are
independent.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks.kept import keep_draws, read
from benchmarks.studies.heldout import features_of
from benchmarks.studies.honest_figure.collections import CLASSES, KINDS, Picture, drawn_units
from benchmarks.studies.paired import mean_interval
from benchmarks.studies.rejections import SHIPPED, fitted
from benchmarks.study import Command, Study
from vlltr_index.embedding.loading import recipe_encoder
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.evaluation.metrics import expected_calibration_error
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.pooling import log_means, unit_means, worths
from vlltr_index.heads.weighing import item_nll
from vlltr_index.tensors import unit_rows

COLLECTIONS = tuple(name for name in KINDS if name != "single")
ALONE, VOTE, MEAN, PRODUCT, DENSITY, TOGETHER = (
    "each picture", "vote", "mean of answers", "product of answers", "density of the mean", "together"
)  # fmt: skip
ROWS = (ALONE, VOTE, MEAN, PRODUCT, DENSITY, TOGETHER)
_NEW = 16
_NOTHING = 1e-7


def run(draws: int) -> None:
    """Measure the draws that are not measured yet."""
    encoder = recipe_encoder(SHIPPED).eval()
    for name in COLLECTIONS:
        keep_draws("groups", name, range(draws), partial(measured, encoder, name))


def measured(encoder: Encoder, name: str, number: int) -> dict[str, Any]:
    """Return what each row has right in one draw, in `ROWS`, and how alike the images of a unit were found to be."""
    learned, fresh = drawn_units(KINDS[name], number, _NEW)
    features, labels, units = _stacked(encoder, learned)
    model, parts = fitted(features, labels, CLASSES, units)
    asked, answers, units = _stacked(encoder, fresh)
    units = units.unique(return_inverse=True)[1]
    worth = worths(units, parts.correlation)[:, None]
    sizes = torch.bincount(units)[:, None]
    truth = torch.empty(len(sizes), dtype=torch.int64).scatter_(0, units, answers)
    images = unit_rows(asked).double()
    weight = parts.weights.generative
    alone = (weight * model.log_likelihoods(images)).log_softmax(1)
    mean = log_means(alone, units)
    votes = unit_means(one_hot(alone.argmax(1), CLASSES).double(), units)
    density = weight * _density_of_means(model, unit_means(images, units), worth)
    rows = {
        ALONE: (alone, answers),
        VOTE: ((votes + 1e-3 * mean.exp()).clamp(min=_NOTHING).log(), truth),
        MEAN: (mean, truth),
        PRODUCT: (sizes * unit_means(alone, units), truth),
        DENSITY: (density, truth),
        TOGETHER: (worth * mean, truth),
    }
    found = {row: _measures(scores, of) for row, (scores, of) in rows.items()}
    return {"correlation": parts.correlation, "pictures": len(fresh), "units": len(truth), **found}


def _density_of_means(model: PLDA, means: Tensor, worth: Tensor) -> Tensor:
    """Compute log N(x; m_c, 1 / worth + v_c - 1), up to a constant, of mean features x [U, D]: [U, C]."""
    shared = model.shared
    z = shared.coordinates(means)[:, None]
    middle, variance = model.posterior
    width = variance + (1.0 / worth[:, :, None] - 1.0)
    return -0.5 * ((z - middle).square() / width + width.log()).sum(2)


def _stacked(encoder: Encoder, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor, Tensor]:
    """Return features [N, D], classes and units, int64 [N]."""
    labels, units, files = zip(*pictures, strict=True)
    return features_of(encoder, files), torch.tensor(labels), torch.tensor(units)


def _measures(scores: Tensor, labels: Tensor) -> list[float]:
    """Return accuracy, calibration error and NLL."""
    sure, best = scores.softmax(1).max(1)
    right = best == labels
    values = (
        float(right.double().mean()),
        expected_calibration_error(sure, right),
        float(item_nll(scores, labels).mean()),
    )
    return [round(value, 4) for value in values]


def parts() -> dict[str, str]:
    """Return the table of all collections."""
    kept = read("groups")
    return {"results/groups.md": generated(kept)} if kept else {}


def generated(kept: dict[str, Any]) -> str:
    """The tables as Markdown: accuracies, and likelihoods, of which *gain* is the paired one of the answer used."""
    lines = [
        "Top-1 in per cent, of new units, or of their pictures where each is answered by itself; means over draws, and"
        " the smallest and largest correlation that was fitted. *Together* names what the mean of answers names.",
        "",
        "| collection | draws | pictures a unit | correlation | each picture | vote | together | density of the mean |"
        " product of answers |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    found = {name: list(kept[name]["draws"].values()) for name in COLLECTIONS if name in kept}
    for name, draws in found.items():
        size = np.mean([draw["pictures"] / draw["units"] for draw in draws])
        alike = sorted(draw["correlation"] for draw in draws)
        top = [
            100 * np.mean([draw[row][0] for draw in draws])
            for row in (ALONE, VOTE, TOGETHER, DENSITY, PRODUCT)
        ]
        lines.append(
            f"| {name} | {len(draws)} | {size:.1f} | {alike[0]:.2f} to {alike[-1]:.2f} | "
            + " | ".join(f"{value:.1f}" for value in top)
            + " |"
        )
    lines += [
        "",
        "NLL / ECE in points. *Gain*: NLL of *together* less that of the mean of answers on the same draws, with its"
        " 95 % interval; below 0 is better.",
        "",
        "| collection | each picture | mean of answers | together | density of the mean | product of answers | gain |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, draws in found.items():
        shown = [
            np.mean([draw[row] for draw in draws], axis=0)
            for row in (ALONE, MEAN, TOGETHER, DENSITY, PRODUCT)
        ]
        gain = [draw[TOGETHER][2] - draw[MEAN][2] for draw in draws]
        lines.append(
            f"| {name} | "
            + " | ".join(f"{loss:.2f} / {100 * error:.1f}" for _, error, loss in shown)
            + f" | {mean_interval(gain)} |"
        )
    return "\n".join(lines) + "\n"


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--draws", type=int, default=20)


STUDY = Study({"run": Command(run, _arguments)}, parts)
