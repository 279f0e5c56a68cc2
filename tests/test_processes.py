"""Training with several processes through the command line: as one process would, and one end for all of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import drawings
import pytest
import torch
from launched import work
from safetensors.torch import load_file

from vlltr_index.errors import PeerError, UsageError, VlltrError
from vlltr_index.recipe import override
from vlltr_index.stages.train_cvlp import train_cvlp_stage
from vlltr_index.train.distributed import by_first, first_then_all
from vlltr_index.train.launch import launch
from vlltr_index.workspace import Workspace

SETTINGS = (
    "cvlp.epochs=2",
    "cvlp.batch_size=28",
    "cvlp.precision=fp32",
    "lgr.epochs=1",
    "lgr.views=1",
    "lgr.batch_size=28",
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a few drawings, nothing trained."""
    return drawings.workspace(tmp_path_factory.mktemp("drawn"), *SETTINGS).path


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


def checkpoint(workspace: Workspace) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The weights of the newest commit's encoder and visual classifier, and the log of its run."""
    commit = workspace.history.last()
    assert commit is not None
    assert commit.checkpoint is not None
    folder = workspace.object_path("checkpoints", commit.checkpoint)
    tensors = {k: v for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()}
    return tensors, json.loads((folder / "train.json").read_text(encoding="utf-8"))["log"]


def test_two_processes_give_one_processs_checkpoint(drawn: Path, alone: Workspace, tmp_path: Path) -> None:
    """`--processes 2`: losses within 0.2 %, all weights within 1 % of their norm after four steps of Adam."""
    workspace = copy(drawn, tmp_path / "workspace")
    process = start(workspace.path, "train", "cvlp", "--processes", "2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    commit = workspace.history.last()
    before = alone.history.last()
    assert commit is not None
    assert before is not None
    assert json.loads(out)["digest"] == commit.checkpoint
    assert (commit.command, commit.id) == ("train cvlp", before.id)
    assert err.count("epoch 1:") == 1
    assert not list((workspace.path / "runs").iterdir())
    (weights, log), (expected, expected_log) = checkpoint(workspace), checkpoint(alone)
    for found, wanted in zip(log, expected_log, strict=True):
        for key in ("loss", "ccl", "text", "visual", "scale"):
            assert found[key] == pytest.approx(wanted[key], rel=2e-3), key
    assert weights.keys() == expected.keys()
    # Together, since Adam's first steps move a weight of a nearly zero gradient by the sign of a rounding error.
    two, one = (torch.cat([t[k].double().flatten() for k in sorted(t)]) for t in (weights, expected))
    assert float((two - one).norm() / one.norm()) < 0.01


def test_an_error_is_shown_once(drawn: Path, tmp_path: Path) -> None:
    """What is wrong for all processes is said once, with the exit code that one process would give."""
    workspace = copy(drawn, tmp_path / "workspace")
    process = start(workspace.path, "train", "cvlp", "--processes", "2", "--set", "cvlp.batch_size=27")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert out == ""
    assert err.splitlines() == [
        "Error: batch_size is global: 27 cannot be shared out evenly among 2 processes",
        "Use a multiple of 2, for example --set cvlp.batch_size=26",
    ]


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
    config = override(workspace.recipe, ("cvlp.epochs=40",)).cvlp
    seen: list[int] = []
    report = train_cvlp_stage(workspace, config, lambda step, done, total: seen.append(done))
    assert report.resumed
    assert seen[0] > 2  # two steps an epoch, one epoch at least was kept


def test_launch_gives_the_first_processs_result(tmp_path: Path) -> None:
    """The result and the progress are the first process's."""
    shown: list[tuple[object, ...]] = []
    found = launch(2, work, tmp_path, "well", progress=lambda *args: shown.append(args))
    assert found == (10, 2)
    assert shown == [("work", 1, 2)]
    assert (tmp_path / "well-1").exists()
    assert "RANK" not in os.environ


def test_the_first_failure_ends_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others wait for one that failed or was killed; the error is its own, whichever it was."""
    caplog.set_level("INFO", "vlltr_index")
    for what in ("one", "untidy-one"):
        with pytest.raises(VlltrError) as caught:
            launch(2, work, tmp_path, what)
        assert str(caught.value) == "the second one's trouble\nits remedy"
    with pytest.raises(VlltrError) as caught:
        launch(2, work, tmp_path, "killed")
    assert caught.value.message == "training process 2 of 2 was ended by SIGKILL"
    with pytest.raises(VlltrError) as caught:
        launch(2, work, tmp_path, "silent")
    assert caught.value.message == "training process 2 of 2 ended with exit code 3"
    seen: list[int] = []
    with pytest.raises(VlltrError) as caught:
        launch(2, work, tmp_path, "busy", progress=lambda *told: seen.append(told[1]))
    assert caught.value.message == "training process 2 of 2 was ended by SIGKILL"
    assert seen[-1] < 299  # the first was ended, though it had not fallen silent
    with pytest.raises(VlltrError) as caught:
        launch(2, work, tmp_path, "bug")
    assert caught.value.message == "training process 2 of 2 ended with exit code 3"
    assert "ValueError: the real bug" in caplog.text
    with pytest.raises(RuntimeError, match=r"(?s)training process 1 of 2 failed:\n.*KeyError: 'a bug'"):
        launch(2, work, tmp_path, "crash")


def test_a_process_that_has_said_all_may_end_as_it_likes(tmp_path: Path) -> None:
    """An abort while the interpreter shuts down does not undo what was committed."""
    assert launch(2, work, tmp_path, "untidy") == (10, 2)
    assert launch(2, work, tmp_path, "slow") == (10, 2)
    assert not multiprocessing.active_children()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes do not share a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError) as caught:
        launch(2, work, Path(), "well")
    assert caught.value.message == "--processes 2: each takes a GPU of its own, and there is 1"


def test_alone_everybody_is_the_first() -> None:
    """Without a group both helpers just do the work, and its error is its own."""
    assert by_first(lambda: 3) == 3
    assert first_then_all(lambda: 4) == 4
    with pytest.raises(KeyError):
        by_first(lambda: {}[1])
    assert PeerError(2).exit_code == 2


def test_torchrun_starts_them_too(drawn: Path, tmp_path: Path) -> None:
    """Two processes of `torchrun` train the baseline, the first one commits, and it alone talks."""
    workspace = copy(drawn, tmp_path / "workspace")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "vlltr_index.cli", "-w", str(workspace.path), "--json", "train", "baseline", "fc"]
    command += ["--set", "baseline.epochs=1", "--set", "baseline.batch_size=28"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    commit = workspace.history.last()
    assert commit is not None
    assert json.loads(done.stdout)["digest"] == commit.info["baseline_fc"]
    assert "Traceback" not in done.stderr
