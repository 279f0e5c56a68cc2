"""The saved state of an unfinished run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vlltr_index.errors import WorkspaceError
from vlltr_index.train.checkpoint import load_state, save_state


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


def test_damage_is_told(tmp_path: Path) -> None:
    """Truncated and foreign files give an error that says how to start anew."""
    path = tmp_path / "s.safetensors"
    save_state(path, {"a": torch.zeros(4)}, {})
    for content in (path.read_bytes()[:-1], b"", b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(WorkspaceError, match=r"cannot be read.*\n.*--restart"):
            load_state(path)
