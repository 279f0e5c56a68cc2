"""The models of the folds, which are kept with the head: each answers for images that it was fitted without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vlltr_index.anchors.anss import ranks_in_runs
from vlltr_index.embedding.loading import (
    content_vectors,
    image_units,
    image_vectors_of,
    numbers,
    usable_images,
)
from vlltr_index.embedding.vectors import embedded
from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.heads.checkpoint import SavedHead, load_head, save_head
from vlltr_index.heads.configuration import TextLevel
from vlltr_index.heads.dealing import FOLDS, deal_groups
from vlltr_index.heads.fusion import PartWeights
from vlltr_index.heads.moments import class_sums, observation_weights
from vlltr_index.heads.units import number_names, number_observations
from vlltr_index.recognition.anchors import TEXT_COLUMNS, Anchors, Texts, texts_of
from vlltr_index.recognition.lazy import Lazy
from vlltr_index.recognition.parameters import ClassStats
from vlltr_index.schemas.manifests import Manifest
from vlltr_index.schemas.tables import content_id
from vlltr_index.store.snapshot import sentence_numbers
from vlltr_index.tensors import class_positions, unit_rows

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.recognition.model import Model
    from vlltr_index.store.snapshot import Snapshot

_AGAIN = "Make them again: vlltr train lgr"
_IMAGES = pa.schema(
    {"content_hash": pa.string(), "class_id": pa.int32(), "fold": pa.int32(), "unit": pa.string()}
)
_ANCHORS = pa.schema(
    {"class_id": pa.int32(), "rank": pa.int32(), "sentence_id": pa.string(), "loss": pa.float32()}
)


class FoldScalars(BaseModel):
    """What the images of the other folds choose for a fold: the text level, see `TextLevel`, and the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    level: int = Field(ge=0, le=2)
    weights: PartWeights


class FoldsManifest(Manifest):
    """Content of `folds.json`.

    Attributes:
        format: Format of the folder.
        models: How many models there are: one for each fold, or one for all.
        folds: What is chosen for each fold.
    """

    format: Literal[3] = 3
    models: int
    folds: tuple[FoldScalars, ...]


class Dealt(NamedTuple):
    """The training images of a head.

    Attributes:
        contents: N hashes of their contents, by which they are known, for files are renamed; a content in several folds
            by its class, too.
        class_ids: Int64 [N].
        fold: Int64 [N], -1 for an image of no fold.
        groups: The group of each.
    """

    contents: Sequence[str]
    class_ids: Tensor
    fold: Tensor
    groups: Sequence[str]


def save_fold(folder: Path, saved: SavedHead, bank: AnchorBank, sentence_ids: Sequence[str]) -> None:
    """Write what was fitted without one fold's images: the head, and the anchors in the bank's order, if selected."""
    save_head(saved, folder)
    if len(sentence_ids) != len(bank.vectors):  # no anchor was selected by images
        return
    owners = bank.class_ids.repeat_interleave(bank.offsets.diff())
    columns = [owners.numpy(), ranks_in_runs(owners).numpy(), list(sentence_ids), bank.losses.float().numpy()]
    rows = pa.table(dict(zip(_ANCHORS.names, columns, strict=True))).cast(_ANCHORS)
    _write(rows, folder / "anchors.arrow")


def save_deal(folder: Path, dealt: Dealt, folds: Sequence[FoldScalars], models: int) -> None:
    """Write which fold each image is in, and what was chosen for the folds, next to the folders of their models."""
    columns = [list(dealt.contents), dealt.class_ids.numpy(), dealt.fold.numpy(), list(dealt.groups)]
    _write(pa.table(dict(zip(_IMAGES.names, columns, strict=True))).cast(_IMAGES), folder / "images.arrow")
    FoldsManifest(models=models, folds=tuple(folds)).save(folder / "folds.json")


def _write(rows: pa.Table, path: Path) -> None:
    with path.open("wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)


@dataclass(frozen=True, eq=False)
class Fold:
    """Images that one model was fitted without.

    Attributes:
        model: The model; its classes are those of the commit.
        image_ids: N images, in the order of their ids; of their classes there are others that the model learned from.
        class_ids: Int64 [N], the images' classes as they are now.
        features: Float [N, D], stored vectors, unnormalised.
        units: The unit of each image.
        without: The ids of all images that the model was fitted without.
        torn: How many of these are not among the N, as the model learned from images that belong to them now.
        same: Bool [N], images of base classes that have the label of training, and of whose group no image is in an
            added class.
    """

    model: Model
    image_ids: list[str]
    class_ids: Tensor
    features: Tensor
    units: list[str]
    without: frozenset[str]
    torn: int
    same: Tensor


class _Place(NamedTuple):
    """The fold and group of an image, `Fold.same` of it, and whether it was not there in training."""

    fold: int
    group: str
    same: bool
    is_added: bool


class Folds:
    """The folds of a cross-validation, opened as the classes, sentences and images of a commit are.

    Args:
        folder: What `save_deal` and `save_fold` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._heads: dict[int, SavedHead] = {}
        self._last: tuple[pa.Table, frozenset[str]] | None = None
        self._placed: tuple[Mapping[int, int], pa.Table, list[_Place | None]] | None = None
        try:
            self._facts = FoldsManifest.load(folder / "folds.json")
            self._deal = pa.ipc.open_file(pa.memory_map(str(folder / "images.arrow"))).read_all()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise WorkspaceError(f"{folder} cannot be read: {error}", _AGAIN) from None

    @property
    def number(self) -> int:
        """Number of folds."""
        return len(self._facts.folds)

    def opened(self, model: Model) -> Iterator[Fold]:
        """Yield the folds; one may have no image any more."""
        return (self.open(model, number) for number in range(self.number))

    def open(self, model: Model, number: int, own_anchors: bool = True) -> Fold:
        """Read one fold from its files, which is done once, and the commit's tables.

        Args:
            model: Of the commit.
            number: Of the fold, from 0.
            own_anchors: Whether its model has the anchors that were selected without its images, whose vectors are
                read; if not, the commit's, which are in memory.

        Raises:
            WorkspaceError: Its files are damaged.
        """
        snapshot = model.snapshot
        rows = usable_images(snapshot, "train", ["content_hash"])
        apart = self._torn(snapshot, rows)
        places = self._places(model, rows)
        one_model = self._facts.models == 1
        known = [
            one is not None and (one.fold == number or (one_model and not one.is_added)) for one in places
        ]
        rows = rows.filter(pa.array(known, pa.bool_()))
        mine = [one for one in compress(places, known) if one is not None]
        ids: list[str] = rows["image_id"].to_pylist()
        owners = numbers(rows, "class_id")
        features = image_vectors_of(snapshot, ids)
        out = frozenset(ids)
        stats = _without(model, owners, features, [one.group for one in mine])
        anchors = self._anchors(model, number) if own_anchors else model.anchors
        fitted = replace(
            model.with_known(saved=self._head(number), stats=stats, anchors=anchors),
            lazy_texts=Lazy(partial(_all_texts, snapshot)),
            class_images=partial(_images_without, model, out),
        )
        in_fold = torch.tensor([one.fold == number for one in mine], dtype=torch.bool)
        asked = torch.isin(owners, stats.class_ids) & in_fold
        torn = torch.tensor([image_id in apart for image_id in ids], dtype=torch.bool)
        lost = int((asked & torn).sum())
        asked &= ~torn
        return Fold(
            model=fitted,
            image_ids=list(compress(ids, asked.tolist())),
            class_ids=owners[asked],
            features=features[asked],
            units=list(compress((one.group for one in mine), asked.tolist())),
            without=out,
            torn=lost,
            same=torch.tensor([one.same for one in mine], dtype=torch.bool)[asked],
        )

    def covering(
        self, model: Model, rows: pa.Table, features: Tensor, groups: Sequence[str]
    ) -> Iterator[tuple[Model, Tensor]]:
        """Yield models, and the positions int64 [M] of the images that each answers for.

        An image has the fold of the out-of-fold table if its whole group has. The others are dealt into five more
        folds: images outside a single held-out part, images that were added after training, and groups that are spread
        over several folds. The first model answers for these without its linear classifier. Its shared parameters and
        anchors may have been fitted to their labels. The statistics of the classes never are: they are those of the
        given images without the fold. Images of classes that these statistics lack are left out.

        Args:
            model: Of the commit.
            rows: `class_id` and `content_hash` of N embedded training images.
            features: Float [N, D], stored vectors, unnormalised.
            groups: The group of each image; it may be larger than in training.
        """
        owners = numbers(rows, "class_id")
        dealt = [-1 if one is None else one.fold for one in self._dealt(model, rows)]
        fold = torch.tensor(dealt, dtype=torch.int64)
        fold[_divided(fold, number_names(groups))] = -1
        others = (fold < 0).nonzero()[:, 0]
        hashes = rows["content_hash"].take(pa.array(others.numpy())).to_pylist()
        names = [groups[place] for place in others.tolist()]
        fold[others] = self.number + deal_groups(owners[others], names, hashes, FOLDS)
        anchors_of = cache(partial(self._anchors, model))
        for number in range(self.number + FOLDS):
            own = number if number < self.number else 0
            saved = self._head(own) if number < self.number else _without_linear(self._head(own))
            out = fold == number
            rest = list(compress(groups, (~out).tolist()))
            stats = _stats_of(features[~out], owners[~out], rest, model.saved.unit_correlation)
            asked = (out & torch.isin(owners, stats.class_ids)).nonzero()[:, 0]
            if len(asked):
                anchors = anchors_of(self._model_of(own))
                yield model.with_known(saved=saved, stats=stats, anchors=anchors), asked

    def _head(self, number: int) -> SavedHead:
        """Return what was fitted without a fold, with the scalars that the other folds choose."""
        model = self._model_of(number)
        if model not in self._heads:
            self._heads[model] = load_head(self._folder / str(model))
        saved = self._heads[model]
        assert saved.parts is not None
        chosen = self._facts.folds[number]
        parts = replace(saved.parts, weights=chosen.weights, text_level=TextLevel(chosen.level))
        return replace(saved, parts=parts)

    def _model_of(self, number: int) -> int:
        return 0 if self._facts.models == 1 else number

    def _places(self, model: Model, rows: pa.Table) -> list[_Place | None]:
        """Return the fold of each image: as it was dealt or, of an added class, as its content determines."""
        if (
            self._placed is not None
            and self._placed[0] == model.known.merged
            and self._placed[1].equals(rows)
        ):
            return self._placed[2]
        found = self._dealt(model, rows)
        given = list(zip(rows["content_hash"].to_pylist(), rows["class_id"].to_pylist(), strict=True))
        base = set(model.known.row_owners.tolist())
        pairs = list(zip(found, given, strict=True))
        moved = {one.group for one, (_, owner) in pairs if one is not None and owner not in base}
        found = [one._replace(same=False) if one is not None and one.group in moved else one for one in found]
        known_contents = set(self._deal["content_hash"].to_pylist())
        places = [
            n
            for n, (content, owner) in enumerate(given)
            if owner not in base and content not in known_contents
        ]
        if places:
            for place, one in zip(places, self._added(model, rows.take(places)), strict=True):
                found[place] = one
        self._placed = model.known.merged, rows, found
        return found

    def _dealt(self, model: Model, rows: pa.Table) -> list[_Place | None]:
        """Return the fold of each image as it was dealt in training; None for one without."""
        given = list(zip(rows["content_hash"].to_pylist(), rows["class_id"].to_pylist(), strict=True))
        found: list[_Place | None] = [None] * len(given)
        for fold, unit_of in enumerate(self._units):
            for place, (content, owner) in enumerate(given):
                known = unit_of.get((content, None), unit_of.get((content, owner)))
                if known is not None:
                    group, before = known
                    found[place] = _Place(fold, group, model.known.merged.get(before, before) == owner, False)
        return found

    def _added(self, model: Model, rows: pa.Table) -> list[_Place | None]:
        """Return the fold of each image of an added class; None for one that is not embedded."""
        snapshot = model.snapshot
        hashes = rows["content_hash"].to_pylist()
        contents = list(map(content_id, rows["image_id"].to_pylist(), hashes))
        there = embedded(snapshot, snapshot.commit.image_fp or "", contents)
        mine = rows.filter(pa.array(there, pa.bool_()))
        owners = numbers(mine, "class_id")
        features = content_vectors(snapshot, list(compress(contents, there)))
        units = image_units(snapshot, mine["image_id"].to_pylist(), owners, features)
        groups = [f"{owner} {unit}" for owner, unit in zip(owners.tolist(), units, strict=True)]
        fold = deal_groups(owners, groups, list(compress(hashes, there)), self.number)
        found = iter(
            _Place(number, group, False, True) for number, group in zip(fold.tolist(), groups, strict=True)
        )
        return [next(found) if embedded_too else None for embedded_too in there]

    def came_since(self, model: Model) -> int:
        """Count the training images of base classes that were added after training, which are in no fold."""
        known = set(self._deal["content_hash"].to_pylist())
        base = set(model.known.row_owners.tolist())
        rows = usable_images(model.snapshot, "train", ["content_hash"])
        given = zip(rows["content_hash"].to_pylist(), rows["class_id"].to_pylist(), strict=True)
        return sum(content not in known and owner in base for content, owner in given)

    def _torn(self, snapshot: Snapshot, rows: pa.Table) -> frozenset[str]:
        """Return the ids of those training images that belong together now, and are not all in one fold.

        Only in classes whose images are others than they were; those that were never embedded are in no model.
        """
        if self._last is not None and self._last[0].equals(rows):
            return self._last[1]
        now = _contents_by_class(rows)
        dealt = _contents_by_class(self._deal)
        changed = [owner for owner in dealt.keys() & now.keys() if dealt[owner] != now[owner]]
        others = rows.filter(pc.is_in(rows["class_id"], pa.array(changed, pa.int32())))
        contents = list(map(content_id, others["image_id"].to_pylist(), others["content_hash"].to_pylist()))
        there = embedded(snapshot, snapshot.commit.image_fp or "", contents)
        mine = others.filter(pa.array(there, pa.bool_()))
        found: frozenset[str] = frozenset()
        if mine.num_rows:
            found = self._across_folds(
                snapshot, mine, content_vectors(snapshot, list(compress(contents, there)))
            )
        self._last = (rows, found)
        return found

    def _across_folds(self, snapshot: Snapshot, rows: pa.Table, features: Tensor) -> frozenset[str]:
        """Return the ids of images of units that are not in one fold."""
        ids = rows["image_id"].to_pylist()
        units = image_units(snapshot, ids, numbers(rows, "class_id"), features)
        fold_of = dict(
            zip(self._deal["content_hash"].to_pylist(), self._deal["fold"].to_pylist(), strict=True)
        )
        folds: dict[str, set[int | None]] = defaultdict(set)
        for unit, content in zip(units, rows["content_hash"].to_pylist(), strict=True):
            folds[unit].add(fold_of.get(content))
        return frozenset(i for i, unit in zip(ids, units, strict=True) if len(folds[unit]) > 1)

    @cached_property
    def _units(self) -> list[dict[tuple[str, int | None], tuple[str, int]]]:
        """For each fold the group and class of each content, and of one in several folds by its class, too."""
        rows = self._deal.to_pylist()
        folds: dict[str, set[int]] = {}
        for row in rows:
            folds.setdefault(row["content_hash"], set()).add(row["fold"])
        units: list[dict[tuple[str, int | None], tuple[str, int]]] = [{} for _ in range(self.number)]
        for row in rows:
            content = row["content_hash"]
            if row["fold"] >= 0:
                owner = row["class_id"] if len(folds[content]) > 1 else None
                units[row["fold"]][content, owner] = row["unit"], row["class_id"]
        return units

    def _anchors(self, model: Model, number: int) -> Anchors:
        """Return the anchors that were selected without the fold's images; of added classes the commit's."""
        own = model.anchors
        snapshot = model.snapshot
        path = self._folder / str(self._model_of(number)) / "anchors.arrow"
        if not path.exists() or not len(own.keys):
            return own
        stored = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        sentences = snapshot.table("sentences", ["sentence_id", "text", "text_hash", "class_id"])
        at = pc.index_in(
            stored["sentence_id"].combine_chunks(), value_set=sentences["sentence_id"].combine_chunks()
        )
        stored = stored.filter(at.is_valid())
        owners = sentences["class_id"].take(at.drop_null())  # of a merged class the one that it is now
        stored = stored.set_column(0, "class_id", owners)
        counts = own.bank.offsets.diff()
        classes = own.bank.class_ids.repeat_interleave(counts)
        present = torch.isin(own.bank.class_ids, numbers(stored, "class_id").unique())
        stored = stored.filter(
            pc.is_in(stored["class_id"], pa.array(own.bank.class_ids.tolist(), pa.int32()))
        )
        kept = (~present).repeat_interleave(counts).nonzero()[:, 0]
        later = pa.table(
            {
                "class_id": pa.array(classes[kept].numpy(), pa.int32()),
                "rank": pa.array(kept.numpy(), pa.int32()),
                "sentence_id": [own.sentence_ids[i] for i in kept.tolist()],
                "loss": pa.array(own.bank.losses[kept].float().numpy()),
            }
        )
        rows = pa.concat_tables([stored.cast(_ANCHORS), later.cast(_ANCHORS)])
        rows = rows.sort_by([("class_id", "ascending"), ("rank", "ascending")])
        at = pc.index_in(
            rows["sentence_id"].combine_chunks(), value_set=sentences["sentence_id"].combine_chunks()
        )
        hashes = sentences["text_hash"].take(at).to_pylist()
        vectors = sentence_numbers(snapshot, snapshot.commit, hashes)
        losses = torch.from_numpy(rows["loss"].to_numpy().copy())
        columns = {"sentence_id": rows["sentence_id"], "text": sentences["text"].take(at)}
        read = {name: column.combine_chunks() for name, column in columns.items()}.__getitem__
        at = pc.index_in(rows["sentence_id"].combine_chunks(), value_set=own.read("sentence_id"))
        at = torch.from_numpy(pc.fill_null(at, -1).to_numpy().copy()).long()
        fresh = int(own.keys.max()) + 1 + torch.arange(len(rows))
        keys = torch.where(at >= 0, own.keys[at], fresh)  # so that the commit's index finds what both have
        owner = numbers(rows, "class_id")
        reading = model.source.record.reading
        return Anchors.of(owner, keys, vectors, losses, read, own.selection_id, reading)


def _contents_by_class(rows: pa.Table) -> dict[int, set[str]]:
    """Return the contents of each class's images."""
    found: dict[int, set[str]] = defaultdict(set)
    for owner, content in zip(rows["class_id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True):
        found[owner].add(content)
    return found


def _all_texts(snapshot: Snapshot) -> Texts:
    """Return the texts of all sentences: a fold's anchors may be others than the commit's."""
    return texts_of(snapshot.table("sentences", TEXT_COLUMNS))


def _images_without(model: Model, out: frozenset[str], class_id: int) -> tuple[pa.Table, Tensor]:
    """Return a class's training images as `Model.class_images` does, but for some."""
    rows, vectors = model.class_images(class_id)
    kept = [image_id not in out for image_id in rows["image_id"].to_pylist()]
    return rows.filter(pa.array(kept, pa.bool_())), vectors[torch.tensor(kept, dtype=torch.bool)]


def open_folds(snapshot: Snapshot) -> Folds | None:
    """Return the folds of a commit's head; None if no image could be held out.

    Raises:
        MissingStepError: Their files are gone.
        WorkspaceError: Their files are damaged.
    """
    commit = snapshot.commit
    if not commit.head or not commit.info.folds:
        return None
    try:
        folder = snapshot.objects.whole("heads", commit.info.folds)
    except (MissingStepError, WorkspaceError) as error:
        raise type(error)(error.message, _AGAIN) from None
    return Folds(folder)


def _without(model: Model, owners: Tensor, features: Tensor, units: Sequence[str]) -> ClassStats:
    """Return the statistics of classes without some images of them.

    Args:
        model: Of all images.
        owners: Int64 [N], the classes of the images.
        features: Float [N, D], unnormalised.
        units: The unit of each image, none of which has other images.
    """
    stats = model.stats
    known = torch.isin(owners, stats.class_ids)
    if not bool(known.any()):
        return stats
    named = list(compress(units, known.tolist()))
    out = _stats_of(features[known], owners[known], named, model.saved.unit_correlation)
    places = class_positions(stats.class_ids, out.class_ids)
    left = stats.counts.index_add(0, places, out.counts, alpha=-1)
    sums = stats.sums.index_add(0, places, out.sums.to(stats.sums), alpha=-1)
    there = left > 0
    return ClassStats(stats.class_ids[there], left[there], sums[there])


def _divided(fold: Tensor, groups: Tensor) -> Tensor:
    """Return which images are of a group whose images are not all in one fold, bool [N]; both int64 [N]."""
    count = int(groups.max()) + 1 if len(groups) else 0
    least = fold.new_empty(count).scatter_reduce_(0, groups, fold, "amin", include_self=False)
    most = fold.new_empty(count).scatter_reduce_(0, groups, fold, "amax", include_self=False)
    return (least != most)[groups]


def _stats_of(features: Tensor, owners: Tensor, groups: Sequence[str], correlation: float) -> ClassStats:
    """Return the statistics of the classes int64 [N] of images [N, D], see `stats_rows`."""
    class_ids, labels = owners.unique(return_inverse=True)
    weights = observation_weights(number_observations(labels, groups), correlation)
    counts, sums = class_sums(unit_rows(features), labels, len(class_ids), weights)
    return ClassStats(class_ids, counts, sums)


def _without_linear(saved: SavedHead) -> SavedHead:
    """Return a head whose linear classifier has no weight."""
    assert saved.parts is not None
    weights = replace(saved.parts.weights, image=0.0, combined=1.0)
    return replace(saved, parts=replace(saved.parts, weights=weights))
