"""The simple rules that are held against the method, on the same stored vectors, chosen on folds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlltr_index.evaluation.rules import (
    cache_logits,
    class_means,
    first_of_each_class,
    linear_logits,
    shrunk_discriminant,
)
from vlltr_index.heads.configuration import SHRINKAGES
from vlltr_index.heads.weighing import balanced_accuracy, fit_temperature
from vlltr_index.tensors import cosine_logits, unit_rows

__all__ = ["TEXTLESS", "Chosen", "choose", "discriminant", "folds", "rules"]

ALPHAS = (1.0, 0.5, 2.0, 5.0, 10.0, 20.0)  # of Tip-Adapter, as BETAS; the first: its own
BETAS = (5.5, 1.0, 3.0, 10.0, 20.0)
CACHE = 16  # images a class in its cache
FOLDS = 5
WHOLE = 5000  # from so many images on one fold is held out, not each
TEXTLESS = ("class means", "shrunk discriminant", "logistic regression")
REGRESSED = 200  # classes at most: with more, logistic regression takes minutes a fold
Scores = Iterator[tuple[str, Tensor]]
Rule = Callable[[Tensor, Tensor, Tensor], Scores]
"""Training vectors [N, D], labels [N], queries [Q, D], to the scores [Q, C] of each setting; all unnormalised."""


@dataclass(frozen=True)
class Chosen:
    """A rule's setting that is best on the folds.

    Attributes:
        setting: Its name.
        on_folds: Its accuracy there; None: no fold could be held out.
        scores: Float64 [Q, C] of the queries, at the temperature that suits the folds best.
    """

    setting: str
    on_folds: float | None
    scores: Tensor


def rules(classes: int, prototypes: Mapping[str, Tensor], scale: float) -> dict[str, Rule]:
    """The rules that can be had.

    Args:
        classes: C.
        prototypes: Means of the classes' sentences, float [C, D], by what sentences; none: no rule that uses text.
        scale: Multiplier of the text cosines in Tip-Adapter.
    """

    def zero_shot(x: Tensor, y: Tensor, queries: Tensor) -> Scores:
        for name, rows in prototypes.items():
            yield name, cosine_logits(queries, rows)

    def tip_adapter(x: Tensor, y: Tensor, queries: Tensor) -> Scores:
        text = next(iter(prototypes.values()))
        kept = first_of_each_class(y, CACHE)
        cosines = cosine_logits(queries, text, scale)
        for beta in BETAS:
            cache = cache_logits(queries, x[kept], y[kept], len(text), beta)
            for alpha in ALPHAS:
                yield f"alpha {alpha:g}, beta {beta:g}", cosines + alpha * cache

    found: dict[str, Rule] = {"class means": nearest_mean, "shrunk discriminant": discriminant}
    if classes <= REGRESSED:
        found["logistic regression"] = logistic_regression
    return found | ({"zero-shot": zero_shot, "Tip-Adapter": tip_adapter} if prototypes else {})


def nearest_mean(x: Tensor, y: Tensor, queries: Tensor) -> Scores:
    """The nearest class mean, by cosine (of means of normalised vectors) and by distance."""
    classes = int(y.max()) + 1
    yield "cosine", cosine_logits(queries, class_means(x, y, classes))
    yield "Euclidean", -torch.cdist(queries, _means(x, y, classes))


def discriminant(x: Tensor, y: Tensor, queries: Tensor) -> Scores:
    """The library's, with the shrinkages that the method chooses from."""
    for shrinkage in SHRINKAGES:
        weight, bias = shrunk_discriminant(x, y, int(y.max()) + 1, shrinkage)
        yield f"{shrinkage:g} x OAS", linear_logits(queries, weight, bias)


def logistic_regression(x: Tensor, y: Tensor, queries: Tensor) -> Scores:
    """scikit-learn's on normalised vectors, C = 100, each image weighing alike, and each class."""
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
    """Parts of the images to hold out, positions int64, disjoint; no class ever loses its last unit.

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


def choose(
    found: Mapping[str, Rule],
    x: Tensor,
    y: Tensor,
    queries: Tensor,
    seed: int,
    units: Tensor | None = None,
) -> dict[str, Chosen]:
    """Each rule at the setting with the best class-balanced accuracy on the folds of the training images.

    Args:
        found: The rules.
        x: Float [N, D], training vectors, unnormalised.
        y: Integers [N], their classes, 0 to C - 1, each there.
        queries: Float [Q, D].
        seed: Of the folds.
        units: As for `folds`.
    """
    x = x.double()
    queries = queries.double()
    held = folds(y, seed, units)
    chosen = {}
    for name, rule in found.items():
        told = dict[str, list[Tensor]]()
        for rows in held:
            kept = torch.ones(len(y), dtype=torch.bool).index_fill(0, rows, False)
            for setting, scores in rule(x[kept], y[kept], x[rows]):
                told.setdefault(setting, []).append(scores.float())
        asked = torch.cat([y[rows] for rows in held]) if held else y[:0]
        accuracy = {s: balanced_accuracy(torch.cat(parts), asked) for s, parts in told.items()}
        wanted = max(accuracy, key=accuracy.__getitem__) if accuracy else None
        for label, scores in rule(x, y, queries):
            if wanted in (None, label):
                factor = 1.0
                if wanted is not None:
                    factor = fit_temperature(torch.cat(told[label]), asked, torch.ones(len(asked)).double())
                chosen[name] = Chosen(label, accuracy.get(label), factor * scores.double())
                break
    return chosen


def text_means(vectors: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Means of the normalised sentences of each class, float [C, D]; a class without any gets a zero row."""
    sums = torch.zeros(classes, vectors.shape[1], dtype=torch.float64).index_add(
        0, labels, unit_rows(vectors.double())
    )
    return sums / torch.bincount(labels, minlength=classes).clamp(min=1)[:, None]
