"""Predict pictures (`vlltr predict`), and write predictions into one table, resumable (`--out`)."""

from __future__ import annotations

import csv
import json
import os
import shlex
import socket
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic_core import to_json

from vlltr_index.data.frequencies import Situation
from vlltr_index.data.unlabelled import Pictures, image_identities, unlabelled_images
from vlltr_index.data.writing import whole_file
from vlltr_index.errors import UsageError, VlltrError, WorkspaceError, write_error
from vlltr_index.pipelines.asked import Situated, groups_of
from vlltr_index.recognition.answering import answer_read, estimate_prior, stream, with_frequencies
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.fingerprint import digest_bytes, digest_json
from vlltr_index.schemas.options import USUAL, PredictOptions
from vlltr_index.version import VERSION
from vlltr_index.wording import cell

if TYPE_CHECKING:
    from vlltr_index.recognition.model import Model
    from vlltr_index.schemas.records import Prediction, Progress
    from vlltr_index.store.workspace import Workspace

_FORMATS = (".csv", ".jsonl", ".parquet")
_ROWS = 10_000


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
        listed = _once(unlabelled_images(images, with_data=False))
        return in_situations(model, listed, options, groups or {}, situated)

    def pictures() -> Iterator[tuple[str, str | bytes]]:
        named = unlabelled_images(images)
        return named if groups is None else _once(named)

    options = with_frequencies(model, pictures, options, groups)
    return stream(model, pictures(), options, groups)


def _once(named: Iterable[tuple[str, str | bytes]]) -> Iterator[tuple[str, str | bytes]]:
    """Leave out pictures that were named before."""
    seen = set[str]()
    for name, source in named:
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
    check_target(out)
    part = out.with_name(out.name + ".part")
    as_rows = out.suffix.lower() != ".jsonl"
    with _alone(out):
        check_target(out)  # another process may have finished it before the lock was free
        # Before any image is read, so that no row gets a newer identity than the image it was predicted from.
        files = image_identities(paths)
        groups = {} if group is None else groups_of(paths, group, progress)
        begun = _begun(part, _asked(model, paths, options, group, situated))
        rows = dict[str, _Row]()
        try:
            answering, seen = estimate_prior(
                model, lambda: unlabelled_images(paths), options, groups, progress
            )
            identities = _identities(files, groups, situated, seen)
            rows |= _unchanged(begun, identities, groups)
            before = len(rows)
            todo = identities.keys() - rows.keys()
            listed = _once(unlabelled_images(paths, with_data=ray is None and situated is None))
            named = ((name, source) for name, source in listed if name in todo)
            if ray is not None:
                answers = _by_ray(model, named, ray, answering, as_rows=as_rows)
            else:
                answers = _here(model, named, answering, groups, situated, as_rows=as_rows)
            with open(part, "ab", opener=_unlinked) as file, closing(answers):
                for written, (name, line, is_unread) in enumerate(answers, 1):
                    rows[name] = _Row(file.tell(), identities[name], is_unread)
                    file.write(f"{identities[name]}\t".encode() + line + b"\n")
                    if progress:
                        progress("predict", written, len(todo))
        except VlltrError:
            if not begun and not rows:  # there is nothing to resume
                part.unlink()
            raise
        top = min(options.top, len(model.class_ids))
        schema = _schema(top, options, grouped=group is not None)
        _finish(part, out, schema, [rows[name].start for name in identities if name in rows])
    return PredictReport(str(out), len(rows), before, sum(row.is_unread for row in rows.values()))


def _asked(
    model: Model,
    paths: Sequence[str],
    options: PredictOptions,
    group: str | None,
    situated: Situated | None,
) -> bytes:
    """Return the first line of `OUT.part`: what was asked for, and what the others hold."""
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
    return json.dumps(facts, sort_keys=True).encode() + b"\n"


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


def _differing(begun: bytes, asked: bytes) -> str:
    """Name the facts of `_asked` in which two runs differ."""
    try:
        one = json.loads(begun)
        other = json.loads(asked)
        names = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    except (ValueError, AttributeError):
        names = []
    return " and ".join(names) or "content"


def _unchanged(
    rows: Mapping[str, _Row], identities: Mapping[str, str], groups: Mapping[str, str]
) -> dict[str, _Row]:
    """Return the rows of images that were read and have the same identity, if this holds for their whole group."""
    valid = {
        name: row for name, row in rows.items() if not row.is_unread and row.identity == identities.get(name)
    }
    again = {groups[name] for name in groups if name not in valid}
    return {name: row for name, row in valid.items() if groups.get(name) not in again}


def check_target(out: Path) -> None:
    """Refuse a file that answers cannot be written to.

    Raises:
        UsageError: If it has another suffix than .csv, .jsonl or .parquet, is there already, or its folder is not.
    """
    if out.suffix.lower() not in _FORMATS:
        raise UsageError(f"--out {out}: of which kind?", f"End it in one of {', '.join(_FORMATS)}.")
    if not os.path.isdir(out.parent):
        raise UsageError(
            f"there is no folder {out.parent}", f"Make it: mkdir -p {shlex.quote(str(out.parent))}"
        )
    if os.path.exists(out):
        raise UsageError(f"{out} is there already", "Choose another file, or remove it.")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Let no other command write a file meanwhile; errors of the system are of that file."""
    lock = out.with_name(out.name + ".lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)  # while it is held: whoever comes next sees what is there
    except Timeout:
        if not lock.exists():  # filelock waits also where it cannot make the file
            raise UsageError(f"{out.parent} takes no new files", "Choose another folder.") from None
        raise UsageError(
            f"{out} is being written by another command", "Wait for it, or choose another file."
        ) from None
    except OSError as error:
        raise write_error(out, error) from error


def _here(
    model: Model,
    named: Iterable[tuple[str, str | bytes]],
    options: PredictOptions,
    groups: Mapping[str, str],
    situated: Situated | None,
    *,
    as_rows: bool,
) -> Generator[tuple[str, bytes, bool], None, None]:
    """Yield the name of each image and the result of `_line` for its prediction, computed in this process."""
    if situated is None:
        found = stream(model, named, options, groups)
    else:
        found = in_situations(model, named, options, groups, situated)
    for one in found:
        yield one.image, *_line(one, as_rows)


def _by_ray(
    model: Model,
    named: Iterable[tuple[str, str | bytes]],
    ray: OnRay,
    options: PredictOptions,
    *,
    as_rows: bool,
) -> Generator[tuple[str, bytes, bool], None, None]:
    """Yield the name of each image and the result of `_line` for its prediction, computed by Ray actors."""
    from vlltr_index.embedding.pixels import Reader
    from vlltr_index.embedding.ray_engine import RayData, on_cpu

    listed = list(named)
    reader = Reader(model.encoder, options.crops)
    arguments = ray.address, model.commit, options, model.encoder.image_size, on_cpu(), as_rows
    with RayData(ray.actors) as data:
        for table in data.run(Pictures(listed), reader, _RayAnswering, arguments):
            columns = (table[column].to_pylist() for column in ("place", "line", "lost"))
            for place, line, is_unread in zip(*columns, strict=True):
                yield listed[place][0], line, is_unread


class _RayAnswering:
    """Ray actor that opens a commit's model at its first call; errors name the machine."""

    def __init__(
        self,
        address: str,
        commit: int,
        options: PredictOptions,
        size: tuple[int, int],
        on_cpu: bool,
        as_rows: bool,
    ) -> None:
        self._address = address
        self._commit = commit
        self._options = options
        self._size = size
        self._as_rows = as_rows
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
        line, lost = zip(*(_line(one, self._as_rows) for one in answers), strict=True)
        return pa.table({"place": table["place"], "line": line, "lost": lost})


def _line(prediction: Prediction, as_row: bool) -> tuple[bytes, bool]:
    """Return a prediction, or its row of the table, as JSON, and whether the picture could not be read."""
    return to_json(_row(prediction) if as_row else prediction), prediction.problem is not None


def _unlinked(path: str, flags: int) -> int:
    """Open a file for `open`, refusing to follow a symbolic link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


class _Row(NamedTuple):
    """A row in `OUT.part`.

    Attributes:
        start: The position of its line.
        identity: The identity of what was predicted, see `_identities`.
        is_unread: Whether the image could not be read.
    """

    start: int
    identity: str
    is_unread: bool


def _begun(part: Path, asked: bytes) -> dict[str, _Row]:
    """Read the last row of each image in `OUT.part` by name; cut off an incomplete last line.

    A line has the identity, a tab, and the row or prediction as JSON, in which a tab is escaped.
    """
    rows: dict[str, _Row] = {}
    with open(part, "ab+", opener=_unlinked) as file:
        file.seek(0)
        begun = file.readline()
        first = file.readline()
        if not first:  # nothing was answered
            file.truncate(0)
            file.write(asked)
            return rows
        if begun != asked:
            raise UsageError(
                f"{part} holds rows of another run, with other {_differing(begun, asked)}",
                "Run the command that began it, with --at its commit, or remove the file to start again.",
            )
        end = file.seek(len(begun))
        try:
            for line in file:
                if line.endswith(b"\n"):
                    identity, _, row = line.rpartition(b"\t")
                    values = json.loads(row)
                    rows[values["image"]] = _Row(end, identity.decode(), values["problem"] is not None)
                    end = end + len(line)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            why = f"{part} has a line that is no answer of this program: {error}"
            raise UsageError(why, "Remove the file to start again.") from None
        file.truncate(end)
    return rows


def _finish(part: Path, out: Path, schema: pa.Schema, starts: Iterable[int]) -> None:
    """Write `out`, completely or not at all, from the lines of `OUT.part` that start at these positions."""
    kind = out.suffix.lower()
    with part.open("rb") as file, whole_file(out) as made:
        lines = (_line_at(file, start) for start in starts)
        if kind == ".parquet":
            with pq.ParquetWriter(made, schema) as table:
                while rows := [json.loads(line) for line in islice(lines, _ROWS)]:
                    table.write_table(pa.Table.from_pylist(rows, schema=schema))
        elif kind == ".jsonl":
            with made.open("wb") as target:
                target.writelines(lines)
        else:
            with made.open("w", encoding="utf-8", newline="") as target:
                writer = csv.DictWriter(target, schema.names, extrasaction="ignore")
                writer.writeheader()
                for line in lines:
                    writer.writerow({name: cell(value) for name, value in json.loads(line).items()})
    part.unlink()


def _line_at(file: BinaryIO, start: int) -> bytes:
    """Read the JSON in the line of `OUT.part` that starts at a position."""
    file.seek(start)
    return file.readline().rpartition(b"\t")[2]


def _schema(top: int, options: PredictOptions, grouped: bool) -> pa.Schema:
    text = pa.string()
    number = pa.float64()
    fields = {"image": text}
    if grouped:
        fields["group"] = text
    if options.min_accuracy is not None:
        fields |= {"answer": text, "answer_rank": text, "answer_probability": number}
    for k in range(1, top + 1):
        fields |= {f"class_{k}": text, f"probability_{k}": number}
    fields |= {"image_part": number, "text_part": number}
    if options.prior != "balanced":
        fields["prior_part"] = number
    fields |= {
        "known": pa.bool_(),
        "sentences": text,
        "problem": text,
    }
    return pa.schema(fields)


def _row(prediction: Prediction) -> dict[str, Any]:
    """Return the row of a prediction in the table; `_schema` says which of its values are written."""
    values: dict[str, Any] = {
        "image": prediction.image,
        "group": prediction.group,
        "known": prediction.known,
        "problem": prediction.problem,
    }
    for k, score in enumerate(prediction.classes, 1):
        values[f"class_{k}"] = score.name
        values[f"probability_{k}"] = score.probability
    answer = prediction.answer
    if answer:
        values |= {"answer": answer.node, "answer_rank": answer.rank}
        values["answer_probability"] = answer.probability
    for best in prediction.classes[:1]:
        values |= {
            "image_part": best.image_part,
            "text_part": best.text_part,
            "prior_part": best.prior_part,
        }
        speaking = (s.text for s in (answer or best).sentences if s.percent > 0)
        values["sentences"] = " | ".join(speaking) or None
    return values
