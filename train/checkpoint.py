"""State of an unfinished run, in one safetensors file that is either complete or missing."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlltr_index.data.writing import whole_file
from vlltr_index.errors import WorkspaceError, write_error

Log = list[dict[str, float]]
"""One entry for each epoch."""

STATE = "state.safetensors"
"""The file of a run's state, in the run's folder."""


def save_state(run_dir: Path | None, module: nn.Module, optimizer: torch.optim.Optimizer, log: Log) -> None:
    """Write the state of a run after an epoch; a kill at any moment leaves the old file or the new one.

    Without a folder nothing is written.

    Raises:
        WorkspaceError: The file cannot be written.
    """
    if run_dir is None:
        return
    path = run_dir / STATE
    learned = optimizer.state_dict()
    tensors = {f"module/{k}": v for k, v in module.state_dict().items()}
    for number, state in learned["state"].items():
        tensors |= {f"optimizer/{number}/{k}": torch.as_tensor(v) for k, v in state.items()}
    flat = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    facts = {"groups": json.dumps(learned["param_groups"]), "log": json.dumps(log)}
    try:
        with whole_file(path) as unfinished:
            save_file(flat, unfinished, metadata=facts)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from error


def load_state(run_dir: Path | None, module: nn.Module, optimizer: torch.optim.Optimizer, log: Log) -> int:
    """Restore the state that `save_state` wrote, in place; return how many epochs are done, 0 without a file.

    Raises:
        WorkspaceError: The file is damaged, or of another run.
    """
    if run_dir is None or not (run_dir / STATE).is_file():
        return 0
    try:
        with safe_open(run_dir / STATE, framework="pt") as file:
            facts = file.metadata()
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
        module.load_state_dict(
            {k.removeprefix("module/"): v for k, v in tensors.items() if k.startswith("module/")}
        )
        owners = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        learned = defaultdict[int, dict[str, Tensor]](dict)
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, number, name = key.split("/")
                own = owners[int(number)]
                if (
                    value.shape == own.shape
                ):  # take its memory layout: sums in another order are rounded differently
                    value = torch.empty_like(own, device="cpu", dtype=value.dtype).copy_(value)
                learned[int(number)][name] = value
        optimizer.load_state_dict({"state": dict(learned), "param_groups": json.loads(facts["groups"])})
        log[:] = json.loads(facts["log"])
    except Exception as error:
        raise WorkspaceError(
            f"the state of the unfinished run in {run_dir / STATE} cannot be used: {error}",
            "Start the run anew: the same command with --restart",
        ) from None
    return len(log)
