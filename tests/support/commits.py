"""What the tests of commits share: a commit's state, a command's output, and an end as that of a killed process."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from vlltr_index.cli.main import vlltr
from vlltr_index.schemas.fingerprint import digest_json
from vlltr_index.schemas.tables import KEYS
from vlltr_index.store.snapshot import Commit
from vlltr_index.store.tables import Store
from vlltr_index.store.transaction import put_back
from vlltr_index.store.workspace import Workspace


def commit(number: int, command: str = "embed", **fields: Any) -> Commit:
    """Commit `number` of a straight line."""
    facts = {"created_at": "2026-01-01T00:00:00+00:00", "program_version": "0", "tables": {}, **fields}
    return Commit.model_validate({"id": number, "parent": number - 1 or None, "command": command, **facts})


def amend(workspace: Workspace, number: int | None = None, **fields: object) -> None:
    """Rewrite some fields of a commit's file, by default the newest one's, with the digest that belongs to them."""
    path = workspace.path / "history" / f"{number or max(workspace.history.ids())}.json"
    said = {**json.loads(path.read_text(encoding="utf-8")), **fields}
    del said["digest"]
    path.write_text(json.dumps({**said, "digest": digest_json(said)}), encoding="utf-8")


def name_table(workspace: Workspace, table: str, number: int | None = None, **fields: object) -> None:
    """Have a commit, by default the newest, name what is in a table now."""
    tables = workspace.history.read(number or max(workspace.history.ids())).tables
    amend(workspace, number, tables={**tables, table: workspace.store.version(table)}, **fields)


def state(workspace: Workspace, at: int | None = None) -> dict[str, object]:
    """All rows and fields of a commit, but not its number, its command and its counters."""
    snapshot = workspace.snapshot(at)
    tables = {n: snapshot.table(n).sort_by(KEYS[n]).to_pylist() for n in KEYS if snapshot.count(n)}
    left_out = {"id", "parent", "command", "created_at", "tables", "checksums", "state_of", "info", "format"}
    info = snapshot.commit.info.model_dump(exclude={"next"})
    return {**tables, **snapshot.commit.model_dump(exclude=left_out), "info": info}


def work(workspace: Workspace, at: int) -> dict[str, object]:
    """The command and state of a commit, without what two runs differ in: times, speeds, and digests of both."""
    found = state(workspace, at)
    classes = [{**row, "created_at": None} for row in workspace.snapshot(at).table("classes").to_pylist()]
    command = workspace.history.read(at).command
    return {**found, "classes": classes, "parts": None, "checkpoint": None, "command": command}


def run(workspace: Workspace, *arguments: str, answer: str | None = None, code: int = 0) -> str:
    """Standard output of one command."""
    result = CliRunner().invoke(vlltr, ["-w", str(workspace.path), *arguments], input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def killed(patch: pytest.MonkeyPatch) -> None:
    """Let the next transaction put back what others left, but not, at its end, what it leaves itself: as if killed."""
    once = iter([put_back])

    def first_time(store: Store, last: Commit, force: bool = False) -> list[str]:
        for call in once:
            return call(store, last, force)
        return []

    patch.setattr("vlltr_index.store.transaction.put_back", first_time)
