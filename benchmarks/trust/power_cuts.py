"""`python -m benchmarks.trust.power_cuts`: cut the power at every moment of the commands of `workload`.

What the commands ask of the file system is recorded once. Then, after each of it, the folder is made that a power cut
could leave there, in four ways (see `disk.VARIANTS`), and looked at in this one process: the workspace opens, its
history is whole, every commit that a command acknowledged is there with the rows that it had, the vectors that it rests
on and its head and index are those that were written, and a writer makes the next commit. A state that occurs again is
looked at once. Each case has a number; `--replay NUMBER` makes that folder again and leaves it to be looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.speed.harness import machine
from benchmarks.trust.disk import VARIANTS, Disk, Operation, State, operations, record
from benchmarks.trust.workload import COMMANDS, prepare
from vlltr_index.schemas.tables import KEYS, image_vectors_name, sentence_vectors_name
from vlltr_index.store.snapshot import Commit
from vlltr_index.store.workspace import Workspace

RESULT = Path(__file__).parents[1] / "results" / "trust-power_cuts.json"
_DONE = "acknowledged"
_EACH = 10  # of so many states one is written to


@dataclass
class Expected:
    """What must be there from a command's end on.

    Attributes:
        commits: The commits that are kept, by number.
        rows: Digest of the rows of each table at each commit.
        vectors: The keys and vectors of each vector table, as digests of its rows by key.
    """

    commits: dict[int, Commit] = field(default_factory=dict)
    rows: dict[tuple[str, int], str] = field(default_factory=dict)
    vectors: dict[str, dict[str, bytes]] = field(default_factory=dict)


def digest(rows: pa.Table) -> str:
    """A digest of rows, in whatever order."""
    columns = rows.column_names
    plain = sorted(json.dumps(row, default=repr, sort_keys=True) for row in rows.select(columns).to_pylist())
    return hashlib.sha256("\n".join(plain).encode()).hexdigest()


def expected(folder: Path) -> Expected:
    """What a workspace that nothing happened to holds."""
    workspace, found = Workspace.open(folder), Expected()
    for commit in workspace.history.list():
        found.commits[commit.id] = commit
        for name, version in commit.tables.items():
            found.rows[name, version] = digest(workspace.snapshot(commit.id).table(name))
    for name in workspace.store.names():
        if name not in KEYS:
            found.vectors[name] = _vectors(workspace, name)
    return found


def _vectors(workspace: Workspace, name: str) -> dict[str, bytes]:
    rows = workspace.store.read(name)
    key = rows.column_names[0]
    vectors = rows["vector"].to_pylist()
    return dict(zip(rows[key].to_pylist(), (json.dumps(v).encode() for v in vectors), strict=True))


class Recording:
    """What the commands asked of the file system.

    Args:
        folder: Where it is kept: the folder that the commands work in, and `log` in it.
        program: A module that runs the commands when it is given the folder, and makes a folder in `acknowledged` after
            each.
    """

    def __init__(self, folder: Path, program: str = "benchmarks.trust.workload") -> None:
        self.folder, self._program = folder, program

    def make(self) -> None:
        """Run the commands."""
        record([sys.executable, "-m", self._program, str(self.folder)], self.folder / "log")

    def operations(self) -> list[Operation]:
        """All of them, in order."""
        return list(operations(self.folder / "log", self.folder))


def materialise(disk: Disk, state: State, was: State, place: Path) -> None:
    """Make `place`, which holds `was`, hold `state`."""
    for name in sorted(was.keys() - state.keys(), reverse=True):
        path = place / name
        if was[name] is None:
            path.rmdir()
        else:
            path.unlink()
    for name in sorted(state.keys() - was.keys() | {n for n in state if was.get(n, 0) != state[n]}):
        path, token = place / name, state[name]
        if token is None:
            path.mkdir(exist_ok=True)
        else:
            path.unlink(missing_ok=True)  # a copy of an earlier state may have the same file
            path.write_bytes(disk.content(token))


class Cuts:
    """The states that power cuts leave, one after the other, and what is found in them.

    Attributes:
        cases: How many were made.
        states: How many of these differed.
        written: How many were written to.
        failures: Number of each case in which something was lost, and what.
    """

    def __init__(self, recording: Recording, scratch: Path) -> None:
        self.cases = 0
        self.states = 0
        self.written = 0
        self.failures: dict[int, str] = {}
        self._recording, self._scratch = recording, scratch
        self._promised = Expected()  # by the commands that have ended, but for what the next one gives up
        self._workspace = False  # whether a command has ended
        self._sound: set[object] = set()  # tables that were read, and found to be right

    def run(self, say: Any, steps: Sequence[Operation] | None = None) -> None:
        """Look at every case; `steps` stands for what was recorded."""
        steps = self._recording.operations() if steps is None else steps
        promises = list(self._promises(steps))
        disk, seen = Disk(_DONE), set[object]()
        place, was = self._scratch / "disk", State()
        place.mkdir()
        for number, step in enumerate(steps):
            disk.apply(step)
            if _ends(step):
                self._promised, self._workspace = promises.pop(0), True
                kept = promises[0].commits if promises else self._promised.commits
                self._promised.commits = {n: c for n, c in self._promised.commits.items() if n in kept}
                say(
                    f"{self.cases:>6} cases, {self.states:>6} states, {len(self.failures):>3} failures: {step.path}"
                )
            for at, variant in enumerate(VARIANTS):
                case = number * len(VARIANTS) + at
                state = _of_workspace(disk.after_a_cut(variant, case))
                self.cases += 1
                key = frozenset(state.items()), len(self._promised.commits)
                if key in seen:
                    continue
                seen.add(key)
                self.states += 1
                materialise(disk, state, was, place)
                was = state
                self._look(case, place, state)

    def _promises(self, steps: Sequence[Operation]) -> Iterator[Expected]:
        """What is there after each command, where all that was asked for was done."""
        disk, place = Disk(_DONE), self._scratch / "orderly"
        for step in steps:
            disk.apply(step)
            if _ends(step):
                there = disk.after_a_cut("dropped", 0)
                state: State = {name: token and (*token[:2], "now") for name, token in there.items()}
                place.mkdir()
                materialise(disk, _of_workspace(state), State(), place)
                yield expected(place / "workspace")
                shutil.rmtree(place)

    def _look(self, case: int, place: Path, state: State) -> None:
        copy = self._scratch / f"case-{case}"
        _link(place, copy)
        try:
            self._check(case, copy / "workspace", state)
        except Exception as error:  # whatever a library raises: it is a failure
            self.failures[case] = f"{type(error).__name__}: {error}"
        shutil.rmtree(copy)

    def _check(self, case: int, folder: Path, state: State) -> None:
        """See that what was promised is there.

        Raises:
            Exception: If it is not.
        """
        if not self._workspace and not (folder / "vlltr.toml").exists():
            return
        workspace = Workspace.open(folder)
        commits, wrong = workspace.history.look()
        for error in wrong:
            raise error
        there, parts = {commit.id: commit for commit in commits}, _parts(state)
        for number, commit in self._promised.commits.items():
            assert there.get(number) == commit, f"commit {number} is not there as it was"
            for name, version in commit.tables.items():
                self._read(workspace, name, version, parts)
        for name in self._promised.vectors:
            self._read_vectors(workspace, name, parts)
        if commits:
            self._objects(workspace, commits[-1])
        if self.states % _EACH == 0:
            self._write(workspace)

    def _read(self, workspace: Workspace, name: str, version: int, parts: Mapping[str, object]) -> None:
        key = name, version, parts[name]
        if key not in self._sound:
            found = digest(workspace.store.read(name, version=version))
            assert found == self._promised.rows[name, version], f"table {name} has other rows at {version}"
            self._sound.add(key)

    def _read_vectors(self, workspace: Workspace, name: str, parts: Mapping[str, object]) -> None:
        vectors = self._promised.vectors[name]
        key = name, len(vectors), parts["synced.json"], parts[name]
        if key not in self._sound:
            found = _vectors(workspace, name)
            assert vectors.items() <= found.items(), f"vectors of {name} are gone or others"
            self._sound.add(key)

    def _objects(self, workspace: Workspace, commit: Commit) -> None:
        if commit.head:
            workspace.objects.whole("heads", commit.head)
        if commit.index:
            workspace.objects.whole("index", commit.index.digest)

    def _write(self, workspace: Workspace) -> None:
        """Make a commit, as the next command would."""
        self.written += 1
        before = workspace.history.last()
        with workspace.transaction("written after a cut") as tx:
            rows = tx.table("classes")
            now = {"class_id": 900, "name": "new", "aliases": [], "origin": "added", "created_at": "now"}
            tx.upsert("classes", pa.Table.from_pylist([now], schema=tx.schema("classes")))
            for fp, table in ((before.text_fp, sentence_vectors_name), (before.image_fp, image_vectors_name)):
                if fp is not None:
                    tx.store.create(table(fp), tx.store.schema(table(fp)))
        assert workspace.history.last().id == before.id + 1
        assert workspace.snapshot().count("classes") == rows.num_rows + 1


def _ends(step: Operation) -> bool:
    """Whether a command ended with it."""
    return step.kind == "mkdir" and step.path.startswith(f"{_DONE}/")


def _parts(state: State) -> dict[str, object]:
    """What is on the disk of each table, and of the list of those that are durable."""
    found, prefix = defaultdict[str, set[object]](set), "workspace/lance/"
    for name, token in state.items():
        if name.startswith(prefix):
            table, _, inner = name.removeprefix(prefix).partition("/")
            found[table.removesuffix(".lance")].add((inner, token))
    return {"synced.json": None} | {table: frozenset(items) for table, items in found.items()}


def _of_workspace(state: State) -> State:
    return {name: token for name, token in state.items() if not name.startswith(_DONE)}


def _link(place: Path, copy: Path) -> None:
    """A copy whose tables are the same files: LanceDB writes over none."""
    for folder, _, files in os.walk(place):
        target = copy / Path(folder).relative_to(place)
        target.mkdir()
        share = "lance" in target.parts
        for name in files:
            if share:
                os.link(f"{folder}/{name}", target / name)
            else:
                shutil.copyfile(f"{folder}/{name}", target / name)


def replay(recording: Recording, case: int, place: Path) -> None:
    """Make the folder of one case."""
    number, at = divmod(case, len(VARIANTS))
    disk = Disk(_DONE)
    for step in recording.operations()[: number + 1]:
        disk.apply(step)
    place.mkdir(parents=True)
    materialise(disk, _of_workspace(disk.after_a_cut(VARIANTS[at], case)), State(), place)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Record, cut, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="Keep the recording here; one that is there is used.")
    parser.add_argument(
        "--replay", type=int, metavar="NUMBER", help="Make the folder of one case, in FOLDER."
    )
    parsed = parser.parse_args()
    kept: Path | None = parsed.folder
    with tempfile.TemporaryDirectory(prefix="vlltr-cuts-", dir=_memory()) as scratch:
        recording = Recording((kept or Path(scratch) / "recording").absolute())
        if not (recording.folder / "log").exists():
            recording.folder.mkdir(parents=True)
            prepare(recording.folder)
            recording.make()
        if parsed.replay is not None:
            place = recording.folder / f"case-{parsed.replay}"
            replay(recording, parsed.replay, place)
            _say(f"{place / 'workspace'}")
            return
        started = time.monotonic()
        cuts = Cuts(recording, Path(scratch))
        cuts.run(_say)
    result = {
        "commands": [" ".join(command) for command in COMMANDS],
        "cases": cuts.cases,
        "states": cuts.states,
        "written_to": cuts.written,
        "failures": {str(case): why for case, why in cuts.failures.items()},
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": machine(),
    }
    RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    _say(f"{cuts.cases} cases, {cuts.states} states that differ, {len(cuts.failures)} failures")
    for case, why in list(cuts.failures.items())[:20]:
        _say(f"  case {case}: {why}")
    if cuts.failures:
        _say("Look at one: python -m benchmarks.trust.power_cuts --folder FOLDER --replay NUMBER")
        raise SystemExit(1)


def _memory() -> str | None:
    """A folder in memory, where there is one: files there need no disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    main()
