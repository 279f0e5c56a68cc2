"""Two programs that add a class at the same time: both succeed, one after the other, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vlltr_index.recognizer import Recognizer
from vlltr_index.store.workspace import Workspace


def start(workspace: Workspace, name: str) -> subprocess.Popen[str]:
    """`vlltr classes add` as a process of its own."""
    told = ["--sentence", f"A {name} of two strokes.", "--sentence", f"The {name} is open to the left."]
    command = [sys.executable, "-m", "vlltr_index.cli", "-w", str(workspace.path), "--json", "classes", "add"]
    env, pipe = {**os.environ, "OMP_NUM_THREADS": "1"}, subprocess.PIPE
    return subprocess.Popen([*command, name, *told], stdout=pipe, stderr=pipe, text=True, env=env)


def waits_for(process: subprocess.Popen[str]) -> str:
    """The line by which a process says that it waits."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("waiting for"):
            return line
    raise AssertionError("it did not wait")


@pytest.mark.slow
def test_two_additions_at_once(trained: Workspace) -> None:
    """Both wait for a third writer, then each gets a number of its own, and all rows of both are there."""
    before = trained.snapshot()
    with trained.transaction("select"):
        processes = [start(trained, name) for name in ("zigzag", "spiral")]
        said = [waits_for(process) for process in processes]
    assert all(line.startswith(f"waiting for `vlltr select` (process {os.getpid()} on ") for line in said)
    answers = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    added = [json.loads(out)["classes"][0] for out, _ in answers]
    first = before.commit.info.next["classes"]
    assert {one["class_id"] for one in added} == {first, first + 1}
    after = trained.snapshot()
    assert after.commit.id == before.commit.id + 2
    assert after.count("classes") == before.count("classes") + 2
    assert after.count("sentences") == before.count("sentences") + sum(one["sentences"] for one in added)
    anchors = after.table("anchors")
    assert len(set(anchors["anchor_key"].to_pylist())) == anchors.num_rows
    assert anchors["class_id"].to_pylist().count(first) == next(
        one["anchors"] for one in added if one["class_id"] == first
    )
    assert {"zigzag", "spiral"} <= set(Recognizer.open(trained).names.values())
