"""Labels needed to reach an accuracy, in the order of `most_teaching` and in simpler ones; groups of unknown classes.

    python -m benchmarks teaching run
    python -m benchmarks teaching table

A draw of a collection is learned from five units a class, one picture of each (of two units where a class has three to
five, of one where it has fewer); the rest is the pool, of which one picture after the other gets its true label. After
each sitting, of a fiftieth of the pool's units, five at least, the generative model is fitted again. Vectors of the
shipped encoder; no texts. The target is what random order by unit reaches with half of the pool, top-1 with every class
counted alike, in the mean of three runs, each from other first pictures. Test pictures are of other units than the
pool.

Groups are looked for among the pictures that `--reject` keeps out: test pictures of a draw's classes, and all of ten
other classes. A group is false unless more than half of it is of one of the latter.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.collections.sources import UNITS, draw
from benchmarks.collections.units import KINDS, drawn_units
from benchmarks.intervals import Interval, over_draws
from benchmarks.kept import draws_of
from benchmarks.studies.vectors import features_of, features_of_kinds, fitted
from benchmarks.study import Results, Setting, Study, table
from vlltr_index.heads.configuration import TEMPERED
from vlltr_index.heads.moments import Moments
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import fit_plda
from vlltr_index.heads.rejection import fit_parts, fit_scores
from vlltr_index.heads.teaching import alike_groups, most_teaching
from vlltr_index.heads.weighing import balanced_accuracy
from vlltr_index.tensors import unit_rows

COLLECTIONS = {
    ("train", "200xall"): "glyphs, long-tailed: train 200xall",
    ("families", "200xall"): "icons, long-tailed: families 200xall",
    ("train", "100x40"): "glyphs: train 100x40",
    ("families", "60x40"): "icons: families 60x40",
    ("heldout", "99x5"): "glyphs of new classes: heldout 99x5",
    ("products", "units"): "products",
    ("augmented", "units"): "augmented",
    ("pages", "units"): "pages",
    ("bursts", "units"): "bursts on photographs",
}
GROUPS = (("heldout", "40x5"), ("train", "100x10"), ("icons", "20x20"), ("icons", "40x8"))
OURS, RANDOM, DOUBT, CLUSTERS = "doubt and distance", "random by unit", "doubt alone", "one a cluster"
ORDERS = (OURS, DOUBT, CLUSTERS)
_FIRST = 5  # units of a class that are labelled from the start
_SITTINGS = 50
_LEAST_SITTING = 5
_RUNS = 3
_SEEDS = range(20)
_NEW = {"pages": 16}  # units of a class beside those that are learned from; a page has up to four drawings
_USUAL_NEW = 40
_TESTED = 6  # the same, of those that are asked
_ROUNDS = 3  # of k-means
_LEAST_GROUP = 3


@dataclass(frozen=True, eq=False)
class Pool:
    """Pictures for learning, of which `first` are labelled from the start, and pictures for testing.

    Attributes:
        features: Float [N, D], normalised.
        labels: Int64 [N].
        units: The unit of each picture, of one class.
        first: Int64 [F], positions.
        asked: Float [M, D], normalised.
        answers: Int64 [M].
        classes: How many.
    """

    features: Tensor
    labels: Tensor
    units: list[str]
    first: Tensor
    asked: Tensor
    answers: Tensor
    classes: int

    def fitted(self, labelled: Tensor) -> PLDA:
        """Fit the generative model on the pictures at positions int64 [L]."""
        numbers = {unit: n for n, unit in enumerate(dict.fromkeys(self.units[n] for n in labelled.tolist()))}
        units = torch.tensor([numbers[self.units[n]] for n in labelled.tolist()])
        moments = Moments.of(self.features[None, labelled], self.labels[labelled], units, self.classes)
        none = torch.zeros(self.classes, self.features.shape[1])
        return fit_plda(moments, none)

    def accuracy(self, model: PLDA) -> float:
        """Return the top-1 accuracy on the pictures for testing, each class counted alike."""
        return balanced_accuracy(model.log_likelihoods(self.asked), self.answers)


def pool_of(source: str, size: str, number: int) -> Pool:
    """Return draw `number` of a collection, with nothing labelled; `UNITS` are those of several pictures a unit."""
    if source in UNITS:
        learned, fresh = drawn_units(KINDS[UNITS[source]], number, _NEW.get(source, _USUAL_NEW))
        new = [dict.fromkeys(p.unit for p in fresh if p.label == label) for label in range(10)]
        tested = {unit for units in new for unit in list(units)[:_TESTED]}
        pictures = [*learned, *(p for p in fresh if p.unit not in tested)]
        tests = [p for p in fresh if p.unit in tested]
        train = features_of([p.data for p in pictures])
        labels = torch.tensor([p.label for p in pictures])
        units = [str(p.unit) for p in pictures]
        asked = features_of([p.data for p in tests])
        answers = torch.tensor([p.label for p in tests])
    else:
        drawn = draw(source, size, number)
        train, labels = features_of_kinds(drawn.kinds, test=False)
        asked, answers = features_of_kinds(drawn.kinds)
        units = [str(n) for n in range(len(labels))]
    none = torch.empty(0, dtype=torch.int64)
    return Pool(unit_rows(train), labels, units, none, unit_rows(asked), answers, int(labels.max()) + 1)


def first_labels(labels: Tensor, units: Sequence[str], chance: random.Random) -> Tensor:
    """Choose what is labelled from the start, one picture of some units of each class: positions, int64 [F]."""
    positions = chance.sample(range(len(units)), len(units))
    of_class: dict[int, dict[str, int]] = {}
    for n in positions:
        of_class.setdefault(int(labels[n]), {}).setdefault(units[n], n)
    chosen = []
    for own in of_class.values():
        wanted = _FIRST if len(own) > _FIRST else min(2, (len(own) + 1) // 2)
        chosen += list(own.values())[:wanted]
    return torch.tensor(sorted(chosen))


class Sitting(NamedTuple):
    """What can be asked in a sitting: the model, the pictures at positions `left`, int64 [L], how many, and chance."""

    pool: Pool
    model: PLDA
    left: Tensor
    number: int
    chance: random.Random

    @property
    def features(self) -> Tensor:
        """Features of the pictures."""
        return self.pool.features[self.left]

    @property
    def units(self) -> list[str]:
        """Units of the pictures."""
        return [self.pool.units[n] for n in self.left.tolist()]

    def log_probabilities(self) -> Tensor:
        """Answers for the pictures."""
        return (TEMPERED * self.model.log_likelihoods(self.features)).log_softmax(1)


def by_teaching(sitting: Sitting) -> Tensor:
    """Choose by the order of the library: positions among those left, int64 [n]."""
    return most_teaching(
        sitting.log_probabilities(), sitting.features, sitting.units, sitting.model.shared, sitting.number
    )


def by_chance(sitting: Sitting) -> Tensor:
    """Choose units at random, and of each a picture at random."""
    order = sitting.chance.sample(range(len(sitting.left)), len(sitting.left))
    units = sitting.units
    of_unit = {units[n]: n for n in order}
    chosen = sitting.chance.sample(sorted(of_unit), min(sitting.number, len(of_unit)))
    return torch.tensor([of_unit[unit] for unit in chosen])


def by_doubt(sitting: Sitting) -> Tensor:
    """Choose the pictures whose two best classes are closest, whatever their units are."""
    best = sitting.log_probabilities().topk(2).values
    return (best[:, 0] - best[:, 1]).argsort()[: sitting.number]


def by_clusters(sitting: Sitting) -> Tensor:
    """Choose the picture next to the middle of each of as many clusters (k-means)."""
    rows = sitting.features
    number = min(sitting.number, len(set(sitting.units)))
    middles = rows[sitting.chance.sample(range(len(rows)), number)]
    for _ in range(_ROUNDS):
        cluster = torch.cdist(rows, middles).argmin(1)
        sizes = torch.bincount(cluster, minlength=number)[:, None]
        sums = torch.zeros_like(middles).index_add_(0, cluster, rows)
        middles = torch.where(sizes > 0, sums / sizes.clamp(min=1), middles)
    distance = torch.cdist(middles, rows)
    units = torch.tensor(np.unique(sitting.units, return_inverse=True)[1])
    chosen = []
    for row in distance:
        chosen.append(int(row.argmin()))
        distance[:, units == units[chosen[-1]]] = torch.inf
    return torch.tensor(chosen)


CHOOSERS: dict[str, Callable[[Sitting], Tensor]] = {
    OURS: by_teaching, RANDOM: by_chance, DOUBT: by_doubt, CLUSTERS: by_clusters
}  # fmt: skip


def sittings(pool: Pool, order: str, chance: random.Random) -> Iterator[tuple[int, float]]:
    """Yield how many labels were given and the accuracy, at the start and after each sitting, until none is left."""
    labelled = pool.first
    given = {pool.units[n] for n in labelled.tolist()}
    left = [n for n in range(len(pool.units)) if pool.units[n] not in given]
    number = max(_LEAST_SITTING, round(len({pool.units[n] for n in left}) / _SITTINGS))
    model = pool.fitted(labelled)
    yield 0, pool.accuracy(model)
    while left:
        positions = torch.tensor(left)
        chosen = positions[CHOOSERS[order](Sitting(pool, model, positions, number, chance))]
        labelled = torch.cat([labelled, chosen])
        if order == DOUBT:
            asked = set(chosen.tolist())
            left = [n for n in left if n not in asked]
        else:
            done = {pool.units[n] for n in chosen.tolist()}
            left = [n for n in left if pool.units[n] not in done]
        model = pool.fitted(labelled)
        yield len(labelled) - len(pool.first), pool.accuracy(model)


def labels_needed(curve: Iterable[tuple[int, float]], target: float) -> float:
    """Return how many labels reach the target for the first time, at least 1; all of them if none do."""
    before, low = 0, 0.0
    for labels, accuracy in curve:
        if accuracy >= target:
            part = (target - low) / (accuracy - low) if labels else 0.0
            return max(1.0, before + part * (labels - before))
        before, low = labels, accuracy
    return float(before)


def measured(source: str, size: str, number: int) -> dict[str, Any]:
    """Return the labels that each order needs in one draw, the mean of the runs, and the accuracies on the way."""
    whole = pool_of(source, size, number)
    pools = list[Pool]()
    for run_number in range(_RUNS):
        first = first_labels(whole.labels, whole.units, random.Random(f"{number}:{run_number}"))
        pools.append(replace(whole, first=first))
    curves = [list(sittings(pool, RANDOM, random.Random(f"{number}:{n}"))) for n, pool in enumerate(pools)]
    halves = [np.interp(curve[-1][0] / 2, *zip(*curve, strict=True)) for curve in curves]
    target = float(np.mean(halves))
    found: dict[str, Any] = {
        "classes": whole.classes,
        "pictures": len(whole.units),
        "tests": len(whole.answers),
        "units": round(np.mean([curve[-1][0] for curve in curves])),
        "accuracies": [
            round(float(value), 4)
            for value in (
                np.mean([curve[0][1] for curve in curves]), target, np.mean([curve[-1][1] for curve in curves])
            )
        ],
        RANDOM: round(float(np.mean([labels_needed(curve, target) for curve in curves])), 1),
    }  # fmt: skip
    for order in ORDERS:
        needed = [
            labels_needed(sittings(pool, order, random.Random(f"{number}:{n}")), target)
            for n, pool in enumerate(pools)
        ]
        found[order] = round(float(np.mean(needed)), 1)
    return found


def measured_groups(source: str, size: str, number: int) -> dict[str, Any]:
    """Return what the groups among rejected pictures of one draw are."""
    drawn = draw(source, size, number)
    train, labels = features_of_kinds(drawn.kinds, test=False)
    model, parts = fitted(train, labels, len(drawn.kinds))
    known, answers = features_of_kinds(drawn.kinds)
    learned, learned_of = features_of_kinds(drawn.others, test=False)
    tested, tested_of = features_of_kinds(drawn.others)
    features = unit_rows(torch.cat([known, learned, tested]))
    of_class = torch.cat([answers, len(drawn.kinds) + torch.cat([learned_of, tested_of])])
    level = parts.ood_threshold
    assert level is not None
    rejected = fit_scores(fit_parts(model, features.double()), parts.ratio_weight) < level
    names = of_class[rejected]
    sizes = Counter(name for name in names.tolist() if name >= len(drawn.kinds))
    pure, classes = list[float](), list[int]()
    for group in alike_groups(features[rejected], [str(n) for n in range(len(names))], model.shared):
        name, most = Counter(names[group].tolist()).most_common(1)[0]
        pure.append(most / len(group))
        classes.append(name if 2 * most > len(group) and name >= len(drawn.kinds) else -1)
    return {
        "rejected": [int((names < len(drawn.kinds)).sum()), int((names >= len(drawn.kinds)).sum())],
        "findable": sum(size >= _LEAST_GROUP for size in sizes.values()),
        "groups": len(classes),
        "false": classes.count(-1),
        "found": len(set(classes) - {-1}),
        "purity": [round(share, 4) for share in pure],
    }


def settings() -> list[Setting]:
    """Return the collections in which groups are looked for, and those that are labelled."""
    groups = [Setting(f"groups {' '.join(one)}", _SEEDS, partial(measured_groups, *one)) for one in GROUPS]
    orders = [Setting(f"order {' '.join(one)}", _SEEDS, partial(measured, *one)) for one in COLLECTIONS]
    return groups + orders


def generated(results: Results) -> str:
    """Return the tables as Markdown."""
    orders = {title: results.get(f"order {' '.join(one)}") for one, title in COLLECTIONS.items()}
    groups = {" ".join(one): results.get(f"groups {' '.join(one)}") for one in GROUPS}
    lines = [
        "Labels that random order by unit needs to reach what it reaches with half of the pool, and how many times as"
        " many these are as each order needs: geometric means over draws with 95 % intervals, and the lower end of the"
        " one-sided 95 % interval of *doubt and distance*. Top-1 in per cent with every class counted alike: at the"
        " start, the target, and with the whole pool.",
        "",
        *table(
            ["collection", "draws", "units", "top-1", RANDOM, *ORDERS, "at least"],
            [_order(title, draws_of(unit)) for title, unit in orders.items() if unit],
        ),
        "",
        "Groups among rejected pictures, means over draws. *To be found*: unknown classes of which at least three"
        " pictures were rejected. *Purity*: the mean share of a group that is of its most frequent class.",
        "",
        *table(
            [
                "collection",
                "draws",
                "rejected: known, unknown",
                "to be found",
                "found",
                "groups",
                "false",
                "purity",
            ],
            [_group(name, draws_of(unit)) for name, unit in groups.items() if unit],
        ),
    ]
    return "\n".join(lines) + "\n"


def _order(title: str, draws: Sequence[dict[str, Any]]) -> list[str]:
    logarithms = {order: [math.log(one[RANDOM] / one[order]) for one in draws] for order in ORDERS}
    accuracies = np.mean([one["accuracies"] for one in draws], axis=0)
    return [
        title,
        str(len(draws)),
        f"{np.mean([one['units'] for one in draws]):,.0f}",
        ", ".join(f"{100 * value:.1f}" for value in accuracies),
        f"{np.mean([one[RANDOM] for one in draws]):,.0f}",
        *(_ratio(over_draws(values)) for values in logarithms.values()),
        f"{math.exp(over_draws(logarithms[OURS], 0.9).low):.3f}",  # one-sided: 95%
    ]


def _ratio(logarithm: Interval) -> str:
    """Return the geometric mean of ratios and its interval."""
    mean, low, high = (math.exp(value) for value in (logarithm.mean, logarithm.low, logarithm.high))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _group(name: str, draws: Sequence[dict[str, Any]]) -> list[str]:
    known, unknown = np.mean([one["rejected"] for one in draws], axis=0)
    means = [
        f"{np.mean([one[key] for one in draws]):.1f}" for key in ("findable", "found", "groups", "false")
    ]
    purity = np.mean([share for one in draws for share in one["purity"]])
    return [name, str(len(draws)), f"{known:.0f}, {unknown:.0f}", *means, f"{purity:.2f}"]


STUDY = Study({"results/teaching.md": generated}, settings)
