"""The saved state of an unfinished run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from vlltr_index.errors import WorkspaceError
from vlltr_index.train.checkpoint import load_state, pack_optimizer, save_state, unpack_optimizer


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    """Also those that share memory or are not contiguous; nothing else is left in the folder."""
    base = torch.arange(6.0).view(2, 3)
    save_state(
        tmp_path / "run" / "s.safetensors", {"a": base, "b": base.T, "c": torch.tensor(3)}, {"é": [1, None]}
    )
    found = load_state(tmp_path / "run" / "s.safetensors")
    assert found is not None
    tensors, facts = found
    assert facts == {"é": [1, None]}
    assert torch.equal(tensors["b"], base.T)
    assert int(tensors["c"]) == 3
    assert os.listdir(tmp_path / "run") == ["s.safetensors"]


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    """A run without a state starts from the beginning."""
    assert load_state(tmp_path / "s.safetensors") is None


def test_a_failed_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there before the rename stays readable."""
    path = tmp_path / "s.safetensors"
    save_state(path, {"a": torch.zeros(1)}, {"n": 1})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(WorkspaceError, match=r"s\.safetensors cannot be written: disk full"):
        save_state(path, {"a": torch.ones(1)}, {"n": 2})
    found = load_state(path)
    assert found is not None
    assert found[1] == {"n": 1}


@pytest.mark.parametrize("damage", [lambda b: b[:20], lambda b: b"", lambda b: b[:-1], lambda b: b"x" * 100])
def test_damage_is_told(tmp_path: Path, damage: object) -> None:
    """Truncated and foreign files give an error that says how to start anew."""
    path = tmp_path / "s.safetensors"
    save_state(path, {"a": torch.zeros(4)}, {})
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WorkspaceError, match=r"cannot be read.*\n.*--restart"):
        load_state(path)


def test_the_optimizer_goes_on_as_if_never_stopped() -> None:
    """Packed and unpacked into a fresh AdamW, channels-last weights included, the next step is the same to the bit."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 5, 5)

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()

    one, one_optimizer = make()
    step(one, one_optimizer)
    two, two_optimizer = make()
    two.load_state_dict(one.state_dict())
    packed = pack_optimizer(one_optimizer, dict(one.named_parameters()))
    unpack_optimizer(two_optimizer, dict(two.named_parameters()), {k: v.clone() for k, v in packed.items()})
    step(one, one_optimizer)
    step(two, two_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
