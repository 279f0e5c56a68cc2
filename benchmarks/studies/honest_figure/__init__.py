"""Is the figure of `train lgr` honest? Collections of bursts and series, beside new units of the same kind.

    python -m benchmarks honest_figure run --kind scans --draws 100 --dir runs    resumable
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

from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kept import cleared, keep_draws
from benchmarks.studies.honest_figure.collections import KINDS, NAMED, Kind, files, write_collection
from benchmarks.studies.honest_figure.table import parts
from benchmarks.study import Command, Study, add_folder
from vlltr_index.evaluation.metrics import METHOD
from vlltr_index.pipelines.evaluate import Evaluation, evaluation
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.plan import StepMaker
from vlltr_index.pipelines.train_all import plan_training
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.store.workspace import Workspace

_ENCODER = "vlltr-tiny:glyphs"


def run(kind: Sequence[str], draws: int, folder: Path) -> None:
    """Measure the draws of each kind that are not measured yet."""
    for name in kind:
        seen = KINDS[name].seen
        keep_draws("honest_figure", name, range(seen, seen + draws), partial(_measured, name, folder))


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


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--draws", type=int, default=100)
    add_folder(parser)


STUDY = Study({"run": Command(run, _arguments)}, parts)
