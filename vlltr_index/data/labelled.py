"""Readers of files that name pictures and their classes: lists, tables, JSON, exports of Label Studio and FiftyOne."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict, deque
from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from math import isnan
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

from pydantic import BaseModel

from vlltr_index.data.files import (
    checked,
    files_below,
    no_twins,
    open_parquet,
    read_json,
    read_lines,
    read_records,
    read_rows,
)
from vlltr_index.data.names import Category, ClassNames, category_names
from vlltr_index.data.text import check_split, clean_name
from vlltr_index.errors import InputError, UsageError
from vlltr_index.wording import uncell

LISTS = (".txt", ".lst", ".list")
TABLES = (".csv", ".tsv", ".parquet")
KINDS = (*LISTS, *TABLES, ".json", ".jsonl")
"""Endings of files that name pictures and their classes."""
NO_CLASS = "no class"
"""Why a row cannot be used that names a picture alone."""
MEND_ROWS = "Mend its rows: each needs a path and one class."
"""What to do where no row can be used."""

K = TypeVar("K", bound=Hashable)

_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "uri")
_CLASSES = ("class", "label", "class_name", "category", "choice")
_NUMBER = re.compile(r"-?[0-9]{1,9}")
# Each takes time that is linear in the length of a text: white space is read from its start alone, and a name may have
# a line break in it, so that the first match is the last attempt.
_QUOTED = re.compile(
    r'(?:"(?P<path>[^"]+)"|(?P<bare>.+?)(?<!\s))\s++(?:"(?P<label>[^"]+)"|(?P<word>[^"\s]+))'
)
_LOCAL_FILE = re.compile(r"(?:https?://[^/]+)?/(?:[^?]*/)?data/local-files/?\?(?:.*&)?d=([^&]+).*", re.DOTALL)
_UPLOAD = re.compile(r"(?:https?://[^/]+)?/(?:.*/)?data/upload/(.+)", re.DOTALL)
_UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
_ANNOTATION = "annotation_id"  # a column that Label Studio's CSV and JSON-MIN have
_OF_LABEL_STUDIO = {
    *("id", "annotator", _ANNOTATION, "created_at", "updated_at", "lead_time", "agreement", "history"),
}
_COLUMNS = "Name the columns path and class (and split and group, if there are any)."
_JSON = (
    'Expected iNaturalist\'s layout ({"images": [{"id": 1, "file_name": "train_val2018/..."}, ...], "annotations": '
    '[{"image_id": 1, "category_id": 0}, ...]}), an export of Label Studio (JSON, JSON-MIN) or FiftyOne (labels.json, '
    'samples.json), or [{"path": "a.jpg", "class": "wren"}, ...]; a file without labels cannot be used.'
)


class Labelled(NamedTuple):
    """A picture that a file names, with its class.

    Attributes:
        where: Its place in the file.
        entry: Its path as the file says it, below the file's folder or another.
        class_name: Its class; None: it is said to have none, or it cannot be used.
        why: Why it cannot be used; empty if it can.
        split: The split that the file names, if any.
        group: The group that the file names, if any.
        names: Of a file that was uploaded elsewhere: the names that it may have here, in whatever folder.
    """

    where: str
    entry: str
    class_name: str | None
    why: str = ""
    split: str | None = None
    group: str | None = None
    names: tuple[str, ...] = ()


def disputes(rows: Iterable[tuple[K, Labelled]]) -> dict[K, str]:
    """Return, for each picture that rows give two classes, why it cannot be used."""
    given: dict[K, dict[str | None, str]] = defaultdict(dict)
    for key, row in rows:
        given[key].setdefault(row.class_name, row.where)
    return {
        key: _several([f"{name!r} ({where})" for name, where in classes.items()])
        for key, classes in given.items()
        if len(classes) > 1
    }


def _several(classes: Sequence[str]) -> str:
    """Say that one picture has two classes or more, and name two of them."""
    if len(classes) == 2:
        return f"two classes for one picture: {' and '.join(classes)}"
    return f"{len(classes):,} classes for one picture: {', '.join(classes[:2])} and {len(classes) - 2:,} more"


def export_in(folder: Path) -> Path | None:
    """Return the file of classes of a folder that FiftyOne wrote, which is no folder of class folders, or None."""
    if not (folder / "data").is_dir():
        return None
    return next((folder / n for n in ("labels.json", "samples.json") if (folder / n).is_file()), None)


def names_pictures(path: Path) -> bool:
    """Say whether a Parquet file names pictures by their paths, and does not hold their bytes."""
    with open_parquet(path) as file:
        schema = file.schema_arrow
        if "image" in schema.names:
            kind = schema.field("image").type
            return str(getattr(kind, "value_type", kind)) in ("string", "large_string")
        return any(name.casefold() in _PATHS for name in schema.names)


def read_labelled(
    path: Path,
    root: Path,
    names: ClassNames | None = None,
    group: str | None = None,
    classes: Container[str] = (),
) -> Iterator[Labelled]:
    """Yield the pictures that a file names with their classes; what cannot be used says why.

    Args:
        path: A list (.txt, .lst, .list; .tsv without a header): a path and a class on each line, separated by a tab or
            the last space, in double quotes where they hold spaces. A table (.csv, .tsv, .parquet) with the columns
            path and class, and perhaps split and group. JSONL, or a JSON array, of objects with these keys. JSON of
            images and annotations, as iNaturalist's. An export of Label Studio (JSON, JSON-MIN, CSV) or of FiftyOne
            (labels.json beside the folder data, or samples.json).
        root: The folder that paths are relative to.
        names: Names of numeric labels. With them a text of digits is a number too, unless one of them is just that
            text; without them it is the class's name as it stands, with its leading zeros.
        group: The column of groups; default: `group`, if there is one.
        classes: Names of classes that there are, one of which may be a negative number; others mean no class.

    Raises:
        InputError: The file cannot be read, is of no known kind, has no columns of paths and classes, or a number that
            the names do not have.
    """
    reader = _Reader(path, root, names, group, classes)
    kind = path.suffix.lower()
    if kind == ".json":
        yield from reader.json()
    elif kind == ".jsonl":
        yield from reader.json_lines()
    elif kind in LISTS or (kind == ".tsv" and not _has_header(path)):
        yield from reader.list_lines()
    elif kind == ".parquet":
        with open_parquet(path) as file:
            columns = _columns(file.schema_arrow.names, str(path), group)
        for where, row in read_rows(path, list(columns.values()), ()):
            yield reader.row(where, row, columns)
    else:
        yield from reader.table_rows()


def _has_header(path: Path) -> bool:
    """Say whether the first line of a file names a column of paths and another."""
    first = next((line for _, line in read_lines(path)), "")
    return len(found := first.split("\t")) > 1 and any(c.strip().casefold() in _PATHS for c in found)


def _columns(names: Sequence[str], where: str, group: str | None = None) -> dict[str, str]:
    """Return the columns of path and class, and of split and group if there are any, by these words.

    Raises:
        InputError: There is none of paths, of classes or of the groups that are asked for, or one stands there twice.
    """
    there = {name.strip().casefold(): name for name in reversed(names)}
    found = {"path": _first(there, _PATHS), "class": _first(there, _CLASSES)}
    found |= {"split": there.get("split"), "group": group or there.get("group")}
    if group is not None and group not in names:
        listed = ", ".join(map(repr, names))
        raise InputError(
            f"{where}: no column {group!r} to group by; it has {listed}", "Name one: --group column:NAME"
        )
    if (
        found["class"] is None and _ANNOTATION in there
    ):  # Label Studio names it as the project names the question
        left = [name for key, name in there.items() if key not in _OF_LABEL_STUDIO and name != found["path"]]
        found["class"] = left[0] if len(left) == 1 else None
    for what in ("path", "class"):
        if found[what] is None:
            told = "names the files" if what == "path" else "names the classes"
            listed = ", ".join(map(repr, names)) or "none"
            raise InputError(f"{where}: no column that {told}; it has {listed}", _COLUMNS)
    used = {word: name for word, name in found.items() if name is not None}
    for name in used.values():
        if names.count(name) > 1:
            raise InputError(f"{where}: the column {name!r} stands there twice", _COLUMNS)
    return used


def _first(there: dict[str, str], wanted: Sequence[str]) -> str | None:
    return next((there[name] for name in wanted if name in there), None)


class _Image(BaseModel):
    """An image in a COCO-like file."""

    id: int | str
    file_name: str


class _Annotation(BaseModel):
    """An annotation in a COCO-like file: the class of an image."""

    image_id: int | str
    category_id: int


class _Coco(BaseModel):
    """Content of a COCO-like file."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[Category] = []


class _Answers(BaseModel):
    """What somebody said of a task."""

    was_cancelled: bool | None = None
    result: list[Any] | None = None


class _Task(BaseModel):
    """A task in Label Studio's JSON: a picture, and who said what of it."""

    id: int | str | None = None
    data: dict[str, Any]
    annotations: list[_Answers]


class _FiftyOneLabels(BaseModel):
    """FiftyOne's labels.json: a class, or its place in `classes`, by file name without its ending."""

    classes: list[str] | None = None
    labels: dict[str, Any]


class _FiftyOneSamples(BaseModel):
    """FiftyOne's samples.json."""

    samples: list[dict[str, Any]]


class _Reader:
    """Reader of one file; see `read_labelled`."""

    def __init__(
        self, path: Path, root: Path, names: ClassNames | None, group: str | None, classes: Container[str]
    ) -> None:
        self._path = path
        self._root = root.resolve()
        self._names = names
        self._group = group
        self._called = classes if names is None else frozenset(names.names)

    def list_lines(self) -> Iterator[Labelled]:
        """Yield the lines of a list."""
        for where, raw in read_lines(self._path):
            line = raw.strip()
            if not line:
                continue
            quoted = _QUOTED.fullmatch(line)
            if "\t" in line:
                entry, _, label = line.rpartition("\t")
            elif '"' in line and quoted:
                entry = quoted["path"] or quoted["bare"]
                label = quoted["label"] or quoted["word"]
            else:
                entry, _, label = line.rpartition(" ")
            if not entry or not label:
                why = f"expected a path and a label, got {line[:80]!r} (a tab between them if labels have spaces)"
                yield Labelled(where, line[:80], None, why)
            else:
                yield self._picture(where, _unquoted(entry), _unquoted(label))

    def table_rows(self) -> Iterator[Labelled]:
        """Yield the rows of a CSV or TSV file."""
        records = read_records(self._path)
        _, header = next(records, ("", list[str]()))
        columns = _columns(header, str(self._path), self._group)
        for where, fields in records:
            if len(fields) != len(header):
                why = f"{len(fields)} fields, the header has {len(header)}"
                yield Labelled(where, ",".join(fields)[:80], None, why)
            else:
                yield self.row(where, dict(zip(header, map(uncell, fields), strict=True)), columns)

    def json_lines(self) -> Iterator[Labelled]:
        """Yield the lines of JSONL."""
        for where, line in read_lines(self._path):
            if line.strip():
                try:
                    row = json.loads(line, object_pairs_hook=no_twins)
                except (ValueError, RecursionError) as error:
                    yield Labelled(where, line.strip()[:80], None, f"not JSON: {error}")
                else:
                    yield self._object(where, row)

    def json(self) -> Iterator[Labelled]:
        """Yield the pictures of a JSON file, whatever it is."""
        value = read_json(self._path, Any, _JSON)
        if isinstance(value, list):
            for number, one in enumerate(value, 1):
                where = f"{self._path}: task {number}"
                if not (isinstance(one, dict) and "data" in one and "annotations" in one):
                    yield self._object(where, one)
                    continue
                try:
                    task = checked(one, _Task, where, _JSON)
                except InputError as error:
                    yield Labelled(where, "", None, error.message.removeprefix(f"{where}: "))
                else:
                    yield self._task(task, number)
        elif isinstance(value, dict) and "samples" in value:
            yield from self._samples(checked(value, _FiftyOneSamples, str(self._path), _JSON).samples)
        elif isinstance(value, dict) and "labels" in value:
            yield from self._labels(checked(value, _FiftyOneLabels, str(self._path), _JSON))
        else:
            yield from self._coco(checked(value, _Coco, str(self._path), _JSON))

    def _object(self, where: str, row: Any) -> Labelled:
        """Read an object with keys of path and class."""
        if not isinstance(row, dict):
            return Labelled(where, str(row)[:80], None, 'expected {"path": ..., "class": ...}')
        try:
            columns = _columns(list(row), where, self._group)
        except InputError as error:
            return Labelled(where, "", None, f"{error.message.removeprefix(f'{where}: ')}. {error.hint}")
        return self.row(where, row, columns)

    def row(self, where: str, row: dict[str, Any], columns: dict[str, str]) -> Labelled:
        """Read a row of a table by its columns."""
        split = row.get(columns.get("split", "")) or None
        group = row.get(columns.get("group", "")) or None
        found = self._picture(where, row[columns["path"]], row[columns["class"]])
        if split is not None:
            try:
                check_split(str(split))
            except UsageError as error:
                return found._replace(class_name=None, why=error.message)
        return found._replace(split=split and str(split), group=group and str(group))

    def _task(self, task: _Task, number: int) -> Labelled:
        """Read a task of Label Studio: what its annotations that were not skipped chose."""
        where = f"{self._path}: task {number if task.id is None else task.id}"
        texts = [value for value in task.data.values() if isinstance(value, str)]
        entry = task.data.get("image") or (texts[0] if len(texts) == 1 else None)
        given = [one for one in task.annotations if not one.was_cancelled]
        if not given:
            why = "skipped there" if task.annotations else "no annotation"
            return Labelled(where, str(entry), None, why)
        results = [result for one in given for result in one.result or ()]
        chosen = [
            result.get("value")
            for result in results
            if isinstance(result, dict) and result.get("type") == "choices"
        ]
        return self._picture(where, entry, chosen)

    def _labels(self, facts: _FiftyOneLabels) -> Iterator[Labelled]:
        """Yield the pictures of FiftyOne's labels.json; their endings are those of the files in `data`."""
        data = self._root / "data"
        there = defaultdict[str, list[str]](list)
        for name, _ in files_below(data) if data.is_dir() else ():
            there[str(PurePosixPath(name).with_suffix(""))].append(name)
        for key, target in facts.labels.items():
            where = f"{self._path}: {key}"
            files = there.get(key, [key])
            if facts.classes is not None and isinstance(target, int):
                known = 0 <= target < len(facts.classes)
                target = facts.classes[target] if known else None
            if isinstance(target, dict):
                target = target.get("label")
            if len(files) > 1:
                yield Labelled(where, f"data/{key}", None, f"several files: {', '.join(files)}")
            else:
                yield self._picture(where, f"data/{files[0]}", target)

    def _samples(self, samples: list[dict[str, Any]]) -> Iterator[Labelled]:
        """Yield the pictures of FiftyOne's samples.json: what `ground_truth`, or the only field of a class, says."""
        for number, sample in enumerate(samples):
            where = f"{self._path}: sample {number}"
            fields = {
                name: value.get("label")
                for name, value in sample.items()
                if isinstance(value, dict) and value.get("_cls") == "Classification"
            }
            if "ground_truth" in fields:
                fields = {"ground_truth": fields["ground_truth"]}
            if len(fields) > 1:
                why = f"{' and '.join(fields)} hold a class, and none of them is called ground_truth"
                yield Labelled(where, str(sample.get("filepath")), None, why)
            else:
                yield self._picture(where, sample.get("filepath"), list(fields.values()))

    def _coco(self, facts: _Coco) -> Iterator[Labelled]:
        """Yield the images of a COCO-like file."""
        if self._names is None and facts.categories:
            self._names = category_names(facts.categories, str(self._path))
        labels: dict[int | str, set[int]] = {image.id: set() for image in facts.images}
        if len(labels) < len(facts.images):
            raise InputError(f"{self._path}: two images have one id", "Give each image an id of its own.")
        for number, note in enumerate(facts.annotations):
            if note.image_id not in labels:
                raise InputError(
                    f"{self._path}: annotation {number} points to image {note.image_id}, which is not among the images",
                    "Are images and annotations of one file? Fetch it again.",
                )
            labels[note.image_id].add(note.category_id)
        for image in facts.images:
            where = f"{self._path}: image {image.id}"
            own = labels[image.id]
            if len(own) == 1:
                yield self._picture(where, image.file_name, min(own))
            else:
                why = "annotations of two categories" if own else "no annotation"
                yield Labelled(where, image.file_name, None, why)

    def _picture(self, where: str, entry: Any, label: Any) -> Labelled:
        """Check what a file says of one picture."""
        if not isinstance(entry, str) or not entry.strip():
            return Labelled(where, "", None, "no path")
        place, names = _place(entry.strip(), self._root)
        labels = list(dict.fromkeys(_choices(label)))
        if place.startswith(("http://", "https://")):
            return Labelled(where, place, None, "an address of the web: fetch the file, and name the copy")
        odd = [one for one in labels if isinstance(one, bool) or not isinstance(one, str | int)]
        if odd:
            return Labelled(
                where, place, None, f"a class is a name or a number, not {odd[0]!r:.80}", names=names
            )
        if len(labels) != 1:
            why = _several([repr(one) for one in labels]) if labels else NO_CLASS
            return Labelled(where, place, None, why, names=names)
        name, why = self._class(labels[0], where)
        return Labelled(where, place, name, why, names=names)

    def _class(self, label: str | int, where: str) -> tuple[str | None, str]:
        """Return the class name of a label, None for negative numbers; and why it is no name.

        Raises:
            InputError: It is a number that the names do not have.
        """
        if isinstance(label, str) and _NUMBER.fullmatch(label) and label not in self._called:
            number = int(label)
            label = number if self._names is not None or number < 0 else label
        if isinstance(label, int) and label < 0:
            return None, ""
        if isinstance(label, int) and self._names is not None:
            return self._names.name(label, where), ""
        try:
            return clean_name(str(label), where), ""
        except InputError as error:
            return None, error.message.removeprefix(f"{where}: ")


def _unquoted(text: str) -> str:
    """Strip white space, and double quotes around all of a text."""
    text = text.strip()
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text


def _choices(value: Any) -> list[Any]:
    """Return the classes in a value: a name, a number, or what Label Studio writes where several were chosen.

    Whole numbers that a table stores as floats are numbers, and NaN is none; other things are returned as they are.
    """
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")) and '"choices"' in value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [value.strip()]
    found: list[Any] = []
    left = deque([value])
    while left:
        one = left.popleft()
        if isinstance(one, dict):
            left.appendleft(one.get("choices"))
        elif isinstance(one, list):
            left.extendleft(reversed(one))
        elif isinstance(one, str):
            found += [one.strip()] if one.strip() else []
        elif isinstance(one, float):
            found += [] if isnan(one) else [int(one) if one.is_integer() else one]
        elif one is not None:
            found.append(one)
    return found


def _place(entry: str, root: Path) -> tuple[str, tuple[str, ...]]:
    """Return the path below `root` that an entry means, and the names that an uploaded file may have instead.

    Label Studio's `/data/local-files/?d=birds/a.jpg` is `birds/a.jpg` below its document root, which is `root` or lies
    above it; its `/data/upload/3/0a1b2c3d-a.jpg` was uploaded as `a.jpg`.
    """
    local = _LOCAL_FILE.fullmatch(entry)
    if local:
        return _below(unquote(local[1]), root), ()
    upload = _UPLOAD.fullmatch(entry)
    if upload:
        name = unquote(upload[1])
        last = PurePosixPath(name).name
        return f"upload/{name}", tuple(dict.fromkeys([last, _UPLOADED.sub("", last, count=1)]))
    return entry, ()


def _below(path: str, root: Path) -> str:
    """Return a path below a folder above `root` as one below `root`, if its first folders are `root`'s last ones."""
    parts = PurePosixPath(path.lstrip("/")).parts
    if not os.path.exists(root.joinpath(*parts)):  # False for names that are too long, too
        for count in range(min(len(parts) - 1, len(root.parts)), 0, -1):
            if root.parts[-count:] == parts[:count]:
                return "/".join(parts[count:])
    return "/".join(parts)
