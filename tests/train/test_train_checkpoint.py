"""The saved state of an unfinished run."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from vlltr_index.errors import WorkspaceError
from vlltr_index.train.checkpoint import STATE, load_state, save_state


def learned(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A convolution after a step, in the memory layout of training."""
    torch.manual_seed(seed)
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # as in the loop
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    return module, optimizer


def test_weights_moments_and_log_come_back(tmp_path: Path) -> None:
    """In place; nothing else is left in the folder."""
    module, optimizer = learned(0)
    save_state(tmp_path / "run", module, optimizer, [{"loss": 1.0}])
    other, moments, log = *learned(1), list[dict[str, float]]()
    assert load_state(tmp_path / "run", other, moments, log) == 1
    assert log == [{"loss": 1.0}]
    assert all(torch.equal(other.state_dict()[k], v) for k, v in module.state_dict().items())
    for mine, its in zip(optimizer.state.values(), moments.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], its["exp_avg"])
        assert mine["exp_avg"].stride() == its["exp_avg"].stride()
    assert os.listdir(tmp_path / "run") == [STATE]
    assert load_state(tmp_path / "none", other, moments, log) == 0


def test_a_failed_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there before the rename stays readable."""
    save_state(tmp_path, *learned(0), [])
    before = (tmp_path / STATE).read_bytes()
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError("disk full")))
    with pytest.raises(WorkspaceError, match=rf"{STATE} cannot be written: disk full"):
        save_state(tmp_path, *learned(1), [])
    assert (tmp_path / STATE).read_bytes() == before
    assert os.listdir(tmp_path) == [STATE]


def test_damage_is_told(tmp_path: Path) -> None:
    """Truncated and foreign files give an error that says how to start anew."""
    save_state(tmp_path, *learned(0), [])
    for content in ((tmp_path / STATE).read_bytes()[:-100], b"", b"x" * 100):
        (tmp_path / STATE).write_bytes(content)
        with pytest.raises(WorkspaceError, match=r"cannot be used(?s:.)*--restart"):
            load_state(tmp_path, *learned(1), [])
