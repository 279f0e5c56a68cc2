"""How common classes are: answers with all classes equally common, and with those of the training pictures.

    python -m benchmarks priors run
    python -m benchmarks priors table

Long tails: 60 or 20 classes of `draws` with all their pictures, a quarter of which, drawn at random, is for testing, so
that these come as the training pictures do. Vectors of the shipped encoder; the generative model is fitted by `train
lgr`'s own function, without texts. Beside it stand the simple rules of `vlltr fit`, also under the prior: a factor of
their scores and one of the logarithm of the frequencies are fitted on held-out training pictures.

`--prior folder`: collections of `draws` whose test pictures are of 5, of 20 or of all classes, all equally common.
"""

from __future__ import annotations

import random
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kept import keep_draws, read
from benchmarks.studies.draws.sources import Kind, Setting, draw
from benchmarks.studies.rejections import SHIPPED, features_of_kinds, fitted
from benchmarks.study import Command, Study
from vlltr_index.embedding.loading import recipe_encoder
from vlltr_index.encoders.encoder import Encoder
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
_TESTED = 0.25
_RULES = ("ncm", "discriminant")
ROWS = ("balanced", "training", *(name for rule in _RULES for name in (rule, under(rule, "training"))))


def run(draws: int) -> None:
    """Measure the draws that are not measured yet."""
    encoder = recipe_encoder(SHIPPED).eval()
    for source, size in COLLECTIONS:
        keep_draws("priors", f"{source}-{size}", range(draws), partial(measured, encoder, source, size))
    for source, size in FOLDERS:
        unit = f"folder-{source}-{size}"
        keep_draws("priors", unit, range(draws), partial(in_folders, encoder, source, size))


def in_folders(encoder: Encoder, source: str, size: str, number: int) -> dict[str, Any]:
    """Return accuracies with equal frequencies, and with those found among pictures of so many classes."""
    kinds = draw(source, Setting.of(size), number).kinds
    train, labels = features_of_kinds(encoder, kinds, test=False)
    test, answers = features_of_kinds(encoder, kinds)
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


def measured(encoder: Encoder, source: str, size: str, number: int) -> dict[str, Any]:
    """Return what each row has right in one draw, in `ROWS`."""
    kinds = [_divided(kind, number) for kind in draw(source, Setting.of(size), number).kinds]
    train, labels = features_of_kinds(encoder, kinds, test=False)
    test, answers = features_of_kinds(encoder, kinds)
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


def parts() -> dict[str, str]:
    """Return the table of all collections."""
    kept = read("priors")
    return {"results/priors.md": generated(kept)} if kept else {}


def generated(kept: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        "Top-1 in per cent, each picture counting alike and each class; ECE in points; means over draws. *Gain*: of"
        " `training` over `balanced` on the same draws, in points, with its 95 % interval.",
        "",
        "| collection | draws | prior | a picture | a class | ECE | NLL |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for source, size in COLLECTIONS:
        if f"{source}-{size}" not in kept:
            continue
        draws = list(kept[f"{source}-{size}"]["draws"].values())
        for name in ROWS:
            picture, alike, error, loss = np.mean([draw[name] for draw in draws], axis=0)
            lines.append(
                f"| {source} {size} | {len(draws)} | {name} | {100 * picture:.1f} | {100 * alike:.1f} |"
                f" {100 * error:.1f} | {loss:.2f} |"
            )
        gains = [_gain([d["training"][m] - d["balanced"][m] for d in draws]) for m in (0, 1)]
        lines.append(f"| {source} {size} | {len(draws)} | *gain* | {' | '.join(gains)} | | |")
    return "\n".join([*lines, "", *_of_folders(kept)]) + "\n"


def _of_folders(kept: dict[str, Any]) -> list[str]:
    """The table of `--prior folder`."""
    lines = [
        "Top-1 in per cent with equal frequencies, and with those that are found among the pictures asked about"
        " (`--prior folder`), which are of so many classes.",
        "",
        "| collection | draws | classes there | balanced | folder | gain |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for source, size in FOLDERS:
        draws = list(kept.get(f"folder-{source}-{size}", {"draws": {}})["draws"].values())
        for present in PRESENT if draws else ():
            before, after = np.mean([draw[present] for draw in draws], axis=0)
            gain = _gain([draw[present][1] - draw[present][0] for draw in draws])
            lines.append(
                f"| {source} {size} | {len(draws)} | {present} | {100 * before:.1f} | {100 * after:.1f} | {gain} |"
            )
    return lines


def _gain(differences: Sequence[float]) -> str:
    gains = 100 * np.array(differences)
    half = 1.96 * np.std(gains, ddof=1) / len(gains) ** 0.5
    return f"{np.mean(gains):+.1f} [{np.mean(gains) - half:+.1f}, {np.mean(gains) + half:+.1f}]"


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--draws", type=int, default=20)


STUDY = Study({"run": Command(run, _arguments)}, parts)
