"""Workspaces that cannot be written: results are shown all the same, and nothing is trained in vain."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable

import pytest

from tests.commands import run
from vlltr_index.errors import WorkspaceError
from vlltr_index.recipe import override
from vlltr_index.stages.baselines import train_baseline_stage
from vlltr_index.stages.train_cvlp import train_cvlp_stage
from vlltr_index.stages.train_lgr import train_lgr_stage
from vlltr_index.storage import Storage
from vlltr_index.workspace import Workspace

HINT = "Free some space, mend its permissions, or work on a copy of the workspace."


def refuse(error: OSError) -> Callable[..., None]:
    """A function that fails as the system does."""

    def refusing(*arguments: object, **options: object) -> None:
        raise error

    return refusing


def test_an_evaluation_that_cannot_be_kept(
    trained: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is shown, and a warning says why it was not kept."""
    monkeypatch.setattr(Storage, "write", refuse(OSError(errno.EACCES, os.strerror(errno.EACCES))))
    with caplog.at_level(logging.WARNING):
        code, out, _ = run(capsys, "-w", trained.path, "-q", "evaluate", "--bootstrap", "10")
    newest = trained.history.ids()[-1]
    file = trained.path / "reports" / f"evaluate-test-{newest}.json"
    assert code == 0
    assert "text branch" in out
    assert [record.getMessage() for record in caplog.records] == [
        f"this evaluation could not be kept in {file}: [Errno 13] Permission denied"
    ]


RUNS: dict[str, Callable[[Workspace], object]] = {
    "train lgr": lambda workspace: train_lgr_stage(workspace, workspace.recipe.lgr),
    "train lgr, visual": lambda workspace: train_lgr_stage(
        workspace, override(workspace.recipe, ("lgr.tune=visual",)).lgr
    ),
    "train cvlp": lambda workspace: train_cvlp_stage(workspace, workspace.recipe.cvlp),
    "train baseline": lambda workspace: train_baseline_stage(workspace, workspace.recipe.baseline),
}


@pytest.mark.parametrize("what", list(RUNS))
def test_runs_that_cannot_keep_their_state(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """They are refused before anything is read or trained."""
    monkeypatch.setattr("vlltr_index.stages.runs.training_set", refuse(OSError("too late")))
    monkeypatch.setattr("vlltr_index.stages.train_lgr.load_bank", refuse(OSError("too late")))
    folder = trained.path / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the way")
    with pytest.raises(WorkspaceError) as error:
        RUNS[what](trained)
    assert error.value.message.startswith(f"{folder} cannot be written: [Errno {errno.EEXIST}] ")
    assert error.value.hint == HINT


def test_a_run_on_a_read_only_disk(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is there, and cannot be written."""
    error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr("vlltr_index.loading.tempfile.TemporaryFile", refuse(error))
    with pytest.raises(WorkspaceError) as refused:
        train_lgr_stage(trained, trained.recipe.lgr)
    assert str(refused.value) == (
        f"{trained.path / 'runs'} cannot be written: [Errno 30] Read-only file system\n{HINT}"
    )
