"""Labels that are probably wrong: how well `label_errors` ranks and counts swapped ones, beside cleanlab 2.9.

    pip install cleanlab==2.9.0
    python -m benchmarks label_errors run
    python -m benchmarks label_errors table

Labels of whole units are swapped, 5 or 10 in a hundred: for any other class at random, or for the class with which
held-out answers to the right labels confuse the true one most. Answers are those of the models of the folds, without
texts, by the shipped encoder's vectors; all methods get the same. Of Glyphs-LT and Icons-LT a draw takes every fourth
class by name with all its training pictures, the second, third or fourth quarter in turn. Settings were chosen on the
first one, on draws from 101 on, and on other small collections, some of which have pictures of all quarters. Counted
are units that were held out; a unit's score is the mean of its pictures'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.collections.sources import draw
from benchmarks.collections.units import KINDS, drawn_units
from benchmarks.datasets.files import GLYPHS, ICONS, training_pictures
from benchmarks.intervals import normal
from benchmarks.kept import draws_of
from benchmarks.studies.vectors import features_of, without_texts
from benchmarks.study import Results, Setting, Study, table
from vlltr_index.heads.dealing import FOLDS, answerable, deal_groups
from vlltr_index.heads.label_errors import label_errors
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import predict
from vlltr_index.heads.pooling import unit_means
from vlltr_index.heads.units import number_observations, units_of
from vlltr_index.heads.weighing import balanced_accuracy
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.tensors import unit_rows
from vlltr_index.train.stage_two import fit_stage_two

OURS, SELF, MARGIN, ISSUES = "ours", "self-confidence", "normalised margin", "find_label_issues"
METHODS = {SELF: "self_confidence", MARGIN: "normalized_margin"}
"""Scores of cleanlab by their names there."""
SWAPS = {
    "random, 5 %": (0.05, False),
    "random, 10 %": (0.1, False),
    "confusable, 5 %": (0.05, True),
    "confusable, 10 %": (0.1, True),
}
NONE = "none"
BOUNDS = (0.0, 0.05, 0.2, 0.5, 0.8, 0.95)
_QUARTERS = 4
_FEW = 5


class Labelled(NamedTuple):
    """A collection: features [N, D], right labels, int64 [N], and the unit of each picture."""

    features: Tensor
    labels: Tensor
    units: list[str]


class HeldOut(NamedTuple):
    """Answers of models without a picture: positions of the pictures, int64 [M], and log-probabilities [M, C]."""

    asked: Tensor
    log_probabilities: Tensor


def settings() -> list[Setting]:
    """Return the collections."""
    return [
        Setting(name, range(draws), partial(measured, collection))
        for name, (collection, draws) in COLLECTIONS.items()
    ]


def _quarter(data: str, number: int) -> Labelled:
    """Take every fourth class of a data set's training pictures."""
    features, labels = _embedded(data)
    own = labels % _QUARTERS == 1 + number % (_QUARTERS - 1)
    return _labelled(features[own], labels[own].unique(return_inverse=True)[1], [None] * int(own.sum()))


@cache
def _embedded(data: str) -> tuple[Tensor, Tensor]:
    """Return features of a data set's training pictures, and their classes by name."""
    files, names = training_pictures(data)
    return features_of(files), torch.from_numpy(np.unique(names, return_inverse=True)[1])


def _drawn(source: str, setting: str, number: int) -> Labelled:
    """Take the training pictures of a draw; where file names tell units, those."""
    found = draw(source, setting, number)
    pictures = [(label, *picture) for label, kind in enumerate(found.kinds) for picture in kind.train]
    labels, files, images = zip(*pictures, strict=True)
    groups = [file.split("-")[0] if found.group else None for file in files]
    return _labelled(features_of(images), torch.tensor(labels), groups)


def _bursts(number: int) -> Labelled:
    """Take bursts on photographs, each known to be one unit."""
    learned, _ = drawn_units(KINDS["bursts on photographs"], number, 1)
    labels, units, images = zip(*learned, strict=True)
    return _labelled(features_of(images), torch.tensor(labels), [str(unit) for unit in units])


def _labelled(features: Tensor, labels: Tensor, groups: Sequence[str | None]) -> Labelled:
    return Labelled(features, labels, units_of(features, labels, groups))


COLLECTIONS: dict[str, tuple[Callable[[int], Labelled], int]] = {
    "Glyphs-LT": (partial(_quarter, GLYPHS), 12),
    "Icons-LT": (partial(_quarter, ICONS), 12),
    "heldout 40x8": (partial(_drawn, "heldout", "40x8"), 40),
    "products": (partial(_drawn, "products", "9xall"), 100),
    "pages": (partial(_drawn, "pages", "9xall"), 100),
    "bursts": (_bursts, 40),
}
"""Collections and how many draws of each there are; of new bursts the encoder knows no class."""


def measured(collection: Callable[[int], Labelled], number: int) -> dict[str, Any]:
    """Measure one draw, with its labels as they are and swapped in each way."""
    data = collection(number)
    right = _held_out(data, data.labels)
    confused = _most_confused(right, data.labels)
    found = {NONE: _measures(right, data.labels, data)}
    for name, (share, alike) in SWAPS.items():
        moved = _swapped(data, share, confused if alike else None, number)
        found[name] = _measures(_held_out(data, moved), moved, data)
    return found


def _held_out(data: Labelled, labels: Tensor) -> HeldOut:
    """Answer for pictures by the models of the folds, as `vlltr review` does.

    Pictures that training puts into no fold are dealt into five more, which the first model answers.
    """
    classes = int(data.labels.max()) + 1
    stage = without_texts(data.features, labels, classes, data.units)
    found = fit_stage_two(stage, LGRConfig())
    assert found.fold_of is not None
    fold = found.fold_of.clone()
    number = int(fold.max()) + 1
    others = (fold < 0).nonzero()[:, 0]
    names = [data.units[place] for place in others.tolist()]
    keys = [stage.keys[place] for place in others.tolist()]
    fold[others] = number + deal_groups(labels[others], names, keys, FOLDS)
    answers = torch.zeros(len(labels), classes)
    asked = answerable(labels, fold)
    for one in fold[asked].unique().tolist():
        own = one if one < number else 0
        model = found.folds[own if len(found.folds) > 1 else 0]
        moments = stage.moments(fold != one)
        predicted = predict(model.shared, stage.prototypes)
        plda = PLDA(model.shared, moments.counts, moments.sums, predicted)
        rows = asked & (fold == one)
        _, weights = found.scalars[own]
        likelihoods = plda.log_likelihoods(unit_rows(data.features[rows]))
        answers[rows] = (weights.generative * likelihoods).log_softmax(1).float()
    return HeldOut(asked.nonzero()[:, 0], answers[asked])


def _most_confused(held: HeldOut, labels: Tensor) -> Tensor:
    """Return the other class that answers to each class's images give most probability, -1 without any; int64 [C]."""
    own = labels[held.asked]
    sums = torch.zeros(2 * [held.log_probabilities.shape[1]])
    sums.index_add_(0, own, held.log_probabilities.exp())
    sums.fill_diagonal_(-1.0)
    there = torch.bincount(own, minlength=len(sums)) > 0
    return torch.where(there, sums.argmax(1), -1)


def _swapped(data: Labelled, share: float, confused: Tensor | None, number: int) -> Tensor:
    """Give a share of the units another class: the confused one, or any where there is none."""
    generator = torch.Generator().manual_seed(number)
    observations = number_observations(data.labels, data.units)
    classes = int(data.labels.max()) + 1
    owners = torch.empty(int(observations.max()) + 1, dtype=torch.int64)
    owners[observations] = data.labels
    some = torch.randperm(len(owners), generator=generator)[: max(1, round(share * len(owners)))]
    true = owners[some]
    moved = (true + torch.randint(1, classes, (len(some),), generator=generator)) % classes
    if confused is not None:
        moved = torch.where(confused[true] >= 0, confused[true], moved)
    owners[some] = moved
    return owners[observations]


def _measures(held: HeldOut, labels: Tensor, data: Labelled) -> dict[str, Any]:
    """Measure the rankings, what is flagged, and how the probabilities that were told are met."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    asked = labels[held.asked]
    units = number_observations(asked, [data.units[place] for place in held.asked.tolist()])
    found = label_errors(held.log_probabilities, asked, [str(unit) for unit in units.tolist()])
    chances = held.log_probabilities.double().softmax(1).numpy()
    scores = {OURS: found}
    for name, method in METHODS.items():
        scores[name] = -torch.from_numpy(get_label_quality_scores(asked.numpy(), chances, method=method))
    head = torch.zeros(len(asked), dtype=torch.float64)
    head[found.argsort(descending=True)[: round(float(found.sum()))]] = 1.0
    issues = torch.from_numpy(find_label_issues(asked.numpy(), chances, n_jobs=1)).double()
    wrong = unit_means((asked != data.labels[held.asked]).double(), units) > 0.5
    flagged = {OURS: unit_means(head, units) > 0.5, ISSUES: unit_means(issues, units) > 0.5}
    rare = torch.bincount(asked)[asked] <= _FEW
    measures: dict[str, Any] = {
        "units": len(wrong),
        "wrong": int(wrong.sum()),
        "accuracy": round(balanced_accuracy(held.log_probabilities, asked, units), 4),
        "flagged": {name: [int(some.sum()), int((some & wrong).sum())] for name, some in flagged.items()},
        "rare": [int(rare.sum()), int(head[rare].sum()), int(issues[rare].sum())],
        "told": _told(unit_means(found, units), wrong),
    }
    if measures["wrong"]:
        measures["ranking"] = {
            name: [round(value, 4) for value in _ranked(unit_means(some.double(), units), wrong)]
            for name, some in scores.items()
        }
    return measures


def _ranked(scores: Tensor, wrong: Tensor) -> tuple[float, float]:
    """Compute average precision and R-precision; ties are broken by chance."""
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    found = wrong[order][scores[order].argsort(descending=True, stable=True)].double()
    precision = found.cumsum(0) / torch.arange(1, len(found) + 1)
    total = int(found.sum())
    return float(precision @ found) / total, float(found[:total].mean())


def _told(chances: Tensor, wrong: Tensor) -> list[list[float]]:
    """Return units, the sum of what is told of them and how many are wrong, by `BOUNDS`."""
    which = torch.bucketize(chances, torch.tensor(BOUNDS[1:], dtype=torch.float64), right=True)
    values = torch.stack([torch.ones_like(chances), chances, wrong.double()], 1)
    sums = torch.zeros(len(BOUNDS), 3, dtype=torch.float64).index_add_(0, which, values)
    return [[round(value, 2) for value in row] for row in sums.tolist()]


def generated(results: Results) -> str:
    """Return the tables as Markdown."""
    found = {name: draws_of(results[name]) for name in COLLECTIONS if name in results}
    tables = (_rankings(found), _counts(found), _controls(found), _calibration(found))
    return "\n\n".join("\n".join(lines) for lines in tables) + "\n"


_Draws = dict[str, list[dict[str, Any]]]


def _rankings(found: _Draws) -> list[str]:
    rows = []
    for name, draws in found.items():
        for swap in SWAPS:
            values = {
                method: np.array([draw[swap]["ranking"][method] for draw in draws if draw[swap]["wrong"]])
                for method in (OURS, *METHODS)
            }
            best = max(METHODS, key=lambda method: values[method][:, 0].mean())
            cells = [f"{some[:, 0].mean():.3f} / {some[:, 1].mean():.3f}" for some in values.values()]
            gains = values[OURS][:, 0] - values[best][:, 0]
            rows.append([name, swap, str(len(gains)), *cells, normal(gains).shown(3, 1.0)])
    return [
        "Average precision / R-precision of the wrong labels; at chance level their share, and more where units are"
        " few. *Ours less it*: average"
        " precision less that of the better one of cleanlab's two scores, by its mean over the draws, paired, with its"
        " 95 % interval.",
        "",
        *table(["collection", "wrong labels", "draws", "ours", SELF, MARGIN, "ours less it"], rows),
    ]


def _counts(found: _Draws) -> list[str]:
    rows = []
    for name, draws in found.items():
        for swap in SWAPS:
            wrong = sum(draw[swap]["wrong"] for draw in draws)
            cells = [f"{wrong / len(draws):.1f}"]
            for method in (OURS, ISSUES):
                flagged, hit = np.sum([draw[swap]["flagged"][method] for draw in draws], axis=0)
                cells += [f"{flagged / len(draws):.1f}", f"{hit / max(flagged, 1):.2f} / {hit / wrong:.2f}"]
            rows.append([name, swap, *cells])
    head = ["wrong", "our count", "precision / recall", "cleanlab's", "precision / recall"]
    return [
        "How many units are wrong, and how many are flagged: those at the head of our list, as many as its count"
        f" says, and those of cleanlab's `{ISSUES}`; a mean over draws, then precision / recall over all draws.",
        "",
        *table(["collection", "wrong labels", *head], rows),
    ]


def _controls(found: _Draws) -> list[str]:
    rows = []
    for name, draws in found.items():
        clean = [draw[NONE] for draw in draws]
        units = sum(one["units"] for one in clean)
        shares = [sum(one["flagged"][method][0] for one in clean) / units for method in (OURS, ISSUES)]
        there, *rare = np.sum([one["rare"] for one in clean], axis=0)
        cells = [f"{100 * share:.1f}" for share in shares]
        cells += [f"{100 * some / there:.1f}" if there else "-" for some in rare]
        accuracy = np.mean([one["accuracy"] for one in clean])
        rows.append([name, f"{units / len(clean):.0f}", f"{100 * accuracy:.0f}", *cells])
    head = ["collection", "units", "balanced accuracy", "ours", "cleanlab", "rare: ours", "rare: cleanlab"]
    return [
        "No label swapped: per cent of the units that are flagged, and of the pictures of classes of at most"
        f" {_FEW} pictures. Some of these labels may be wrong in truth.",
        "",
        *table(head, rows),
    ]


def _calibration(found: _Draws) -> list[str]:
    ends = (*BOUNDS[1:], 1.0)
    names = [f"{100 * low:.0f} to {100 * high:.0f}" for low, high in zip(BOUNDS, ends, strict=True)]
    rows = []
    for name, draws in found.items():
        for swap in SWAPS:
            sums = np.sum([draw[swap]["told"] for draw in draws], axis=0)
            cells = [
                f"{100 * told / units:.0f}: {100 * wrong / units:.0f}" if units else "-"
                for units, told, wrong in sums
            ]
            rows.append([name, swap, *cells])
    return [
        "Of units that were told to be wrong with so many per cent, the mean that was told, and how many were wrong.",
        "",
        *table(["collection", "wrong labels", *names], rows),
    ]


STUDY = Study({"results/label_errors.md": generated}, settings)
