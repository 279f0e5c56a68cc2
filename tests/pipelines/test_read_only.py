"""Workspaces that cannot be written: results are shown all the same, and nothing is trained in vain."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from tests.support.commands import run
from vlltr_index.errors import WorkspaceError
from vlltr_index.pipelines.train_baseline import train_baseline_stage
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.store.storage import Storage
from vlltr_index.store.workspace import Workspace

HINT = "Free some space, mend its permissions, or work on a copy of the workspace."


def test_an_evaluation_that_cannot_be_kept(
    trained: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is shown, and a warning says why it was not kept."""
    refused = OSError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(Storage, "write", Mock(side_effect=refused))
    with caplog.at_level(logging.WARNING):
        code, out, _ = run(capsys, "-w", trained.path, "-q", "evaluate")
    newest = trained.history.ids()[-1]
    file = trained.path / "reports" / f"evaluate-test-{newest}.json"
    assert code == 0
    assert "text branch" in out
    assert [record.getMessage() for record in caplog.records] == [
        f"this evaluation could not be kept in {file}: Permission denied"
    ]


RUNS: dict[str, Callable[[Workspace], object]] = {
    "train lgr": lambda workspace: train_lgr_stage(workspace, workspace.recipe.lgr),
    "train cvlp": lambda workspace: train_cvlp_stage(workspace, workspace.recipe.cvlp),
    "train baseline": lambda workspace: train_baseline_stage(workspace, workspace.recipe.baseline),
}


@pytest.mark.parametrize("what", list(RUNS))
def test_runs_that_cannot_keep_their_state(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """They are refused before anything is read or trained."""
    for late in (
        "vlltr_index.pipelines.training.stage_one_data",
        "vlltr_index.pipelines.train_lgr.read_anchors",
    ):
        monkeypatch.setattr(late, None)
    folder = trained.path / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the way")
    with pytest.raises(WorkspaceError) as error:
        RUNS[what](trained)
    assert error.value.message.startswith(f"{folder} cannot be written: [Errno {errno.EEXIST}] ")
    assert error.value.hint == HINT
