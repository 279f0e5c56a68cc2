"""The list of pictures without labels to look at: groups that no class stands for, and those that teach most."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from vlltr_index.data.objects import is_address
from vlltr_index.data.unlabelled import Pictures, unlabelled_images
from vlltr_index.embedding.loading import content_vectors, thumbnail_tensor
from vlltr_index.embedding.pixels import in_batches
from vlltr_index.embedding.vectors import LocalEngine, embedded, image_vector_table
from vlltr_index.errors import InputError, MissingStepError
from vlltr_index.heads.bursts import folder_of
from vlltr_index.heads.teaching import alike_groups, most_teaching
from vlltr_index.heads.units import units_of
from vlltr_index.pipelines.review.queue import Beside, Entry, Reason, Review
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.schemas.tables import image_vectors, image_vectors_name
from vlltr_index.store.ingestion import probe_all
from vlltr_index.wording import plural, preview, share_within

if TYPE_CHECKING:
    from vlltr_index.heads.plda import PLDA
    from vlltr_index.recognition.model import Model
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

_AT_ONCE = 512  # pictures
_KEPT_AT_ONCE = 2048  # vectors
_LIKELY = 3
_MOST_REJECTED = 4000  # pictures that are grouped


class _Picture(NamedTuple):
    """A picture without a label."""

    place: int  # among those that were named
    name: str
    content: str  # the id under which its vector is stored
    taken: float | None
    thumbnail: bytes | None


@dataclass
class _Unlabelled:
    """What was named: pictures without a label, each content once, and what is left out."""

    listed: Pictures
    pictures: list[_Picture] = field(default_factory=list)
    labelled: int = 0  # how many the workspace has with a class
    unreadable: list[str] = field(default_factory=list)


def review_folder(
    workspace: Workspace,
    paths: Sequence[str],
    top: int | None = None,
    progress: Progress | None = None,
) -> Review:
    """List pictures without labels: groups that no class stands for, then those whose label would teach most.

    Of near duplicates and bursts one is asked. Vectors are stored by the pictures' contents, so that a run that was
    stopped goes on, and pictures that are taken in later are not embedded again.

    Args:
        workspace: With a trained head.
        paths: As for `data.unlabelled.unlabelled_images`.
        top: How many at most; default: all.
        progress: Called while pictures are read and embedded.

    Raises:
        InputError: As for `unlabelled_images`; or none of the pictures can be read, or all have a label.
        MissingStepError: There is no head, or it is of another rule than `ours`.
    """
    for given in paths:
        if not (is_address(given) or has_magic(given) or os.path.exists(os.path.expanduser(given))):
            raise InputError(f"no such file or folder: {given}", "Name a folder of pictures without labels.")
    model = Recognizer.open(workspace).current()
    plda = model.known.plda
    if len(model.class_ids) < 2:
        raise MissingStepError(
            "there is a single class to tell pictures by", "Add another: vlltr classes add NAME"
        )
    found = _read(workspace, paths, progress)
    _embed(workspace, model, found, progress)
    if not found.pictures:
        raise InputError(
            f"no picture to look at: {plural(found.labelled, 'picture has', 'pictures have')} a label,"
            f" {len(found.unreadable):,} cannot be read",
            "Name a folder of pictures without labels.",
        )
    contents = [one.content for one in found.pictures]
    features = content_vectors(workspace.snapshot(), contents, image_fp=model.encoder.image_fp)
    entries = list(_entries(model, plda, found.pictures, features))
    notes = []
    parts = model.known.parts
    if parts.unknown_accepted is not None:
        share = share_within(parts.unknown_accepted, parts.unknown_range)
        notes.append(
            f"Of pictures of other classes like these {share} look like one that is there, by classes that training"
            " left out: where that is much, groups that no class stands for are missed."
        )
    if found.labelled:
        notes.append(f"{plural(found.labelled, 'picture has', 'pictures have')} a label already: left out.")
    if found.unreadable:
        notes.append(f"Cannot be read: {preview(found.unreadable)}.")
    return Review(
        entries=tuple(entries[:top]),
        counts={
            reason: count
            for reason in ("unknown", "teaches")
            if (count := sum(one.reason == reason for one in entries))
        },
        pictures=len(found.pictures),
        notes=tuple(notes),
    )


def _read(workspace: Workspace, paths: Sequence[str], progress: Progress | None) -> _Unlabelled:
    """Read pictures for the first time: contents, thumbnails, and when they were taken."""
    rows = workspace.snapshot().table("images", ["content_hash"], "class_id IS NOT NULL AND problem IS NULL")
    labelled = set(rows["content_hash"].to_pylist())
    listed = list(unlabelled_images(paths, with_data=False))
    found = _Unlabelled(Pictures(listed))
    seen = set[str]()
    for places in in_batches(range(len(listed)), _AT_ONCE):
        named = list(found.listed.take(places).load())
        probes = probe_all([_record(name, source) for name, source in named])
        for place, (name, _), probe in zip(places, named, probes, strict=True):
            if probe.problem is not None or probe.content_hash is None:
                found.unreadable.append(name)
            elif probe.content_hash in labelled:
                found.labelled += 1
            elif probe.content_hash not in seen:
                seen.add(probe.content_hash)
                content = probe.content_hash[:32]
                found.pictures.append(_Picture(place, name, content, probe.taken, probe.thumbnail))
        if progress:
            progress("look", places[-1] + 1, len(listed))
    return found


def _embed(workspace: Workspace, model: Model, found: _Unlabelled, progress: Progress | None) -> None:
    """Embed and store the vectors that are missing, in parts, between which others can write.

    A picture whose file has changed meanwhile is unreadable.
    """
    encoder = model.encoder
    table = image_vectors_name(encoder.image_fp)
    there = embedded(workspace.snapshot(), encoder.image_fp, [one.content for one in found.pictures])
    lacking = [one for one, has in zip(found.pictures, there, strict=True) if not has]
    problems = set[str]()
    done = 0
    for part in in_batches(lacking, _KEPT_AT_ONCE):
        sources = found.listed.take([one.place for one in part]).load()
        named = ((one.content, source) for one, (_, source) in zip(part, sources, strict=True))
        rows = []
        for result in LocalEngine(encoder).images(in_batches(named), [0]):
            rows.append(image_vector_table(result.ids, "0", 0, result.vectors[0]))
            problems |= result.problems.keys()
            done += len(result.ids) + len(result.problems)
            if progress:
                progress("embed images", done, len(lacking))
        with workspace.transaction("review") as tx:  # it only adds to the cache, so there is no commit
            tx.store.create(table, image_vectors(encoder.dim), "vector_key")
            tx.store.append(table, pa.concat_tables(rows))
    found.unreadable += [one.name for one in found.pictures if one.content in problems]
    found.pictures = [one for one in found.pictures if one.content not in problems]


def _record(name: str, source: str | bytes) -> ImageRecord:
    """Return a picture as a reader yields it: its path, or its bytes."""
    if isinstance(source, bytes):
        return ImageRecord(name, name, None, "", data=source)
    return ImageRecord(source, source, None, "")


def _entries(model: Model, plda: PLDA, pictures: Sequence[_Picture], features: Tensor) -> Iterator[Entry]:
    """Yield groups that no class stands for, the largest first, then the others in the order of what they teach."""
    probabilities = torch.cat(
        [model.score(some, "exhaustive")[0].probabilities for some in features.split(_AT_ONCE)]
    )
    best = probabilities.topk(min(_LIKELY, probabilities.shape[1]), dim=1)
    units = units_of(
        features,
        best.indices[:, 0],  # near duplicates have one answer
        [None] * len(features),
        taken=[one.taken for one in pictures],
        places=[folder_of(one.name) for one in pictures],
        thumbnails=thumbnail_tensor([one.thumbnail for one in pictures]),
    )
    names = [model.names[i] for i in model.class_ids.tolist()]

    def entry(place: int, reason: Reason, others: Sequence[int] = ()) -> Entry:
        likely = zip(best.indices[place].tolist(), best.values[place].tolist(), strict=True)
        return Entry(
            picture=pictures[place].name,
            reason=reason,
            likely=tuple((names[column], chance) for column, chance in likely),
            beside=tuple(Beside(pictures[other].name) for other in others),
        )

    rest = torch.ones(len(features), dtype=torch.bool)
    for group in _unknown(model, plda, features, units):
        first, *others = group.tolist()
        rest[group] = False
        yield entry(first, "unknown", others)
    places = rest.nonzero()[:, 0]
    left = [units[place] for place in places.tolist()]
    order = most_teaching(probabilities[places].log(), features[places], left, plda.shared)
    yield from (entry(place, "teaches") for place in places[order].tolist())


def _unknown(model: Model, plda: PLDA, features: Tensor, units: Sequence[str]) -> list[Tensor]:
    """Return the positions of each group of pictures that no class stands for."""
    try:
        level = model.least_likely
    except MissingStepError:  # no picture was held out to tell by
        return []
    fits = torch.cat([model.known_scores(some) for some in features.split(_AT_ONCE)])
    rejected = fits.argsort()[:_MOST_REJECTED]
    rejected = rejected[fits[rejected] < level].sort().values
    groups = alike_groups(features[rejected], [units[place] for place in rejected.tolist()], plda.shared)
    return [rejected[group] for group in groups]
