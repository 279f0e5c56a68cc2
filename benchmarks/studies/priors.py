"""How common classes are: answers with all classes equally common, and with those of the training pictures.

    python -m benchmarks priors run
    python -m benchmarks priors table

Long tails: 60 or 20 classes with all their pictures, a quarter of which, drawn at random, is for testing, so
that these come as the training pictures do. Vectors of the shipped encoder; the PLDA is fitted by `train
lgr`'s own function, without texts. Beside it stand the simple rules of `vlltr fit`, also under the prior: a factor of
their scores and one of the logarithm of the frequencies are fitted on held-out training pictures.

`--prior estimated`: collections whose test pictures are of 5, of 20 or of all classes, all equally common.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.collections.sources import Kind, draw
from benchmarks.intervals import normal
from benchmarks.kept import draws_of
from benchmarks.studies.vectors import features_of_kinds, fitted
from benchmarks.study import Results, Setting, Study, table
from vlltr_index.evaluation.baselines import BY_NAME, FitData
from vlltr_index.evaluation.metrics import expected_calibration_error, under
from vlltr_index.heads.frequencies import BEST, choose_strength, estimate
from vlltr_index.heads.fusion import log_frequencies
from vlltr_index.heads.weighing import balanced_accuracy, item_nll
from vlltr_index.schemas.config import BaselinesConfig
from vlltr_index.tensors import unit_rows

COLLECTIONS = (("icons", "60xall"), ("icons", "20xall"), ("train", "60xall"))
FOLDERS = (("heldout", "40x8"), ("train", "200x3"), ("icons", "40x8"), ("icons", "60xall"))
PRESENT = ("5", "20", "all")
_CONFIG = BaselinesConfig()
_SEEDS = range(20)
_TESTED = 0.25
_RULES = ("ncm", "discriminant")
ROWS = ("balanced", "training", *(name for rule in _RULES for name in (rule, under(rule, "training"))))


def settings() -> list[Setting]:
    """Return the long tails, and the collections of `--prior estimated`."""
    tails = [
        Setting(f"{source}-{size}", _SEEDS, partial(measured, source, size)) for source, size in COLLECTIONS
    ]
    folders = [
        Setting(f"folder-{source}-{size}", _SEEDS, partial(in_folders, source, size))
        for source, size in FOLDERS
    ]
    return tails + folders


def in_folders(source: str, size: str, number: int) -> dict[str, Any]:
    """Return accuracies with equal frequencies, and with those found among pictures of so many classes."""
    kinds = draw(source, size, number).kinds
    train, labels = features_of_kinds(kinds, test=False)
    test, answers = features_of_kinds(kinds)
    model, parts = fitted(train, labels, len(kinds))
    assert parts.held_out is not None
    strength = choose_strength(parts.held_out)
    scores = parts.weights.generative * model.log_likelihoods(unit_rows(test).double())
    order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(number))
    found: dict[str, Any] = {"strength": strength}
    for present in PRESENT:
        some = torch.isin(answers, order[: len(kinds) if present == "all" else int(present)])
        best = scores[some].topk(min(BEST, len(kinds)))
        votes = torch.ones(len(best.values), dtype=torch.float64)
        shift = torch.zeros(len(kinds), dtype=torch.float64)
        if strength is not None:
            shift = estimate(best.values, best.indices, len(kinds), votes, strength)
        right = [
            (row.argmax(1) == answers[some]).double().mean() for row in (scores[some], scores[some] + shift)
        ]
        found[present] = [round(float(share), 4) for share in right]
    return found


def measured(source: str, size: str, number: int) -> dict[str, Any]:
    """Return what each row has right in one draw, in `ROWS`."""
    kinds = [_divided(kind, number) for kind in draw(source, size, number).kinds]
    train, labels = features_of_kinds(kinds, test=False)
    test, answers = features_of_kinds(kinds)
    model, parts = fitted(train, labels, len(kinds))
    known = log_frequencies(model.counts)
    scores = parts.weights.generative * model.log_likelihoods(unit_rows(test).double())
    rows = {"balanced": scores.softmax(1), "training": (scores + known).softmax(1)}
    data = _fit_data(train, labels, len(kinds))
    for name in _RULES:
        rule = BY_NAME[name].fit(data, _CONFIG, None).with_prior(data, _CONFIG)
        plain = rule.scores(test)
        again = rule.under_prior(plain, known)
        assert again is not None
        rows |= {name: plain.softmax(1), under(name, "training"): again.softmax(1)}
    found: dict[str, Any] = {name: _measures(shares, answers) for name, shares in rows.items()}
    return {"images": len(train), **found}


def _fit_data(features: Tensor, labels: Tensor, classes: int) -> FitData:
    """Return training pictures for the simple rules, each a unit."""
    return FitData(
        features=features,
        labels=labels,
        num_classes=classes,
        fitted=torch.ones_like(labels, dtype=torch.bool),
        seen=features[:0],
        seen_labels=labels[:0],
        chosen_on="",
        logit_scale=1.0,
        classifier=None,
        texts=None,
        units=[str(number) for number in range(len(labels))],
    )


def _divided(kind: Kind, number: int) -> Kind:
    """Divide a class's pictures at random, whatever the draw took for testing; one at least is for training."""
    pictures = [*kind.train, *kind.test]
    chance = random.Random(f"{kind.name}:{number}")
    tested = [chance.random() < _TESTED for _ in pictures]
    if all(tested):
        tested[0] = False
    train = tuple(one for one, out in zip(pictures, tested, strict=True) if not out)
    return replace(
        kind, train=train, test=tuple(one for one, out in zip(pictures, tested, strict=True) if out)
    )


def _measures(shares: Tensor, labels: Tensor) -> list[float]:
    """Return accuracy, each picture and each class counting alike, calibration error and NLL."""
    sure, best = shares.max(1)
    right = best == labels
    values = (
        float(right.double().mean()),
        balanced_accuracy(shares, labels),
        expected_calibration_error(sure, right),
        float(item_nll(shares.clamp(min=1e-12).log(), labels).mean()),
    )
    return [round(value, 4) for value in values]


def generated(results: Results) -> str:
    """Return the tables as Markdown."""
    tails: list[list[str]] = []
    folders: list[list[str]] = []
    for source, size in COLLECTIONS:
        if unit := results.get(f"{source}-{size}"):
            tails += _of_tail(f"{source} {size}", draws_of(unit))
    for source, size in FOLDERS:
        if unit := results.get(f"folder-{source}-{size}"):
            folders += _of_folder(f"{source} {size}", draws_of(unit))
    lines = [
        "Top-1 in per cent, each picture counting alike and each class; ECE in points; means over draws. *Gain*: of"
        " `training` over `balanced` on the same draws, in points, with its 95 % interval.",
        "",
        *table(["collection", "draws", "prior", "a picture", "a class", "ECE", "NLL"], tails),
        "",
        "Top-1 in per cent with equal frequencies, and with those that are found among the pictures asked about"
        " (`--prior estimated`), which are of so many classes.",
        "",
        *table(["collection", "draws", "classes there", "balanced", "estimated", "gain"], folders),
    ]
    return "\n".join(lines) + "\n"


def _of_tail(name: str, draws: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for row in ROWS:
        picture, alike, error, loss = np.mean([draw[row] for draw in draws], axis=0)
        cells = [f"{100 * picture:.1f}", f"{100 * alike:.1f}", f"{100 * error:.1f}", f"{loss:.2f}"]
        rows.append([name, str(len(draws)), row, *cells])
    gains = [normal([d["training"][m] - d["balanced"][m] for d in draws]).shown() for m in (0, 1)]
    return [*rows, [name, str(len(draws)), "*gain*", *gains, "", ""]]


def _of_folder(name: str, draws: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for present in PRESENT:
        before, after = np.mean([draw[present] for draw in draws], axis=0)
        gain = normal([draw[present][1] - draw[present][0] for draw in draws])
        cells = [f"{100 * before:.1f}", f"{100 * after:.1f}", gain.shown()]
        rows.append([name, str(len(draws)), present, *cells])
    return rows


STUDY = Study({"results/priors.md": generated}, settings)
