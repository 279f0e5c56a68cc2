"""An addition that is killed leaves the workspace as before or as after, never between."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.changes import World, state
from tests.support.killed import add_until, moments, okapi
from vlltr_index.classes import add_classes
from vlltr_index.recognition.model import Model
from vlltr_index.store.workspace import Workspace

Undisturbed = tuple[dict[str, object], dict[str, object], int]


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The states before and after an undisturbed addition, and the number of its moments."""
    whole = Workspace.open(shutil.copytree(world.folder, tmp_path_factory.mktemp("killed") / "whole"))
    before, passed = state(whole), list[int]()
    with moments(passed.append):
        add_classes(whole, [okapi(Path(world.pictures[0]))])
    assert len(passed) > 20
    return before, state(whole), len(passed)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.7, 1.0])
def test_kill_9(undisturbed: Undisturbed, world: World, tmp_path: Path, share: float) -> None:
    """A process of its own, killed by SIGKILL: early, among the tags, and just after its commit.

    Before its commit nothing is seen of the addition, and it can be made; after it, it is there.
    """
    before, after, number = undisturbed
    path, picture = Path(shutil.copytree(world.folder, tmp_path / "killed")), Path(world.pictures[0])
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=add_until, args=(path, picture, round(share * (number - 1))))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    workspace = Workspace.open(path)
    assert state(workspace) == (after if share == 1.0 else before)
    Model.open(workspace.snapshot())
    if share < 1.0:
        add_classes(workspace, [okapi(picture)])
        assert state(workspace) == after
