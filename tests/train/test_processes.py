"""Training with several processes, or on several machines: as one process would, and one end for all of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.support import drawings
from vlltr_index.cli.main import vlltr
from vlltr_index.errors import UsageError
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.schemas.recipes import override
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow
SETTINGS = ("cvlp.epochs=2", "cvlp.batch_size=28", "cvlp.precision=fp32", "cvlp.batch_norm=eval")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a few drawings, nothing trained."""
    return drawings.workspace(tmp_path_factory.mktemp("drawn"), *SETTINGS, *drawings.QUICK).path


def start(path: Path, *args: str) -> subprocess.Popen[str]:
    """`vlltr -w PATH --json ARGS` in a process group of its own."""
    command = [sys.executable, "-m", "vlltr_index.cli", "-w", str(path), "--json", *args]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )


def copy(path: Path, to: Path) -> Workspace:
    """A copy of a workspace."""
    return Workspace.open(shutil.copytree(path, to))


@pytest.fixture(scope="module")
def alone(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The drawings trained with one process."""
    workspace = copy(drawn, tmp_path_factory.mktemp("alone") / "workspace")
    train_cvlp_stage(workspace, workspace.recipe.cvlp)
    return workspace


def check_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """All weights within 1 % of their norm: together, since Adam's first steps move a weight of a nearly zero
    gradient by the sign of a rounding error.
    """
    assert found.keys() == expected.keys()
    two, one = (torch.cat([t[k].double().flatten() for k in sorted(t)]) for t in (found, expected))
    assert float((two - one).norm() / one.norm()) < 0.01


def log_of(workspace: Workspace) -> list[dict[str, float]]:
    """The log of the newest commit's stage 1."""
    commit = workspace.history.last()
    file = workspace.objects.path("checkpoints", str(commit.checkpoint)) / "train.json"
    log: list[dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))["log"]
    return log


def test_two_processes_give_one_processs_checkpoint(drawn: Path, alone: Workspace, tmp_path: Path) -> None:
    """`--processes 2`: losses within 0.2 %, and the same weights after four steps of Adam."""
    workspace = copy(drawn, tmp_path / "workspace")
    process = start(workspace.path, "train", "cvlp", "--processes", "2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    commit = workspace.history.last()
    before = alone.history.last()
    assert json.loads(out)["digest"] == commit.checkpoint
    assert (commit.command, commit.id) == ("train cvlp", before.id)
    assert err.count("epoch 1:") == 1
    assert not list((workspace.path / "runs").iterdir())
    for found, wanted in zip(log_of(workspace), log_of(alone), strict=True):
        for key in ("loss", "ccl", "text", "visual", "scale"):
            assert found[key] == pytest.approx(wanted[key], rel=2e-3), key
    check_near(drawings.trained_tensors(workspace), drawings.trained_tensors(alone))


def test_an_error_is_shown_once(drawn: Path, tmp_path: Path) -> None:
    """What is wrong for all processes is said once, with the exit code that one process would give."""
    workspace = copy(drawn, tmp_path / "workspace")
    process = start(workspace.path, "train", "cvlp", "--processes", "2", "--set", "cvlp.batch_size=27")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert out == ""
    assert err.splitlines() == [
        "Error: batch_size is global: 27 cannot be shared out evenly among 2 processes",
        "Use a multiple of 2, for example --set cvlp.batch_size=26",
    ]


def check_resumed(workspace: Workspace, setting: str) -> None:
    """One process goes on behind the first epoch, which has two steps."""

    def look(step: str, done: int, total: int | None) -> None:
        if step.startswith("train "):
            assert done > 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cvlp_stage(workspace, override(workspace.recipe, (setting,)).cvlp, look)


def test_ctrl_c_ends_all_and_any_number_goes_on(drawn: Path, tmp_path: Path) -> None:
    """Both processes end with the command, nothing is committed, and one process goes on from the last epoch."""
    workspace = copy(drawn, tmp_path / "workspace")
    before = workspace.history.last()
    process = start(workspace.path, "train", "cvlp", "--processes", "2", "--set", "cvlp.epochs=40")
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2:" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    rest = process.stderr.read()  # ends when no process of the group holds it any more
    assert process.wait(timeout=60) == 130
    assert rest.strip().splitlines()[-1] == "Stopped. Run the same command again to go on."
    assert "Traceback" not in rest
    assert workspace.history.last() == before
    check_resumed(workspace, "cvlp.epochs=40")


def test_one_that_was_killed_ends_all(drawn: Path, tmp_path: Path) -> None:
    """The error names it, without a traceback of the others, which lost it; the run can go on."""
    workspace = copy(drawn, tmp_path / "workspace")
    process = start(workspace.path, "train", "cvlp", "--processes", "2", "--set", "cvlp.epochs=400")
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2:" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    second = [p for p in children if b"\0RANK=1\0" in Path(f"/proc/{p}/environ").read_bytes()]
    os.kill(int(second[0]), signal.SIGKILL)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert "Error: training process 2 of 2 was ended by SIGKILL" in rest
    assert "Traceback" not in rest
    check_resumed(workspace, "cvlp.epochs=400")


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, drawn: Path) -> None:
    """Two processes do not share a GPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = ["-w", str(drawn), "train", "cvlp", "--processes", "2"]
    result = CliRunner().invoke(vlltr, words)
    assert isinstance(result.exception, UsageError)
    assert result.exception.message == "--processes 2: each takes a GPU of its own, and there are 1"


def node(path: Path, endpoint: str) -> subprocess.Popen[str]:
    """One node with one process, as docs/howto.md starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-id", "test", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    command += ["--local-addr", "127.0.0.1", "-m", "vlltr_index.cli", "-w", str(path), "--json"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, "train", "cvlp"], stdout=pipe, stderr=pipe, text=True, env=env)


def test_two_nodes_train_as_one_process(drawn: Path, alone: Workspace, tmp_path: Path) -> None:
    """`torchrun --nnodes 2`, here over loopback: both end well, one commits and alone talks; the weights agree."""
    shared = copy(drawn, tmp_path / "workspace")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = [node(shared.path, endpoint) for _ in range(2)]
    ends = [process.communicate(timeout=600) for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], ends
    (said,) = [out for out, _ in ends if out.strip()]
    commit = shared.history.last()
    assert json.loads(said)["digest"] == commit.checkpoint
    check_near(drawings.trained_tensors(shared), drawings.trained_tensors(alone))
