"""A list of pictures to look at as a table, or as a sheet with thumbnails."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlltr_index.data.objects import is_address
from vlltr_index.data.unlabelled import Pictures
from vlltr_index.data.writing import write_file
from vlltr_index.embedding.vectors import load_sources
from vlltr_index.errors import InputError, UsageError
from vlltr_index.evaluation.records import Thumbnail
from vlltr_index.evaluation.report import SIDE, environment, thumbnail
from vlltr_index.pipelines.review.queue import REASONS, Beside, Entry, Reason, Review
from vlltr_index.store.tables import one_of
from vlltr_index.wording import cell, plural

if TYPE_CHECKING:
    from vlltr_index.store.snapshot import Snapshot

_COLUMNS = ("entry", "path", "class", "now", "suggested", "reason", "wrong", "image_id")
_SHOWN_BESIDE = 8  # pictures beside one in a sheet
_GONE = Thumbnail(None, problem="is not there any more")
_HEADINGS: dict[Reason, str] = {
    "two classes": "One file in two classes: one of the labels is wrong",
    "label": "Labels that may be wrong, with 10 % or more",
    "look alike": "Nearly the same picture in two classes: one label is wrong, or the classes look alike",
    "two splits": "The same picture, or nearly, in two splits: figures measured there are too good",
    "copies": "Near duplicates within a class: they count as one",
    "unknown": "Pictures alike that no class stands for",
    "teaches": "Pictures whose label would teach most",
}


def check_targets(paths: Sequence[Path]) -> None:
    """Refuse files that a list cannot be written to.

    Raises:
        UsageError: One ends in neither .csv nor .html, or is a table that exists: a person may have labelled it.
        InputError: Its folder is not there.
    """
    for path in paths:
        if path.suffix.lower() not in (".csv", ".html"):
            raise UsageError(f"--out {path}: of which kind?", "End it in .csv (a table) or .html (a sheet).")
        if not path.absolute().parent.is_dir():
            raise InputError(f"no such folder: {path.absolute().parent}", "Make it first.")
        if path.is_dir():
            raise InputError(f"{path} is a folder", "Name a file.")
        if path.suffix.lower() == ".csv" and path.exists():
            raise UsageError(
                f"{path} exists, and may contain your labels", "Choose another file, or remove it."
            )


def write_list(path: Path, review: Review, snapshot: Snapshot) -> None:
    """Write a list as a table, which `images relabel` takes back, or as a sheet, by the ending of the file.

    The table has a row for each picture, and pictures of one entry have its number. `class` is empty: whoever looks at
    a picture writes its class there, the same as in `now` or another.

    Raises:
        InputError: The file cannot be written.
    """
    sheet = path.suffix.lower() == ".html"
    text = _sheet(review, snapshot) if sheet else _table(review.entries)
    try:
        write_file(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}", "Choose another place.") from None


def _table(entries: Sequence[Entry]) -> str:
    """Write the entries as CSV, a row a picture."""
    target = io.StringIO(newline="")
    writer = csv.writer(target)
    writer.writerow(_COLUMNS)
    for number, one in enumerate(entries, 1):
        wrong = "" if one.wrong is None else f"{one.wrong:.3f}"
        rows = [(_full(one.picture), "", one.class_name, one.suggested, one.reason, wrong, one.image_id)]
        rows += [
            (_full(other.picture), "", other.class_name, "", one.reason, "", other.image_id)
            for other in one.beside
        ]
        writer.writerows([number, *map(cell, row)] for row in rows)
    return target.getvalue()


def _full(picture: str) -> str:
    """Return a picture's path from the root, by which it is found from anywhere; addresses stay."""
    return picture if is_address(picture) else os.path.abspath(picture)


def root_of(review: Review) -> str | None:
    """Return the folder that has all listed files that the workspace does not have, without links in it.

    None if there are no such files; addresses and rows of Parquet files are none.
    """
    listed: list[Entry | Beside] = [
        *review.entries,
        *(other for entry in review.entries for other in entry.beside),
    ]
    files = (one.picture for one in listed if one.image_id is None and os.path.isfile(one.picture))
    folders = {os.path.realpath(os.path.dirname(path)) for path in files}
    return os.path.commonpath(folders) if folders else None


def _sheet(review: Review, snapshot: Snapshot) -> str:
    """Write the entries as an HTML document with thumbnails."""
    numbered = list(enumerate(review.entries, 1))
    sources = sources_of(snapshot, (picture for _, one in numbered for picture in _shown(one)))
    parts = [
        (
            _HEADINGS[reason],
            [
                (number, one, [(picture, thumbnail_of(picture, sources)) for picture in _shown(one)])
                for number, one in numbered
                if one.reason == reason
            ],
            review.counts[reason],
        )
        for reason in REASONS
        if reason in review.counts
    ]
    template = environment("vlltr_index.evaluation").get_template("review.html")
    return template.render(review=review, parts=parts)


def _shown(entry: Entry) -> list[Entry | Beside]:
    """Return the pictures of an entry that a sheet shows."""
    return [entry, *entry.beside[:_SHOWN_BESIDE]]


def sources_of(snapshot: Snapshot, pictures: Iterable[Entry | Beside]) -> dict[str, bytes | str]:
    """Return the bytes or the path of each picture of the workspace by its id; those that are gone are left out."""
    ids = {one.image_id for one in pictures if one.image_id is not None}
    there = snapshot.table("images", ["image_id"], one_of("image_id", ids))["image_id"].to_pylist()
    return dict(zip(there, (source for _, source in load_sources(snapshot, there)), strict=True))


def thumbnail_of(one: Entry | Beside, sources: Mapping[str, bytes | str], side: int = SIDE) -> Thumbnail:
    """Make a picture of at most `side` pixels: out of `sources_of`, or of its path or the row of a file."""
    if one.image_id is not None:
        return thumbnail(sources[one.image_id], side) if one.image_id in sources else _GONE
    row = b"" if ".parquet#" in one.picture else one.picture
    try:
        return thumbnail(next(Pictures([(one.picture, row)]).load())[1], side)
    except (IndexError, InputError):
        return _GONE


def summary(review: Review) -> list[str]:
    """Say how many pictures there are of each reason, in sentences."""
    counted = [(_HEADINGS[reason], review.counts[reason]) for reason in REASONS if reason in review.counts]
    lines = [f"{heading}: {plural(count, 'entry', 'entries')}." for heading, count in counted]
    if review.wrong:
        lines.append(
            f"About {plural(review.wrong, 'label')} may be wrong, by the sum of the probabilities: where that was"
            " measured, the true number was 0 to 3.5 times as large."
        )
    return lines or [f"Nothing to look at among {plural(review.pictures, 'picture')}."]
