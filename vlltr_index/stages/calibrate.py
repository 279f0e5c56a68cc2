"""`vlltr calibrate`: fusion values and the threshold of rejection, from one extra run on training data."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from vlltr_index.calibration import (
    BranchLogits,
    FusionFit,
    ImprintFit,
    fit_fusion,
    fit_imprints,
    image_weights,
)
from vlltr_index.classes import NewClass, add_classes
from vlltr_index.errors import MissingStepError, UsageError
from vlltr_index.fusion import FusionParams, imprint_row
from vlltr_index.loading import ImageSet, check_runs, class_positions, image_set, usable_images
from vlltr_index.rejection import RejectionFit, fit_rejection, known_scores
from vlltr_index.schemas.config import FusionConfig, Recipe
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.scoring import Scorer, load_scorer
from vlltr_index.stages.calibrate_report import CalibrationReport
from vlltr_index.stages.embed import embed
from vlltr_index.stages.pipeline import train_all

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.workspace import Workspace

__all__ = ["CalibrationReport", "calibrate", "fit_none_of_these", "without_names"]

_NEW_SHARE = 10  # one class in ten is left out
_FEW_SHARE = 3  # one many-shot class in three is cut
_MANY = 100
_FEW = 20


@dataclass(frozen=True)
class _Plan:
    """Which classes play new, and which training images of pseudo-few classes are held back."""

    new: list[int]
    few: list[int]
    held_back: set[str]
    few_share: float  # of few-shot classes among those with training images


def calibrate(
    workspace: Workspace, recipe: Recipe, progress: Progress | None = None, write: bool = True
) -> CalibrationReport:
    """Train once more with pseudo-new and pseudo-few classes, and fit fusion and rejection on what that run never saw.

    The values go into `vlltr.toml`, and with a trained head into a commit. Only the splits train and val are read.

    Raises:
        MissingStepError: If there are too few training classes to leave some out.
        UsageError: If this is one of several processes.
        WorkspaceError: If the workspace cannot be written.
    """
    if (os.environ.get("WORLD_SIZE") or "1") != "1":
        raise UsageError(
            f"calibration runs in one process, this is one of {os.environ['WORLD_SIZE']} (WORLD_SIZE)",
            "Start it without torchrun: vlltr calibrate",
        )
    check_runs(workspace)
    snapshot = workspace.snapshot()
    plan = _plan(snapshot)
    # Split val is what fusion is fitted on: the run selects by training images, whatever the recipe does.
    select = recipe.select.model_copy(update={"split": "train"})
    recipe = recipe.model_copy(update={"select": select})
    run_id = _run_id(snapshot, recipe, plan)
    inner = _inner_workspace(workspace, snapshot, recipe, plan, run_id)
    last = inner.history.last()
    if last is None or last.head is None:
        trained_here = snapshot.commit is not None and snapshot.commit.checkpoint is not None
        train_all(inner, recipe, progress, stage_one=trained_here or not workspace.recipe.encoder.pretrained)
    names = snapshot.class_table().names
    missing = [i for i in plan.new if inner.snapshot().class_table().find(names[i]) is None]
    if missing:
        texts = _texts_of(snapshot, missing)
        add_classes(inner, [NewClass(names[i], tuple(texts[i])) for i in missing], progress=progress)
    _bring_images(inner, snapshot, plan, names)
    embed(inner, recipe.lgr.views, progress)
    few = {inner.snapshot().class_table().lookup(names[i]) for i in plan.few}
    found = _fit(inner, few, plan.few_share)
    fit, rejection = found.fusion, found.rejection
    rows = recipe.fusion if found.imprints is None else found.imprints.params
    fusion = FusionConfig(
        rule=recipe.fusion.rule,
        alpha=_rounded(fit.params.alpha),
        tau_visual=_rounded(fit.params.tau_visual),
        tau_text=_rounded(fit.params.tau_text),
        margin=_rounded(fit.params.margin),
        agreement=_rounded(fit.params.agreement),
        imprint_strength=_rounded(rows.imprint_strength),
        imprint_lift=_rounded(rows.imprint_lift),
        reject_score=rejection.score,
        reject_threshold=rejection.threshold,
        reject_tpr=min(1.0, rejection.tpr),
        run_id=run_id,
    )
    if write:
        config = type(workspace).open(workspace.address).config  # as it is now: the run may have taken hours
        recipe = config.recipe.model_copy(update={"fusion": fusion})
        workspace.write_config(config.model_copy(update={"recipe": recipe}))
        with workspace.transaction("calibrate") as tx:
            if tx.commit is not None and tx.commit.head:
                tx.set(fusion=fusion)
    shutil.rmtree(inner.path, ignore_errors=True)
    return CalibrationReport(
        fusion,
        run_id,
        len(plan.new),
        len(plan.few),
        found.old_images,
        found.new_images,
        fit.old_alone,
        fit.old_with_new,
        fit.new,
        fit.new_without_margin,
        {str(k): v for k, v in rejection.auroc.items()},
        {str(k): v for k, v in rejection.fpr.items()},
        found.added_accepted,
        found.imprints,
    )


def _rounded(value: float) -> float:
    """A value off a grid as people write it: 0.55, not 0.5499999999999999."""
    return round(value, 6)


def _run_id(snapshot: Snapshot, recipe: Recipe, plan: _Plan) -> str:
    """Named after all that the run depends on: settings, images and their contents, texts, and what is left out."""
    images = snapshot.table("images", ["image_id", "content_hash", "class_id", "split", "problem"])
    images = images.filter(pc.is_in(images["split"], pa.array(["train", "val"]))).sort_by("image_id")
    texts = snapshot.table("sentences", ["sentence_id", "class_id", "text_hash"]).sort_by("sentence_id")
    facts = [
        recipe.model_dump(mode="json", exclude={"fusion", "baseline"}),
        [images[name].to_pylist() for name in ("image_id", "content_hash", "class_id", "split", "problem")],
        [texts[name].to_pylist() for name in ("class_id", "text_hash")],
        plan.new,
        sorted(plan.held_back),
    ]
    return short(digest_json(facts))


def _order(value: int | str) -> str:
    """A fixed pseudo-random order that depends on nothing but the value."""
    return hashlib.sha256(f"calibrate:{value}".encode()).hexdigest()


def _plan(snapshot: Snapshot) -> _Plan:
    rows = usable_images(snapshot, "train", [])
    by_class: dict[int, list[str]] = {}
    for image_id, class_id in zip(rows["image_id"].to_pylist(), rows["class_id"].to_pylist(), strict=True):
        by_class.setdefault(class_id, []).append(image_id)
    if len(by_class) < 2 * _NEW_SHARE:
        raise MissingStepError(
            f"calibration leaves one class in {_NEW_SHARE} out and needs {2 * _NEW_SHARE} classes with training images;"
            f" there are {len(by_class)}",
            "Set the values by hand in vlltr.toml: [recipe.fusion] alpha, tau_visual, tau_text, margin, agreement;"
            " then run: vlltr train lgr",
        )
    names = snapshot.class_table().names
    ordered = sorted(by_class, key=lambda i: _order(names[i]))
    new = ordered[: len(ordered) // _NEW_SHARE]
    many = [i for i in ordered if i not in set(new) and len(by_class[i]) >= _MANY]
    few = many[: len(many) // _FEW_SHARE]
    held_back: set[str] = set()
    for place, class_id in enumerate(few):
        images = sorted(by_class[class_id], key=_order)
        held_back.update(images[1 + place % 5 :])
    if not held_back and not usable_images(snapshot, "val", []).num_rows:
        raise MissingStepError(
            f"calibration holds back images of classes with {_MANY} or more, or reads split val; there is neither",
            "Bring in validation images: vlltr ingest images PATH --split val",
        )
    few_share = sum(len(images) <= _FEW for images in by_class.values()) / len(by_class)
    return _Plan(sorted(new), sorted(few), held_back, few_share)


def _inner_workspace(
    workspace: Workspace, snapshot: Snapshot, recipe: Recipe, plan: _Plan, run_id: str
) -> Workspace:
    """A workspace below `runs/` with the classes, sentences and images that the run may see."""
    path = workspace.path / "runs" / f"calibrate-{run_id}"
    inner = type(workspace).create(path, recipe)
    if inner.history.last() is not None:
        return inner
    new, names = pa.array(plan.new, pa.int32()), snapshot.class_table().names
    with inner.transaction("calibrate: prepare") as tx:
        for name in ("classes", "sentences", "images"):
            rows = snapshot.table(name)
            rows = rows.filter(pc.invert(pc.is_in(rows["class_id"], new)))
            if name == "sentences":
                rows = without_names(rows, names, plan.new)
            if name == "images":
                rows = rows.filter(pc.is_in(rows["split"], pa.array(["train", "val"])))
                rows = _move(rows, plan.held_back)
            tx.upsert(name, rows)
        tx.next_id("classes", 1 + max(names))
    return inner


def without_names(rows: pa.Table, names: dict[int, str], left_out: list[int]) -> pa.Table:
    """Rows of `sentences` without those in which another class's text gives a left-out class's name away.

    A class whose own name holds a left-out one keeps its sentences: they could say nothing else.
    """
    pattern = {i: re.compile(rf"\b{re.escape(names[i].casefold())}\b") for i in left_out}
    telling = {
        i: [p for p in pattern.values() if not p.search(names[i].casefold())]
        for i in set(rows["class_id"].to_pylist())
    }
    # One pass with all names at once; the few hits are then looked at name by name.
    every = re.compile("|".join(rf"\b{re.escape(names[i].casefold())}\b" for i in left_out) or r"(?!)")
    keep = [
        not (every.search(text.casefold()) and any(p.search(text.casefold()) for p in telling[class_id]))
        for class_id, text in zip(rows["class_id"].to_pylist(), rows["text"].to_pylist(), strict=True)
    ]
    return rows.filter(pa.array(keep, pa.bool_()))


def _move(rows: pa.Table, held_back: set[str]) -> pa.Table:
    """The same rows with the held-back images, and those of val, in split `old`."""
    ids, splits = rows["image_id"].to_pylist(), rows["split"].to_pylist()
    moved = ["old" if i in held_back or s == "val" else s for i, s in zip(ids, splits, strict=True)]
    return rows.set_column(
        rows.column_names.index("split"), rows.schema.field("split"), pa.array(moved, pa.string())
    )


def _texts_of(snapshot: Snapshot, class_ids: list[int]) -> dict[int, list[str]]:
    rows = snapshot.table("sentences", columns=["class_id", "text"])
    result: dict[int, list[str]] = {i: [] for i in class_ids}
    for class_id, text in zip(rows["class_id"].to_pylist(), rows["text"].to_pylist(), strict=True):
        if class_id in result:
            result[class_id].append(text)
    return result


def _bring_images(inner: Workspace, snapshot: Snapshot, plan: _Plan, names: dict[int, str]) -> None:
    """Training images of the pseudo-new classes, under the ids these got when they were added."""
    table = inner.snapshot().class_table()
    rows = snapshot.table("images")
    rows = rows.filter(
        pc.and_(
            pc.is_in(rows["class_id"], pa.array(plan.new, pa.int32())),
            pc.is_in(rows["split"], pa.array(["train", "val"])),
        )
    )
    owner = pa.array([table.lookup(names[i]) for i in rows["class_id"].to_pylist()], pa.int32())
    rows = rows.set_column(rows.column_names.index("class_id"), rows.schema.field("class_id"), owner)
    splits = pa.array(["new"] * rows.num_rows, pa.string())
    rows = rows.set_column(rows.column_names.index("split"), rows.schema.field("split"), splits)
    with inner.transaction("calibrate: images of the classes left out") as tx:
        tx.upsert("images", rows)


@dataclass(frozen=True)
class _Found:
    """What was fitted, and on how many images."""

    fusion: FusionFit
    rejection: RejectionFit
    imprints: ImprintFit | None
    added_accepted: float
    old_images: int
    new_images: int


def _fit(inner: Workspace, few: set[int], few_share: float) -> _Found:
    snapshot = inner.snapshot()
    scorer = load_scorer(inner, snapshot)
    old, new = image_set(snapshot, "old"), image_set(snapshot, "new")
    seen = replace(
        _logits(scorer, old), few=torch.isin(old.class_ids, torch.tensor(sorted(few), dtype=torch.int64))
    )
    unseen = _logits(scorer, new)
    rule = inner.recipe.fusion.rule
    fit = fit_fusion(seen, unseen, scorer.row_class, scorer.trained, few_share=few_share, rule=rule)
    rejection, accepted = fit_none_of_these(
        seen, unseen, scorer.row_class, scorer.trained, fit.params, few_share
    )
    imprints = _fit_imprints(scorer, (old, seen), (new, unseen), fit.params, few_share)
    return _Found(fit, rejection, imprints, accepted, len(old.class_ids), len(new.class_ids))


@torch.inference_mode()
def _fit_imprints(
    scorer: Scorer,
    old: tuple[ImageSet, BranchLogits],
    new: tuple[ImageSet, BranchLogits],
    params: FusionParams,
    few_share: float,
) -> ImprintFit | None:
    """Imprint the left-out classes from 1 to 5 of their images, and fit on the others."""
    visual, (images, unseen) = scorer.saved.head.visual_head, new
    shown = _shown(images)
    if not isinstance(visual, nn.Linear) or bool(shown.all()):
        return None
    ids = torch.unique(images.class_ids)
    weight, bias, mean = visual.weight.detach(), visual.bias.detach(), scorer.saved.training_mean
    made = [
        imprint_row(images.features[shown & (images.class_ids == i)].mean(0), mean, weight, bias)
        for i in ids.tolist()
    ]
    full = replace(
        scorer,
        imprint_class_ids=ids,
        imprint_weight=torch.stack([row for row, _ in made]),
        imprint_bias=torch.stack([offset for _, offset in made]),
        params=replace(params, imprint_strength=1.0, imprint_lift=0.0),
    )
    seen = replace(old[1], visual=full.visual_logits(old[0].features))
    rest = BranchLogits(
        full.visual_logits(images.features[~shown]), unseen.text[~shown], unseen.labels[~shown]
    )
    return fit_imprints(
        seen, rest, full.row_class, full.trained, full.trained_level, params, few_share=few_share
    )


def _shown(images: ImageSet) -> Tensor:
    """Which images the rows are made from, bool [N]: of the n-th class 1 + n mod 5."""
    shown = torch.zeros(len(images.class_ids), dtype=torch.bool)
    for place, class_id in enumerate(torch.unique(images.class_ids).tolist()):
        mine = (images.class_ids == class_id).nonzero()[:, 0].tolist()
        shown[sorted(mine, key=lambda n: _order(images.image_ids[n]))[: 1 + place % 5]] = True
    return shown


def fit_none_of_these(
    old: BranchLogits,
    new: BranchLogits,
    row_class: Tensor,
    trained: Tensor,
    params: FusionParams,
    few_share: float,
) -> tuple[RejectionFit, float]:
    """Fit the rejection as before the new classes were added, when nothing was known of them.

    Args:
        old: Images of classes the head was trained on.
        new: Images of the others.
        row_class: As for `fuse`; so are `trained` and `params`.
        few_share: As for `fit_fusion`.

    Returns:
        The fit, and the share of the images in `new` that it accepts after their classes were added.
    """
    position = trained.long().cumsum(0) - 1
    rows = torch.where(
        (row_class >= 0) & trained[row_class.clamp(min=0)], position[row_class.clamp(min=0)], -1
    )
    alone = torch.ones(int(trained.sum()), dtype=torch.bool)
    known, unknown = (
        known_scores(images.visual, images.text[:, trained], rows, alone, params) for images in (old, new)
    )
    fit = fit_rejection(known, unknown, image_weights(old, few_share))
    added = known_scores(new.visual, new.text, row_class, trained, params, (fit.score,))[fit.score]
    return fit, float((added.double() >= fit.threshold).double().mean())


@torch.inference_mode()
def _logits(scorer: Scorer, data: ImageSet) -> BranchLogits:
    head = scorer.saved.head
    text = torch.cat([head.text_logits(part, scorer.bank) for part in data.features.split(512)])
    return BranchLogits(
        scorer.visual_logits(data.features), text, class_positions(scorer.class_ids, data.class_ids)
    )
