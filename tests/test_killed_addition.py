"""An addition that is killed leaves the workspace as before or as after, never between."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.changes import World, state
from tests.killed import add_until, moments, okapi
from vlltr_index.classes import add_classes
from vlltr_index.scoring import load_scorer
from vlltr_index.workspace import Workspace


@dataclass(frozen=True)
class Case:
    """A workspace, the image of the class to add, and the states before and after an undisturbed addition."""

    folder: Path
    picture: Path
    before: dict[str, object]
    after: dict[str, object]
    moments: int

    def copy(self, name: str) -> Path:
        """A copy to be killed in."""
        return Path(shutil.copytree(self.folder, self.folder.parent / name))

    def check(self, path: Path, over: bool) -> None:
        """Before its commit nothing is seen of the addition, and it can be made; after it, it is there."""
        workspace = Workspace.open(path)
        assert state(workspace) == (self.after if over else self.before)
        load_scorer(workspace, workspace.snapshot())
        if not over:
            add_classes(workspace, [okapi(self.picture)])
            assert state(workspace) == self.after
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def case(world: World, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One undisturbed addition, its moments counted."""
    folder = tmp_path_factory.mktemp("killed")
    small = Path(shutil.copytree(world.folder, folder / "small"))
    whole = Workspace.open(shutil.copytree(world.folder, folder / "whole"))
    before, picture, passed = state(whole), Path(world.pictures[0]), list[int]()
    with moments(passed.append):
        add_classes(whole, [okapi(picture)])
    assert len(passed) > 20
    return Case(small, picture, before, state(whole), len(passed))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 1.0])
def test_kill_9(case: Case, share: float) -> None:
    """A process of its own, killed by SIGKILL: early, in the middle, among the tags, and just after its commit."""
    moment = round(share * (case.moments - 1))
    path = case.copy(f"killed-{moment}")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=add_until, args=(path, case.picture, moment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    case.check(path, over=share == 1.0)
