"""`python -m benchmarks.trust.kills`: kill -9 at random moments of each command of `workload`.

Each round starts from the workspace as it was before the command, kills the command once to three times in a row, and
looks: the workspace opens, and the commits that were there have their rows. Then the same command runs to its end: the
tables hold as many rows as after an undisturbed run, no unfinished file or folder is left, and `vlltr prune` leaves no
more files than it does there. Stopped, it goes on from the result file; `--restart` begins anew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.speed.harness import machine
from benchmarks.trust.power_cuts import Expected, digest, expected
from benchmarks.trust.workload import COMMANDS, FIRST, arguments, prepare
from vlltr_index.data.writing import SCRATCH
from vlltr_index.schemas.tables import KEYS
from vlltr_index.store.workspace import Workspace

RESULT = Path(__file__).parents[1] / "results" / "trust-kills.json"
_NAMED = re.compile(r"(_indices/|^parts/)[^/]+")  # anew each time
_YOUNG = 3.0  # seconds: what is younger is kept by prune
_MOST = 3  # kills of one command, one after the other
_SCRATCH = (SCRATCH, ".tmp", ".new-")  # LanceDB's own among them


@dataclass
class Found:
    """What the rounds of one command found.

    Attributes:
        seconds: How long it takes undisturbed.
        rounds: Rounds.
        kills: Times that it was killed.
        committed: Rounds after whose kills its commit was there.
        failures: What was lost, and the round.
    """

    seconds: float
    rounds: int = 0
    kills: int = 0
    committed: int = 0
    failures: dict[str, str] = field(default_factory=dict)


LOADED = (
    "lancedb",
    "open_clip",
    "torch",
    "benchmarks.trust.power_cuts",
    "vlltr_index.classes",
    "vlltr_index.cli.main",
    "vlltr_index.pipelines.embed",
    "vlltr_index.pipelines.train_lgr",
)
"""What the processes that commands run in have imported before they start."""

warnings.filterwarnings(
    "ignore", message="lancedb fork support"
)  # nothing is open in the process that is forked
_SERVER = multiprocessing.get_context("forkserver")


def run(folder: Path, command: Sequence[str]) -> None:
    """Run a command, quietly."""
    from vlltr_index.cli.main import main
    from vlltr_index.store import tables

    tables._MARGIN = timedelta(seconds=_YOUNG)
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    main(arguments(folder, command))


def start(folder: Path, command: Sequence[str]) -> Any:
    """Run a command in a process of its own."""
    process = _SERVER.Process(target=run, args=(folder, command))
    process.start()
    return process


def finish(folder: Path, command: Sequence[str]) -> int | None:
    """Run a command to its end; returns its exit code."""
    process = start(folder, command)
    process.join()
    code: int | None = process.exitcode
    return code


class Round:
    """One workspace in which one command is killed."""

    def __init__(self, before: Path, place: Path, command: Sequence[str], undisturbed: Path) -> None:
        shutil.copytree(before, place)
        self.folder, self.command, self.undisturbed = place, command, undisturbed
        self.workspace = place / "workspace"

    def kill(self, seconds: float) -> bool:
        """Start the command and kill it so long after; whether it was still running."""
        process = start(self.folder, self.command)
        process.join(seconds)
        process.kill()
        process.join()
        time.sleep(_YOUNG)
        return bool(process.exitcode == -signal.SIGKILL)

    def check(self, promised: Expected) -> bool:
        """See that what was committed before is there; whether the command's own commit is, too.

        Raises:
            Exception: If something is lost.
        """
        workspace = Workspace.open(self.workspace)
        commits = {commit.id: commit for commit in workspace.history.list()}
        if self.command[0] != "prune":
            for number, commit in promised.commits.items():
                assert commits.get(number) == commit, f"commit {number} is not there as it was"
        for number in promised.commits.keys() & commits.keys():
            for name, version in commits[number].tables.items():
                pruned = self.command[0] == "prune" and number != max(commits)
                if not pruned:
                    rows = digest(workspace.store.read(name, version=version))
                    assert rows == promised.rows[name, version], f"table {name} has other rows"
        return max(commits, default=0) > max(promised.commits, default=0)

    def complete(self, committed: bool) -> None:
        """Run the command to its end, unless it was done, and see that all is as after an undisturbed run.

        Raises:
            Exception: If it is not.
        """
        if not committed:
            code = finish(self.folder, self.command)
            assert code == 0, f"the same command again ended with {code}"
        with Workspace.open(self.workspace).transaction(
            "status"
        ):  # what the next command puts back and sweeps
            pass
        ours, theirs = Workspace.open(self.workspace), Workspace.open(self.undisturbed / "workspace")
        assert _counts(ours) == _counts(theirs), f"{_counts(ours)} rows, undisturbed {_counts(theirs)}"
        left = [path for path in self.workspace.rglob(".*") if _unfinished(path)]
        assert not left, f"left behind: {left[0].relative_to(self.workspace)}"

    def tidy(self) -> None:
        """Prune here and in a copy of the undisturbed workspace, and compare what is left.

        Raises:
            AssertionError: If there is more here.
        """
        other = self.folder / "undisturbed"
        shutil.copytree(self.undisturbed, other)
        time.sleep(_YOUNG)
        for place in (self.folder, other):
            assert finish(place, ("prune", "--keep", "1", "--yes")) == 0, "prune failed"
        more = _files(self.workspace) - _files(other / "workspace")
        assert not more, f"pruned, there are more files: {dict(more)}"


def _counts(workspace: Workspace) -> dict[str, int]:
    snapshot, store = workspace.snapshot(), workspace.store
    rows = {name: snapshot.count(name) for name in KEYS if snapshot.has(name)}
    return rows | {name: store.count(name) for name in store.names() if name not in KEYS}


def _unfinished(path: Path) -> bool:
    inside = "lance" in path.parts and ".lance" in str(path)  # LanceDB's are removed by prune
    return path.name.startswith(_SCRATCH) and not inside


def _files(folder: Path) -> Counter[str]:
    """Count the files of each folder; indices of tables, and parts, go without their names, which differ each time."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return Counter(_NAMED.sub(r"\1*", path.parent.as_posix()) for path in paths)


def run_command(number: int, place: Path, folder: Path, wanted: int, found: Found | None) -> Found:
    """The rounds of one command; `folder` holds the workspace before it, and afterwards the one after it."""
    command, before = COMMANDS[number], place / "before"
    shutil.rmtree(before, ignore_errors=True)
    shutil.copytree(folder, before)
    began = time.monotonic()
    assert finish(folder, command) == 0, f"vlltr {' '.join(command)} failed undisturbed"
    found = found or Found(round(time.monotonic() - began, 2))
    promised = expected(before / "workspace")
    while found.kills < wanted:
        chance, at = random.Random(f"{number} {found.rounds}"), place / f"round-{found.rounds}"
        one = Round(before, at, command, folder)
        committed, times = False, chance.randint(1, _MOST)
        try:
            for _ in range(times):
                if not committed:
                    found.kills += one.kill(chance.uniform(0, found.seconds))
                    committed = one.check(promised)
            one.complete(committed)
            one.tidy()
        except Exception as error:  # whatever a library raises: it is a failure
            found.failures[str(found.rounds)] = f"{type(error).__name__}: {error}"
        found.committed += committed
        found.rounds += 1
        shutil.rmtree(at, ignore_errors=True)
    return found


def main() -> None:
    """Kill, and write the result after each command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=18, help="Of each command; default: 18.")
    parser.add_argument("--restart", action="store_true", help="Forget what was found before.")
    parsed = parser.parse_args()
    _SERVER.set_forkserver_preload(list(LOADED))
    done: dict[str, Found] = {}
    if RESULT.exists() and not parsed.restart:
        kept = json.loads(RESULT.read_text(encoding="utf-8"))["commands"]
        done = {name: Found(**values) for name, values in kept.items()}
    with tempfile.TemporaryDirectory(prefix="vlltr-kills-") as scratch:
        folder = Path(scratch) / "work"
        folder.mkdir()
        prepare(folder)
        assert finish(folder, FIRST) == 0, "vlltr init failed"
        for number, command in list(enumerate(COMMANDS))[1:]:
            name = f"{number} {' '.join(command[:2])}"
            done[name] = run_command(number, Path(scratch), folder, parsed.kills, done.get(name))
            result = {
                "kills": sum(found.kills for found in done.values()),
                "failures": sum(len(found.failures) for found in done.values()),
                "commands": {name: asdict(found) for name, found in done.items()},
                "machine": machine(),
            }
            RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            found = done[name]
            sys.stdout.write(
                f"{name}: {found.kills} kills in {found.rounds} rounds, {found.committed} with its commit, "
                f"{len(found.failures)} failures {list(found.failures.values())[:2]}\n"
            )
            sys.stdout.flush()
    if result["failures"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
