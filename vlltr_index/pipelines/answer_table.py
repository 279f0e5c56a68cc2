"""A table of answers that appears when it is complete (`predict --out`); an interrupted run is resumed."""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic_core import to_json

from vlltr_index.data.writing import whole_file
from vlltr_index.errors import UsageError, VlltrError, write_error
from vlltr_index.wording import cell

if TYPE_CHECKING:
    from vlltr_index.schemas.options import PredictOptions
    from vlltr_index.schemas.records import Prediction

_FORMATS = (".csv", ".jsonl", ".parquet")
_ROWS = 10_000


class Row(NamedTuple):
    """A row in `OUT.part`.

    Attributes:
        start: The position of its line.
        identity: The identity of what was predicted, see `AnswerTable.keep`.
        is_unread: Whether the image could not be read.
    """

    start: int
    identity: str
    is_unread: bool


class AnswerTable:
    """Rows of answers in `OUT.part`, as they come.

    A line has the identity of what was answered, a tab, and the row or prediction as JSON, in which a tab is escaped.

    Args:
        begun: The rows of an interrupted run, by image.
        file: `OUT.part`, to append to.
        as_rows: Whether a line has a row of the table, or all fields of a `Prediction`.

    Attributes:
        rows: The rows by image.
    """

    def __init__(self, begun: Mapping[str, Row], file: BinaryIO, as_rows: bool) -> None:
        self._begun = begun
        self._file = file
        self._as_rows = as_rows
        self._identities: Mapping[str, str] = {}
        self.rows: dict[str, Row] = {}

    def keep(self, identities: Mapping[str, str], groups: Mapping[str, str]) -> set[str]:
        """Keep the rows of images that were read and have not changed, if this holds for their whole group.

        Args:
            identities: A digest of what the answer for each image depends on, in the order of the table.
            groups: The group of each image that has one.

        Returns:
            The names of the images that are to be answered.
        """
        self._identities = identities
        valid = {
            name: row
            for name, row in self._begun.items()
            if not row.is_unread and row.identity == identities.get(name)
        }
        again = {groups[name] for name in groups if name not in valid}
        self.rows = {name: row for name, row in valid.items() if groups.get(name) not in again}
        return identities.keys() - self.rows.keys()

    def write(self, answer: Prediction) -> None:
        """Append an answer."""
        identity = self._identities[answer.image]
        self.rows[answer.image] = Row(self._file.tell(), identity, answer.problem is not None)
        line = to_json(_row(answer) if self._as_rows else answer)
        self._file.write(f"{identity}\t".encode() + line + b"\n")

    def starts(self) -> list[int]:
        """Return the positions of the rows, in the order of the table."""
        return [self.rows[name].start for name in self._identities if name in self.rows]


@contextmanager
def answer_table(out: Path, asked: Mapping[str, Any], schema: pa.Schema) -> Iterator[AnswerTable]:
    """Open a table to write; `out` appears after the block, completely, and after an error `OUT.part` stays.

    Args:
        out: The file; it must not be there.
        asked: What was asked for; a later run goes on only with rows of the same.
        schema: Of the table, see `answer_schema`; JSONL has every field of a `Prediction`.

    Raises:
        UsageError: As by `check_target`; or `out` is being written, or `OUT.part` is of another run.
        WorkspaceError: If it cannot be written.
    """
    check_target(out)
    part = out.with_name(out.name + ".part")
    with _alone(out):
        check_target(out)  # another process may have finished it before the lock was free
        begun = _begun(part, json.dumps(asked, sort_keys=True).encode() + b"\n")
        try:
            with open(part, "ab", opener=_unlinked) as file:
                table = AnswerTable(begun, file, as_rows=out.suffix.lower() != ".jsonl")
                yield table
        except VlltrError:
            if not begun and not table.rows:  # there is nothing to resume
                part.unlink()
            raise
        _finish(part, out, schema, table.starts())


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
        raise UsageError(
            f"{out} is there already, and a table appears once it is complete",
            "Choose another file, or remove it.",
        )


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


def _unlinked(path: str, flags: int) -> int:
    """Open a file for `open`, refusing to follow a symbolic link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _begun(part: Path, asked: bytes) -> dict[str, Row]:
    """Read the last row of each image in `OUT.part` by name; cut off an incomplete last line."""
    rows: dict[str, Row] = {}
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
                    rows[values["image"]] = Row(end, identity.decode(), values["problem"] is not None)
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


def _differing(begun: bytes, asked: bytes) -> str:
    """Name what was asked for in which two runs differ."""
    try:
        one = json.loads(begun)
        other = json.loads(asked)
        names = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    except (ValueError, AttributeError):
        names = []
    return " and ".join(names) or "content"


def answer_schema(top: int, options: PredictOptions, grouped: bool) -> pa.Schema:
    """Return the columns of a table with the best classes, the parts of the best one, and its sentences."""
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
    """Return the row of a prediction in the table; `answer_schema` says which of its values are written."""
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
