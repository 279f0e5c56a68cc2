"""Rejection of unknown images on small collections: related unknown classes, and foreign ones.

    python -m benchmarks rejections run
    python -m benchmarks rejections table

The collections are those of `draws`, by the shipped encoder's vectors; the generative model is fitted by `train lgr`'s
own function, without texts. Related are ten other classes of the same source, foreign the classes of another one: icons
for glyphs. The score of `predict --reject` is the sum of two, each divided by its spread over held-out pictures: the
best log-likelihood, and its ratio to the likelihood under a class of which nothing is known, N(centre, Sigma +
Lambda_0). Both are compared alone, and so is the largest probability. The score was chosen on the draws 0 to 39, so
that others are measured. *Strays*: one in a hundred of the training pictures is a foreign one, under the label of the
picture that it replaces.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kept import keep_draws, read
from benchmarks.studies.draws.sources import Kind, Setting, draw
from benchmarks.studies.heldout import features_of
from benchmarks.study import Command, Study
from vlltr_index.embedding.loading import recipe_encoder
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.checkpoint import Parts
from vlltr_index.heads.dealing import row_keys
from vlltr_index.heads.moments import class_sums
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.rejection import fit_parts, fit_scores
from vlltr_index.schemas.config import EncoderConfig, LGRConfig
from vlltr_index.tensors import unit_rows
from vlltr_index.train.stage_two import fit_stage_two
from vlltr_index.train.stage_two_data import StageTwoData

SHIPPED = EncoderConfig(model="vlltr-tiny", pretrained="glyphs")
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
SCORE = "the sum"
LIKELIHOOD = "best log-likelihood"
RATIO = "ratio to an unknown class"
LARGEST = "largest probability"
_FIRST = 40  # the first draw
UNKNOWN = ("related", "foreign")
_FOREIGN = "20x5"
_STRAYS = 0.01


def run(draws: int) -> None:
    """Measure the draws that are not measured yet."""
    encoder = recipe_encoder(SHIPPED).eval()
    for source, size in COLLECTIONS:
        facts = {"source": source, "setting": size}
        measure = partial(measured, encoder, source, size)
        keep_draws("rejections", f"{source}-{size}", range(_FIRST, _FIRST + draws), measure, facts)


def measured(encoder: Encoder, source: str, size: str, number: int) -> dict[str, Any]:
    """Return how each score tells one draw's test pictures from unknown ones, and what `--reject` would let in."""
    drawn = draw(source, Setting.of(size), number)
    elsewhere = draw("heldout" if source == "icons" else "icons", Setting.of(_FOREIGN), number)
    train, labels = features_of_kinds(encoder, drawn.kinds, test=False)
    known, _ = features_of_kinds(encoder, drawn.kinds)
    unknown = {
        "related": features_of_kinds(encoder, drawn.others)[0],
        "foreign": features_of_kinds(encoder, elsewhere.kinds)[0],
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
    strange, _ = features_of_kinds(encoder, elsewhere.kinds, test=False)
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


def features_of_kinds(encoder: Encoder, kinds: Sequence[Kind], test: bool = True) -> tuple[Tensor, Tensor]:
    """Return features [N, D] of the pictures of classes, and their classes, int64 [N]."""
    pictures = [[data for _, data in (kind.test if test else kind.train)] for kind in kinds]
    labels = torch.arange(len(kinds)).repeat_interleave(torch.tensor([len(some) for some in pictures]))
    return features_of(encoder, [one for some in pictures for one in some]), labels


def fitted(features: Tensor, labels: Tensor, classes: int, units: Tensor | None = None) -> tuple[PLDA, Parts]:
    """Fit the generative model of classes without text as `train lgr` does; by default each image is a unit."""
    numbers = torch.arange(len(labels)) if units is None else units
    data = without_texts(features, labels, classes, [str(unit) for unit in numbers.tolist()])
    parts = fit_stage_two(data, LGRConfig()).parts
    assert parts is not None
    counts, sums = class_sums(unit_rows(features), labels, classes, data.weights)
    return PLDA(parts.shared, counts, sums, data.prototypes), parts


def without_texts(features: Tensor, labels: Tensor, classes: int, groups: Sequence[str]) -> StageTwoData:
    """Return the training data of classes without text, of features [N, D]."""
    none = torch.empty(0, dtype=torch.int64)
    bank = AnchorBank(
        torch.empty(0, features.shape[1]), torch.zeros(1, dtype=torch.int64), none, none, torch.empty(0)
    )
    return StageTwoData(
        features=features[None],
        labels=labels,
        bank=bank,
        places=torch.full((classes,), -1),
        units=groups,
        keys=row_keys(features),
        unseen=torch.zeros(len(labels), dtype=torch.bool),
        unseen_classes=torch.zeros(classes, dtype=torch.bool),
        visual_init=None,
        logit_scale=1.0,
    )


def scores(model: PLDA, parts: Parts, features: Tensor) -> dict[str, Tensor]:
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


def parts() -> dict[str, str]:
    """Return the table of all collections."""
    kept = read("rejections")
    return {"results/reject.md": generated(kept)} if kept else {}


def generated(kept: dict[str, Any]) -> str:
    """The table as Markdown."""
    names = (SCORE, LIKELIHOOD, RATIO, LARGEST)
    lines = [
        "AUROC / percentage of unknown images accepted where 95% of the known ones are, by score; then the percentages"
        " that `--reject` accepts, also with strays, and the false-accept rate that `train lgr` estimates from classes"
        " that it leaves out. Means over draws, each with its own classes.",
        "",
        f"| collection | draws | unknown | {' | '.join(names)} | known | unknown | with strays | estimated |",
        "| --- " * (7 + len(names)) + "|",
    ]
    for source, size in COLLECTIONS:
        if f"{source}-{size}" not in kept:
            continue
        draws = list(kept[f"{source}-{size}"]["draws"].values())
        said = [draw["foreseen"] for draw in draws if draw["foreseen"] is not None]
        for what in UNKNOWN:
            cells = [f"{source} {size}", str(len(draws)), what]
            for name in names:
                area, let_in = np.mean([draw[what][name] for draw in draws], axis=0)
                cells.append(f"{area:.3f} / {100 * let_in:.0f}")
            cells += [
                _percent([draw["known"] for draw in draws]),
                _percent([draw[what]["accepted"] for draw in draws]),
            ]
            strays = [draw[what]["beside strays"] for draw in draws if "beside strays" in draw[what]]
            cells.append(_percent(strays) if strays else "-")
            cells.append(_percent(said) if what == "related" and said else "-")
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_paired(kept)]
    return "\n".join(lines) + "\n"


def _percent(shares: Sequence[float]) -> str:
    return f"{100 * np.mean(shares):.0f}"


def _paired(kept: dict[str, Any]) -> list[str]:
    """Return by how much the AUROC of scores differs, with 95% intervals over draws."""
    draws = [draw for unit in kept.values() for draw in unit["draws"].values()]
    lines = [f"| AUROC of | less that of | unknown | {len(draws)} draws |", "| --- " * 4 + "|"]
    for one, other in ((SCORE, LIKELIHOOD), (SCORE, RATIO), (RATIO, LIKELIHOOD)):
        for what in UNKNOWN:
            gains = [draw[what][one][0] - draw[what][other][0] for draw in draws]
            half = 1.96 * np.std(gains, ddof=1) / len(gains) ** 0.5
            mean = np.mean(gains)
            lines.append(
                f"| {one} | {other} | {what} | {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] |"
            )
    return lines


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--draws", type=int, default=8)


STUDY = Study({"run": Command(run, _arguments)}, parts)
