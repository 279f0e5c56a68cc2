"""`vlltr report`: what a workspace's newest commit is and does, gathered and written as one HTML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vlltr_index.embedding.vectors import load_sources
from vlltr_index.errors import InputError, MissingStepError, UsageError, WorkspaceError
from vlltr_index.evaluation.figures import confused_pairs, gains, shots, spread, weakest
from vlltr_index.evaluation.metrics import Interval, reliability
from vlltr_index.evaluation.records import Confusion, Explained, Gains, Measured, Missing, Report
from vlltr_index.evaluation.report import nearest_pictures, render, thumbnail
from vlltr_index.pipelines.baselines import ADJUSTED, FC, baseline_labels
from vlltr_index.pipelines.evaluate import METHOD, Evaluation, evaluation
from vlltr_index.pipelines.report_parts import anchor_list, clip, curves, facts, quarantine
from vlltr_index.pipelines.status import status

if TYPE_CHECKING:
    from vlltr_index.schemas.records import ClassScore, Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

_CONFUSIONS, _WEAKEST, _SHOWN, _SENTENCES = 12, 20, 12, 3
_TEXT = 300  # letters of a sentence


@dataclass(frozen=True)
class ReportFile:
    """A report that was written, and its key figures.

    Attributes:
        path: The file.
        bytes: Its size.
        commit: The commit it is about.
        split: The images that were evaluated.
        convention: The bounds of many, medium and few.
        images: How many images were evaluated; 0 where that was not possible.
        top1: Accuracy of the method by class size.
        calibration_error: Its expected calibration error.
        against: The baseline.
        differences: The method less the baseline, by class size.
        missing: Parts that are not in it, with what brings them.
    """

    path: str
    bytes: int
    commit: int
    split: str
    convention: str
    images: int
    top1: dict[str, Interval]
    calibration_error: float | None
    against: str | None
    differences: dict[str, Interval]
    missing: tuple[Missing, ...]


def write_report(
    workspace: Workspace,
    out: Path | None = None,
    split: str = "test",
    against: str | None = None,
    progress: Progress | None = None,
) -> ReportFile:
    """Write the report of the newest commit as one HTML file, whole or not at all.

    Args:
        workspace: What to report on.
        out: The file; default `reports/report-<split>-<commit>.html` in the workspace.
        split: Which images to evaluate.
        against: The baseline's row; default: image-only with logit adjustment, else image-only, else the best.
        progress: Called while scoring and embedding.

    Raises:
        UsageError: If `out` names no HTML file, or there is no row `against`.
        InputError: If `out` cannot be written.
        MissingStepError: If nothing has been committed.
    """
    if out is not None:
        _check_target(out)
    commit = workspace.history.last()
    if not commit.id:
        raise MissingStepError(
            "nothing has been committed yet: there is nothing to report on",
            "Run: vlltr ingest images PATH --split train",
        )
    report = gather_report(workspace, commit.id, split, against, progress)
    path = out
    if path is None:
        path = workspace.path / "reports" / f"report-{split}-{commit.id}.html"
        path.parent.mkdir(exist_ok=True)
    data = render(report).encode("utf-8", "replace")
    _write(path, data)
    return _figures(report, commit.id, path, len(data))


def gather_report(
    workspace: Workspace,
    at: int,
    split: str = "test",
    against: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Gather what the report says of commit `at`; parts that are not there name the command that brings them.

    Raises:
        UsageError: If there is no row `against`.
    """
    snapshot = workspace.snapshot(at)
    state = status(workspace, at)
    measured = _measure(workspace, snapshot, split, against, progress)
    notes = [f"To do: {what}." for what in state.stale] if isinstance(measured, Evaluation) else []
    if "val" not in state.images:
        notes.append(
            "There is no split val: baselines choose their settings on held-back training images. "
            "To bring one: vlltr ingest images PATH --split val"
        )
    return Report(
        title=clip(workspace.path.name),
        split=split,
        facts=facts(workspace, snapshot, split, state),
        notes=tuple(notes),
        measured=_parts(measured, snapshot) if isinstance(measured, Evaluation) else measured,
        curves=curves(workspace, snapshot),
        anchors=anchor_list(snapshot),
        quarantine=quarantine(snapshot),
    )


def _measure(
    workspace: Workspace, snapshot: Snapshot, split: str, against: str | None, progress: Progress | None
) -> Evaluation | Missing:
    """The evaluation, or what it lacks; compared with the best baseline there is."""
    try:
        labels = baseline_labels(workspace, snapshot)
        other = against or next((name for name in (ADJUSTED, FC) if name in labels), None)
        return evaluation(workspace, split, at=snapshot.commit.id, progress=progress, against=other)
    except WorkspaceError as error:  # not there, damaged, or another encoder's
        return Missing(error.message, error.hint or "See: vlltr status")


def _parts(measured: Evaluation, snapshot: Snapshot) -> Measured:
    report, method = measured.report, measured.answers[METHOD]
    names = {i: clip(name) for i, name in snapshot.class_table().names.items()}
    columns = [names[i] for i in measured.class_ids.tolist()]
    rows = [METHOD, *([report.against] if report.against else [])]
    sure = {
        name: tuple(reliability(row.confidence, row.right))
        for name in rows
        if (row := measured.answers[name]).confidence is not None
    }
    best, labels, counts = method.best[:, 0], measured.labels, measured.counts
    return Measured(
        evaluation=report,
        reliability=sure,
        gains=_gains(measured, columns),
        confusions=_confusions(measured, snapshot, columns),
        weakest=weakest(best, labels, counts, columns, _WEAKEST),
        gallery=_gallery(measured, snapshot, columns),
    )


def _gains(measured: Evaluation, columns: Sequence[str]) -> Gains | Missing:
    against = measured.report.against
    if against is None:
        return Missing("there is no baseline to compare with", "Run: vlltr train baseline fc")
    method, other = measured.answers[METHOD].right, measured.answers[against].right
    return gains(against, method, other, measured.labels, measured.counts, columns)


def _confusions(measured: Evaluation, snapshot: Snapshot, columns: Sequence[str]) -> tuple[Confusion, ...]:
    """Pairs of classes, each with its surest image."""
    method, labels = measured.answers[METHOD], measured.labels
    best, confidence, shot = method.best[:, 0], _confidence(measured), shots(measured.counts)
    pairs = confused_pairs(best, labels, _CONFUSIONS)
    surest = []
    for truth, taken, _ in pairs:
        places = ((labels == truth) & (best == taken)).nonzero()[:, 0]
        surest.append(int(places[confidence[places].argmax()]))
    examples = _explain(measured, snapshot, surest, columns)
    return tuple(
        Confusion(columns[truth], columns[taken], shot[truth], n, int((labels == truth).sum()), example)
        for (truth, taken, n), example in zip(pairs, examples, strict=True)
    )


def _gallery(
    measured: Evaluation, snapshot: Snapshot, columns: Sequence[str]
) -> tuple[tuple[str, tuple[Explained, ...]], ...]:
    right, labels, counts = measured.answers[METHOD].right, measured.labels, measured.counts
    return tuple(
        (
            heading,
            _explain(
                measured, snapshot, spread(chosen, labels, _confidence(measured), counts, _SHOWN), columns
            ),
        )
        for heading, chosen in (("Wrong", ~right), ("Right", right))
    )


def _confidence(measured: Evaluation) -> Tensor:
    confidence = measured.answers[METHOD].confidence
    assert confidence is not None  # the method always has probabilities
    return confidence


def _explain(
    measured: Evaluation, snapshot: Snapshot, places: Sequence[int], columns: Sequence[str]
) -> tuple[Explained, ...]:
    """Images by their places: picture, answer and, where that is wrong, the right class, with sentences."""
    ids, shot = measured.class_ids.tolist(), shots(measured.counts)
    sources = load_sources(snapshot, [measured.data.image_ids[place] for place in places])
    answers, result = measured.recognizer.current(), []
    for place, (_, source) in zip(places, sources, strict=True):
        taken, truth = int(measured.answers[METHOD].best[place, 0]), int(measured.labels[place])
        wanted = [ids[taken]] if taken == truth else [ids[taken], ids[truth]]
        feature = measured.data.features[place]
        scores = [_clipped(s) for s in answers.explained(feature, wanted, _SENTENCES)]
        right = scores[1] if len(scores) > 1 else None
        picture, train = thumbnail(source), int(measured.counts[truth])
        near = nearest_pictures(answers, snapshot, feature, scores[0])
        result.append(Explained(picture, columns[truth], shot[truth], train, scores[0], right, near))
    return tuple(result)


def _clipped(score: ClassScore) -> ClassScore:
    """The score with names and sentences of a bounded length."""
    sentences = tuple(
        replace(
            s,
            text=clip(s.text, _TEXT),
            source=clip(s.source),
            source_ref=clip(s.source_ref) if s.source_ref else None,
        )
        for s in score.sentences
    )
    return replace(score, name=clip(score.name), sentences=sentences)


def _check_target(path: Path) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(
            f"the report is an HTML file; {path.name!r} ends otherwise", "For example: --out report.html"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"no such folder: {path.absolute().parent}", "Make it first.")


def _write(path: Path, data: bytes) -> None:
    """Replace the file, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}", "Choose another place.") from None


def _figures(report: Report, commit: int, path: Path, size: int) -> ReportFile:
    measured = report.measured
    parts: list[object] = [measured, *report.curves, report.anchors]
    found = measured.evaluation if isinstance(measured, Measured) else None
    if isinstance(measured, Measured):
        parts.append(measured.gains)
    return ReportFile(
        path=str(path),
        bytes=size,
        commit=commit,
        split=report.split,
        convention=found.convention if found else "release",
        images=found.images if found else 0,
        top1=found.rows[METHOD].top1 if found else {},
        calibration_error=found.calibration_error[METHOD] if found else None,
        against=found.against if found else None,
        differences=found.differences if found else {},
        missing=tuple(part for part in parts if isinstance(part, Missing)),
    )
