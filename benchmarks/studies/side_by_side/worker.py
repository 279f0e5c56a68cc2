"""Fit the method on draws and measure its answers, with whichever version of the library this Python has.

    python -P worker.py

Reads lines of JSON, the arguments of `measure_file`, and writes a line of JSON for each. This file imports nothing of
`benchmarks`, so that the Python of an earlier commit can run it. What differs between versions is in the section "The
versions".
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlltr_index.data.text import text_hash
from vlltr_index.evaluation.metrics import expected_calibration_error
from vlltr_index.pipelines import in_memory
from vlltr_index.pipelines.in_memory import Images, Sentences
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.tensors import cosine_logits, unit_rows

if TYPE_CHECKING:
    from vlltr_index.recognition.model import Model
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.train.stage_two import StageTwoResult

OWN, PROMPT, NAME = "own", "prompt", "name"
"""What a sentence is: written about its class, a prompt, or the bare name where the recipe has no prompts."""
ADDITIONS = ((1, 0), (1, 1), (1, 5), (10, 0), (10, 1), (10, 5))
"""How many classes are added, and the images of each; 0: text alone."""
METHOD, IMAGE_PART, PROTOTYPES = "method", "image contribution", "prototypes"
_LEAST = 1e-12  # of a probability, so that its logarithm is finite


@dataclass(frozen=True, eq=False)
class Draw:
    """One collection with its test images, and classes that are added to it.

    Classes 0 to C - 1 are there from the start, the others are added in this order. Vectors are unnormalised.

    Attributes:
        classes: C.
        names: Str, the names of all classes.
        encoder: For `load_recipe`; empty: none.
        logit_scale: The encoder's multiplier of the cosine.
        train: Float32 [N, D], training images of the C classes.
        labels: Int64 [N].
        units: Str [N], the unit of each image.
        contents: Str [N], the hash of each one's content.
        test: Float32 [M, D].
        test_labels: Int64 [M].
        added: Float32 [A, D], training images of the added classes, at most five of each.
        added_labels: Int64 [A], from C on.
        added_units: Str [A].
        added_contents: Str [A].
        added_test: Float32 [B, D].
        added_test_labels: Int64 [B], from C on.
        texts: Float32 [T, D], sentences of all classes.
        text_owners: Int64 [T].
        text_roles: Str [T], `OWN`, `PROMPT` or `NAME`.
        text_ids: Str [T].
        sentences: Str [T].
    """

    classes: int
    names: NDArray[np.str_]
    encoder: str
    logit_scale: float
    train: NDArray[np.float32]
    labels: NDArray[np.int64]
    units: NDArray[np.str_]
    contents: NDArray[np.str_]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    added: NDArray[np.float32]
    added_labels: NDArray[np.int64]
    added_units: NDArray[np.str_]
    added_contents: NDArray[np.str_]
    added_test: NDArray[np.float32]
    added_test_labels: NDArray[np.int64]
    texts: NDArray[np.float32]
    text_owners: NDArray[np.int64]
    text_roles: NDArray[np.str_]
    text_ids: NDArray[np.str_]
    sentences: NDArray[np.str_]

    def save(self, path: Path) -> None:
        """Write the draw, whole or not at all."""
        part = path.with_suffix(f".{os.getpid()}.part")
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        with part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a draw."""
        with np.load(path, allow_pickle=False) as file:
            found = {field.name: file[field.name] for field in fields(cls)}
        return cls(**{name: value.item() if value.ndim == 0 else value for name, value in found.items()})

    def images(self, count: int = 0, shots: int = 0) -> Images:
        """Return the training images, with the first `shots` of each of the first `count` added classes."""
        more = self.added_rows(count, shots)
        features = torch.cat([torch.from_numpy(self.train), torch.from_numpy(self.added[more])])
        labels = torch.cat([torch.from_numpy(self.labels), torch.from_numpy(self.added_labels[more])])
        units = [*self.units.tolist(), *self.added_units[more].tolist()]
        return Images(
            features[None], labels, units, [*self.contents.tolist(), *self.added_contents[more].tolist()]
        )

    def added_rows(self, count: int, shots: int) -> NDArray[np.int64]:
        """Return the positions of the first `shots` images of each of the first `count` added classes."""
        rows = [
            np.flatnonzero(self.added_labels == number)[:shots]
            for number in range(self.classes, self.classes + count)
        ]
        return np.concatenate([np.empty(0, dtype=np.int64), *rows])

    def texts_of(self, count: int = 0, shots: int = 0) -> Sentences:
        """Return the sentences of the classes, and those of the first `count` added classes.

        An added class with images has what is made from its name; one that has text alone has all its sentences.
        """
        base = (self.text_owners < self.classes) & (self.text_roles != NAME)
        new = (self.text_owners >= self.classes) & (self.text_owners < self.classes + count)
        named = self.text_roles != OWN
        if shots:
            new &= named
        else:
            written = np.isin(self.text_owners, self.text_owners[self.text_roles != NAME])
            new &= (self.text_roles != NAME) | ~written
        at = np.flatnonzero(base | new)
        said = self.sentences[at].tolist()
        hashes = {} if IS_EARLIER else {"hashes": [text_hash(text) for text in said]}
        return Sentences(
            vectors=torch.from_numpy(self.texts[at]),
            owner=torch.from_numpy(self.text_owners[at]),
            prompts=torch.from_numpy(self.text_roles[at] == PROMPT),
            ids=self.text_ids[at].tolist(),
            texts=said,
            logit_scale=self.logit_scale,
            **hashes,
        )

    def can_add(self, count: int, shots: int) -> bool:
        """Say whether there are so many classes to add, each with an image or, without images, a sentence."""
        wanted = range(self.classes, self.classes + count)
        there = self.added_labels if shots else self.text_owners
        return bool(np.isin(wanted, there).all() and np.isin(wanted, self.added_test_labels).all())


# Measures


def measured(chances: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """Measure probabilities [Q, C] of images of the classes int64 [Q].

    `classes` has for each class the number of its images, how many were recognised, and the sum of their NLL.
    """
    confidence, best = chances.max(1)
    right = (best == labels).double()
    nll = -chances.gather(1, labels[:, None])[:, 0].clamp(min=_LEAST).log()
    counts = torch.bincount(labels, minlength=classes)
    hits = torch.zeros(classes, dtype=torch.float64).index_add(0, labels, right)
    losses = torch.zeros(classes, dtype=torch.float64).index_add(0, labels, nll)
    return {
        "accuracy": float(right.mean()),
        "balanced": balanced(hits, counts),
        "nll": float(nll.mean()),
        "ece": expected_calibration_error(confidence, best == labels),
        "classes": [
            [n, int(h), round(s, 6)]
            for n, h, s in zip(counts.tolist(), hits.tolist(), losses.tolist(), strict=True)
        ],
    }


def balanced(hits: Tensor, counts: Tensor) -> float:
    """Return the mean recall of the classes that have images."""
    there = counts > 0
    return float((hits[there] / counts[there]).mean())


def hits_by_class(chances: Tensor, labels: Tensor, classes: int) -> list[list[int]]:
    """Return for each class the number of its images, and how many were recognised."""
    counts = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[chances.argmax(1) == labels], minlength=classes)
    return [list(pair) for pair in zip(counts.tolist(), right.tolist(), strict=True)]


def share(values: Tensor) -> float:
    """Return the share of true values."""
    return float(values.double().mean())


# One draw


def measure(draw: Draw, rows_only: bool = False) -> dict[str, Any]:
    """Fit the method on a draw and measure it, unless `rows_only` also with added classes and unknown images."""
    recipe = load_recipe("ours", (), draw.encoder or None)
    started = time.process_time()
    scorer, decision = fit(draw, recipe)
    seconds = time.process_time() - started
    test = torch.from_numpy(draw.test)
    labels = torch.from_numpy(draw.test_labels)
    rows = {
        name: measured(chances, labels, draw.classes) for name, chances in answers(scorer, test, draw.classes)
    }
    found: dict[str, Any] = {"seconds": round(seconds, 3), "rows": rows}
    if rows_only:
        return found
    known = accepted(scorer, test)
    found["known_accepted"] = None if known is None else share(known)
    if len(draw.added_test):
        unknown = accepted(scorer, torch.from_numpy(draw.added_test))
        found["unknown_accepted"] = None if unknown is None else share(unknown)
    found["added"] = {
        f"{count} x {shots}": addition(added(scorer, decision, draw, recipe, count, shots), draw, count)
        for count, shots in ADDITIONS
        if draw.can_add(count, shots)
    }
    return found


def addition(scorer: Model, draw: Draw, count: int) -> dict[str, Any]:
    """Return for each class the test images and those recognised, after `count` classes were added."""
    classes = draw.classes + count
    new = draw.added_test_labels < classes
    features = torch.from_numpy(np.concatenate([draw.test, draw.added_test[new]]))
    labels = torch.from_numpy(np.concatenate([draw.test_labels, draw.added_test_labels[new]]))
    chances = probabilities(scorer, features)
    if chances.shape[1] != classes:
        raise ValueError(f"{chances.shape[1]} columns of {classes} classes")
    return {"classes": hits_by_class(chances, labels, classes)}


# The versions


IS_EARLIER = find_spec("vlltr_index.heads.gating") is not None
"""Whether the library is the version that the new method is compared with."""


def fit(draw: Draw, recipe: Recipe) -> tuple[Model, StageTwoResult | None]:
    """Fit the method; return the model, and what stage 2 decided, which has the models of the folds.

    The earlier version has none of the latter.
    """
    model, decision = in_memory.fit_in_memory(draw.images(), draw.texts_of(), draw.classes, recipe)
    return model, None if IS_EARLIER else decision


def probabilities(scorer: Model, features: Tensor) -> Tensor:
    """Return the probabilities of all classes, float64 [Q, C], rows sum to 1."""
    found = scorer.exhaustive(features).probabilities.double()
    return found / found.sum(1, keepdim=True)


def answers(scorer: Model, features: Tensor, classes: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the probabilities [Q, C] of the method, of its image contribution alone, and of its anchors' means."""
    yield METHOD, probabilities(scorer, features)
    fused = scorer.exhaustive(features)
    yield IMAGE_PART, fused.visual_part.double().softmax(1)
    bank = scorer.anchors.bank
    if bank.num_classes == classes and bool(bank.vectors.any()):
        cosines = cosine_logits(features, bank.prototypes(normalise_values=True))
        yield PROTOTYPES, (float(scorer.saved.head.logit_scale) * cosines.double()).softmax(1)


def accepted(scorer: Model, features: Tensor) -> Tensor | None:
    """Return which images `--reject` takes for images of known classes, bool [Q]; None where it has no threshold."""
    parts = scorer.saved.parts
    if parts is None or parts.ood_threshold is None:
        return None
    scores = scorer.fits(features) if IS_EARLIER else scorer.rule.known_scores(features)
    return scores >= parts.ood_threshold


def added(
    scorer: Model, decision: StageTwoResult | None, draw: Draw, recipe: Recipe, count: int, shots: int
) -> Model:
    """Return the model with the first `count` added classes, which have `shots` images each, or text alone.

    Args:
        scorer: The model.
        decision: What stage 2 decided, see `fit`.
        draw: What it was fitted on.
        recipe: The settings.
        count: Number of classes.
        shots: Images of each.
    """
    found = _with_classes(scorer, draw, recipe, count, shots)
    return found if decision is None else replace(found, offsets=_offsets(found, decision, draw))


def _offsets(scorer: Model, decision: StageTwoResult, draw: Draw) -> dict[int, float]:
    """Compute the offsets of added classes by the models of the folds, as `vlltr classes add` does."""
    from vlltr_index.heads.units import number_names, number_observations
    from vlltr_index.recognition.added import FoldScores

    if not decision.folds:
        return {}
    assert scorer.saved.parts is not None
    assert decision.fold_of is not None
    parts = replace(scorer.saved.parts, held_out=None, told=None)
    labels = torch.from_numpy(draw.labels)
    observations = number_observations(labels, draw.units.tolist())
    scores, rows = [], []
    for number, (level, weights) in decision.scalars.items():
        out = decision.fold_of == number
        fold = decision.folds[number if len(decision.folds) > 1 else 0]
        apart = replace(
            parts, shared=fold.shared, shifts=fold.shifts, weights=weights, text_level=level.level
        )
        stats = _without(scorer, draw, fold.out, labels, observations)
        saved = replace(scorer.saved, head=fold.head, parts=apart)
        judge = replace(scorer.with_known(saved=saved, stats=stats), offsets={})
        images = torch.from_numpy(draw.train)[out]
        scores.append(judge.exhaustive(images).log_scores.double())
        rows.append(out.nonzero()[:, 0])
    at = torch.cat(rows)
    table = FoldScores(
        class_ids=scorer.class_ids,
        base=scorer.trained,
        scores=torch.cat(scores),
        image_ids=[],
        labels=labels[at],
        same=torch.ones_like(at, dtype=torch.bool),
        groups=number_names([draw.units[n] for n in at.tolist()]),
    )
    return table.offsets()


def _without(scorer: Model, draw: Draw, out: Tensor, labels: Tensor, observations: Tensor) -> Any:
    """Return the statistics of the classes without the training images bool [N]."""
    from vlltr_index.heads.moments import class_sums, observation_weights

    weights = observation_weights(observations, scorer.saved.unit_correlation)
    images = unit_rows(torch.from_numpy(draw.train)[out])
    stats = scorer.stats
    counts, sums = class_sums(images, labels[out], len(stats.class_ids), weights[out])
    return replace(stats, counts=stats.counts - counts, sums=stats.sums - sums)


def _with_classes(scorer: Model, draw: Draw, recipe: Recipe, count: int, shots: int) -> Model:
    """Do what `vlltr classes add` does: select anchors by all images, and count and sum the new ones."""
    import pyarrow as pa

    from vlltr_index.heads.moments import class_sums, observation_weights
    from vlltr_index.heads.units import number_observations

    if IS_EARLIER:
        from vlltr_index.recognition.state import Anchors, ClassStats
    else:
        from vlltr_index.recognition.anchors import Anchors
        from vlltr_index.recognition.parameters import ClassStats

    images = draw.images(count, shots)
    sentences = draw.texts_of(count, shots)
    none = torch.zeros_like(images.labels, dtype=torch.bool)
    bank, chosen = sentences.anchors(images, none, recipe.select)
    columns = {
        "sentence_id": pa.array([sentences.ids[n] for n in chosen], pa.string()),
        "text": pa.array([sentences.texts[n] for n in chosen], pa.string()),
    }
    anchors = Anchors(bank, torch.arange(len(chosen)), columns.__getitem__, "")
    stats = scorer.stats
    rows = draw.added_rows(count, shots)
    if len(rows):
        labels = torch.from_numpy(draw.added_labels[rows]) - draw.classes
        observations = number_observations(labels, draw.added_units[rows].tolist())
        weights = observation_weights(observations, scorer.saved.unit_correlation)
        new = unit_rows(torch.from_numpy(draw.added[rows]))
        counts, sums = class_sums(new, labels, count, weights)
        stats = ClassStats(
            torch.cat([stats.class_ids, torch.arange(count) + draw.classes]),
            torch.cat([stats.counts, counts]),
            torch.cat([stats.sums, sums]),
        )
    changes = {"anchors": anchors, "stats": stats}
    return replace(scorer, **changes) if IS_EARLIER else scorer.with_known(**changes)


def measure_file(path: str, rows_only: bool) -> dict[str, Any]:
    """Measure the draw in a file; `failed` says why that was not possible."""
    try:
        return measure(Draw.load(Path(path)), rows_only)
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Measure the draws that standard input names."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(measure_file(**json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
