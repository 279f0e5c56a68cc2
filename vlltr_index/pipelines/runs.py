"""One training run over a workspace: it reads a snapshot, trains without the workspace's lock, and commits at its end.

Of several processes the first prepares and commits; all of them train.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlltr_index.embedding.loading import run_folder, usable_images
from vlltr_index.errors import WorkspaceError
from vlltr_index.pipelines.training import TrainingSet, class_texts, training_set
from vlltr_index.store.storage import write_lock
from vlltr_index.train.distributed import by_first, first_then_all, meet, own_part
from vlltr_index.wording import many, some

if TYPE_CHECKING:
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_LOCK = "lock"

T = TypeVar("T")

Facts = Callable[["Snapshot"], Mapping[str, Any]]
"""What a run depends on besides the training split, by a name for people; compared when it commits."""


@dataclass
class TrainingRun:
    """A run in its folder.

    Attributes:
        command: What the commit will say was run.
        snapshot: What the run reads.
        data: Its training split.
        folder: Where its state is kept until the commit.
        resumed: Whether there was a state from before.
    """

    workspace: Workspace
    command: str
    snapshot: Snapshot
    data: TrainingSet
    folder: Path
    resumed: bool
    facts: Mapping[str, Any]
    facts_of: Facts | None = field(repr=False, default=None)

    def commit(self, write: Callable[[Transaction], T]) -> T:
        """Let the first process `write` the result, in one transaction; all get what `write` gives.

        Raises:
            WorkspaceError: If what the run was trained on has changed since; nothing is committed then, and the run's
                folder stays.
        """

        def first() -> T:
            with self.workspace.transaction(self.command) as tx:
                if tx.commit.id != self.snapshot.commit.id:
                    self._check(tx)
                result = write(tx)
            shutil.rmtree(self.folder, ignore_errors=True)  # only now that the commit is there
            return result

        return by_first(first)

    def _check(self, now: Snapshot) -> None:
        changes = _changes(self.data, self.snapshot, now)
        if self.facts_of is not None:
            changes += differences(self.facts, self.facts_of(now))
        refuse(
            self.command,
            changes,
            f" The finished run is kept in {self.folder}: once the change is undone, the same command commits it"
            " without training.",
        )


@contextmanager
def training_run(
    workspace: Workspace,
    command: str,
    batch_size: int,
    resume: bool,
    key: Callable[[Snapshot, TrainingSet], str],
    with_texts: bool = True,
    facts: Facts | None = None,
) -> Iterator[TrainingRun]:
    """Prepare a run, and keep others from the same one while it trains; the workspace itself stays open to writers.

    Args:
        workspace: What it trains on.
        command: For the commit, and for others who wait.
        batch_size: The global batch.
        resume: Whether the state of an interrupted run is kept.
        key: Names the run's folder after all it depends on.
        with_texts: Whether it trains on the sentences too.
        facts: What else must not change until it commits.

    Raises:
        MissingStepError: As `training_set`.
        ConfigError: If the batch cannot be shared out among the processes.
        LockedError: If another process trains the same run.
        WorkspaceError: If the workspace cannot be written.
    """
    meet()
    first_then_all(lambda: run_folder(workspace))
    snapshot = newest_snapshot(workspace)

    def read() -> tuple[TrainingSet, Path, Mapping[str, Any]]:
        data = training_set(snapshot, with_texts)
        own_part(batch_size)
        known = facts(snapshot) if facts is not None else {}
        return data, run_folder(workspace, key(snapshot, data)), known

    data, folder, known = first_then_all(read)
    with ExitStack() as held:

        def start() -> bool:
            return held.enter_context(held_folder(folder, command, resume))

        resumed = by_first(start)
        yield TrainingRun(workspace, command, snapshot, data, folder, resumed, known, facts)


@contextmanager
def held_folder(folder: Path, command: str, resume: bool) -> Iterator[bool]:
    """Keep others from the run in `folder`; whether there is a state to go on from, which is removed without `resume`.

    Raises:
        LockedError: If another process trains the same run.
    """
    with write_lock(folder / _LOCK, command, timeout=0):
        yield _prepare(folder, resume)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which facts are others now, in words."""
    return [f"{name} changed" for name, value in before.items() if now.get(name) != value]


def refuse(command: str, changes: Sequence[str], kept: str = "") -> None:
    """Refuse to commit what was trained on something else than what is there now.

    Raises:
        WorkspaceError: If there are changes.
    """
    if changes:
        raise WorkspaceError(
            f"{command}: what it was trained on changed meanwhile: {'; '.join(changes)}. Nothing was committed",
            f"Run the same command again to train on what is there now.{kept}",
        )


def newest_snapshot(workspace: Workspace) -> Snapshot:
    """The newest commit, the same one in all processes."""
    number = by_first(lambda: workspace.history.last().id)
    return workspace.snapshot(number or None)


def _prepare(folder: Path, resume: bool) -> bool:
    """Empty the folder unless the run goes on; whether there is something to go on from."""
    there = [path for path in folder.iterdir() if path.name not in (_LOCK, f"{_LOCK}.json")]  # who trains it
    if resume:
        return bool(there)
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return False


def _changes(data: TrainingSet, before: Snapshot, now: Snapshot) -> list[str]:
    """What is different in the training split, in words."""
    ids = data.class_ids[data.labels].tolist()
    old = dict(zip(data.image_ids, ids, strict=True))
    rows = usable_images(now, "train", [])
    new = dict(zip(rows["image_id"].to_pylist(), rows["class_id"].to_pylist(), strict=True))
    moved = sum(new[image] != owner for image, owner in old.items() if image in new)
    counts = ((len(new.keys() - old.keys()), "came"), (len(old.keys() - new.keys()), "left"))
    changes = [f"{many(n, 'training image')} {what}" for n, what in (*counts, (moved, "changed class")) if n]
    if data.texts:
        texts = class_texts(now, data.class_ids.tolist())
        told = [i for i, was in zip(data.class_ids.tolist(), data.texts, strict=True) if texts[i] != was]
        if told:
            names = before.class_table().names
            changes.append(f"the sentences of {some(names[i] for i in told)} changed")
    return changes
