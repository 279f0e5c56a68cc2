"""Is the figure of `train lgr` honest? Collections of bursts and series, beside new units of the same kind.

    python -m benchmarks honest_figure run --settings scans --draws 10 --dir runs    resumable
    python -m benchmarks honest_figure table

A model is made of a drawn collection, and `evaluate` measures it by the models of its folds. The truth is the accuracy
on 48 new units a class: of the folds' own models, of each class in the share in which they were asked for it, and of
the final model in the same shares of the classes. Beside the interval stands that of a plain bootstrap over pictures.

Each answer is kept, so that another form of interval needs no new draws. That of today was chosen among several by its
score on augmented, visits, products, reposts and single, with the first hundred draws of the others in sight.

Of the first six kinds draws 0 to 9 are left out: near duplicates were tuned with some of them in sight. Of reposts
draws 0 to 59 are left out: after them copies that are cut and enlarged were looked for. Of augmented and mirrored
copies draws 0 to 11 are left out: with them, and scans 10 to 21, it was chosen how many likenesses a pair has to share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.collections.units import KINDS, NAMED, Kind, files, write_collection
from benchmarks.intervals import normal
from benchmarks.kept import cleared, draws_of
from benchmarks.study import Results, Setting, Study, add_folder, table
from vlltr_index.evaluation.metrics import METHOD, accuracy_report
from vlltr_index.pipelines.evaluate import Evaluation, evaluation
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.plan import StepMaker
from vlltr_index.pipelines.train_all import plan_training
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.store.workspace import Workspace

_ENCODER = "vlltr-tiny:glyphs"
_DRAWS = 20
_RESAMPLES = 2000
_SIZES = {"2 to 3": 3, "4 to 7": 7, "8 to 15": 15, "16 or more": 10**9}
"""Names of the sizes of classes, by their most groups."""
_MISS = 2 / 0.05  # what a point outside of a 95 % interval costs in its score (Gneiting and Raftery 2007)


def settings(folder: Path) -> list[Setting]:
    """Return the kinds of collections, of which no draw that was looked at is measured."""
    return [
        Setting(name, range(kind.seen, kind.seen + _DRAWS), partial(_measured, name, folder))
        for name, kind in KINDS.items()
    ]


def _measured(name: str, folder: Path, number: int) -> dict[str, Any]:
    place = folder / f"{name}-{number}".replace(" ", "-")
    with cleared(place):
        return measured(KINDS[name], number, place)


def measured(kind: Kind, number: int, place: Path) -> dict[str, Any]:
    """Return one draw's figures, with its workspace below `place`."""
    drawn = write_collection(kind, number, place / "pictures")
    group = NAMED if kind.named else None
    workspace = Workspace.create(place / "model", load_recipe(None, (), _ENCODER))
    ingest_images(workspace, drawn.folder, "train", group=group)
    for step in plan_training(StepMaker(workspace, "model", None, None), stage_one=False).values():
        step.call()
    found = evaluation(workspace)
    model = Model.open(workspace.snapshot())
    named = list(files(drawn.new))
    labels = torch.tensor([model.column(name) for name, _ in named])
    features = model.features([data for _, data in named])[0]
    answering = found.measured.answering
    by_fold = torch.stack([_shares(one.model, features, labels, len(found.class_ids)) for one in answering])
    tested = torch.stack(
        [torch.bincount(found.labels[one.places], minlength=len(found.class_ids)) for one in answering]
    ).double()
    counts = tested.sum(0)
    by_class = (tested * by_fold).sum(0) / counts.clamp(min=1)
    final = _shares(model, features, labels, len(found.class_ids))
    return {
        "units": drawn.units,
        "answers": _answers(found),
        "truth of folds": _means(by_class, counts),
        "truth of final": _means(final, counts),
        "truth by class": [
            [round(float(share), 4) for share in both] for both in zip(by_class, final, strict=True)
        ],
    }


def _answers(found: Evaluation) -> list[list[int]]:
    """Count the pictures of each unit, class, fold and answer, with these four before the count."""
    best = found.answers[METHOD].best[:, 0]
    rows = torch.stack([found.measured.units, found.labels, found.measured.models, best], 1)
    cells, pictures = rows.unique(dim=0, return_counts=True)
    counted: list[list[int]] = torch.cat([cells, pictures[:, None]], 1).tolist()
    return counted


def _shares(model: Model, features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the share of each class's new pictures that a model names rightly, float64 [C]."""
    # Of classes that are equally probable, as where nothing tells them apart, an evaluation takes this one.
    answers = model.exhaustive(features).probabilities.topk(5).indices[:, 0]
    right = (answers == labels).double()
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return torch.zeros(classes, dtype=torch.float64).index_add(0, labels, right) / counts


def _means(shares: Tensor, counts: Tensor) -> list[float]:
    """Return the mean of the classes' shares [C], each weighed by its pictures `counts` [C], and each alike."""
    alike = (counts > 0).double()
    return [float((shares * weights).sum() / weights.sum()) for weights in (counts, alike)]


def generated(results: Results) -> str:
    """Return the tables as Markdown."""
    biases = ["less the folds' models", "balanced", "less the final model", "balanced"]
    coverage = ["coverage", "balanced", "score", "bootstrap: coverage", "score"]
    lines = [
        "Reported accuracy less accuracy on new groups, in points: mean over draws and its 95% interval. The *folds'*"
        " models answered for the reported accuracy; the *final* model is fitted on all images. *Coverage*: share of"
        " 95% intervals that contain the accuracy of the folds' models. *Score*: interval score in points, lower is"
        " better; next to it that of a plain bootstrap over images. *Groups*: found, of 100 that exist.",
        "",
        *table(
            ["collection", "draws", "accuracy", *biases, *coverage, "groups"],
            [_line(name, draws_of(unit)) for name, unit in results.items()],
        ),
        "",
        "Reported accuracy of a class less its accuracy on new groups, by the number of its groups that"
        " were found, over all collections: mean over draws of the mean over classes, and its 95% interval.",
        "",
        *table(
            ["groups of the class", "classes", "less the folds' models", "less the final model"],
            _by_size([draw for unit in results.values() for draw in draws_of(unit)]),
        ),
    ]
    return "\n".join(lines) + "\n"


def _by_size(draws: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the bias by the number of groups of a class."""
    biases = dict[
        str, list[list[list[float]]]
    ]()  # by size and draw: of each class, less the folds', less the final
    for draw in draws:
        of_draw = dict[str, list[list[float]]]()
        for size, *bias in _class_biases(draw):
            name = next(name for name, most in _SIZES.items() if size <= most)
            of_draw.setdefault(name, []).append(bias)
        for name, some in of_draw.items():
            biases.setdefault(name, []).append(some)
    rows = []
    for name in _SIZES:
        if name in biases:
            means = np.array([np.mean(some, axis=0) for some in biases[name]])
            cells = [normal(errors).with_margin() for errors in means.T]
            rows.append([name, f"{sum(map(len, biases[name])):,}", *cells])
    return rows


def _class_biases(draw: Mapping[str, Any]) -> list[tuple[int, float, float]]:
    """Return for each class its groups, and its reported accuracy less that of the folds' and of the final model."""
    rows = torch.tensor(draw["answers"])
    found = []
    for label, (folds, final) in enumerate(draw["truth by class"]):
        own = rows[rows[:, 1] == label]
        if len(own):
            reported = float(own[own[:, 3] == label, 4].sum() / own[:, 4].sum())
            found.append((len(own[:, 0].unique()), reported - folds, reported - final))
    return found


def _line(name: str, draws: Sequence[Mapping[str, Any]]) -> list[str]:
    figures = [_figures(one["answers"]) for one in draws]
    picture, alike, bootstrap = (np.array(rows) for rows in zip(*figures, strict=True))
    folds = np.array([one["truth of folds"] for one in draws])
    final = np.array([one["truth of final"] for one in draws])
    found = sum(len({unit for unit, *_ in one["answers"]}) for one in draws)
    reported = np.stack([picture[:, 0], alike[:, 0]], 1)
    biases = [normal(errors).with_margin() for truth in (folds, final) for errors in (reported - truth).T]
    return [
        name,
        f"{len(draws)}",
        f"{100 * picture[:, 0].mean():.1f}",
        *biases,
        _covered(picture[:, 1:], folds[:, 0]),
        _covered(alike[:, 1:], folds[:, 1]),
        _score(picture[:, 1:], folds[:, 0]),
        _covered(bootstrap, folds[:, 0]),
        _score(bootstrap, folds[:, 0]),
        f"{100 * found / sum(one['units'] for one in draws):.0f}",
    ]


def _figures(answers: Sequence[Sequence[int]]) -> tuple[list[float], list[float], tuple[float, float]]:
    """Return accuracy and balanced accuracy with their intervals, and the interval of a plain bootstrap."""
    rows = torch.tensor(answers)
    units, labels, folds, best, _ = rows.repeat_interleave(rows[:, -1], 0).T
    counts = torch.bincount(labels)  # the bins by class size are not looked at
    report = accuracy_report(best, labels, counts, units=units, models=folds)
    by_picture = report.top1["overall"]
    drawn = np.random.default_rng(0).binomial(len(best), by_picture.value, _RESAMPLES) / len(best)
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = ([one.value, one.low, one.high] for one in (by_picture, report.balanced))
    return *found, (float(low), float(high))


def _covered(ends: Sequence[Any], truth: Sequence[Any]) -> str:
    low, high = np.array(ends).T
    return f"{100 * ((low <= truth) & (truth <= high)).mean():.0f}%"


def _score(ends: Sequence[Any], truth: Sequence[Any]) -> str:
    low, high = np.array(ends).T
    score = high - low + _MISS * ((low - truth).clip(0) + (truth - high).clip(0))
    return f"{100 * score.mean():.1f}"


STUDY = Study({"results/honest_figure.md": generated}, settings, add_folder)
