"""Training on several machines as `torchrun --nnodes` starts it: two nodes here, over one machine's loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import drawings
import torch
from safetensors.torch import load_file

from vlltr_index.stages.train_cvlp import train_cvlp_stage
from vlltr_index.workspace import Workspace

SETTINGS = ("cvlp.epochs=1", "cvlp.batch_size=28", "cvlp.precision=fp32", "cvlp.batch_norm=eval")


def node(path: Path, endpoint: str) -> subprocess.Popen[str]:
    """One node with one process, as docs/howto.md starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-id", "test", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    command += [
        "--local-addr",
        "127.0.0.1",
        "-m",
        "vlltr_index.cli",
        "-w",
        str(path),
        "--json",
        "train",
        "cvlp",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def checkpoint(workspace: Workspace) -> Path:
    """The folder of the newest commit's encoder."""
    commit = workspace.history.last()
    assert commit is not None
    assert commit.checkpoint is not None
    return workspace.object_path("checkpoints", commit.checkpoint)


def test_two_nodes_train_as_one_process(tmp_path: Path) -> None:
    """Both end well, one commits and alone talks, and the weights are those of one process within 0.1 %."""
    alone, shared = (drawings.workspace(tmp_path / name, *SETTINGS) for name in ("alone", "shared"))
    train_cvlp_stage(alone, alone.recipe.cvlp)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = [node(shared.path, endpoint) for _ in range(2)]
    ends = [process.communicate(timeout=600) for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], ends
    said = [out for out, _ in ends if out.strip()]
    commit = shared.history.last()
    assert commit is not None
    assert len(said) == 1
    assert json.loads(said[0])["digest"] == commit.checkpoint
    found, expected = (
        {k: v for f in sorted(checkpoint(w).glob("*.safetensors")) for k, v in load_file(f).items()}
        for w in (shared, alone)
    )
    assert found.keys() == expected.keys()
    two, one = (torch.cat([t[k].double().flatten() for k in sorted(t)]) for t in (found, expected))
    assert float((two - one).norm() / one.norm()) < 1e-3
