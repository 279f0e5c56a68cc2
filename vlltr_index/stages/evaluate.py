"""`vlltr evaluate`: accuracy by many, medium and few, both branches and the baseline, from one fusion rule."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.embedding import embed_images
from vlltr_index.encoder import Encoder
from vlltr_index.errors import MissingStepError
from vlltr_index.loading import ImageSet, class_positions, image_set, usable_images
from vlltr_index.losses import sampler_prior
from vlltr_index.metrics import (
    AccuracyReport,
    Interval,
    accuracy_report,
    bin_masks,
    expected_calibration_error,
    paired_difference,
)
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.tables import image_vectors_name

if TYPE_CHECKING:
    from pathlib import Path

    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.workspace import Workspace

__all__ = ["EvaluationReport", "evaluate", "training_counts"]

_BATCH = 512


@dataclass(frozen=True)
class EvaluationReport:
    """Accuracy of each row by bin, and paired differences to the strongest image-only row."""

    split: str
    commit: int
    convention: str
    images: int
    classes: int
    retrieval: str
    rows: dict[str, AccuracyReport]
    calibration_error: dict[str, float]
    differences: dict[str, Interval] = field(default_factory=dict)
    against: str | None = None


@dataclass(frozen=True)
class _Row:
    """Predictions of one way to answer: class ids [N, 5] best first, and the winner's probability."""

    best: Tensor
    confidence: Tensor | None


def evaluate(
    workspace: Workspace,
    split: str = "test",
    retrieval: str = "exhaustive",
    at: int | None = None,
    bootstrap: int = 1000,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Evaluate on the stored vectors of `split` over all classes of the workspace.

    The report is also written to `reports/evaluate-<split>-<commit>.json`.

    Raises:
        MissingStepError: If the split is empty or not embedded, or there is no head.
    """
    recognizer = Recognizer.open(workspace, at)
    snapshot = workspace.snapshot(at)
    assert snapshot.commit is not None
    data = image_set(snapshot, split)
    rows = _own_rows(recognizer, data, retrieval, progress)
    baseline = snapshot.commit.info.get("baseline_fc")
    if baseline:
        folder = workspace.object_path("checkpoints", baseline)
        rows |= _baseline_rows(workspace, folder, split, data.image_ids, progress)
    class_ids = recognizer.scorer.class_ids
    counts = training_counts(snapshot, class_ids)
    counts[~recognizer.scorer.trained] = 0  # the classes added later are "new", with or without images
    labels = _labels(snapshot, class_ids, data, split)
    report = _report(rows, class_ids, labels, counts, bootstrap)
    result = EvaluationReport(
        split, snapshot.commit.id, "release", len(labels), len(class_ids), retrieval, *report
    )
    path = workspace.path / "reports" / f"evaluate-{split}-{snapshot.commit.id}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(result), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return result


def training_counts(snapshot: Snapshot, class_ids: Tensor) -> Tensor:
    """Usable training images of each class, int64 [C]."""
    owners = torch.from_numpy(usable_images(snapshot, "train", [])["class_id"].to_numpy().copy()).long()
    positions = class_positions(class_ids, owners)
    return torch.bincount(positions[positions >= 0], minlength=len(class_ids))


def _labels(snapshot: Snapshot, class_ids: Tensor, data: ImageSet, split: str) -> Tensor:
    """Columns of the images' classes, int64 [N].

    Raises:
        MissingStepError: If one of the classes cannot be answered: it came after the selection.
    """
    labels = class_positions(class_ids, data.class_ids)
    unknown = torch.unique(data.class_ids[labels < 0]).tolist()
    if unknown:
        names = snapshot.class_table().names
        raise MissingStepError(
            f"{len(unknown)} classes of split {split!r} have no anchor sentence, for example {names[unknown[0]]!r}",
            "Select again: vlltr embed, then vlltr select",
        )
    return labels


def _own_rows(
    recognizer: Recognizer, data: ImageSet, retrieval: str, progress: Progress | None
) -> dict[str, _Row]:
    scorer = recognizer.scorer
    columns: dict[str, list[tuple[Tensor, Tensor]]] = {"vl-ltr": [], "image branch": [], "text branch": []}
    for start in range(0, len(data.features), _BATCH):
        part = data.features[start : start + _BATCH]
        fused, _ = recognizer.score(part, retrieval)
        parts = {
            "vl-ltr": fused.probabilities,
            "image branch": fused.by_image,
            "text branch": fused.by_text,
        }
        for name, column in columns.items():
            column.append(_top(parts[name]))
        if progress:
            progress("evaluate", min(start + _BATCH, len(data.features)), len(data.features))
    result = {}
    for name, tops in columns.items():
        best, confidence = (torch.cat(column) for column in zip(*tops, strict=True))
        result[name] = _Row(scorer.class_ids[best], confidence if name == "vl-ltr" else None)
    return result


def _top(scores: Tensor) -> tuple[Tensor, Tensor]:
    best = scores.topk(min(5, scores.shape[1]), dim=1)
    return best.indices, best.values[:, 0]


def _baseline_rows(
    workspace: Workspace, folder: Path, split: str, image_ids: list[str], progress: Progress | None
) -> dict[str, _Row]:
    """The image-only baseline, as trained and with logit adjustment after training."""
    from safetensors.torch import load_file

    encoder = Encoder.open(folder)
    encoder.eval()
    visual = load_file(folder / "visual.safetensors")
    config = json.loads((folder / "train.json").read_text(encoding="utf-8"))["config"]
    with workspace.transaction("evaluate") as tx:  # only the cache grows: no commit
        embed_images(tx, encoder, split, progress=progress)
        keys = [f"{i}:0" for i in image_ids]
        _, features = tx.store.vectors(image_vectors_name(encoder.image_fp), "vector_key", keys)
    logits = features @ visual["weight"].T + visual["bias"]
    class_ids, plain = visual["class_ids"], logits.softmax(1)
    rows = {"image-only": _Row(class_ids[_top(plain)[0]], _top(plain)[1])}
    if config["logit_adjustment"] == 0:
        prior = sampler_prior(visual["counts"], config["sampler_power"]).log().to(logits.dtype)
        adjusted = (logits - prior).softmax(1)
        rows["image-only + logit adjustment"] = _Row(class_ids[_top(adjusted)[0]], _top(adjusted)[1])
    return rows


def _report(
    rows: dict[str, _Row], class_ids: Tensor, labels: Tensor, counts: Tensor, bootstrap: int
) -> tuple[dict[str, AccuracyReport], dict[str, float], dict[str, Interval], str | None]:
    reports, errors = {}, {}
    right = {}
    for name, row in rows.items():
        positions = class_positions(class_ids, row.best.reshape(-1)).reshape(row.best.shape)
        reports[name] = accuracy_report(positions, labels, counts, resamples=bootstrap)
        right[name] = positions[:, 0] == labels
        if row.confidence is not None:
            errors[name] = expected_calibration_error(row.confidence, right[name])
    against = "image-only + logit adjustment"
    if against not in right:
        return reports, errors, {}, None
    differences = {
        name: paired_difference(
            right["vl-ltr"][torch.from_numpy(mask)],
            right[against][torch.from_numpy(mask)],
            resamples=bootstrap,
        )
        for name, mask in bin_masks(labels, counts, "release").items()
    }
    return reports, errors, differences, against
