"""Answers for training images by the models of the folds, and near duplicates; made once, and kept.

They are made again when images, labels, sentences, vectors or the head have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import torch
from torch import Tensor

from vlltr_index.data.writing import scratch_folder, settle
from vlltr_index.embedding.loading import (
    content_vectors,
    numbers,
    thumbnail_tensor,
)
from vlltr_index.embedding.vectors import embedded
from vlltr_index.errors import MissingStepError, write_error
from vlltr_index.heads.bursts import folder_of
from vlltr_index.heads.duplicates_across import near_duplicates_across
from vlltr_index.heads.label_errors import label_errors
from vlltr_index.heads.near_duplicates import near_duplicates
from vlltr_index.heads.units import connected, join_copies, number_names, units_by
from vlltr_index.heads.weighing import balanced_shares, paired_mean
from vlltr_index.recognition.added import log_scores
from vlltr_index.recognition.folds import open_folds
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.fingerprint import digest_json
from vlltr_index.schemas.manifests import Manifest
from vlltr_index.schemas.tables import content_id
from vlltr_index.store.holdout import read_held_out
from vlltr_index.tensors import class_positions

if TYPE_CHECKING:
    from vlltr_index.recognition.folds import Folds
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot

_EVIDENCE = ["image_id", "class_id", "split", "content_hash", "uri", "group", "taken"]
_LIKELY = 3  # classes that are kept for each image
_ANSWERS = pa.schema(
    {
        "image_id": pa.string(),
        "class_id": pa.int32(),
        "unit": pa.string(),
        "wrong": pa.float64(),
        "likely": pa.list_(pa.int32()),
        "chances": pa.list_(pa.float32()),
    }
)
_COPIES = pa.schema({"image_ids": pa.list_(pa.string())})


@dataclass(frozen=True)
class Moved:
    """How the share of held-out images that are right moved, each class counted alike.

    Attributes:
        images: Images that were asked both times and are of the same class; those that were corrected are not.
        before: Their share before, by models fitted to the labels of then.
        after: The same now.
        low, high: Ends of the 95 % interval of the difference, over units.
    """

    images: int
    before: float
    after: float
    low: float
    high: float


class KeptManifest(Manifest):
    """Content of `answers.json`.

    Attributes:
        format: Format of the folder.
        facts: Digest of what the answers come from.
        learned: How many of the images were not held out of stage 1.
        moved: How the answers moved when labels changed; None: they are the first ones.
    """

    format: Literal[1] = 1
    facts: str
    learned: int
    moved: Moved | None


@dataclass(frozen=True, eq=False)
class HeldOutLabels:
    """What is kept.

    Attributes:
        answers: One row for each training image that was held out: its class then, its unit, the probability that its
            label is wrong, and the likeliest classes with their probabilities.
        copies: Images of one content, and near duplicates within a class, of any split: the ids of each lot.
        alike: Pairs of ids of near duplicates in different classes, the most alike first.
        facts: The figures beside them.
    """

    answers: pa.Table
    copies: list[list[str]]
    alike: list[list[str]]
    facts: KeptManifest


def held_out_labels(snapshot: Snapshot, place: Path, progress: Progress | None = None) -> HeldOutLabels:
    """Return the answers for a commit's training images; they are made where there are none yet, and kept in `place`.

    Raises:
        MissingStepError: There is no training image with a label, or none is embedded, or there is no head.
        WorkspaceError: They cannot be written, or the files of the folds are damaged.
    """
    rows = _embedded_rows(snapshot)
    facts = _facts(snapshot, rows)
    before = _read(place)
    if before is not None and before.facts.facts == facts:
        return before
    folds = _folds(snapshot)
    made = _make(snapshot, folds, rows, facts, before, progress)
    try:
        with scratch_folder(place.parent) as unfinished:
            _write(made, unfinished)
            settle(unfinished, place, replace=True)
    except OSError as error:
        raise write_error(place, error) from error
    return made


def _embedded_rows(snapshot: Snapshot) -> pa.Table:
    """Return the images of all splits that have a class and a vector, in the order of their ids."""
    where = "class_id IS NOT NULL AND problem IS NULL"
    rows = snapshot.table("images", [*_EVIDENCE, "thumbnail"], where).sort_by("image_id")
    if "train" not in rows["split"].to_pylist():
        raise MissingStepError(
            "there are no training images with a label", "Run: vlltr ingest images PATH --split train"
        )
    there = embedded(snapshot, snapshot.commit.image_fp or "", _contents(rows))
    rows = rows.filter(pa.array(there, pa.bool_()))
    if "train" not in rows["split"].to_pylist():
        raise MissingStepError("no training image has been embedded yet", "Run: vlltr embed")
    return rows


def _folds(snapshot: Snapshot) -> Folds | None:
    """Return the folds of the head; None if no image could be held out, so that no label is judged.

    Raises:
        MissingStepError: There is no head.
    """
    if not snapshot.commit.head:
        what = "labels are judged by the models of the folds, which are trained with the head"
        raise MissingStepError(f"there is no head yet: {what}", "Run: vlltr train lgr")
    return open_folds(snapshot)


def _contents(rows: pa.Table) -> list[str]:
    return list(map(content_id, rows["image_id"].to_pylist(), rows["content_hash"].to_pylist()))


def _facts(snapshot: Snapshot, rows: pa.Table) -> str:
    """Return a digest of what the answers come from."""
    commit = snapshot.commit
    evidence = rows.select(_EVIDENCE).to_pydict()
    return digest_json(
        {
            "images": evidence,
            "sentences": commit.tables.get("sentences"),
            "towers": [commit.image_fp, commit.text_fp],
            "head": [commit.head, commit.info.folds],
        }
    )


def _make(
    snapshot: Snapshot,
    folds: Folds | None,
    rows: pa.Table,
    facts: str,
    before: HeldOutLabels | None,
    progress: Progress | None,
) -> HeldOutLabels:
    """Compute answers and near duplicates."""
    features = content_vectors(snapshot, _contents(rows))
    class_ids = numbers(rows, "class_id")
    ids: list[str] = rows["image_id"].to_pylist()
    thumbnails = thumbnail_tensor(rows["thumbnail"].to_pylist())
    train = torch.tensor([split == "train" for split in rows["split"].to_pylist()])
    within, across = _near_duplicates(rows, features, thumbnails, class_ids, train, progress)
    alike = near_duplicates_across(features, thumbnails, class_ids)
    same = _same_content(rows["content_hash"].to_pylist())
    lots = connected(len(ids), [*same, *torch.cat([within, across]).tolist()])
    copies = [[ids[place] for place in lot] for lot in lots if len(lot) > 1]
    own = rows.filter(pa.array(train.tolist()))
    units = _units(own, _among(torch.cat([within, _nearest(alike)]), train))
    answers = _answers(Model.open(snapshot), folds, own, features[train], units, progress)
    learned = _learned(snapshot, answers["image_id"].to_pylist())
    moved = None if before is None else _moved(before.answers, answers)
    figures = KeptManifest(facts=facts, learned=learned, moved=moved)
    pairs = [[ids[one], ids[other]] for one, other in alike.tolist()]
    return HeldOutLabels(answers, copies, pairs, figures)


def _answers(
    model: Model,
    folds: Folds | None,
    rows: pa.Table,
    features: Tensor,
    units: Sequence[str],
    progress: Progress | None,
) -> pa.Table:
    """Compute the answers for training images, see `HeldOutLabels`; all classes with images are equally common."""
    owners, labels = numbers(rows, "class_id").unique(return_inverse=True)
    found = [torch.empty(0, len(owners))]
    places = [torch.empty(0, dtype=torch.int64)]
    done = 0
    for judge, asked in folds.covering(model, rows, features, units) if folds is not None else ():
        found.append(_log_probabilities(judge, features[asked], owners))
        places.append(asked)
        done += len(asked)
        if progress:
            progress("answers", done, len(units))
    asked, order = torch.cat(places).sort()
    log_probabilities = torch.cat(found)[order]
    best = log_probabilities.topk(min(_LIKELY, len(owners)), dim=1)
    of = [units[place] for place in asked.tolist()]
    ids = rows["image_id"].to_pylist()
    columns = {
        "image_id": [ids[place] for place in asked.tolist()],
        "class_id": owners[labels[asked]].tolist(),
        "unit": of,
        "wrong": label_errors(log_probabilities, labels[asked], of).tolist(),
        "likely": owners[best.indices].tolist(),
        "chances": best.values.exp().tolist(),
    }
    return pa.table(columns, schema=_ANSWERS)


def _log_probabilities(judge: Model, features: Tensor, owners: Tensor) -> Tensor:
    """Return log-probabilities among the classes int64 [C], float32 [N, C].

    Added classes have no offset: it would make their labels look wrong. A class that the model does not know has the
    least score of the others.
    """
    columns = class_positions(judge.class_ids, owners)
    scores = log_scores(replace(judge, offsets={}), features)[:, columns]
    known = columns >= 0
    least = scores[:, known].amin(1, keepdim=True)
    return torch.where(known, scores, least).log_softmax(1).float()


def _near_duplicates(
    rows: pa.Table,
    features: Tensor,
    thumbnails: Tensor,
    class_ids: Tensor,
    train: Tensor,
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:
    """Return pairs of positions, int64 [P, 2]: near duplicates of one class in training, and in different splits."""
    splits = number_names(rows["split"].to_pylist())
    within = list[Tensor]()
    across = list[Tensor]()
    order = class_ids.argsort(stable=True)
    sizes = class_ids.unique(return_counts=True)[1].tolist()
    for done, own in enumerate(order.split(sizes), 1):
        learned = own[train[own]]
        within.append(learned[near_duplicates(features[learned], thumbnails[learned])])
        across.append(own[near_duplicates_across(features[own], thumbnails[own], splits[own])])
        if progress:
            progress("near duplicates", done, len(sizes))
    return torch.cat(within), torch.cat(across)


def _nearest(pairs: Tensor) -> Tensor:
    """Return those of pairs, int64 [P, 2], the most alike first, in which neither was in one before.

    With all of them look-alikes would be chained until nothing could be held out.
    """
    taken = set[int]()
    kept = list[list[int]]()
    for pair in pairs.tolist():
        if taken.isdisjoint(pair):
            taken.update(pair)
            kept.append(pair)
    return torch.tensor(kept, dtype=torch.int64).view(-1, 2)


def _among(pairs: Tensor, chosen: Tensor) -> Tensor:
    """Return the pairs of positions, int64 [P, 2], that are both `chosen`, bool [N], by their places among these."""
    place = chosen.long().cumsum(0) - 1
    return place[pairs[chosen[pairs].all(1)]]


def _units(rows: pa.Table, pairs: Tensor) -> list[str]:
    """Return the unit of each image: its group or burst, with near duplicates, of other classes too, and copies.

    A unit is in one fold, see `Folds.covering`. Otherwise, of two near duplicates in different classes, each would be
    evidence for its own label where the other is answered.
    """
    units = units_by(
        pairs,
        numbers(rows, "class_id").unique(return_inverse=True)[1],
        rows["group"].to_pylist(),
        taken=rows["taken"].to_pylist(),
        places=[folder_of(uri) for uri in rows["uri"].to_pylist()],
    )
    return join_copies(units, rows["content_hash"].to_pylist())


def _same_content(contents: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of positions of one content."""
    first = dict[str, int]()
    pairs = ((first.setdefault(content, place), place) for place, content in enumerate(contents))
    return [(one, other) for one, other in pairs if one != other]


def _learned(snapshot: Snapshot, image_ids: Sequence[str]) -> int:
    """Count the images that were not held out of stage 1."""
    digest = snapshot.commit.checkpoint
    if digest is None:
        return 0
    held = read_held_out(snapshot.objects.path("checkpoints", digest))
    return sum(not held.has(image_id) for image_id in image_ids)


def _moved(before: pa.Table, after: pa.Table) -> Moved | None:
    """Compare answers to images whose class is as it was; None where there are none."""
    was = {row["image_id"]: row for row in before.to_pylist()}
    rows = [row for row in after.to_pylist() if _same_class(was.get(row["image_id"]), row)]
    if not rows:
        return None
    labels = torch.tensor([row["class_id"] for row in rows])
    now = torch.tensor([row["likely"][0] for row in rows]) == labels
    then = torch.tensor([was[row["image_id"]]["likely"][0] for row in rows]) == labels
    units = number_names([row["unit"] for row in rows])
    shares = balanced_shares(labels, units)
    mean, error = paired_mean((now.double() - then.double())[None], shares, units)
    half = 1.96 * float(error)
    return Moved(
        images=len(rows),
        before=float(then.double() @ shares),
        after=float(now.double() @ shares),
        low=max(-1.0, float(mean) - half),
        high=min(1.0, float(mean) + half),
    )


def _same_class(was: dict[str, object] | None, row: dict[str, object]) -> bool:
    return was is not None and was["class_id"] == row["class_id"]


def _write(made: HeldOutLabels, folder: Path) -> None:
    tables = {"answers": made.answers}
    for name, lots in (("copies", made.copies), ("alike", made.alike)):
        tables[name] = pa.table({"image_ids": lots}, schema=_COPIES)
    for name, rows in tables.items():
        with (
            pa.OSFile(str(folder / f"{name}.arrow"), "wb") as file,
            pa.ipc.new_file(file, rows.schema) as writer,
        ):
            writer.write_table(rows)
    made.facts.save(folder / "answers.json")


def _read(folder: Path) -> HeldOutLabels | None:
    """Read what is kept; None where nothing is, or it cannot be read."""
    with suppress(OSError, ValueError, pa.ArrowException):
        facts = KeptManifest.load(folder / "answers.json")
        answers, *lots = (
            pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).read_all()
            for name in ("answers", "copies", "alike")
        )
        copies, alike = (one["image_ids"].to_pylist() for one in lots)
        return HeldOutLabels(answers.cast(_ANSWERS), copies, alike, facts)
    return None
