"""One draw: workspaces made by the README's commands in this process, and their answers."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from benchmarks.studies.draws.rules import choose, rules, text_means
from benchmarks.studies.draws.sources import Draw, Kind, write_picture
from benchmarks.studies.paired import METHOD, UNDER_TRAINING, WITHOUT_BRANCH
from benchmarks.studies.without_text import without_branch
from vlltr_index import Recognizer
from vlltr_index.classes import ChangeOptions, NewClass, add_classes
from vlltr_index.cli.main import vlltr
from vlltr_index.embedding.loading import ImageSet, image_set, image_units
from vlltr_index.embedding.vectors import Engine
from vlltr_index.errors import VlltrError
from vlltr_index.evaluation.metrics import expected_calibration_error
from vlltr_index.heads.units import number_observations
from vlltr_index.heads.weighing import balanced_accuracy
from vlltr_index.pipelines.embed import embed
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import cosine_logits

__all__ = ["ADDITIONS", "TEXT_SIDE", "Bench", "prototypes", "sides"]

ADDITIONS = {"5 images": 5, "1 image": 1, "text": 0}
TEXT_SIDE = "text side"


class Bench:
    """One draw's files and workspaces.

    Args:
        folder: Where they are made.
        encoder: For `vlltr init --encoder`.
        drawn: The collection.
        engine: Computes the vectors in the place of `vlltr embed` and `vlltr classes add`; None: these do.
    """

    def __init__(self, folder: Path, encoder: str, drawn: Draw, engine: Engine | None = None) -> None:
        self._folder = folder
        self._encoder = encoder
        self._drawn = drawn
        self._engine = engine
        self._base = folder / "base"
        self._seconds: dict[str, float] = {}
        self._trained: dict[str, Any] = {}  # what `train lgr` reported
        folder.mkdir(parents=True, exist_ok=True)

    def with_images(self, number: int) -> dict[str, Any]:
        """The collection in a workspace of its own: the method, its parts, and the simple rules."""
        kinds = self._drawn.kinds
        problem = self._made(kinds, kinds)
        workspace = Workspace.open(self._base)
        snapshot = workspace.snapshot()
        train = image_set(snapshot, "train")
        test = image_set(snapshot, "test")
        ids, labels = torch.unique(train.class_ids, return_inverse=True)
        answers = torch.searchsorted(ids, test.class_ids)
        usable = rules(len(ids), *prototypes(workspace, ids))
        units = image_units(snapshot, train.image_ids, train.class_ids, train.features)
        observations = number_observations(labels, units)
        chosen = choose(usable, train.features, labels, test.features, number, observations)
        on_folds = {n: None if one.on_folds is None else round(one.on_folds, 5) for n, one in chosen.items()}
        return {
            **({"failed": problem} if problem else {}),
            **self._report({} if problem else _with_training(Recognizer.open(workspace), test), len(answers)),
            "rules": {n: _measured(one.scores.softmax(1), answers) for n, one in chosen.items()},
            "settings": {n: one.setting for n, one in chosen.items()},
            "on folds": on_folds,
            "best simple": max(on_folds, key=lambda n: on_folds[n] or 0.0),
        }

    def without_images(self) -> dict[str, Any]:
        """Classes that a collection of others gets from their texts alone: the answers among them, beside zero-shot."""
        others = self._drawn.others
        kinds = self._drawn.kinds
        if problem := self._made(others, ()):
            return {"failed": problem, **self._report({}, 0), "rules": {}, "best simple": "zero-shot"}
        self._added(self._base, [NewClass(kind.name, kind.sentences) for kind in kinds])
        pictures = self._pictures("test", kinds, test=True)
        self._command(self._base, "ingest", "images", pictures, "--split", "test")
        self._step(self._base, "embed")
        workspace = Workspace.open(self._base)
        test = image_set(workspace.snapshot(), "test")
        ids = torch.unique(test.class_ids)
        setting, rows = next(iter(prototypes(workspace, ids)[0].items()))
        scores = (
            workspace.snapshot().commit.logit_scale * cosine_logits(test.features.double(), rows)
        ).softmax(1)
        recognizer = Recognizer.open(workspace)
        found = _scores(recognizer, sides(recognizer, test.features), test.class_ids, ids)
        return {
            **self._report(found, len(test.class_ids)),
            "rules": {"zero-shot": _measured(scores, torch.searchsorted(ids, test.class_ids))},
            "settings": {"zero-shot": setting},
            "best simple": "zero-shot",
        }

    def _report(self, sides: dict[str, dict[str, float]], tests: int) -> dict[str, Any]:
        return {"sides": sides, "tests": tests, "seconds": self._seconds, "trained": self._trained}

    def additions(self) -> dict[str, Any]:
        """One more class, added and there from the start: share right of the others' images, and of its own."""
        test = image_set(Workspace.open(self._base).snapshot(), "test")
        new = self._new_features()
        found: dict[str, Any] = {"before": self._answered(self._base, test, new)[0]}
        for way, images in ADDITIONS.items():
            found[way] = {}
            for how, change in (("added", self._add), ("joint", self._join)):
                place = self._folder / how
                shutil.copytree(self._base, place)
                try:
                    change(place, images)
                    found[way][how] = self._answered(place, test, new)
                except VlltrError as error:
                    found[way][how] = f"{error.message} {error.hint or ''}"
                shutil.rmtree(place)
        return found

    def _add(self, place: Path, images: int) -> None:
        new = self._drawn.new
        if images:
            known = NewClass(new.name, images=(Path(self._some(new, images)) / new.name,))
        else:
            known = NewClass(new.name, new.sentences)
        self._added(place, [known])

    def _added(self, place: Path, wanted: Sequence[NewClass]) -> None:
        """Add classes, by `vlltr classes add --from` unless an engine computes the vectors."""
        if self._engine is not None:
            add_classes(Workspace.open(place), wanted, ChangeOptions(engine=self._engine))
            return
        told = self._folder / "new.json"
        rows = {
            one.name: {"sentences": one.sentences, "images": [str(path.resolve()) for path in one.images]}
            for one in wanted
        }
        told.write_text(json.dumps(rows), encoding="utf-8")
        self._command(place, "classes", "add", "--from", str(told), step="classes add")

    def _join(self, place: Path, images: int) -> None:
        new = self._drawn.new
        kinds = list(self._drawn.kinds)
        if images:
            self._command(place, "ingest", "images", self._some(new, images), "--split", "train")
        else:
            kinds.append(new)
        if any(kind.sentences for kind in kinds):
            self._command(place, "ingest", "text", self._texts(kinds))  # gives the new class its prompts too
        for step in ("embed", "select", "train lgr", "index"):
            self._step(place, step, note="")

    def _new_features(self) -> Tensor:
        """Vectors of the new class's test images."""
        place = shutil.copytree(self._base, self._folder / "new")
        pictures = self._pictures("new test", [self._drawn.new], test=True)
        self._command(place, "ingest", "images", pictures, "--split", "new", "--create-classes", step="")
        self._step(place, "embed", note="")
        features = image_set(Workspace.open(place).snapshot(), "new").features
        shutil.rmtree(place)
        return features

    def _answered(self, place: Path, test: ImageSet, new: Tensor) -> tuple[float, float]:
        """Share of the others' test images that are right, and of the new class's."""
        recognizer = Recognizer.open(place)
        ids = _columns(recognizer)
        number = next(
            (i for i, name in recognizer.current().names.items() if name == self._drawn.new.name), -1
        )
        old = ids[sides(recognizer, test.features)[METHOD].argmax(1)] == test.class_ids
        return _share(old), _share(ids[sides(recognizer, new)[METHOD].argmax(1)] == number)

    def _made(self, train: Sequence[Kind], test: Sequence[Kind]) -> str:
        """Make the workspace; returns why a command refused, or nothing."""
        base = self._base
        self._command(None, "init", str(base), "--encoder", self._encoder)
        if any(kind.sentences for kind in train):
            self._command(base, "ingest", "text", self._texts(train))
        group = ["--group", self._drawn.group] if self._drawn.group else []
        self._command(base, "ingest", "images", self._pictures("train", train), "--split", "train", *group)
        if test:
            pictures = self._pictures("test", test, test=True)
            self._command(base, "ingest", "images", pictures, "--split", "test")
        try:
            for step in ("embed", "select", "train lgr", "index"):
                said = self._step(base, step)
                self._trained = json.loads(said) if step == "train lgr" else self._trained
        except VlltrError as error:
            return f"{error.message} {error.hint or ''}"
        return ""

    def _step(self, place: Path, step: str, note: str | None = None) -> str:
        """Run a step of the method by its command; `embed` by the engine, if there is one."""
        if step == "embed" and self._engine is not None:
            embed(Workspace.open(place), engine=self._engine)
            return ""
        return self._command(place, *step.split(), step=step if note is None else note)

    def _command(self, workspace: Path | None, *words: str, step: str | None = None) -> str:
        """Run `vlltr` in this process and note its processor seconds under `step`; returns what it wrote."""
        where = [] if workspace is None else ["-w", str(workspace)]
        started = time.process_time()
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            vlltr.main(args=["-q", "--json", *where, *words], prog_name="vlltr", standalone_mode=False)
        step = words[0] if step is None else step
        self._seconds[step] = round(self._seconds.get(step, 0.0) + time.process_time() - started, 2)
        return written.getvalue()

    def _texts(self, kinds: Sequence[Kind]) -> str:
        path = self._folder / "texts.json"
        told = {kind.name: kind.sentences for kind in kinds if kind.sentences}
        path.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
        return str(path)

    def _pictures(self, name: str, kinds: Sequence[Kind], test: bool = False) -> str:
        """A folder with one folder of pictures a class."""
        for kind in kinds:
            place = self._folder / name / kind.name
            place.mkdir(parents=True, exist_ok=True)
            for picture in kind.test if test else kind.train:
                write_picture(picture, place)
        return str(self._folder / name)

    def _some(self, new: Kind, images: int) -> str:
        return self._pictures(f"{images} new", [replace(new, train=new.train[:images])])


def sides(recognizer: Recognizer, features: Tensor) -> dict[str, Tensor]:
    """Probabilities [N, C] of stored vectors [N, D]: of the whole, and of its parts alone."""
    scores, _ = recognizer.score(features, "exhaustive")
    alone = without_branch(recognizer.current(), features)
    return {METHOD: scores.probabilities, WITHOUT_BRANCH: alone, TEXT_SIDE: scores.by_text}


def _columns(recognizer: Recognizer) -> Tensor:
    """The class of each column of `sides`, int64 [C]."""
    number = {name: i for i, name in recognizer.current().names.items()}
    return torch.tensor([number[name] for name in recognizer.classes_.tolist()])


def _with_training(recognizer: Recognizer, test: ImageSet) -> dict[str, dict[str, float]]:
    """What `_measured` says of each side, and of the whole where classes are as common as in training."""
    under = recognizer.current().under("training").exhaustive(test.features)
    answers = sides(recognizer, test.features) | {UNDER_TRAINING: under.probabilities}
    return _scores(recognizer, answers, test.class_ids)


def _scores(
    recognizer: Recognizer, answers: dict[str, Tensor], owners: Tensor, only: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """What `_measured` says of each side's answers, among the classes `only` or all; `owners`, int64 [N], is true."""
    ids = _columns(recognizer)
    kept = torch.ones(len(ids), dtype=torch.bool) if only is None else torch.isin(ids, only)
    place = {i: at for at, i in enumerate(ids[kept].tolist())}
    labels = torch.tensor([place[i] for i in owners.tolist()])
    found = {}
    for name, chances in answers.items():
        shares = chances[:, kept].double().clamp(min=1e-12)
        found[name] = _measured(shares / shares.sum(1, keepdim=True), labels)
    return found


def _measured(shares: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure probabilities [Q, C]: accuracy, each picture and each class counting alike, calibration error, NLL."""
    confidence, best = shares.max(1)
    own = shares.gather(1, labels[:, None]).clamp(min=1e-12)
    return {
        "accuracy": _share(best == labels),
        "balanced": round(balanced_accuracy(shares, labels), 5),
        "ece": round(expected_calibration_error(confidence, best == labels), 5),
        "nll": round(float(-own.log().mean()), 4),
    }


def prototypes(workspace: Workspace, ids: Tensor) -> tuple[dict[str, Tensor], float]:
    """Means of the stored sentences of the classes int64 [C] by what they are, each [C, D], and the encoder's scale."""
    snapshot = workspace.snapshot()
    commit = snapshot.commit
    assert commit.text_fp is not None
    rows = snapshot.table("sentences", ["class_id", "text_hash", "source"])
    rows = rows.filter(pc.is_in(rows["class_id"], pa.array(ids.tolist(), rows["class_id"].type)))
    found = {}
    for name, some in (
        ("own sentences", rows.filter(pc.not_equal(rows["source"], "prompt"))),
        ("with prompts", rows),
    ):
        owners = torch.searchsorted(ids, torch.tensor(some["class_id"].to_pylist(), dtype=torch.int64))
        if len(torch.unique(owners)) < len(ids):
            continue  # a class without
        hashes = some["text_hash"].to_pylist()
        vectors = snapshot.store.vectors(sentence_vectors_name(commit.text_fp), "text_hash", hashes)
        found[name] = text_means(vectors, owners, len(ids))
    return found, commit.logit_scale


def _share(right: Tensor) -> float:
    return round(float(right.double().mean()), 5)
