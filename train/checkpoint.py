"""State of an unfinished run: one file that is either whole or not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from vlltr_index.errors import WorkspaceError, write_error
from vlltr_index.store.storage import sync_folder

Log = list[dict[str, float]]
"""One entry an epoch."""

STATE = "state.pt"
"""The file of a run's state, in the run's folder."""


def save_state(run_dir: Path, module: nn.Module, optimizer: torch.optim.Optimizer, log: Log) -> None:
    """Write what a run has learned after an epoch; a kill at any moment leaves the old file or the new one.

    Raises:
        WorkspaceError: If it cannot be written.
    """
    path = run_dir / STATE
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
            torch.save(state, file)
            os.fsync(file.fileno())
        os.replace(scratch, path)
        sync_folder(run_dir)
    except (OSError, RuntimeError) as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            scratch.unlink()


def load_state(run_dir: Path | None, module: nn.Module, optimizer: torch.optim.Optimizer, log: Log) -> int:
    """Put back what `save_state` wrote, in place; how many epochs are done, none where there is nothing.

    Raises:
        WorkspaceError: If the file is damaged or of another run.
    """
    if run_dir is None or not (run_dir / STATE).is_file():
        return 0
    try:
        state = torch.load(run_dir / STATE, map_location="cpu", weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        log[:] = state["log"]
    except Exception as error:
        raise WorkspaceError(
            f"the state of the unfinished run in {run_dir / STATE} cannot be used: {error}",
            "Start the run anew: the same command with --restart",
        ) from None
    return len(log)
