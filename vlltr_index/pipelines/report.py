"""Gather what a workspace's newest commit holds and how it performs into one HTML file (`vlltr report`)."""

from __future__ import annotations

import math
import platform
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.data.writing import write_file
from vlltr_index.embedding.loading import usable_images
from vlltr_index.embedding.vectors import load_sources
from vlltr_index.errors import InputError, MissingStepError, UsageError, WorkspaceError
from vlltr_index.evaluation import records
from vlltr_index.evaluation.figures import SHOTS, confused_pairs, gains, shots, spread, weakest
from vlltr_index.evaluation.metrics import METHOD, reliability
from vlltr_index.evaluation.report import nearest_pictures, render, thumbnail
from vlltr_index.evaluation.verdict import verdict
from vlltr_index.heads.checkpoint import RuleParameters, load_head
from vlltr_index.pipelines.baseline_scores import baseline_labels
from vlltr_index.pipelines.doctor import FAISS
from vlltr_index.pipelines.evaluate import Evaluation, evaluation, keep, usual_split
from vlltr_index.pipelines.status import status
from vlltr_index.schemas.baselines import BASELINES
from vlltr_index.schemas.fingerprint import short
from vlltr_index.schemas.manifests import TrainingLog
from vlltr_index.schemas.options import Prior, named_prior
from vlltr_index.store.tables import one_of

if TYPE_CHECKING:
    from vlltr_index.evaluation.metrics import EvaluationReport
    from vlltr_index.pipelines.status import StatusReport
    from vlltr_index.schemas.config import FusionConfig
    from vlltr_index.schemas.records import ClassScore, Progress
    from vlltr_index.store.objects import Kind
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

_CONFUSIONS = 12
_WEAKEST = 20
_SHOWN = 12
_PICTURES = 11  # of a confusion, beside the one that is explained
_SENTENCES = 3
_NAME = 120  # letters of a name
_LISTED = 240  # letters of a sentence in a list
_TEXT = 300  # letters of a sentence under a picture
_ANCHOR_ROWS = 6000  # sentences in the list of anchors, about
_ANCHOR_CLASSES = 3000
_CLASSES = 3000
_GROUP = 50  # classes under one heading
_QUARANTINED = 100
_NO_LOSS = {"steps", "best", "lr", "seconds", "images_per_s", "scale"}
_LIBRARIES = (
    *("vlltr-index", "torch", "torchvision", "open_clip_torch", "timm", "lancedb", "pyarrow"),
    *FAISS,
    "numpy",
)


@dataclass(frozen=True)
class ReportFile:
    """A written report, with its figures.

    Attributes:
        path: The file.
        bytes: Its size.
        commit: The commit it is about.
        evaluation: The figures; None where there was nothing to measure on.
        missing: Parts that are not in it, with what brings them.
    """

    path: str
    bytes: int
    commit: int
    evaluation: EvaluationReport | None
    missing: tuple[records.Missing, ...]


def write_report(
    workspace: Workspace,
    out: Path | None = None,
    split: str | None = None,
    against: str | None = None,
    prior: Prior = "balanced",
    progress: Progress | None = None,
) -> ReportFile:
    """Write the report of the newest commit as one HTML file, whole or not at all; its figures as `evaluate` does.

    Args:
        workspace: What to report on.
        out: The file; default `reports/report-<split>-<commit>.html` in the workspace, under a prior one whose name
            says so.
        split: Which images to evaluate, see `evaluation`.
        against: The baseline's row; default: image-only with logit adjustment, else the best.
        prior: How common the classes are, see `evaluation`.
        progress: Called while scoring and embedding.

    Raises:
        UsageError: If `out` names no HTML file, or there is no row `against`.
        InputError: If `out` cannot be written.
        MissingStepError: If nothing has been committed.
    """
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(
            f"the report is an HTML file; {out.name!r} ends otherwise", "For example: --out report.html"
        )
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"no such folder: {out.absolute().parent}", "Make it first.")
    commit = workspace.history.last()
    if not commit.id:
        raise MissingStepError(
            "nothing has been committed yet: there is nothing to report on",
            "Run: vlltr ingest images PATH --split train",
        )
    report = gather_report(workspace, commit.id, split, against, prior, progress)
    data = render(report).encode("utf-8", "replace")
    under = "" if prior == "balanced" else f"-prior-{named_prior(prior)}"
    path = out or workspace.path / "reports" / f"report-{report.split}-{commit.id}{under}.html"
    try:
        write_file(path, data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}", "Choose another place.") from None
    measured = report.measured
    parts: list[object] = [measured, *report.curves, report.anchors]
    found = None
    if isinstance(measured, records.Measured):
        found = measured.evaluation
        parts.append(measured.gains)
        keep(workspace, found)
    return ReportFile(
        path=str(path),
        bytes=len(data),
        commit=commit.id,
        evaluation=found,
        missing=tuple(part for part in parts if isinstance(part, records.Missing)),
    )


def gather_report(
    workspace: Workspace,
    at: int,
    split: str | None = None,
    against: str | None = None,
    prior: Prior = "balanced",
    progress: Progress | None = None,
) -> records.Report:
    """Gather the content of the report on commit `at`; a missing part names the command that makes it.

    Raises:
        UsageError: If there is no row `against`.
    """
    snapshot = workspace.snapshot(at)
    state = status(workspace, at)
    measured = _measure(workspace, snapshot, split, against=against, prior=prior, progress=progress)
    of_folds = isinstance(measured, Evaluation) and measured.report.folds > 0
    shown = measured.report.split if isinstance(measured, Evaluation) else split or usual_split(snapshot)
    notes = [f"To do: {what}." for what in state.stale] if isinstance(measured, Evaluation) else []
    if "val" not in state.images and not of_folds:
        notes.append(
            "There is no split val: baselines choose their settings on held-back training images. "
            "To bring one: vlltr ingest images PATH --split val"
        )
    return records.Report(
        title=clip(workspace.path.name),
        split=shown,
        facts=facts(snapshot, shown, state),
        notes=tuple(notes),
        measured=_parts(measured, snapshot) if isinstance(measured, Evaluation) else measured,
        curves=curves(snapshot),
        anchors=anchor_list(snapshot),
        quarantine=quarantine(snapshot),
    )


def _measure(
    workspace: Workspace,
    snapshot: Snapshot,
    split: str | None,
    against: str | None,
    prior: Prior,
    progress: Progress | None,
) -> Evaluation | records.Missing:
    """Return the evaluation, or what it lacks."""
    try:
        return evaluation(
            workspace, split, at=snapshot.commit.id, progress=progress, against=against, prior=prior
        )
    except WorkspaceError as error:  # something is missing, damaged, or made with another encoder
        return records.Missing(error.message, error.hint or "See: vlltr status")


def _parts(measured: Evaluation, snapshot: Snapshot) -> records.Measured:
    report = measured.report
    method = measured.answers[METHOD]
    names = {i: clip(name) for i, name in snapshot.class_table().names.items()}
    columns = [names[i] for i in measured.class_ids.tolist()]
    labels = measured.labels
    rows = [METHOD]
    if report.against:
        rows.append(report.against)
    sure = {}
    for name in rows:
        row = measured.answers[name]
        if row.confidence is not None:
            alike = labels if report.rows[name].alike(report.prior) else None
            sure[name] = tuple(reliability(row.confidence, row.right, alike))
    best = method.best[:, 0]
    counts = measured.counts
    gained: records.Gains | records.Missing = _no_baseline(snapshot, of_folds=report.folds > 0)
    if report.against is not None:
        other = measured.answers[report.against].right
        gained = gains(
            report.against,
            method=method.right,
            other=other,
            labels=labels,
            counts=counts,
            names=columns,
        )
    listed = tuple(replace(one, name=clip(one.name)) for one in report.by_class)
    return records.Measured(
        evaluation=report,
        verdict=verdict(replace(report, by_class=listed)),
        classes=tuple(sorted(listed, key=lambda one: one.train)[:_CLASSES]),
        reliability=sure,
        gains=gained,
        confusions=_confusions(measured, snapshot, columns),
        weakest=weakest(best, labels, counts, names=columns, limit=_WEAKEST),
        gallery=_gallery(measured, snapshot, columns),
    )


def _no_baseline(snapshot: Snapshot, of_folds: bool) -> records.Missing:
    """Say why nothing is compared with: there is no baseline, or each is older than some classes."""
    labels = baseline_labels(snapshot, of_folds)
    stale = next((name for name in labels if name in BASELINES), None)
    name = stale or ("discriminant" if of_folds else "fc")
    why = (
        "the baselines were made before some classes came"
        if labels
        else "there is no baseline to compare with"
    )
    return records.Missing(why, f"Run: vlltr train baseline {name}")


def _confusions(
    measured: Evaluation, snapshot: Snapshot, columns: Sequence[str]
) -> tuple[records.Confusion, ...]:
    """Return the most frequent pairs of confused classes, each with its most confident image."""
    method = measured.answers[METHOD]
    labels = measured.labels
    best = method.best[:, 0]
    confidence = _confidence(measured)
    shot = shots(measured.counts)
    pairs = confused_pairs(best, labels, _CONFUSIONS)
    surest = []
    others = []
    for truth, taken, _ in pairs:
        places = ((labels == truth) & (best == taken)).nonzero()[:, 0]
        first, *more = places[confidence[places].argsort(descending=True, stable=True)].tolist()
        surest.append(first)
        others.append(_pictures(measured, snapshot, more[:_PICTURES]))
    examples = _explain(measured, snapshot, surest, columns)
    return tuple(
        records.Confusion(
            truth=columns[truth],
            taken_for=columns[taken],
            shot=shot[truth],
            wrong=n,
            images=int((labels == truth).sum()),
            example=example,
            others=more,
        )
        for (truth, taken, n), example, more in zip(pairs, examples, others, strict=True)
    )


def _pictures(
    measured: Evaluation, snapshot: Snapshot, places: Sequence[int]
) -> tuple[tuple[str, records.Thumbnail], ...]:
    """Read the images at `places`, each with its file and folder."""
    ids = [measured.measured.data.image_ids[place] for place in places]
    return tuple(
        (file, thumbnail(source))
        for file, (_, source) in zip(_files(snapshot, ids), load_sources(snapshot, ids), strict=True)
    )


def _files(snapshot: Snapshot, ids: Sequence[str]) -> list[str]:
    """Return the file of each image, with its folder."""
    rows = snapshot.table("images", ["image_id", "uri"], one_of("image_id", ids)).to_pydict()
    known = dict(zip(rows["image_id"], rows["uri"], strict=True))
    return [_file(known[image_id]) for image_id in ids]


def _file(uri: str) -> str:
    """Return a file and its folder, which is enough to find it."""
    return clip("/".join(PurePath(uri).parts[-2:]), _LISTED)


def _gallery(
    measured: Evaluation, snapshot: Snapshot, columns: Sequence[str]
) -> tuple[tuple[str, tuple[records.Explained, ...]], ...]:
    right = measured.answers[METHOD].right
    sure = _confidence(measured)
    gallery = []
    for heading, chosen in (("Wrong", ~right), ("Right", right)):
        places = spread(chosen, measured.labels, confidence=sure, counts=measured.counts, limit=_SHOWN)
        gallery.append((heading, _explain(measured, snapshot, places, columns)))
    return tuple(gallery)


def _confidence(measured: Evaluation) -> Tensor:
    confidence = measured.answers[METHOD].confidence
    assert confidence is not None  # the method always has probabilities
    return confidence


def _explain(
    measured: Evaluation, snapshot: Snapshot, places: Sequence[int], columns: Sequence[str]
) -> tuple[records.Explained, ...]:
    """Explain the images at `places`: picture, the answer and, if it is wrong, the right class, with sentences."""
    ids = measured.class_ids.tolist()
    shot = shots(measured.counts)
    data = measured.measured.data
    image_ids = [data.image_ids[place] for place in places]
    sources = load_sources(snapshot, image_ids)
    result = []
    for place, file, (_, source) in zip(places, _files(snapshot, image_ids), sources, strict=True):
        taken = int(measured.answers[METHOD].best[place, 0])
        truth = int(measured.labels[place])
        wanted = [ids[taken]] if taken == truth else [ids[taken], ids[truth]]
        feature = data.features[place]
        model = measured.model_of(place)
        scores = [_clipped(s) for s in model.explained(feature, wanted, _SENTENCES)]
        result.append(
            records.Explained(
                picture=thumbnail(source),
                file=file,
                truth=columns[truth],
                shot=shot[truth],
                train=int(measured.counts[truth]),
                best=scores[0],
                right=scores[1] if len(scores) > 1 else None,
                neighbours=nearest_pictures(model, snapshot, feature, scores[0]),
            )
        )
    return tuple(result)


def _clipped(score: ClassScore) -> ClassScore:
    """Return the score with names and sentences cut to a bounded length."""
    sentences = (
        replace(
            s, text=clip(s.text, _TEXT), source=clip(s.source), source_ref=clip(s.source_ref or "") or None
        )
        for s in score.sentences
    )
    return replace(score, name=clip(score.name), sentences=tuple(sentences))


def clip(text: str, letters: int = _NAME) -> str:
    """Put `text` on one line, and cut it with an ellipsis if it is longer than `letters`."""
    text = " ".join(text.split())
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"


def facts(snapshot: Snapshot, split: str, state: StatusReport) -> tuple[tuple[str, str], ...]:
    """What the report is about, as (label, value)."""
    commit = snapshot.commit
    recipe = snapshot.recipe
    fusion = commit.fusion or recipe.fusion
    images = ", ".join(f"{n:,} {name}" for name, n in state.images.items()) or "none"
    back = f", the state of commit {commit.state_of}" if commit.state_of is not None else ""
    parts = _parts_of(snapshot) if fusion.rule == "ours" else None
    return (
        ("commit", f"{commit.id} ({commit.command}), {commit.created_at}{back}"),
        ("recipe", commit.info.recipe or recipe.name),
        ("protocol", commit.info.protocol or recipe.protocol),
        ("split", split),
        ("many, medium, few", "the release's bounds: 100 or more, 21 to 99, 20 or fewer training images"),
        ("encoder", state.encoder),
        ("fingerprints", f"text {commit.text_fp or 'none'}, images {commit.image_fp or 'none'}"),
        ("head", short(commit.head) if commit.head else "none"),
        ("fusion", _fusion(parts, fusion)),
        ("classes", f"{state.classes:,} ({_by_shot(snapshot)})"),
        ("images", f"{images}; {state.quarantined:,} quarantined"),
        ("sentences", f"{state.sentences:,}, of which {state.anchors:,} are anchors"),
        ("versions", ", ".join([f"Python {platform.python_version()}", *_versions()])),
    )


def _parts_of(snapshot: Snapshot) -> RuleParameters | None:
    """Return the weights of the head under the rule `ours`; None where there is no such head."""
    with suppress(MissingStepError, WorkspaceError):  # the measured part says so
        head = snapshot.commit.head
        return load_head(snapshot.objects.whole("heads", head)).parts if head else None
    return None


def _fusion(parts: RuleParameters | None, fusion: FusionConfig) -> str:
    """The rule, and what each part counts under it."""
    if fusion.rule != "ours":
        return f"rule {fusion.rule}" + (f", alpha {fusion.alpha:g}" if fusion.rule == "paper" else "")
    if parts is None:
        return "rule ours"
    w = parts.weights
    linear = f", both times {w.combined:.3g} plus linear classifier {w.image:.3g}" if w.image else ""
    return (
        f"rule ours: PLDA {w.generative:.3g}, text logits {w.text:.3g}{linear}; texts predict"
        f" {100 * parts.shared.text_r2:.0f}% of the variance of class means"
    )


def _by_shot(snapshot: Snapshot) -> str:
    """Count classes by number of training images, in words; `few` includes few5."""
    counts = _train_counts(snapshot)
    found = Counter(shots(torch.tensor([counts[i] for i in snapshot.class_table().ids], dtype=torch.int64)))
    found["few"] += found["few5"]
    words = {"few5": "of them few5", "new": "without training images"}
    return ", ".join(f"{found[s]:,} {words.get(s, s)}" for s in SHOTS if found[s])


def _train_counts(snapshot: Snapshot) -> Counter[int]:
    return Counter(usable_images(snapshot, "train", [])["class_id"].to_pylist())


def _versions() -> list[str]:
    there = []
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            there.append(f"{name} {metadata.version(name)}")
    return there


def curves(snapshot: Snapshot) -> tuple[records.Curves | records.Missing, ...]:
    """Losses of stage 1, stage 2 and the image-only baseline, of those that were trained by steps here."""
    commit = snapshot.commit
    stages: list[tuple[Kind, str | None, str, str]] = [
        ("checkpoints", commit.untuned, "Stage 1 (CVLP)", "vlltr train cvlp"),
        ("heads", commit.head, "Stage 2 (LGR)", "vlltr train lgr"),
        ("checkpoints", commit.info.baseline_fc, "Image-only baseline", "vlltr train baseline fc"),
    ]
    found: list[records.Curves | records.Missing] = []
    for kind, digest, title, command in stages:
        try:
            path = snapshot.objects.path(kind, digest) / "train.json" if digest is not None else None
            if path is not None and path.is_file():
                found.append(_read_log(path, title))
        except MissingStepError:
            found.append(records.Missing(f"{title}: its files are gone", f"Run: {command}"))
        except (OSError, ValueError):
            found.append(records.Missing(f"{title}: its log cannot be read", f"Train it again: {command}"))
    return tuple(found)


def _read_log(path: Path, title: str) -> records.Curves:
    """Read the loss terms that every epoch has.

    Raises:
        ValueError: The file is damaged, or there is no such term.
    """
    log = TrainingLog.load(path).log
    candidates = [n for n in log[0].figures if n not in _NO_LOSS]
    names = [n for n in candidates if all(math.isfinite(e.figures.get(n, math.nan)) for e in log)]
    if not names:
        raise ValueError("no losses")
    names.sort(key=lambda n: (n != "loss", n))
    if len(names) == 2 and "loss" in names:  # a single term equals the total
        names = ["loss"]
    words = {"loss": "total"} if len(names) > 1 else {}
    values = {clip(words.get(n, n), 40): tuple(e.figures[n] for e in log) for n in names[:5]}
    return records.Curves(title, tuple(e.epoch for e in log), values)


def anchor_list(snapshot: Snapshot) -> records.AnchorList | records.Missing:
    """List anchors by class, bounded: at most 3,000 classes (the smallest), and about 6,000 sentences."""
    anchors = snapshot.table("anchors", ["class_id", "sentence_id", "rank"])
    if not anchors.num_rows:
        return records.Missing("no anchor sentences have been selected yet", "Run: vlltr select")
    anchors = anchors.sort_by([("class_id", "ascending"), ("rank", "ascending")])
    by_class: dict[int, list[str]] = {}
    for row in anchors.to_pylist():
        by_class.setdefault(row["class_id"], []).append(row["sentence_id"])
    counts = _train_counts(snapshot)
    chosen = sorted(by_class, key=lambda c: (counts[c], c))[:_ANCHOR_CLASSES]
    each = max(1, min(max(map(len, by_class.values())), _ANCHOR_ROWS // len(chosen)))
    shown = {c: by_class[c][:each] for c in chosen}
    text = _anchor_texts(snapshot, {s for ids in shown.values() for s in ids})
    names = snapshot.class_table().names
    listed = {}
    for c, ids in shown.items():
        sentences = tuple(text[s] for s in ids)
        listed[c] = records.ClassAnchors(clip(names[c]), counts[c], sentences, len(by_class[c]) - len(ids))
    return records.AnchorList(_grouped(listed), len(by_class), anchors.num_rows, each)


def _anchor_texts(snapshot: Snapshot, wanted: set[str]) -> dict[str, records.Anchor]:
    scores = snapshot.table("sentence_scores", ["sentence_id", "loss"])
    loss = dict(zip(scores["sentence_id"].to_pylist(), scores["loss"].to_pylist(), strict=True))
    rows = snapshot.table("sentences", ["sentence_id", "text", "source", "source_ref"])
    columns = rows.to_pydict().values()
    return {
        i: records.Anchor(clip(text, _LISTED), clip(ref or source, 60), loss.get(i))
        for i, text, source, ref in zip(*columns, strict=True)
        if i in wanted
    }


def _grouped(
    listed: dict[int, records.ClassAnchors],
) -> tuple[tuple[str, tuple[records.ClassAnchors, ...]], ...]:
    """Group classes by number of training images, then by name, with a bounded number under each heading."""
    shot = shots(torch.tensor([c.train for c in listed.values()], dtype=torch.int64))
    groups = []
    for name in SHOTS:
        sized = (c for c, s in zip(listed.values(), shot, strict=True) if s == name)
        members = sorted(sized, key=lambda c: c.name)
        for start in range(0, len(members), _GROUP):
            part = tuple(members[start : start + _GROUP])
            ends = part[0].name if len(part) == 1 else f"{part[0].name} … {part[-1].name}"
            groups.append((f"{name}: {ends}", part))
    return tuple(groups)


def quarantine(snapshot: Snapshot) -> records.Quarantine:
    """List the images that cannot be used, with the reason; the first 100 by name."""
    rows = snapshot.table("images", ["uri", "split", "problem"], "problem IS NOT NULL").to_pylist()
    found = []
    for r in rows:
        # Without the file's name, so that equal reasons can be counted.
        reason = re.sub(r"^cannot read the image .*?: (?=.)", "", r["problem"])
        found.append(records.Problem(_file(r["uri"]), r["split"], clip(reason, _LISTED)))
    found.sort(key=lambda p: (p.split, p.where))
    reasons = Counter(p.why for p in found).most_common(20)
    return records.Quarantine(len(found), tuple(reasons), tuple(found[:_QUARANTINED]))
