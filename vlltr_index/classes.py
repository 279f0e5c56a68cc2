"""Adding classes to a trained workspace, by sentences, images, or both, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlltr_index.corpus.prompts import class_prompts
from vlltr_index.corpus.readers import class_sentences
from vlltr_index.embedding import embed_images, embed_sentences
from vlltr_index.errors import InputError, MissingStepError
from vlltr_index.fusion import imprint_row
from vlltr_index.images.readers import read_images
from vlltr_index.ingestion import image_rows, sentence_rows
from vlltr_index.loading import class_positions, image_set, open_encoder, usable_images
from vlltr_index.schemas.records import ImageRecord, SentenceRecord
from vlltr_index.schemas.tables import CLASSES, image_vectors_name, imprints
from vlltr_index.scoring import Scorer, load_scorer
from vlltr_index.selection import extend
from vlltr_index.train.augment import make_augment

if TYPE_CHECKING:
    from vlltr_index.encoder import Encoder
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.transaction import Transaction
    from vlltr_index.workspace import Workspace

__all__ = ["AddReport", "NewClass", "add_class", "add_classes", "read_manifest"]

_RIVALS = 3
_SHOWN = 3  # classes of an addition that are named one by one


@dataclass(frozen=True)
class NewClass:
    """A class to be added: its name and what is known of it."""

    name: str
    sentences: tuple[str, ...] = ()
    text: Path | None = None  # a file of text about it
    images: Path | None = None  # a folder of its images
    aliases: tuple[str, ...] = ()
    image_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class AddedClass:
    """What one addition did."""

    name: str
    class_id: int
    sentences: int
    anchors: int
    images: int
    imprinted: bool
    rivals: list[str]


@dataclass(frozen=True)
class AddReport:
    """What an addition did, and what it did to the old classes' accuracy on stored validation vectors."""

    added: list[AddedClass]
    dry_run: bool
    skipped: list[str] = field(default_factory=list)
    old_classes_before: float | None = None
    old_classes_after: float | None = None
    validation_images: int = 0

    def lines(self) -> list[str]:
        """The report for people."""
        verb = "Would add" if self.dry_run else "Added"
        lines = []
        for one in self.added[:_SHOWN]:
            how = "its visual row is imprinted" if one.imprinted else "known by text alone"
            lines.append(
                f"{verb} {one.name!r} (class {one.class_id}): {one.sentences} sentences, {one.anchors} anchors,"
                f" {one.images} images, {how}. Nearest: {', '.join(one.rivals) or 'none'}."
            )
        if len(self.added) > _SHOWN:
            lines.append(f"{verb} {len(self.added) - _SHOWN} more classes.")
        lines += [f"Left out: {what}" for what in self.skipped]
        if self.old_classes_before is not None and self.old_classes_after is not None:
            lines.append(
                f"Old classes on {self.validation_images:,} validation images:"
                f" {100 * self.old_classes_before:.1f} % before, {100 * self.old_classes_after:.1f} % after."
            )
        return lines


def _shortly(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


class _DryRunDone(Exception):
    """Leaves a transaction without a commit."""


def read_manifest(path: Path) -> list[NewClass]:
    """Read {name: [sentence, ...]} or {name: {"sentences": [...], "images": [...], "aliases": [...]}}.

    Image paths are relative to the manifest.

    Raises:
        InputError: If the file is missing, is not JSON, or an entry is neither.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict) or not values:
        raise InputError(f"{path}: expected {{name: [sentence, ...]}} with at least one class")
    return [_manifest_entry(path, name, value) for name, value in values.items()]


def _manifest_entry(path: Path, name: str, value: Any) -> NewClass:
    if isinstance(value, list):
        value = {"sentences": value}
    allowed = {"sentences", "images", "aliases"}
    if not isinstance(value, dict) or not value.keys() <= allowed:
        raise InputError(
            f"{path}: class {name!r}: expected a list of sentences, or keys among {sorted(allowed)}"
        )
    for key, items in value.items():
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise InputError(f"{path}: class {name!r}: {key!r} must be a list of strings")
    files = tuple(path.parent / image for image in value.get("images", []))
    return NewClass(
        name, tuple(value.get("sentences", ())), None, None, tuple(value.get("aliases", ())), files
    )


def add_class(
    workspace: Workspace,
    name: str,
    sentences: Sequence[str] = (),
    images: Path | None = None,
    aliases: Sequence[str] = (),
) -> AddReport:
    """Add one class; see `add_classes`."""
    return add_classes(workspace, [NewClass(name, tuple(sentences), None, images, tuple(aliases))])


def add_classes(
    workspace: Workspace, wanted: Sequence[NewClass], dry_run: bool = False, progress: Progress | None = None
) -> AddReport:
    """Add classes in one commit: embed only what is new, score it, select anchors, imprint rows from images.

    The index is not rebuilt: the new anchors are searched beside it, exactly.

    Raises:
        InputError: If a name exists, is given twice, or nothing at all is known of a class.
        MissingStepError: If the workspace has no trained head yet.
    """
    report: AddReport | None = None
    try:
        with workspace.transaction(f"classes add {_shortly([w.name for w in wanted])}") as tx:
            report = _add(workspace, tx, wanted, dry_run, progress)
            if dry_run:
                raise _DryRunDone
    except _DryRunDone:
        pass
    assert report is not None
    return report


def _add(
    workspace: Workspace,
    tx: Transaction,
    wanted: Sequence[NewClass],
    dry_run: bool,
    progress: Progress | None,
) -> AddReport:
    before = load_scorer(workspace, tx)
    encoder = open_encoder(workspace, tx)
    encoder.eval()
    ids = _new_ids(tx, wanted)
    skipped: list[str] = []
    sentences = {i: _sentences(workspace, one) for i, one in zip(ids, wanted, strict=True)}
    images = {i: _images(one, skipped) for i, one in zip(ids, wanted, strict=True)}
    picture_rows = image_rows(images)
    readable = set(picture_rows.filter(pc.is_null(picture_rows["problem"]))["class_id"].to_pylist())
    for one, class_id in zip(wanted, ids, strict=True):
        told = one.text is not None or any(text.strip() for text in one.sentences)
        if not told and class_id not in readable:
            raise InputError(
                f"nothing is known of class {one.name!r}: no sentence and no readable image",
                "Give it a --sentence, a --text file, or --images.",
            )
    _write_classes(tx, ids, wanted)
    text_rows = sentence_rows(sentences)
    tx.upsert("sentences", text_rows)
    embed_sentences(tx, encoder, text_rows["text_hash"].to_pylist(), text_rows["text"].to_pylist(), progress)
    if picture_rows.num_rows:
        tx.upsert("images", picture_rows)
        _embed_views(workspace, tx, encoder, progress)
    skipped += [
        f"{u}: {p}"
        for u, p in zip(*(picture_rows[c].to_pylist() for c in ("uri", "problem")), strict=True)
        if p
    ]
    extend(workspace, tx, workspace.recipe.select, set(ids), images_changed=picture_rows.num_rows > 0)
    imprinted = _imprint(tx, before, set(ids))
    after = load_scorer(workspace, tx)
    return _report(tx, before, after, ids, wanted, text_rows, picture_rows, imprinted, dry_run, skipped)


def _embed_views(workspace: Workspace, tx: Transaction, encoder: Encoder, progress: Progress | None) -> None:
    """Embed the new training images in all views that the others have, so that the head can be trained again."""
    config = workspace.recipe.lgr.augment
    augment = make_augment(config, encoder)
    views = tx.commit.info.get("views", 1) if tx.commit is not None else 1
    for view in range(views):
        embed_images(tx, encoder, "train", view, augment, config, progress)


def _new_ids(tx: Transaction, wanted: Sequence[NewClass]) -> list[int]:
    table = tx.class_table()
    seen: set[str] = set()
    for one in wanted:
        name = " ".join(one.name.split())
        if not name:
            raise InputError("a class needs a name; got an empty one")
        if table.find(name) is not None:
            raise InputError(
                f"there is a class {name!r} already", "See what it holds: vlltr classes show " + repr(name)
            )
        if name.casefold() in seen:
            raise InputError(f"class {name!r} is given twice")
        seen.add(name.casefold())
        for alias in one.aliases:
            if alias.casefold() == name.casefold():
                continue
            if table.find(alias) is not None or alias.casefold() in seen:
                raise InputError(
                    f"class {name!r}: the alias {alias!r} is another class's name", "Leave this alias out."
                )
            seen.add(alias.casefold())
    first = tx.next_id("classes", len(wanted))
    return list(range(first, first + len(wanted)))


def _sentences(workspace: Workspace, one: NewClass) -> list[SentenceRecord]:
    records = [SentenceRecord(one.name, text, "given") for text in one.sentences]
    if one.text is not None:
        records += class_sentences(one.text, one.name)
    records += class_prompts(one.name, workspace.recipe.prompts)
    return records or [
        SentenceRecord(one.name, one.name, "name")
    ]  # a recipe without prompts: no class is mute


def _images(one: NewClass, skipped: list[str]) -> list[ImageRecord]:
    found: list[ImageRecord] = []
    if one.images is not None:
        for item in read_images(one.images, "train", class_name=one.name):
            if isinstance(item, ImageRecord):
                found.append(item)
            else:
                skipped.append(f"{item.where}: {item.why}")
    for path in one.image_files:
        if path.is_file():
            full = str(path.resolve())
            found.append(ImageRecord(full, full, one.name, "train"))
        else:
            skipped.append(f"{path}: no such file")
    return found


def _write_classes(tx: Transaction, ids: Sequence[int], wanted: Sequence[NewClass]) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [
        {
            "class_id": class_id,
            "name": " ".join(one.name.split()),
            "aliases": list(one.aliases),
            "origin": "added",
            "created_at": now,
            "retired_at": None,
        }
        for class_id, one in zip(ids, wanted, strict=True)
    ]
    tx.upsert("classes", pa.Table.from_pylist(rows, schema=CLASSES))


def _imprint(tx: Transaction, scorer: Scorer, ids: set[int]) -> set[int]:
    """Give each new class with images a visual row from its mean feature; returns which classes got one."""
    assert tx.commit is not None
    head = scorer.saved.head
    images = usable_images(tx, "train", [])
    images = images.filter(pc.is_in(images["class_id"], pa.array(sorted(ids), pa.int32())))
    if not images.num_rows or head.visual != "linear":
        return set()
    assert tx.commit.image_fp is not None
    keys = [f"{i}:0" for i in images["image_id"].to_pylist()]
    _, features = tx.store.vectors(image_vectors_name(tx.commit.image_fp), "vector_key", keys)
    owners = torch.tensor(images["class_id"].to_pylist())
    visual = head.visual_head
    assert isinstance(visual, nn.Linear)
    weight, bias = visual.weight.detach(), visual.bias.detach()
    made: list[dict[str, Any]] = []
    for class_id in torch.unique(owners).tolist():
        mine = features[owners == class_id]
        row, offset = imprint_row(mine.mean(0), scorer.saved.training_mean, weight, bias)
        made.append(
            {
                "class_id": class_id,
                "head": tx.commit.head,
                "image_count": len(mine),
                "bias": float(offset),
                "vector": row.tolist(),
            }
        )
    if made:
        tx.upsert("imprints", pa.Table.from_pylist(made, schema=imprints(head.dim)))
    return {row["class_id"] for row in made}


def _report(
    tx: Transaction,
    before: Scorer,
    after: Scorer,
    ids: Sequence[int],
    wanted: Sequence[NewClass],
    text_rows: pa.Table,
    picture_rows: pa.Table,
    imprinted: set[int],
    dry_run: bool,
    skipped: list[str],
) -> AddReport:
    names = tx.class_table().names
    owners = after.bank.class_ids[after.bank.class_of_row].tolist()
    sentence_owner = text_rows["class_id"].to_pylist()
    readable = [
        i
        for i, p in zip(*(picture_rows[c].to_pylist() for c in ("class_id", "problem")), strict=True)
        if not p
    ]
    added = [
        AddedClass(
            one.name,
            class_id,
            sentence_owner.count(class_id),
            owners.count(class_id),
            readable.count(class_id),
            class_id in imprinted,
            [names[i] for i in _rivals(after, class_id)],
        )
        for one, class_id in zip(wanted, ids, strict=True)
    ]
    harm = _validation(tx, before, after)
    return AddReport(added, dry_run, skipped, *harm)


def _rivals(scorer: Scorer, class_id: int) -> list[int]:
    """The classes whose mean anchor is nearest to that of `class_id`."""
    prototypes = F.normalize(scorer.bank.prototypes(), dim=1)
    position = int((scorer.class_ids == class_id).nonzero()[0, 0])
    order = (prototypes @ prototypes[position]).argsort(descending=True).tolist()
    return [int(scorer.class_ids[i]) for i in order if i != position][:_RIVALS]


def _validation(tx: Snapshot, before: Scorer, after: Scorer) -> tuple[float | None, float | None, int]:
    """Top-1 of the old classes on the stored vectors of split val, before and after; None where there are none."""
    try:
        rows = image_set(tx, "val")
    except MissingStepError:
        return None, None, 0
    keep = class_positions(before.class_ids, rows.class_ids) >= 0
    if not bool(keep.any()):
        return None, None, 0
    features, owners = rows.features[keep], rows.class_ids[keep]
    return _top1(before, features, owners), _top1(after, features, owners), int(keep.sum())


def _top1(scorer: Scorer, features: Tensor, owners: Tensor) -> float:
    best = scorer.class_ids[scorer.exhaustive(features).probabilities.argmax(1)]
    return float((best == owners).double().mean())
