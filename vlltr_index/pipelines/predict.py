"""Predict pictures (`vlltr predict`), and write predictions into one table, resumable (`--out`)."""

from __future__ import annotations

import json
import os
import socket
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import TypeAdapter
from pydantic_core import to_json

from vlltr_index.data.frequencies import Situation
from vlltr_index.data.unlabelled import Pictures, image_identities, unlabelled_images
from vlltr_index.errors import UsageError, VlltrError, WorkspaceError
from vlltr_index.pipelines.answer_table import answer_schema, answer_table
from vlltr_index.pipelines.asked import Situated, groups_of
from vlltr_index.recognition.answering import answer_read, estimate_prior, stream, with_frequencies
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.fingerprint import digest_bytes, digest_json
from vlltr_index.schemas.options import USUAL, PredictOptions
from vlltr_index.schemas.records import Prediction
from vlltr_index.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from vlltr_index.recognition.model import Model
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

_PREDICTION = TypeAdapter(Prediction)


@dataclass(frozen=True)
class PredictReport:
    """Report of a written table."""

    path: str
    images: int
    there_before: int  # rows of an interrupted run that were kept
    unreadable: int


@dataclass(frozen=True)
class OnRay:
    """Settings for predicting by Ray actors, each of which opens the workspace: all machines must see it and the
    pictures."""

    address: str  # the workspace's folder or URI
    actors: int | None = None  # default: one for each GPU, or without a GPU one for each CPU


def predict(
    workspace: Workspace,
    images: Sequence[str],
    options: PredictOptions = USUAL,
    at: int | None = None,
    group: str | None = None,
    situated: Situated | None = None,
) -> Iterator[Prediction]:
    """Predict pictures one after the other, in flat memory but for their names where `group` or `situated` is given.

    Args:
        workspace: Whose model predicts.
        images: As for `data.unlabelled.unlabelled_images`.
        options: How they are recognised, and what is said of each.
        at: The commit that answers; default: the newest.
        group: Which pictures show one thing and have one answer together, see `groups_of`; default: each by itself.
        situated: How common classes are where and when each picture was taken, instead of the prior in the options;
            pictures of one place and month come one after the other. A group has those of its first picture that has
            any.

    Raises:
        MissingStepError: If a step before has not been run; the hint names it.
        UsageError: As for `groups_of`.
        WorkspaceError: If there is no commit `at`.
    """
    groups = None if group is None else groups_of(images, group)
    model = Recognizer.open(workspace, at=at).current()
    if situated is not None:
        listed = _distinct_images(images, with_data=False)
        return in_situations(model, listed, options, groups or {}, situated)
    pictures = partial(unlabelled_images if groups is None else _distinct_images, images)
    return stream(model, pictures(), with_frequencies(model, pictures, options, groups), groups)


def _distinct_images(images: Sequence[str], with_data: bool = True) -> Iterator[tuple[str, str | bytes]]:
    """Yield what `unlabelled_images` does, but for pictures that were named before."""
    seen = set[str]()
    for name, source in unlabelled_images(images, with_data):
        if name not in seen:
            seen.add(name)
            yield name, source


def in_situations(
    model: Model,
    named: Iterable[tuple[str, str | bytes]],
    options: PredictOptions,
    groups: Mapping[str, str],
    situated: Situated,
) -> Iterator[Prediction]:
    """Predict pictures, listed without data, by place and month."""
    listed = list(named)
    pictures = Pictures(listed)
    of_group = dict[str, Situation]()
    for name, _ in listed:
        if name in groups and name in situated.of:
            of_group.setdefault(groups[name], situated.of[name])
    places = defaultdict[Situation | None, list[int]](list)
    for place, (name, _) in enumerate(listed):
        at = of_group.get(groups[name]) if name in groups else situated.of.get(name)
        places[at].append(place)
    frequencies = situated.frequencies
    for at, some in places.items():
        weights = frequencies.weights if at is None else frequencies.situated[at]
        yield from stream(model, pictures.take(some).load(), replace(options, prior=weights), groups)


def predict_to_file(
    model: Model,
    paths: Sequence[str],
    out: Path,
    options: PredictOptions = USUAL,
    *,
    progress: Progress | None = None,
    ray: OnRay | None = None,
    group: str | None = None,
    situated: Situated | None = None,
) -> PredictReport:
    """Predict images into a CSV, JSONL or Parquet file: one row per image, in the order of `unlabelled_images`.

    The rows are kept in `OUT.part` as they come. A later run of the same command keeps those of images that have not
    changed, see `_identities`, and predicts the others, as well as those that could not be read. The images of a group
    are kept or predicted together. `out` appears completely at the end. JSONL has every field of a `Prediction`; the
    tables have the best classes with their probabilities, the image part and text part of the best one, and which of
    its sentences speak for it.

    Args:
        model: The model that predicts.
        paths: As for `data.unlabelled.unlabelled_images`.
        out: The file; it must not be there.
        options: See there.
        progress: Called after every picture.
        ray: Answers are computed there; default: in this process. Either resumes what the other one began.
        group: As for `predict`; not with `ray`, like the next.
        situated: As for `predict`.

    Raises:
        ConfigError: If Ray is not installed.
        UsageError: If `out` has another suffix, exists or is being written, or `OUT.part` is of another commit, model
            or command, or `ray` is given with one of the two after it; else as for `groups_of`.
        WorkspaceError: If it cannot be written.
    """
    if ray is not None and (group is not None or situated is not None):
        raise UsageError(
            "Ray answers pictures in any order: not those of a group, a place or a month",
            "Leave out: --engine ray",
        )
    top = min(options.top, len(model.class_ids))
    schema = answer_schema(top, options, grouped=group is not None)
    with answer_table(out, _asked(model, paths, options, group, situated), schema) as table:
        # Before any image is read, so that no row gets a newer identity than the image it was predicted from.
        files = image_identities(paths)
        groups = {} if group is None else groups_of(paths, group, progress)
        answering, seen = estimate_prior(model, partial(unlabelled_images, paths), options, groups, progress)
        left = table.keep(_identities(files, groups, situated, seen), groups)
        before = len(table.rows)
        listed = _distinct_images(paths, with_data=ray is None and situated is None)
        named = ((name, source) for name, source in listed if name in left)
        with closing(_answers(model, named, answering, groups, situated, ray)) as answers:
            for written, answer in enumerate(answers, 1):
                table.write(answer)
                if progress:
                    progress("predict", written, len(left))
    rows = table.rows.values()
    return PredictReport(str(out), len(rows), before, sum(row.is_unread for row in rows))


def _answers(
    model: Model,
    named: Iterable[tuple[str, str | bytes]],
    options: PredictOptions,
    groups: Mapping[str, str],
    situated: Situated | None,
    ray: OnRay | None,
) -> Generator[Prediction, None, None]:
    """Answer pictures, in this process or on Ray."""
    if ray is not None:
        yield from _by_ray(model, named, ray, options)
    elif situated is not None:
        yield from in_situations(model, named, options, groups, situated)
    else:
        yield from stream(model, named, options, groups)


def _asked(
    model: Model,
    paths: Sequence[str],
    options: PredictOptions,
    group: str | None,
    situated: Situated | None,
) -> dict[str, Any]:
    """Return what was asked for: only rows of the same are kept."""
    facts = {
        "program": VERSION,
        "commit": model.commit,
        "model": digest_json(model.source.record.model_dump(mode="json")),
        "images": list(paths),
        **asdict(options),
    }
    if group is not None:
        facts["group"] = group
    if situated is not None:
        by = sorted((str(at), dict(weights)) for at, weights in situated.frequencies.situated.items())
        facts["situations"] = digest_bytes(json.dumps(by, sort_keys=True).encode())
    return facts


def _identities(
    files: Mapping[str, str], groups: Mapping[str, str], situated: Situated | None, seen: Sequence[str]
) -> dict[str, str]:
    """Return a digest of what the answer for each image depends on, apart from the command and the model.

    Args:
        files: The identity of each image by name, see `image_identities`.
        groups: The group of each image that has one; its answer depends on all images of the group.
        situated: The place and month of each image, if the prior depends on them.
        seen: The images that the prior was estimated from, on which all answers depend.
    """
    prior = digest_json([files.get(name) for name in seen])
    situations = {} if situated is None else situated.of
    members = defaultdict[str, list[Any]](list)
    for name, group in groups.items():
        members[group].append([files.get(name), situations.get(name)])
    shared = {group: digest_json([prior, group, facts]) for group, facts in members.items()}
    return {
        name: shared[groups[name]] if name in groups else digest_json([prior, identity, situations.get(name)])
        for name, identity in files.items()
    }


def _by_ray(
    model: Model,
    named: Iterable[tuple[str, str | bytes]],
    ray: OnRay,
    options: PredictOptions,
) -> Iterator[Prediction]:
    """Answer pictures by Ray actors, in any order."""
    from vlltr_index.embedding.pixels import Reader
    from vlltr_index.embedding.ray_engine import RayData, on_cpu

    reader = Reader(model.encoder, options.crops)
    arguments = ray.address, model.commit, options, model.encoder.image_size, on_cpu()
    with RayData(ray.actors) as data:
        for table in data.run(Pictures(list(named)), reader, _RayAnswering, arguments):
            yield from map(_PREDICTION.validate_json, table["answer"].to_pylist())


class _RayAnswering:
    """Ray actor that opens a commit's model at its first call; errors name the machine."""

    def __init__(
        self,
        address: str,
        commit: int,
        options: PredictOptions,
        size: tuple[int, int],
        on_cpu: bool,
    ) -> None:
        self._address = address
        self._commit = commit
        self._options = options
        self._size = size
        os.environ["VLLTR_DEVICE"] = "cpu" if on_cpu else "auto"

    @cached_property
    def _model(self) -> Model:
        from vlltr_index.recognizer import Recognizer

        try:
            return Recognizer.open(self._address, at=self._commit).current()
        except VlltrError as error:
            raise WorkspaceError(
                f"on {socket.gethostname()}: {error.message}",
                "All machines must see the workspace under the same path, or in object storage (s3://...).",
            ) from None

    def __call__(self, table: pa.Table) -> pa.Table:
        from vlltr_index.embedding.ray_engine import decoded

        answers = answer_read(self._model, [decoded(table, self._size)], self._options)
        return pa.table({"place": table["place"], "answer": [to_json(one) for one in answers]})
