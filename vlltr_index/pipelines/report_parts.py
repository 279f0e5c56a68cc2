"""Parts of the report that are read from a workspace: facts, training logs, anchors, images left out."""

from __future__ import annotations

import json
import math
import platform
import re
from collections import Counter
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch

from vlltr_index.embedding.loading import usable_images
from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.evaluation.figures import SHOTS, shots
from vlltr_index.evaluation.records import (
    Anchor,
    AnchorList,
    ClassAnchors,
    Curves,
    Missing,
    Problem,
    Quarantine,
)
from vlltr_index.heads.checkpoint import load_head
from vlltr_index.schemas.fingerprint import short

if TYPE_CHECKING:
    from vlltr_index.pipelines.status import StatusReport
    from vlltr_index.schemas.config import FusionConfig
    from vlltr_index.store.snapshot import Commit, Snapshot
    from vlltr_index.store.workspace import Workspace

__all__ = ["anchor_list", "clip", "curves", "facts", "quarantine"]

_ANCHOR_ROWS = 6000  # sentences in the list of anchors, about
_ANCHOR_CLASSES = 3000
_GROUP = 50  # classes under one heading
_QUARANTINED = 100
_NAME, _TEXT = 120, 240  # letters of a name, and of a sentence
_NO_LOSS = {"epoch", "steps", "best", "lr", "seconds", "images_per_s", "scale"}
_LIBRARIES = (
    "vlltr-index",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "lancedb",
    "pyarrow",
    "faiss-cpu",
    "faiss-gpu",
    "numpy",
    "accelerate",
)


def clip(text: str, letters: int = _NAME) -> str:
    """`text` on one line, cut with an ellipsis where it is longer."""
    text = " ".join(text.split())
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"


def facts(
    workspace: Workspace, snapshot: Snapshot, split: str, state: StatusReport
) -> tuple[tuple[str, str], ...]:
    """What the report is about, as (label, value)."""
    commit = snapshot.commit
    recipe = workspace.recipe
    fusion = commit.fusion or recipe.fusion
    images = ", ".join(f"{n:,} {name}" for name, n in state.images.items()) or "none"
    back = f", the state of commit {commit.state_of}" if commit.state_of is not None else ""
    return (
        ("commit", f"{commit.id} ({commit.command}), {commit.created_at}{back}"),
        ("recipe", commit.info.recipe or recipe.name),
        ("protocol", commit.info.protocol or recipe.protocol),
        ("split", split),
        ("many, medium, few", "the release's bounds: 100 or more, 21 to 99, 20 or fewer training images"),
        ("encoder", state.encoder),
        ("fingerprints", f"text {commit.text_fp or 'none'}, images {commit.image_fp or 'none'}"),
        ("head", short(commit.head) if commit.head else "none"),
        ("fusion", _fusion(workspace, commit, fusion)),
        ("classes", f"{state.classes:,} ({_by_shot(snapshot)})"),
        ("images", f"{images}; {state.quarantined:,} quarantined"),
        ("sentences", f"{state.sentences:,}, of which {state.anchors:,} are anchors"),
        ("versions", ", ".join([f"Python {platform.python_version()}", *_versions()])),
    )


def _fusion(workspace: Workspace, commit: Commit, fusion: FusionConfig) -> str:
    """The rule, and what each part counts under it."""
    if fusion.rule != "ours":
        return f"rule {fusion.rule}" + (f", alpha {fusion.alpha:g}" if fusion.rule == "paper" else "")
    parts = None
    with suppress(MissingStepError, WorkspaceError):  # the measured part says so
        parts = load_head(workspace.whole_object("heads", commit.head)).parts if commit.head else None
    if parts is None:
        return "rule ours"
    w = parts.weights
    return (
        f"rule ours: visual classifier {w.image:.3g}, generative model {w.generative:.3g}, text {w.text:.3g};"
        f" between old and new classes {w.pictured.generative:.3g}, text {w.pictured.text:.3g}, offset"
        f" {w.pictured.offset:.2f}; texts foretell"
        f" {100 * parts.shared.text_r2:.0f} % of the class means"
    )


def _by_shot(snapshot: Snapshot) -> str:
    """Classes by size, in words; `few` with few5."""
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
        try:
            there.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return there


def curves(workspace: Workspace, snapshot: Snapshot) -> tuple[Curves | Missing, ...]:
    """Losses of stage 1, stage 2 and the image-only baseline, of those that were trained by steps here."""
    commit = snapshot.commit
    stages = [
        ("checkpoints", commit.untuned, "Stage 1 (CVLP)", "vlltr train cvlp"),
        ("heads", commit.head, "Stage 2 (LGR)", "vlltr train lgr"),
        ("checkpoints", commit.info.baseline_fc, "Image-only baseline", "vlltr train baseline fc"),
    ]
    found = (_curves(workspace, kind, digest, *rest) for kind, digest, *rest in stages if digest is not None)
    return tuple(one for one in found if one is not None)


def _curves(
    workspace: Workspace, kind: Any, digest: str, title: str, command: str
) -> Curves | Missing | None:
    """The losses of a training; None if it had no steps, or was imported."""
    try:
        path = workspace.object_path(kind, digest) / "train.json"
        return _read_log(path, title) if path.is_file() else None
    except MissingStepError:
        return Missing(f"{title}: its files are gone", f"Run: {command}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return Missing(f"{title}: its log cannot be read", f"Train it again: {command}")


def _read_log(path: Path, title: str) -> Curves:
    """The loss parts that every epoch has; raises what damaged JSON raises."""
    log = json.loads(path.read_text(encoding="utf-8"))["log"]
    names = [n for n in log[0] if n not in _NO_LOSS and all(math.isfinite(float(e[n])) for e in log)]
    if not names:
        raise ValueError("no losses")
    names.sort(key=lambda n: (n != "loss", n))
    if len(names) == 2 and "loss" in names:  # one part is all of it
        names = ["loss"]
    words = {"loss": "total"} if len(names) > 1 else {}
    values = {clip(words.get(n, n), 40): tuple(float(e[n]) for e in log) for n in names[:5]}
    return Curves(title, tuple(float(e["epoch"]) for e in log), values)


def anchor_list(snapshot: Snapshot) -> AnchorList | Missing:
    """Anchors by class, bounded: at most 3,000 classes (the smallest), and about 6,000 sentences."""
    anchors = snapshot.table("anchors", ["class_id", "sentence_id", "rank"])
    if not anchors.num_rows:
        return Missing("no anchor sentences have been selected yet", "Run: vlltr select")
    anchors = anchors.sort_by([("class_id", "ascending"), ("rank", "ascending")])
    by_class: dict[int, list[str]] = {}
    for owner, sentence in zip(
        anchors["class_id"].to_pylist(), anchors["sentence_id"].to_pylist(), strict=True
    ):
        by_class.setdefault(owner, []).append(sentence)
    counts = _train_counts(snapshot)
    chosen = sorted(by_class, key=lambda c: (counts[c], c))[:_ANCHOR_CLASSES]
    each = max(1, min(max(map(len, by_class.values())), _ANCHOR_ROWS // len(chosen)))
    shown = {c: by_class[c][:each] for c in chosen}
    text = _anchor_texts(snapshot, {s for ids in shown.values() for s in ids})
    names = snapshot.class_table().names
    listed = {
        c: ClassAnchors(clip(names[c]), counts[c], tuple(text[s] for s in ids), len(by_class[c]) - len(ids))
        for c, ids in shown.items()
    }
    return AnchorList(_grouped(listed), len(by_class), anchors.num_rows, each)


def _anchor_texts(snapshot: Snapshot, wanted: set[str]) -> dict[str, Anchor]:
    scores = snapshot.table("sentence_scores", ["sentence_id", "loss"])
    loss = dict(zip(scores["sentence_id"].to_pylist(), scores["loss"].to_pylist(), strict=True))
    columns = ["sentence_id", "text", "source", "source_ref"]
    rows = snapshot.table("sentences", columns)
    return {
        i: Anchor(clip(text, _TEXT), clip(ref or source, 60), loss.get(i))
        for i, text, source, ref in zip(*(rows[c].to_pylist() for c in columns), strict=True)
        if i in wanted
    }


def _grouped(listed: dict[int, ClassAnchors]) -> tuple[tuple[str, tuple[ClassAnchors, ...]], ...]:
    """Classes by size and name, some under each heading."""
    shot = shots(torch.tensor([c.train for c in listed.values()], dtype=torch.int64))
    groups = []
    for name in SHOTS:
        members = sorted(
            (c for c, s in zip(listed.values(), shot, strict=True) if s == name), key=lambda c: c.name
        )
        for start in range(0, len(members), _GROUP):
            part = tuple(members[start : start + _GROUP])
            ends = part[0].name if len(part) == 1 else f"{part[0].name} … {part[-1].name}"
            groups.append((f"{name}: {ends}", part))
    return tuple(groups)


def quarantine(snapshot: Snapshot) -> Quarantine:
    """Images that take no part, with the reason; the first 100 by name."""
    rows = snapshot.table("images", ["uri", "split", "problem"], "problem IS NOT NULL").to_pylist()
    found = []
    for r in rows:
        place = "/".join(PurePath(r["uri"]).parts[-2:])  # the file and its folder: enough to find it
        # Without the file's name, so that equal reasons can be counted.
        reason = re.sub(r"^cannot read the image .*?: (?=.)", "", r["problem"])
        found.append(Problem(clip(place, _TEXT), r["split"], clip(reason, _TEXT)))
    found.sort(key=lambda p: (p.split, p.where))
    reasons = Counter(p.why for p in found).most_common(20)
    return Quarantine(len(found), tuple(reasons), tuple(found[:_QUARANTINED]))
