"""The commits: `history/<n>.json`, each written once, whole or not at all, and never changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.config import FORMAT, AugmentConfig, FusionConfig
from vlltr_index.store.storage import Storage

__all__ = ["NOTHING", "Commit", "History", "Info"]

_FOLDER = "history"
_HISTORY_HINT = "See which commits there are: vlltr history"

_Version = Annotated[int, Field(ge=1, lt=2**63)]
_Fingerprint = Annotated[str, Field(pattern="^[A-Za-z0-9_.-]+$")]  # part of a table's name

_Count = Annotated[int, Field(ge=0, lt=2**53)]  # every reader of JSON keeps it exactly


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Index(_Record):
    """The index over the anchors: its digest, and the text tower whose vectors it holds."""

    digest: str = Field(min_length=1)
    kind: Literal["torch", "flat", "ivf", "hnsw"] | None = None
    text_fp: str | None = None


class Tuned(_Record):
    """A checkpoint whose visual tower stage 2 trained, and the one it started from; null: the recipe's weights."""

    checkpoint: str
    start: str | None


class Info(_Record):
    """What commands note for later ones; each commit hands it on to the next.

    Attributes:
        logit_scale: The scale of the encoder that made the vectors.
        dim: Width of the vectors.
        precision: Of the arithmetic that made the newest of them; tf32 is no part of their fingerprint.
        views: How many views of each training image have a vector.
        augment: How the augmented ones among them were made.
        select: The settings of the selection.
        lgr: The settings of the head.
        recipe: Name of the recipe that the head was trained by.
        protocol: Its protocol.
        tuned: What stage 2 made of the visual tower.
        merged: A class that was merged into another, to that one; no chains.
        next: By table, the first number that no row has, or ever had.
        baseline_fc: Digest of the image-only baseline's checkpoint.
        baselines: Digest of each other baseline by its name.
    """

    logit_scale: float | None = Field(default=None, gt=0)
    dim: int = Field(default=1, ge=1, le=2**20)
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    views: int = Field(default=1, ge=1, lt=2**53)
    augment: AugmentConfig | None = None
    select: dict[str, Any] | None = None
    lgr: dict[str, Any] | None = None
    recipe: str | None = None
    protocol: str | None = None
    tuned: Tuned | None = None
    merged: dict[_Count, _Count] = {}
    next: dict[str, _Count] = {}
    baseline_fc: str | None = None
    baselines: dict[str, str] = {}


class Commit(_Record):
    """What a workspace holds after one command.

    Attributes:
        format: The workspace format it was written in.
        id: 1, 2, 3 ...; 0 where nothing has been committed.
        parent: The commit before; null for the first.
        command: The command that made it, without `vlltr`.
        created_at: ISO 8601, UTC.
        program_version: The version of this program that wrote it.
        tables: The version of each committed table, tagged `c<id>`.
        text_fp: Fingerprint of the text tower whose vectors the commit uses.
        image_fp: Fingerprint of the visual tower.
        checkpoint: Digest of the stage 1 run that gave the encoder; null: the recipe's weights.
        head: Digest of the head.
        fusion: How both branches are put together.
        index: The index over the anchors.
        selection_id: The selection that the table `anchors` holds.
        state_of: The earlier commit whose state a rollback brought back; null: this commit's state is its own.
        info: Small facts that are handed on from commit to commit.
    """

    format: int = Field(default=FORMAT, ge=FORMAT, le=FORMAT)
    id: int = Field(ge=1)
    parent: int | None
    command: str
    created_at: str
    program_version: str
    tables: dict[str, _Version]
    text_fp: _Fingerprint | None = None
    image_fp: _Fingerprint | None = None
    checkpoint: str | None = None
    head: str | None = None
    fusion: FusionConfig | None = None
    index: Index | None = None
    selection_id: str | None = None
    state_of: int | None = None
    info: Info = Info()

    @property
    def state(self) -> int:
        """The commit that first held this state: itself, or the one that a rollback went back to."""
        return self.id if self.state_of is None else self.state_of

    @property
    def own_index(self) -> Index | None:
        """`index`; None where it was built over other vectors."""
        return self.index if self.index is not None and self.index.text_fp == self.text_fp else None

    @property
    def logit_scale(self) -> float:
        """The scale of the encoder that made the vectors.

        Raises:
            WorkspaceError: If the commit does not say it, though whatever embeds notes it.
        """
        if self.info.logit_scale is None:
            raise WorkspaceError(
                f"commit {self.id} is damaged: its info has no logit_scale, the encoder's scale",
                f"Bring {_FOLDER}/{self.id}.json back from a backup, or note it again: vlltr embed",
            )
        return self.info.logit_scale

    @property
    def untuned(self) -> str | None:
        """The checkpoint before stage 2 tuned its visual tower; `checkpoint` where it did not."""
        tuned = self.info.tuned
        return tuned.start if tuned is not None and tuned.checkpoint == self.checkpoint else self.checkpoint


# What a workspace holds before its first commit; never written, and so not held to what a file must say.
NOTHING = Commit.model_construct(id=0, parent=None, command="", created_at="", program_version="", tables={})


class History:
    """The commits below `history/`, oldest first."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def _name(self, commit_id: int) -> str:
        return f"{_FOLDER}/{commit_id}.json"

    def ids(self) -> Sequence[int]:
        """Numbers of all commits, ascending."""
        stems = [n.removesuffix(".json") for n in self._storage.names(_FOLDER) if n.endswith(".json")]
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())

    def newer_than(self, commit_id: int) -> bool:
        """Whether commit `commit_id` is no longer the newest: two looks at the folder, no listing."""
        there = self._storage.exists
        return there(self._name(commit_id + 1)) or (commit_id > 0 and not there(self._name(commit_id)))

    def last(self) -> Commit:
        """The newest commit; `NOTHING` where nothing has been committed.

        Raises:
            WorkspaceError: If its file is damaged.
        """
        ids = self.ids()
        return self.read(ids[-1]) if ids else NOTHING

    def list(self) -> Sequence[Commit]:
        """All commits, oldest first."""
        return [self.read(i) for i in self.ids()]

    def read(self, commit_id: int) -> Commit:
        """One commit.

        Raises:
            WorkspaceError: If there is no such commit, or its file is damaged.
        """
        try:
            values = json.loads(self._storage.read(self._name(commit_id)).decode("utf-8"))
            if not isinstance(values, dict):
                raise ValueError("not a JSON object")
        except FileNotFoundError:
            ids = self.ids()
            known = f"there are {ids[0]} to {ids[-1]}" if ids else "nothing has been committed yet"
            raise WorkspaceError(f"there is no commit {commit_id}; {known}", _HISTORY_HINT) from None
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(commit_id, str(error)) from None
        try:
            commit = Commit.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "(top)"
            raise self._damaged(commit_id, f"{where}: {first['msg']}") from None
        if commit.id != commit_id:
            raise self._damaged(commit_id, f"it says it is commit {commit.id}")
        return commit

    def _damaged(self, commit_id: int, why: str) -> WorkspaceError:
        hint = "Bring the file back from a backup."
        if commit_id == max(self.ids(), default=0):
            back = f"to commit {commit_id - 1}" if commit_id > 1 else "to an empty workspace"
            hint += f" To go back {back} and lose what this one added, delete it."
        return WorkspaceError(f"{self._storage.at(self._name(commit_id))} is damaged: {why}", hint)

    def remove(self, commit_id: int) -> None:
        """Give a commit up: what only it names may be removed."""
        self._storage.remove(self._name(commit_id))

    def append(self, commit: Commit) -> None:
        """Write the next commit: durable when this returns; never over one that is there.

        Raises:
            WorkspaceError: If a commit of that number exists.
        """
        values = commit.model_dump(mode="json")
        text = json.dumps(values, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        try:
            self._storage.write(self._name(commit.id), text.encode("utf-8"), new=True)
        except FileExistsError:
            raise WorkspaceError(
                f"commit {commit.id} exists already: another writer was here", "Run the command again."
            ) from None
