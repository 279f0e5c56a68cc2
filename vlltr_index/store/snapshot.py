"""Commits and their history, and a snapshot that reads a workspace's tables as of one commit.

A commit is `history/<n>.json`, written once, whole or not at all, and never changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, ValidationError

from vlltr_index.errors import UsageError, WorkspaceError
from vlltr_index.schemas.config import FORMAT, AugmentConfig, EncoderConfig, FusionConfig, SelectConfig
from vlltr_index.schemas.encoders import Family
from vlltr_index.schemas.fingerprint import digest_json
from vlltr_index.schemas.model import Count, Fingerprint, Index, ModelRecord, PartDigests, Record
from vlltr_index.schemas.tables import (
    CLASS_STATS,
    COMMITTED,
    KEYS,
    class_stats,
    sentence_readings_name,
    sentence_vectors_name,
)
from vlltr_index.store.class_table import ClassTable
from vlltr_index.store.formats import HISTORY, NEWEST, another_format
from vlltr_index.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from vlltr_index.schemas.config import Recipe
    from vlltr_index.store.objects import Kept, Objects
    from vlltr_index.store.tables import Store

_log = logging.getLogger(__name__)

_ANEW = "make a new workspace: vlltr init DIR"

_Version = Annotated[int, Field(ge=1, lt=2**63)]


class Tuned(Record):
    """Checkpoint whose visual tower stage 2 tuned, and the one it started from (None: the recipe's weights)."""

    checkpoint: str
    start: str | None


class SentenceReader(Record):
    """The sentence-embedding model that the sentences were read by: its name, fingerprint, and the vectors' width."""

    model: str
    fp: Fingerprint
    dim: int = Field(ge=1, le=2**14)


class Info(Record):
    """Facts that commands note for later commands; each commit copies them to the next.

    Attributes:
        encoder: The recipe's encoder that made the vectors, or that stage 2 tuned; None: another's checkpoint did, or
            it was not noted.
        logit_scale: Its scale.
        dim: Width of the vectors.
        precision: Arithmetic that the newest vectors were computed in; tf32 is not part of their fingerprint.
        views: How many views of each training image have a vector.
        augment: Augmentation of the views other than the plain one.
        cvlp: Settings of stage 1; None if it did not run here.
        select: Settings of the selection; None if the anchors were imported.
        reading: What read the sentences for the prior, beside the text tower; None: nothing.
        lgr: Settings of the head; None if it was imported.
        recipe: Name of the recipe that the head was trained with.
        protocol: Protocol of that recipe.
        tuned: The visual tower that stage 2 tuned, if it did.
        merged: Id of each merged class, to the class it was merged into; no chains.
        offsets: The offset of each added class, by its id.
        groupings: How images of a source are grouped, by its address, where that was said; see `data.grouping`.
        followed: Addresses of the sources of images whose links out of the folder are followed.
        next: By table, the lowest id that no row has or ever had.
        baseline_fc: Digest of the image-only baseline's checkpoint.
        baselines: Digest of each other baseline by its name.
        folds: Digest of the models of the folds of the head, below `heads/`.
    """

    encoder: EncoderConfig | None = None
    logit_scale: float | None = Field(default=None, gt=0)
    dim: int = Field(default=1, ge=1, le=2**20)
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    views: int = Field(default=1, ge=1, lt=2**53)
    augment: AugmentConfig | None = None
    cvlp: dict[str, Any] | None = None
    select: SelectConfig | None = None
    reading: SentenceReader | None = None
    lgr: dict[str, Any] | None = None
    recipe: str | None = None
    protocol: str | None = None
    tuned: Tuned | None = None
    merged: dict[Count, Count] = Field(default_factory=dict)
    offsets: dict[Count, float] = Field(default_factory=dict)
    groupings: dict[str, str] = Field(default_factory=dict)
    followed: list[str] = Field(default_factory=list)
    next: dict[str, Count] = Field(default_factory=dict)
    baseline_fc: str | None = None
    baselines: dict[str, str] = Field(default_factory=dict)
    folds: str | None = None


class State(Record):
    """Content of a commit beside its tables; a rollback restores it.

    Attributes:
        text_fp: Fingerprint of the text tower whose vectors the commit uses.
        image_fp: Fingerprint of the visual tower.
        checkpoint: Digest of the encoder's checkpoint; None: the recipe's weights.
        head: Digest of the head.
        fusion: How both branches are fused.
        index: The index over the anchors.
        selection_id: The selection that the table `anchors` holds.
        parts: Rows that answers are computed from, in addition to encoder, head and index; none if the commit cannot
            answer.
        info: Small facts that are copied from commit to commit.
    """

    text_fp: Fingerprint | None = None
    image_fp: Fingerprint | None = None
    checkpoint: str | None = None
    head: str | None = None
    fusion: FusionConfig | None = None
    index: Index | None = None
    selection_id: str | None = None
    parts: PartDigests = ()
    info: Info = Info()


class Commit(State):
    """State of a workspace after one command.

    Attributes:
        format: The workspace format it was written in.
        id: 1, 2, 3 ...; 0 if nothing has been committed.
        parent: The commit before; None for the first.
        command: The command that made it, without `vlltr`.
        created_at: ISO 8601, UTC.
        program_version: The version of this program that wrote it.
        tables: The version of each committed table, tagged `c<id>`.
        checksums: Of each of them whose rows have checksums, their sum.
        state_of: The earlier commit whose state a rollback brought back; null: this commit's state is its own.
    """

    format: int = Field(default=FORMAT, ge=FORMAT, le=FORMAT)
    id: int = Field(ge=1)
    parent: int | None
    command: str
    created_at: str
    program_version: str
    tables: dict[str, _Version]
    checksums: dict[str, Count] = Field(default_factory=dict)
    state_of: int | None = None

    @property
    def state(self) -> int:
        """Id of the commit that first held this state: this one, or the one that a rollback went back to."""
        return self.id if self.state_of is None else self.state_of

    @property
    def own_index(self) -> Index | None:
        """The commit's index, or None if it was built over another encoder's vectors."""
        return self.index if self.index is not None and self.index.text_fp == self.text_fp else None

    @property
    def family(self) -> Family:
        """The family of the encoder that made the stored vectors."""
        return (self.info.encoder or EncoderConfig()).family

    @property
    def logit_scale(self) -> float:
        """Scale of the encoder that made the vectors.

        Raises:
            WorkspaceError: If the commit does not have it, though every command that embeds notes it.
        """
        if self.info.logit_scale is None:
            raise WorkspaceError(f"commit {self.id} has no logit_scale", "Note it again: vlltr embed")
        return self.info.logit_scale

    @property
    def untuned(self) -> str | None:
        """The checkpoint from before stage 2 tuned its visual tower, or `checkpoint` if it did not."""
        tuned = self.info.tuned
        return tuned.start if tuned is not None and tuned.checkpoint == self.checkpoint else self.checkpoint


# State of a workspace before its first commit. It is never written, so its values are not validated.
NOTHING = Commit.model_construct(id=0, parent=None, command="", created_at="", program_version="", tables={})


class History:
    """Commits below `history/`, oldest first.

    The file `history/newest` holds the number of the newest one. So a lost folder is not mistaken for a workspace
    without commits, and a missing newest commit is noticed.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def _name(self, commit_id: int) -> str:
        return f"{HISTORY}/{commit_id}.json"

    def begin(self) -> None:
        """Write `history/newest` for a workspace without commits."""
        self._note(0)

    def _note(self, newest: int) -> None:
        self._storage.write(NEWEST, f"{newest}\n".encode())

    def _noted(self) -> int | None:
        """Read the number of the newest commit, or None if it is not known."""
        try:
            return int(self._storage.read(NEWEST))
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            said = f"{self._storage.at(NEWEST)} cannot be read: {error.strerror}"
            raise WorkspaceError(said, "Mend its permissions, or look at the disk.") from error

    def _there(self) -> Sequence[int]:
        """Return the numbers of the commits whose files exist, ascending."""
        stems = [n.removesuffix(".json") for n in self._storage.names(HISTORY) if n.endswith(".json")]
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())

    def ids(self) -> Sequence[int]:
        """Return the numbers of all commits, ascending.

        Raises:
            WorkspaceError: If the history is missing, cannot be listed, or lacks its newest commit.
        """
        noted = self._noted()  # read before the commits, since another process may be adding one
        there = self._there()
        missing = self._missing(noted, there)
        if missing is not None:
            raise missing
        return there

    def _missing(self, noted: int | None, there: Sequence[int]) -> WorkspaceError | None:
        """Return the error to raise if the history is incomplete, else None."""
        folder = self._storage.at(HISTORY)
        if noted is None and not there:
            return WorkspaceError(
                f"{folder} is missing, or what was in it is", f"Bring it back from a backup, or {_ANEW}"
            )
        if noted is None:
            what = (
                f"{self._storage.at(NEWEST)} is missing or damaged: commit {there[-1]} may not be the newest"
            )
            return WorkspaceError(what, self._ways_on("Bring it"))
        if noted > max(there, default=0):
            rest = f"the newest there is commit {there[-1]}" if there else "no commit is there"
            return WorkspaceError(
                f"commit {noted} is gone from {folder}: {rest}", self._ways_on(f"Bring {noted}.json")
            )
        return None

    def _ways_on(self, bring: str) -> str:
        """Say how to go on if a file of the history is missing or damaged."""
        last = self._last_readable()
        without = f"go on from commit {last.id} without it: vlltr rollback {last.id}" if last.id else _ANEW
        return f"{bring} back from a backup, or {without}"

    def _last_readable(self) -> Commit:
        """Return the newest commit that can be read, or `NOTHING`."""
        found = (self._parsed(commit_id) for commit_id in reversed(self._there()))
        return next((commit for commit in found if isinstance(commit, Commit)), NOTHING)

    def newer_than(self, commit_id: int) -> bool:
        """Say whether there is a commit newer than `commit_id`, by two file look-ups and no listing."""
        return (self._noted() or 0) > commit_id or (
            commit_id > 0 and not self._storage.exists(self._name(commit_id))
        )

    def last(self) -> Commit:
        """Return the newest commit, or `NOTHING` if nothing has been committed.

        Raises:
            WorkspaceError: If the history is not whole, or the commit's file is damaged.
        """
        ids = self.ids()
        return self.read(ids[-1]) if ids else NOTHING

    def list(self) -> Sequence[Commit]:
        """Return all commits, oldest first.

        Raises:
            WorkspaceError: If the history is not whole, or a commit's file is damaged.
        """
        commits, wrong = self.look()
        for error in wrong:
            raise error
        return commits

    def look(self) -> tuple[Sequence[Commit], Sequence[WorkspaceError]]:
        """Return the commits that can be read, oldest first, and what is wrong with the history.

        Raises:
            WorkspaceError: If nothing of the history can be read.
        """
        noted = self._noted()
        there = self._there()
        found = {commit_id: self._parsed(commit_id) for commit_id in there}
        commits = [commit for commit in found.values() if isinstance(commit, Commit)]
        wrong = [self._damaged(n, why) for n, why in found.items() if isinstance(why, str)]
        missing = self._missing(noted, there)
        if missing is not None:
            wrong.append(missing)
        if wrong and not commits:
            raise wrong[0]
        return commits, wrong

    def read(self, commit_id: int) -> Commit:
        """Read one commit.

        Raises:
            WorkspaceError: If there is no such commit, or its file is damaged.
        """
        commit = self._parsed(commit_id)
        if commit is None:
            ids = self.ids()
            known = f"there are {ids[0]} to {ids[-1]}" if ids else "nothing has been committed yet"
            raise WorkspaceError(
                f"there is no commit {commit_id}; {known}", "See which commits there are: vlltr history"
            )
        if isinstance(commit, str):
            raise self._damaged(commit_id, commit)
        return commit

    def _parsed(self, commit_id: int) -> Commit | str | None:
        """Read a commit; return a text that says what is wrong with its file, or None if there is no file.

        Raises:
            WorkspaceError: It is in another format.
        """
        file = self._name(commit_id)
        try:
            said = json.loads(self._storage.read(file))
            if not isinstance(said, dict) or said.pop("digest", None) != digest_json(said):
                return "it is not the file that was written"
        except FileNotFoundError:
            return None
        except OSError as error:
            return str(error)
        except (ValueError, RecursionError) as error:
            return f"Invalid JSON: {error}"
        if said.get("format") != FORMAT:
            raise another_format(self._storage.at(file), said.get("format"), said.get("program_version"))
        try:
            commit = Commit.model_validate_json(json.dumps(said))
        except ValidationError as error:
            first = error.errors()[0]
            return f"{'.'.join(map(str, first['loc'])) or '(top)'}: {first['msg']}"
        return commit if commit.id == commit_id else f"it says it is commit {commit.id}"

    def _damaged(self, commit_id: int, why: str) -> WorkspaceError:
        return WorkspaceError(
            f"{self._storage.at(self._name(commit_id))} is damaged: {why}", self._ways_on("Bring the file")
        )

    def remove(self, commit_id: int) -> None:
        """Delete a commit's file; what only it names may be removed then."""
        self._storage.remove(self._name(commit_id))

    def highest(self) -> int:
        """Return the highest number that a commit has, or is known to have had."""
        return max([self._noted() or 0, *self._there()])

    def set_aside(self) -> Sequence[int]:
        """Rename damaged commits to `<n>.json.damaged`, so that they are no longer read; return their numbers."""
        damaged = [commit_id for commit_id in self._there() if isinstance(self._parsed(commit_id), str)]
        for commit_id in damaged:
            self._storage.rename(self._name(commit_id), f"{self._name(commit_id)}.damaged")
        return damaged

    def append(self, commit: Commit) -> None:
        """Write the next commit; it and the tables that it names are durable when this returns.

        Raises:
            WorkspaceError: If a commit of that number exists, or something cannot be written.
        """
        values = commit.model_dump(mode="json")
        values["digest"] = digest_json(values)
        text = json.dumps(values, indent=1, ensure_ascii=False, sort_keys=True)
        try:
            self._storage.sync_tables(since=self._name(commit.parent) if commit.parent else None)
            self._storage.write(self._name(commit.id), f"{text}\n".encode(), new=True)
        except FileExistsError:
            raise WorkspaceError(
                f"commit {commit.id} exists already: another writer was here", "Run the command again."
            ) from None
        self.note_newest(commit)

    def note_newest(self, commit: Commit) -> None:
        """Write the newest commit's number to `history/newest`, unless it is there already."""
        if self._noted() == commit.id:
            return
        try:
            self._note(commit.id)
        except (OSError, WorkspaceError) as error:  # not fatal, since the commit is made
            _log.warning("%s was not written: %s", self._storage.at(NEWEST), error)


class Snapshot:
    """Committed tables as of one commit; later writers do not change them.

    Attributes:
        store: The tables, for the vectors: those are caches outside the commits.
        commit: The commit; `NOTHING` where nothing has been committed.
        objects: The files that commits name.
        recipe: The workspace's; what the commit says of itself wins over it.
    """

    def __init__(
        self,
        store: Store,
        commit: Commit,
        objects: Objects,
        *,
        recipe: Recipe,
        reader: Reader,
    ) -> None:
        self.store = store
        self.commit = commit
        self.objects = objects
        self.recipe = recipe
        self._reader = reader
        self._classes: ClassTable | None = None
        self._checksums = dict(commit.checksums)

    def _version(self, name: str) -> int | None:
        """Return the version of a table to read, or None for the newest."""
        return self.commit.tables.get(name)

    def _check(self, name: str) -> None:
        """See that a table's rows are those that were written, all of them: damage may hide one from a condition."""
        if name in self._checksums:
            self.store.check(name, self._checksums[name], self._version(name))

    def has(self, name: str) -> bool:
        """Say whether the commit has that table.

        Raises:
            UsageError: If `name` is not the name of a committed table.
        """
        if name not in KEYS:
            raise UsageError(f"no committed table {name!r}; there are {', '.join(KEYS)}")
        return name in self.commit.tables

    def schema(self, name: str) -> pa.Schema:
        """Return a table's schema, also of a table that does not exist yet."""
        if not self.has(name) or name != CLASS_STATS:
            return COMMITTED.get(name) or class_stats(self.commit.info.dim)
        return self.store.schema(name, self._version(name))

    def table(self, name: str, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """Read a committed table's rows, in no particular order; no rows if it has not been written yet.

        Args:
            name: One of `schemas.tables.KEYS`.
            columns: Which, and in what order; default all.
            where: SQL condition; literals through `tables.quote`.

        Raises:
            WorkspaceError: If rows that have checksums are not those that were written.
        """
        if self.has(name):
            self._check(name)
            return self.store.read(name, columns, where, self._version(name))
        empty = self.schema(name).empty_table()
        return empty if columns is None else empty.select(list(columns))

    def scan(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        batch_rows: int = 1024,
    ) -> Iterator[pa.RecordBatch]:
        """Stream a committed table's rows, for tables that hold image bytes; errors as for `table`."""
        if self.has(name):
            self._check(name)
            yield from self.store.scan(
                name, columns, where, version=self._version(name), batch_rows=batch_rows
            )

    def full_text(self, name: str, column: str, words: str, where: str, limit: int) -> pa.Table:
        """Return the keys of a committed table's rows whose text has the words; see `Store.full_text`."""
        return self.store.full_text(
            name, column, words, key=KEYS[name], limit=limit, where=where, version=self._version(name)
        )

    def count(self, name: str, where: str | None = None) -> int:
        """Count the rows of a committed table for which `where` holds, or all; errors as for `table`."""
        if not self.has(name):
            return 0
        self._check(name)
        return self.store.count(name, where, self._version(name))

    def class_table(self) -> ClassTable:
        """Return the classes by id, name and alias."""
        if self._classes is None:
            self._classes = ClassTable.from_arrow(self.answering("classes"))
        return self._classes

    def answering(self, name: str) -> pa.Table:
        """Return the rows of `classes`, `taxonomy` or `class_stats` that answers rest on."""
        return self.rows(name)

    # What a model is opened from.

    def rows(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of one of `parts.TABLES` that answers rest on, see `PartReader.rows`."""
        return self._reader.rows(self, name, columns)

    def vectors(self, name: str, keys: Tensor) -> Tensor:
        """Return the vectors of rows of `anchors` or `class_stats`, see `PartReader.vectors`."""
        return self._reader.vectors(self, name, keys)

    @property
    def record(self) -> ModelRecord:
        """What the commit's model is made of."""
        commit = self.commit
        return ModelRecord(
            commit=commit.id,
            first_commit=commit.state,
            encoder=commit.checkpoint or self.recipe.encoder,
            head=commit.head,
            parts=commit.parts,
            index=commit.own_index,
            text_fp=commit.text_fp,
            image_fp=commit.image_fp,
            reading=commit.info.reading.dim if commit.info.reading else 0,
            selection_id=commit.selection_id,
            fusion=commit.fusion or self.recipe.fusion,
            merged=commit.info.merged,
            offsets=commit.info.offsets,
        )


def sentence_numbers(snapshot: Snapshot, state: State, hashes: Sequence[str]) -> Tensor:
    """Read what a state's models make of texts, float32 [N, D + P]: the text tower's vectors and, if any, the readings.

    Raises:
        MissingStepError: A text has no vector.
    """
    names = [sentence_vectors_name(state.text_fp or "")]
    if state.info.reading:
        names.append(sentence_readings_name(state.info.reading.fp))
    parts = [snapshot.store.vectors(name, "text_hash", hashes) for name in names]
    if len(parts) == 1:
        return parts[0]  # there may be many
    import torch

    return torch.cat(parts, 1)


class Reader(Protocol):
    """What answers of a snapshot rest on; `parts.PartReader` says what each call returns and raises."""

    def rows(self, snapshot: Snapshot, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of one of `parts.TABLES`."""

    def vectors(self, snapshot: Snapshot, name: str, keys: Tensor) -> Tensor:
        """Return the vectors of some rows."""


class ModelSource(Protocol):
    """What a model is opened from: a snapshot, or an exported folder; nothing is written to it."""

    @property
    def record(self) -> ModelRecord:
        """What the model is made of."""

    @property
    def objects(self) -> Kept:
        """The objects that the record names."""

    def rows(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of one of `parts.TABLES`: the key and other columns, default all."""

    def vectors(self, name: str, keys: Tensor) -> Tensor:
        """Return the vectors of rows of `anchors`, float32, or `class_stats`, float64, by their keys, int64 [N]."""
