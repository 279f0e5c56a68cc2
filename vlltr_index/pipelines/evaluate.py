"""Evaluate a workspace (`vlltr evaluate`): accuracy on many, medium and few of the method, its branches and
baselines."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlltr_index.anchors.retrieval import possible_retrieval, scores_every_class
from vlltr_index.embedding.loading import ImageSet, image_set, image_units, usable_images
from vlltr_index.embedding.vectors import embed_crops
from vlltr_index.errors import MissingStepError, UsageError, WorkspaceError, reason
from vlltr_index.evaluation import metrics
from vlltr_index.evaluation.compared import OWN_ROWS, Asked, RowAnswers, compared
from vlltr_index.evaluation.metrics import CROSS_VALIDATION, METHOD, under
from vlltr_index.heads.configuration import TextLevel
from vlltr_index.heads.fusion import Rule
from vlltr_index.heads.units import number_names
from vlltr_index.pipelines.baseline_scores import (
    ClassFrequencies,
    ScoredRow,
    absence_notes,
    baseline_labels,
    cross_validated_baselines,
    score_baselines,
)
from vlltr_index.recognition.folds import open_folds
from vlltr_index.recognition.frequencies import frequencies_among
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.options import Measurable, Prior, checked_retrieval, named_prior
from vlltr_index.tensors import class_positions
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.heads.fusion import FusedScores
    from vlltr_index.heads.tree import ClassTree
    from vlltr_index.pipelines.train_baseline import BaselineRow
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)

_BATCH = 512
_NEVER = -1e30  # a score that no other one is below
_PRIOR_NOTES = {
    "balanced": "",
    "training": "classes as common as in training",
    "estimated": "classes as common as the images themselves tell",
}


@dataclass(frozen=True, eq=False)
class Answering:
    """A model, and the images that it answers.

    Attributes:
        model: The model.
        plain: The model that takes all classes to be equally common.
        places: Int64 [M], positions in the evaluated images.
        without: The ids of the training images that it was fitted without.
    """

    model: Model
    plain: Model
    places: Tensor
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Measured:
    """The images of an evaluation, and who answers them.

    Attributes:
        split: A split, or `CROSS_VALIDATION`.
        data: N images.
        units: Int64 [N], the unit of each image, from 0.
        answering: The commit's model for all of them, or the folds' models, each for its own.
        torn: How many images of the folds are left out, see `Fold.torn`.
        came: How many training images came after the folds were dealt, and are left out.
    """

    split: str
    data: ImageSet
    units: Tensor
    answering: tuple[Answering, ...]
    torn: int = 0
    came: int = 0

    @property
    def folds(self) -> int:
        """Number of folds; 0 for a split."""
        return len(self.answering) if self.split == CROSS_VALIDATION else 0

    @cached_property
    def models(self) -> Tensor:
        """Int64 [N], the position in `answering` of the model that answers each image."""
        found = torch.zeros_like(self.units)
        for number, one in enumerate(self.answering):
            found[one.places] = number
        return found


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures of an evaluation, with the answers for each image.

    Attributes:
        report: The figures.
        answers: What each row answered, by the names of `report.rows`.
        measured: The images, and the models that answered.
        class_ids: int64 [C], the class of each column.
        labels: int64 [N], columns of the images' classes.
        counts: int64 [C], training images; 0 for classes that were added after training.
    """

    report: metrics.EvaluationReport
    answers: dict[str, RowAnswers]
    measured: Measured
    class_ids: Tensor
    labels: Tensor
    counts: Tensor

    def model_of(self, place: int) -> Model:
        """Return the model that answered the image at `place`."""
        return next(one.model for one in self.measured.answering if bool((one.places == place).any()))


def evaluate(workspace: Workspace, split: str | None = None, **how: Any) -> metrics.EvaluationReport:
    """Evaluate on stored vectors over all classes, beside every committed baseline; return the figures.

    The report is also written to `reports/evaluate-<split>-<commit>.json`, with crops, another rule or retrieval to
    one whose name says so; where that cannot be written, a warning says why. Arguments and errors are those of
    `evaluation`.
    """
    result = evaluation(workspace, split, **how).report
    keep(workspace, result, how.get("rule"))
    return result


def keep(workspace: Workspace, result: metrics.EvaluationReport, rule: Rule | None = None) -> None:
    """Write figures as `evaluate` does; `rule` is the one that was asked for."""
    crops = f"crops-{result.crops}" if result.crops > 1 else None
    retrieval = None if scores_every_class(result.retrieval) else result.retrieval
    prior = f"prior-{result.prior}" if result.prior != "balanced" else None
    parts = ("reports/evaluate", result.split, str(result.commit), crops, rule, prior, retrieval)
    name = "-".join(filter(None, parts)) + ".json"
    text = json.dumps(asdict(result), indent=2, sort_keys=True) + "\n"
    try:
        workspace.storage.write(name, text.encode("utf-8"))
    except (OSError, WorkspaceError) as error:  # the result is returned even if it cannot be saved
        _log.warning("this evaluation could not be kept in %s: %s", workspace.storage.at(name), reason(error))


def evaluation(
    workspace: Workspace,
    split: str | None = None,
    retrieval: str = "exhaustive",
    at: int | None = None,
    progress: Progress | None = None,
    against: str | None = None,
    crops: int = 1,
    rule: Rule | None = None,
    prior: Prior = "balanced",
) -> Evaluation:
    """Evaluate, and keep each row's answers for each image; nothing is written but vectors into their caches.

    Args:
        workspace: What to evaluate.
        split: Which images, or `CROSS_VALIDATION`: training images, each answered by the model of its fold, which was
            fitted without it. Default: test, or cross-validation where no image is in test.
        retrieval: `faiss` scores the classes that the index retrieves; `exhaustive` all of them.
        at: Which commit; default the newest.
        progress: Called while scoring and embedding.
        against: The row whose paired difference to the method is reported; default: image-only with logit
            adjustment, where it is there, else the baseline that is best by the same measure; none that was made
            before a class came.
        crops: Test-time crops of each image, 1 or 5; they are embedded first, and kept. Baselines see the plain view.
        rule: Fuse the branches by this rule instead of the workspace's.
        prior: How common the classes are, which says what is measured, too: see `Measure`. Branches know no prior, and
            baselines that of training alone.

    Raises:
        MissingStepError: If the split is empty or not embedded, there is no head, or no image was held out.
        UsageError: If there is no row `against`, another number of crops, or retrieval by an index under a prior.
    """
    snapshot = workspace.snapshot(at)
    model = Model.open(snapshot)
    measured = _measured(model, snapshot, split)
    folds = measured.folds
    retrieval = possible_retrieval(checked_retrieval(retrieval, prior), prior)
    _check_row(against, [*_own_rows(model)[1:], *baseline_labels(snapshot, of_folds=folds > 0)])
    class_ids = model.class_ids
    labels = _labels(snapshot, class_ids, measured.data, measured.split)
    measured = _seen_as(workspace, measured, crops, rule=rule, prior=prior, progress=progress)
    tree = model.tree() if model.taxonomy else None
    fusion = measured.answering[0].model.fusion
    counts = _trained_with(snapshot, model)
    plainly = fusion.rule == "ours" and scores_every_class(retrieval) and _uneven(counts[model.trained])
    other = _other_prior(prior) if plainly else None
    answers, summed = _own_answers(measured, class_ids, labels, retrieval, tree, other, progress)
    said = {METHOD: _rule_note(fusion, prior), "image branch": _image_note(model)}
    seen = f"{crops} crops an image" if crops != 1 else ""
    notes = {row: "; ".join(filter(None, (said.get(row), seen))) for row in answers}
    rules = []
    for scored in _baselines(workspace, snapshot, measured, progress):
        answers |= _row_answers(scored, class_ids, labels, common=other is not None)
        older = _lacking(snapshot, scored.row, class_ids[labels.unique()])
        notes[scored.row.label] = "; ".join(filter(None, [scored.row.note, older]))
        rules += [] if older else [scored.row.label]
    best = answers[METHOD].best[:, 0]
    ranks = _by_rank(tree, best, summed, labels, counts=counts, units=measured.units) if tree else {}
    asked = Asked(labels, counts, units=measured.units, models=measured.models)
    priors = [named_prior(prior), *filter(None, [other])]
    report = metrics.EvaluationReport(
        split=measured.split,
        commit=snapshot.commit.id,
        convention="release",
        images=len(labels),
        classes=len(class_ids),
        retrieval=retrieval,
        notes={name: note for name, note in notes.items() if note} | absence_notes(snapshot, notes),
        crops=crops,
        rule=fusion.rule,
        prior=named_prior(prior),
        ranks=ranks,
        by_class=_by_class(snapshot, class_ids, answers, labels=labels),
        encoder=_encoder_name(snapshot),
        in_training=0 if folds else _in_training(snapshot, measured.split),
        folds=folds,
        left_out=_left_out(measured),
        texts_count=_texts_count(model),
        **compared(answers, asked, against, priors, rules),
    )
    return Evaluation(report, answers, measured, class_ids=class_ids, labels=labels, counts=counts)


def _own_rows(model: Model) -> tuple[str, ...]:
    """Return the rows of the method and of its branches; over blank anchors the text branch says nothing."""
    return OWN_ROWS[:-1] if model.bank.is_blank else OWN_ROWS


def _check_row(against: str | None, rows: Sequence[str]) -> None:
    """Refuse a comparison with a row that there is not, before anything is scored."""
    if against is not None and against not in rows:
        raise UsageError(
            f"no row {against!r} to compare with",
            f"There are: {', '.join(rows)}. Make others: vlltr train baseline NAME",
        )


def usual_split(snapshot: Snapshot) -> str:
    """Return what is evaluated by default: test, or where no image is in it a cross-validation."""
    return "test" if usable_images(snapshot, "test", []).num_rows else CROSS_VALIDATION


def _measured(model: Model, snapshot: Snapshot, split: str | None) -> Measured:
    """Return the images to evaluate on, with who answers them.

    Raises:
        MissingStepError: If there are none.
    """
    split = usual_split(snapshot) if split is None else split
    if split != CROSS_VALIDATION:
        data = image_set(snapshot, split)
        everything = Answering(model, model, torch.arange(len(data.image_ids)))
        units = image_units(snapshot, data.image_ids, data.class_ids, data.features)
        return Measured(split, data, number_names(units), (everything,))
    stored = open_folds(snapshot)
    folds = [] if stored is None else [fold for fold in stored.opened(model) if fold.image_ids]
    if stored is None or not folds:
        raise MissingStepError(
            "there is nothing to measure on: split test has no image, and train lgr could hold out no image",
            "Add images: vlltr ingest images PATH --split test",
        )
    ends = torch.tensor([len(fold.image_ids) for fold in folds]).cumsum(0).tolist()
    places = [torch.arange(end - len(fold.image_ids), end) for fold, end in zip(folds, ends, strict=True)]
    data = ImageSet(
        [image_id for fold in folds for image_id in fold.image_ids],
        torch.cat([fold.class_ids for fold in folds]),
        torch.cat([fold.features for fold in folds]),
    )
    answering = (
        Answering(fold.model, fold.model, mine, fold.without)
        for fold, mine in zip(folds, places, strict=True)
    )
    named = [unit for fold in folds for unit in fold.units]
    return Measured(
        split,
        data,
        number_names(named),
        tuple(answering),
        torn=sum(fold.torn for fold in folds),
        came=stored.came_since(model),
    )


def _left_out(measured: Measured) -> tuple[str, ...]:
    """Say how many training images are not measured on, and why."""
    said = []
    if measured.came:
        said.append(f"{plural(measured.came, 'image')} of existing classes added after training")
    if measured.torn:
        torn = plural(measured.torn, "image", "images")
        said.append(f"{torn} grouped with others that were added or moved after training")
    sentences = [f"Not measured on: {one}." for one in said]
    if sentences:
        sentences[-1] += " To measure on all: vlltr refit"
    return tuple(sentences)


def _seen_as(
    workspace: Workspace,
    measured: Measured,
    crops: int,
    rule: Rule | None,
    prior: Prior,
    progress: Progress | None,
) -> Measured:
    """Return the images as crops show them, answered by another rule and under a prior where they are asked for."""
    answering = measured.answering
    if rule is not None:
        fusion = answering[0].model.fusion.model_copy(update={"rule": rule})
        ruled = (replace(one.model, fusion=fusion) for one in answering)
        answering = tuple(
            replace(one, model=model, plain=model) for one, model in zip(answering, ruled, strict=True)
        )
    data = measured.data
    if crops != 1:
        encoder = answering[0].model.encoder
        features = embed_crops(workspace, encoder, data.image_ids, number=crops, progress=progress)
        data = replace(data, features=features)

    def under_prior(one: Answering) -> Answering:
        asked = frequencies_among(one.plain, data.features[one.places]) if prior == "estimated" else prior
        return replace(one, model=one.plain.under(asked))

    return replace(measured, data=data, answering=tuple(map(under_prior, answering)))


def _baselines(
    workspace: Workspace, snapshot: Snapshot, measured: Measured, progress: Progress | None
) -> Iterator[ScoredRow]:
    """Yield each baseline with its scores; those of folds are fitted without each fold's images."""
    ids = measured.data.image_ids
    if measured.split != CROSS_VALIDATION:
        common = _frequencies(measured.answering[0].plain)
        for row, scores in score_baselines(workspace, snapshot, measured.split, ids, progress=progress):
            yield ScoredRow(row, scores, row.baseline.under_prior(scores, common.of(row.class_ids)))
        return
    parts = [
        ([ids[place] for place in one.places.tolist()], one.without, _frequencies(one.plain))
        for one in measured.answering
    ]
    yield from cross_validated_baselines(workspace, snapshot, parts, progress)


def _frequencies(model: Model) -> ClassFrequencies:
    """Return how common classes are in training, by the counts that the method has them by; equally if it has none."""
    if model.rule.name == "ours":
        return ClassFrequencies(model.class_ids, model.rule.training_frequencies())
    return ClassFrequencies(model.class_ids, torch.zeros(len(model.class_ids), dtype=torch.float64))


def _row_answers(scored: ScoredRow, class_ids: Tensor, labels: Tensor, common: bool) -> dict[str, RowAnswers]:
    """Return a baseline's answers in the columns of `class_ids`; if `common`, those under the prior `training` too."""
    row = scored.row
    scores = {row.label: scored.scores}
    if common and scored.common is not None:
        scores[under(row.label, "training")] = scored.common
    found = {}
    for name, some in scores.items():
        best, confidence = _top(some.softmax(1) if row.probabilities else some)
        places = class_positions(class_ids, row.class_ids[best].reshape(-1)).reshape(best.shape)
        right = places[:, 0] == labels
        found[name] = RowAnswers(places, right, confidence if row.probabilities else None)
    return found


def _lacking(snapshot: Snapshot, row: BaselineRow, asked: Tensor) -> str:
    """Say how many of some classes that have training images a baseline does not know: it was made before they came."""
    unknown = asked[~torch.isin(asked, row.class_ids)]
    number = int((training_counts(snapshot, unknown) > 0).sum())
    return (
        f"made before {plural(number, 'class', 'classes')} of these came, and not compared" if number else ""
    )


def _texts_count(model: Model) -> bool:
    """Say whether texts have a weight in the answers, and vectors."""
    parts = model.saved.parts
    count = parts is None or (parts.text_level > TextLevel.NONE and not parts.texts_are_mute)
    return count and not model.bank.is_blank


def _by_class(
    snapshot: Snapshot, class_ids: Tensor, answers: dict[str, RowAnswers], labels: Tensor
) -> tuple[metrics.ClassFigures, ...]:
    """Count for each class its images, those that the method and the text branch recognised, and its answers."""
    counts = training_counts(snapshot, class_ids)
    classes = len(class_ids)
    best = answers[METHOD].best[:, 0]
    names = snapshot.class_table().names
    right, right_by_text = (
        torch.bincount(labels[answers[row].right], minlength=classes).tolist()
        if row in answers
        else [0] * classes
        for row in (METHOD, "text branch")
    )
    images = torch.bincount(labels, minlength=classes).tolist()
    answered = torch.bincount(best[best >= 0], minlength=classes).tolist()
    return tuple(
        metrics.ClassFigures(
            name=names[class_id],
            train=train,
            images=images[place],
            right=right[place],
            answered=answered[place],
            right_by_text=right_by_text[place],
        )
        for place, (class_id, train) in enumerate(zip(class_ids.tolist(), counts.tolist(), strict=True))
    )


def _encoder_name(snapshot: Snapshot) -> str:
    """Name the encoder that made the vectors, as `--encoder` takes it."""
    config = snapshot.recipe.encoder
    weights = "trained here" if snapshot.commit.checkpoint else config.pretrained
    return f"{config.model}:{weights}"


def _in_training(snapshot: Snapshot, split: str) -> int:
    """Count the images of a split whose content is a training image's, too."""
    trained = set(usable_images(snapshot, "train", ["content_hash"])["content_hash"].to_pylist())
    asked = usable_images(snapshot, split, ["content_hash"])["content_hash"].to_pylist()
    return sum(content in trained for content in asked)


def _rule_note(fusion: FusionConfig, prior: Prior) -> str:
    """Describe the fusion rule if it is not `ours`, or the prior; an empty string if there is nothing to say."""
    if fusion.rule == "ours":
        return _PRIOR_NOTES[prior] if isinstance(prior, str) else "classes as common as given"
    return f"fusion rule {fusion.rule}" + (f", alpha {fusion.alpha:g}" if fusion.rule == "paper" else "")


def _image_note(model: Model) -> str:
    """Say what images alone cannot name; an empty string if there is nothing to say."""
    alone = len(model.rule.text_only)
    return f"cannot name {plural(alone, 'class', 'classes')} known by text alone" if alone else ""


def _trained_with(snapshot: Snapshot, model: Model) -> Tensor:
    """Count the training images of each class, int64 [C]; 0 for those that came after training."""
    counts = training_counts(snapshot, model.class_ids)
    added = snapshot.table("classes", ["class_id"], "origin = 'added'")["class_id"].to_pylist()
    counts[torch.isin(model.class_ids, torch.tensor(added, dtype=torch.int64)) & ~model.trained] = 0
    return counts


def training_counts(snapshot: Snapshot, class_ids: Tensor) -> Tensor:
    """Count the usable training images of each class, int64 [C]."""
    owners = torch.from_numpy(usable_images(snapshot, "train", [])["class_id"].to_numpy().copy()).long()
    positions = class_positions(class_ids, owners)
    return torch.bincount(positions[positions >= 0], minlength=len(class_ids))


def _labels(snapshot: Snapshot, class_ids: Tensor, data: ImageSet, split: str) -> Tensor:
    """Return the column of each image's class, int64 [N].

    Raises:
        MissingStepError: If one of the classes cannot be answered: it has no text, or came after the selection.
    """
    labels = class_positions(class_ids, data.class_ids)
    unknown = torch.unique(data.class_ids[labels < 0]).tolist()
    if unknown:
        names = snapshot.class_table().names
        raise MissingStepError(
            f"{plural(len(unknown), 'class', 'classes')} of split {split!r} with neither an anchor sentence nor a"
            f" training image, for example {names[unknown[0]]!r}",
            "Bring text or images for them (vlltr ingest text PATH), then: vlltr embed, vlltr select, vlltr train lgr",
        )
    return labels


def _own_answers(
    measured: Measured,
    class_ids: Tensor,
    labels: Tensor,
    retrieval: str,
    tree: ClassTree | None,
    other: Measurable | None,
    progress: Progress | None,
) -> tuple[dict[str, RowAnswers], list[Tensor]]:
    """Return the answers of the method, of each branch and, if there is one, of the method under the prior `other`, in
    the columns of `class_ids`; and for each of `tree.levels` the most probable node, int64 [N]."""
    tops: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    nodes: list[list[Tensor]] = []
    done = 0
    for one in measured.answering:
        columns = class_positions(one.model.class_ids, class_ids)
        for places in one.places.split(_BATCH):
            fused, _ = one.model.score(measured.data.features[places], retrieval)
            again = fused
            if other is not None:
                again, _ = one.plain.under(other).score(measured.data.features[places], retrieval)
            branches = again if other == "balanced" else fused  # they know no prior
            own = fused.probabilities, _by_image(branches, one.model), branches.by_text
            parts = dict(zip(_own_rows(one.model), own, strict=False))
            if other is not None:
                parts[under(METHOD, other)] = again.probabilities
            scores = {name: _whole(part, columns) for name, part in parts.items()}
            for name, some in scores.items():
                tops[name].append(_top(some))
            nodes.append([tree.best_at(rank, scores[METHOD]) for rank in tree.levels] if tree else [])
            done += len(places)
            if progress:
                progress("evaluate", done, len(labels))
    summed = [torch.cat(parts) for parts in zip(*nodes, strict=True)]
    answers = {}
    for name, batches in tops.items():
        best, sure = map(torch.cat, zip(*batches, strict=True))
        answers[name] = RowAnswers(best, best[:, 0] == labels, sure)
    return answers, summed


def _by_image(fused: FusedScores, model: Model) -> Tensor:
    """Return the probabilities by images alone, [B, C], which cannot name a class that is known by text alone."""
    if model.fusion.rule != "ours":  # by the other rules such a class has no score of the image branch
        return fused.by_image
    return fused.visual_part.index_fill(1, model.rule.text_only.to(fused.visual_part.device), _NEVER).softmax(
        1
    )


def _other_prior(prior: Prior) -> Measurable | None:
    """Return the other one of `balanced` and `training`; None for another prior."""
    if prior == "balanced":
        return "training"
    return "balanced" if prior == "training" else None


def _uneven(counts: Tensor) -> bool:
    """Say whether some classes have more training images than others."""
    return bool((counts != counts[:1]).any())


def _whole(probabilities: Tensor, columns: Tensor) -> Tensor:
    """Return probabilities [B, C] by their columns in a model's, int64 [C], -1 for a class that it does not know."""
    if bool((columns >= 0).all()):
        return probabilities[:, columns]
    return torch.where(columns >= 0, probabilities[:, columns.clamp(min=0)], 0.0)


def _by_rank(
    tree: ClassTree,
    best: Tensor,
    summed: Sequence[Tensor],
    labels: Tensor,
    counts: Tensor,
    units: Tensor,
) -> dict[str, dict[str, dict[str, metrics.Interval]]]:
    """Return the accuracy at each rank, on the images whose class has a node of it; see `EvaluationReport.ranks`."""
    found: dict[str, dict[str, dict[str, metrics.Interval]]] = {}
    for rank, sure in zip(tree.levels, summed, strict=True):
        nodes = tree.at_rank[rank]
        truth = nodes[labels]
        there = truth >= 0
        if bool(there.any()):
            right = {"best class": nodes[best] == truth, "summed": sure == truth}
            answered = {name: torch.where(hit, labels, -1)[there] for name, hit in right.items()}
            found[rank] = {
                name: metrics.accuracy_report(hits, labels[there], counts, units=units[there]).top1
                for name, hits in answered.items()
            }
    return found


def _top(scores: Tensor) -> tuple[Tensor, Tensor]:
    best = scores.topk(min(5, scores.shape[1]), dim=1)
    return best.indices, best.values[:, 0]
