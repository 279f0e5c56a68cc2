"""The baselines of the study, on the vectors of a draw; their settings are chosen on folds of the training images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.studies.side_by_side.worker import ADDITIONS, PROMPT, Draw, hits_by_class, measured
from vlltr_index.evaluation.rules import (
    cache_logits,
    class_means,
    first_of_each_class,
    linear_logits,
    shrunk_discriminant,
)
from vlltr_index.heads.configuration import SHRINKAGES
from vlltr_index.heads.units import number_observations
from vlltr_index.heads.weighing import balanced_accuracy, fit_temperature
from vlltr_index.tensors import cosine_logits, unit_rows

__all__ = ["RULE_NAMES", "folds", "measure_rules"]

ALPHAS = (1.0, 0.5, 2.0, 5.0, 10.0, 20.0)  # of Tip-Adapter, as BETAS; the first: its own
BETAS = (5.5, 1.0, 3.0, 10.0, 20.0)
CACHE = 16  # images per class in its cache
FOLDS = 5
WHOLE = 5000  # with so many images or more one fold is held out, not each
REGRESSED = 200  # classes at most: with more, logistic regression takes minutes per fold
RULE_NAMES = (MEANS, DISCRIMINANT, REGRESSION, PROMPTS, TIP_ADAPTER) = (
    "class means",
    "discriminant",
    "logistic regression",
    "prompts alone",
    "Tip-Adapter",
)
Scores = Iterator[tuple[str, Tensor]]
Rule = Callable[[Tensor, Tensor, Tensor], Scores]
"""From training vectors [N, D], labels [N] and queries [Q, D] to scores [Q, C] of each setting; unnormalised."""


def measure_rules(path: Path, seed: int) -> dict[str, Any]:
    """Fit each rule on the draw in a file, and measure it as the worker measures the method."""
    draw = Draw.load(path)
    rows: dict[str, Any] = {}
    for name, (scores, seconds) in _scores(draw, 0, 0, torch.from_numpy(draw.test), seed).items():
        labels = torch.from_numpy(draw.test_labels)
        rows[name] = measured(scores.softmax(1), labels, draw.classes) | {"seconds": round(seconds, 3)}
    additions = [(count, shots) for count, shots in ADDITIONS if draw.can_add(count, shots)]
    added: dict[str, dict[str, Any]] = {}
    for count, shots in additions:
        classes = draw.classes + count
        new = draw.added_test_labels < classes
        features = torch.from_numpy(np.concatenate([draw.test, draw.added_test[new]]))
        labels = torch.from_numpy(np.concatenate([draw.test_labels, draw.added_test_labels[new]]))
        for name, (scores, _) in _scores(draw, count, shots, features, seed).items():
            hits = {"classes": hits_by_class(scores, labels, classes)}
            added.setdefault(name, {})[f"{count} x {shots}"] = hits
    return {"rows": rows, "added by rule": added}


def _scores(
    draw: Draw, count: int, shots: int, queries: Tensor, seed: int
) -> dict[str, tuple[Tensor, float]]:
    """Return the scores [Q, C] of each rule, and its processor seconds; classes without images have prompts alone."""
    images = draw.images(count, shots)
    classes = draw.classes + count
    prompts = draw.text_roles == PROMPT
    prompts &= draw.text_owners < classes
    prototypes = None
    if np.isin(np.arange(classes), draw.text_owners[prompts]).all() and draw.texts.any():
        owners = torch.from_numpy(draw.text_owners[prompts])
        prototypes = text_means(torch.from_numpy(draw.texts[prompts]), owners, classes)
    usable = rules(classes, prototypes, draw.logit_scale)
    if count and not shots:
        usable = {PROMPTS: usable[PROMPTS]} if PROMPTS in usable else {}
    observations = number_observations(images.labels, images.units)
    found: dict[str, tuple[Tensor, float]] = {}
    for name, rule in usable.items():
        started = time.process_time()
        scores = chosen_scores(rule, images.features[0], images.labels, queries, seed, observations)
        found[name] = (scores, time.process_time() - started)
    return found


def rules(classes: int, prototypes: Tensor | None, scale: float) -> dict[str, Rule]:
    """Return the rules that can be had.

    Args:
        classes: C.
        prototypes: Means of the sentences of the classes, float [C, D]; None: no rule that uses text.
        scale: Multiplier of the text cosines in Tip-Adapter.
    """
    found: dict[str, Rule] = {MEANS: nearest_mean, DISCRIMINANT: discriminant}
    if classes <= REGRESSED:
        found[REGRESSION] = logistic_regression
    if prototypes is None:
        return found
    text = prototypes

    def prompts_alone(x: Tensor, y: Tensor, queries: Tensor) -> Scores:
        yield "prompts", cosine_logits(queries, text)

    def tip_adapter(x: Tensor, y: Tensor, queries: Tensor) -> Scores:
        kept = first_of_each_class(y, CACHE)
        cosines = cosine_logits(queries, text, scale)
        for beta in BETAS:
            cache = cache_logits(queries, x[kept], y[kept], len(text), beta)
            for alpha in ALPHAS:
                yield f"alpha {alpha:g}, beta {beta:g}", cosines + alpha * cache

    return found | {PROMPTS: prompts_alone, TIP_ADAPTER: tip_adapter}


def nearest_mean(x: Tensor, y: Tensor, queries: Tensor) -> Scores:
    """Score by the nearest class mean, by cosine (of means of normalised vectors) and by distance."""
    classes = int(y.max()) + 1
    yield "cosine", cosine_logits(queries, class_means(x, y, classes))
    yield "Euclidean", -torch.cdist(queries, _means(x, y, classes))


def discriminant(x: Tensor, y: Tensor, queries: Tensor) -> Scores:
    """Score by the library's discriminant, with the shrinkages that the method chooses from."""
    for shrinkage in SHRINKAGES:
        weight, bias = shrunk_discriminant(x, y, int(y.max()) + 1, shrinkage)
        yield f"{shrinkage:g} x OAS", linear_logits(queries, weight, bias)


def logistic_regression(x: Tensor, y: Tensor, queries: Tensor) -> Scores:
    """Score by that of scikit-learn on normalised vectors, C = 100; images have equal weights, then classes."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # it has no types

    seen = unit_rows(x).numpy()
    asked = unit_rows(queries).numpy()
    for name, weight in (("plain", None), ("balanced", "balanced")):
        model = LogisticRegression(C=100.0, max_iter=1000, class_weight=weight).fit(seen, y.numpy())
        scores = torch.full((len(queries), int(y.max()) + 1), float("-inf"), dtype=torch.float64)
        columns = torch.from_numpy(model.classes_)
        scores[:, columns] = torch.from_numpy(model.predict_log_proba(asked)).clamp(min=-60.0)
        yield name, scores


def _means(x: Tensor, y: Tensor, classes: int) -> Tensor:
    sums = torch.zeros(classes, x.shape[1], dtype=x.dtype).index_add(0, y, x)
    return sums / torch.bincount(y, minlength=classes)[:, None]


def folds(labels: Tensor, seed: int, units: Tensor | None = None) -> list[Tensor]:
    """Return parts of the images to hold out, positions int64, disjoint; no class ever loses its last unit.

    Args:
        labels: Integers [N].
        seed: Of the draw.
        units: Int64 [N], 0 to U - 1: the unit of each, of images of one class; None: each image is a unit.
    """
    if units is None:
        units = torch.arange(len(labels))
    of_units = labels.new_empty(int(units.max()) + 1).scatter_(0, units, labels)
    order = torch.randperm(len(of_units), generator=torch.Generator().manual_seed(seed))
    order = order[of_units[order].argsort(stable=True)]  # by class, at random within
    _, counts = torch.unique_consecutive(of_units[order], return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    within = torch.arange(len(of_units)) - starts
    offset = torch.randint(FOLDS, (len(counts),), generator=torch.Generator().manual_seed(seed))
    part = (within + offset.repeat_interleave(counts)) % FOLDS
    part[counts.repeat_interleave(counts) == 1] = -1
    held = [torch.isin(units, order[part == n]) for n in range(FOLDS if len(of_units) < WHOLE else 1)]
    return [rows.nonzero()[:, 0] for rows in held if bool(rows.any())]


def chosen_scores(
    rule: Rule, x: Tensor, y: Tensor, queries: Tensor, seed: int, units: Tensor | None = None
) -> Tensor:
    """Return the scores of a rule with the setting and at the temperature that suit the folds best, float64 [Q, C].

    The setting has the best balanced accuracy there. Where no fold can be held out, it is the first one.

    Args:
        rule: The rule.
        x: Float [N, D], training vectors, unnormalised.
        y: Integers [N], their classes, 0 to C - 1, each of which has one.
        queries: Float [Q, D].
        seed: Of the folds.
        units: As for `folds`.
    """
    x = x.double()
    queries = queries.double()
    held = folds(y, seed, units)
    if not held:
        return next(rule(x, y, queries))[1].double()
    found = dict[str, list[Tensor]]()
    for rows in held:
        kept = torch.ones(len(y), dtype=torch.bool).index_fill(0, rows, False)
        for setting, scores in rule(x[kept], y[kept], x[rows]):
            found.setdefault(setting, []).append(scores.float())
    labels = torch.cat([y[rows] for rows in held])
    on_folds = {setting: torch.cat(parts) for setting, parts in found.items()}
    best = max(on_folds, key=lambda setting: balanced_accuracy(on_folds[setting], labels))
    factor = fit_temperature(on_folds[best], labels, torch.ones(len(labels)).double())
    return factor * next(scores for setting, scores in rule(x, y, queries) if setting == best).double()


def text_means(vectors: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return means of the normalised sentences of each class, float [C, D]; a class without any gets a zero row."""
    sums = torch.zeros(classes, vectors.shape[1], dtype=torch.float64).index_add(
        0, labels, unit_rows(vectors.double())
    )
    return sums / torch.bincount(labels, minlength=classes).clamp(min=1)[:, None]
