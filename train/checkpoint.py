"""State of an unfinished run: one safetensors file that is either whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlltr_index.errors import WorkspaceError, write_error
from vlltr_index.store.storage import sync_folder

__all__ = ["STATE", "load_state", "pack_optimizer", "save_state", "unpack_optimizer"]

STATE = "state.safetensors"
"""The file of a run's state, in the run's folder."""

_FORMAT = "1"


def save_state(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON facts into one file; a kill at any moment leaves the old file or the new one.

    Args:
        path: Where to write; its folder is made.
        tensors: Any tensors; copied to the CPU, contiguous.
        facts: Anything JSON holds.

    Raises:
        WorkspaceError: If it cannot be written.
    """
    flat = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(flat, scratch, metadata={"format": _FORMAT, "facts": json.dumps(facts, sort_keys=True)})
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            scratch.unlink()


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read what `save_state` wrote; None where there is nothing.

    Raises:
        WorkspaceError: If the file is damaged or of another format.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, this program reads {_FORMAT!r}")
            return {k: file.get_tensor(k) for k in file.keys()}, json.loads(header["facts"])  # noqa: SIM118 - not a dict
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise WorkspaceError(
            f"the state of the unfinished run in {path} cannot be read: {error}",
            "Start the run anew: the same command with --restart",
        ) from None


def pack_optimizer(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, such as `visual.weight/exp_avg`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in named.items()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `pack_optimizer` gave, onto each parameter's device and memory layout."""
    optimizer.state.clear()
    for full, value in tensors.items():
        name, key = full.rsplit("/", 1)
        parameter = named[name]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        optimizer.state[parameter][key] = value.to(parameter.device)
