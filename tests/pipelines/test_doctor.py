"""Tests of `vlltr doctor` and `vlltr completion`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from tests.support.commands import run
from vlltr_index.pipelines import doctor
from vlltr_index.pipelines.doctor import Check, check_requirement, check_workspace, diagnose
from vlltr_index.store.workspace import Workspace


@pytest.mark.parametrize(
    ("version", "state", "value", "mend"),
    [
        ("2.13.0+cpu", "ok", "2.13.0+cpu (needs >=2.6)", None),
        ("2.5.1", "problem", "2.5.1, needs >=2.6", 'pip install "torch>=2.6"'),
        (None, "problem", "not installed, needs >=2.6", 'pip install "torch>=2.6"'),
    ],
)
def test_versions_against_their_bounds(version: str | None, state: str, value: str, mend: str | None) -> None:
    """A version in bounds is fine; another, or none, comes with the command that mends it."""
    assert check_requirement(Requirement("torch>=2.6"), version) == Check("torch", state, value, mend)  # type: ignore[arg-type]  # a literal by way of the table


def test_this_machine_is_in_order(workspace: Workspace) -> None:
    """Where the tests run, nothing is broken."""
    checks = diagnose(workspace.path)
    assert {"python", "torch", "lancedb", "device", "workspace"} <= {check.name for check in checks}
    assert not [check for check in checks if check.state == "problem"]


@pytest.mark.parametrize(
    ("builds", "gpus", "expected"),
    [
        (["faiss-cpu"], 0, None),
        (["faiss-gpu"], 2, ("ok", "faiss-gpu sees 2 GPUs", None)),
        (["faiss-gpu-cuvs"], 0, ("note", "faiss-gpu-cuvs sees 0 GPUs", None)),
        (
            ["faiss-gpu", "faiss-cpu"],
            1,
            (
                "problem",
                "faiss-cpu and faiss-gpu are the same module, of which one overwrote the other",
                'pip uninstall -y faiss-gpu faiss-cpu && pip install "vlltr-index[cpu]"',
            ),
        ),
        (
            ["faiss-gpu-cu12"],
            1,
            (
                "problem",
                "faiss-gpu-cu12 is made for compute capability 7.0 to 8.9, NVIDIA H100 has 9.0",
                'pip uninstall -y faiss-gpu-cu12 && pip install "vlltr-index[gpu]"',
            ),
        ),
    ],
)
def test_builds_of_faiss(
    builds: list[str],
    gpus: int,
    expected: tuple[str, str, str | None] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two builds are the same module; one build says how many GPUs it sees, and whether it is made for them."""
    found = [SimpleNamespace(name=name) for name in builds]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: found)
    monkeypatch.setattr("vlltr_index.anchors.index.gpu_count", lambda: gpus)
    monkeypatch.setattr(doctor, "_cards", lambda: {"NVIDIA A100": (8, 0), "NVIDIA H100": (9, 0)})
    assert [(one.state, one.value, one.mend) for one in doctor._faiss()] == ([expected] if expected else [])


def test_faiss_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that does not load is a problem, and the CPU's mends it."""
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: [SimpleNamespace(name="faiss-gpu")])
    monkeypatch.setitem(sys.modules, "faiss", None)
    (check,) = doctor._faiss()
    assert (check.state, check.mend) == (
        "problem",
        'pip uninstall -y faiss-gpu && pip install "vlltr-index[cpu]"',
    )
    assert "cannot be imported" in check.value


def test_a_workspace_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note where none was asked for, a problem where one was named."""
    monkeypatch.chdir(tmp_path)
    (none,) = check_workspace()
    assert (none.state, none.value.startswith("no workspace")) == ("note", True)
    (asked,) = check_workspace(tmp_path / "ws")
    assert (asked.state, asked.mend) == ("problem", f"Make one: vlltr init {tmp_path / 'ws'}")


def problems(workspace: Workspace) -> list[Check]:
    """What is wrong with a workspace."""
    return [check for check in check_workspace(workspace.path) if check.state == "problem"]


def test_a_workspace_that_somebody_broke(trained: Workspace) -> None:
    """Files that are not those that were written, folders and tables that are gone: a row each."""
    last = trained.history.last()
    assert problems(trained) == []
    head = trained.path / "heads" / str(last.head)[:16]
    (head / "head.json").write_text("{}")
    shutil.rmtree(trained.path / "checkpoints")
    shutil.rmtree(trained.path / "lance" / "anchors.lance")
    found = {check.name: check for check in problems(trained)}
    assert set(found) >= {"table anchors", "head", "encoder"}
    assert str(found["table anchors"].mend).startswith("Bring that folder back from a backup, or ")
    assert found["head"].value == (f"{head} is damaged: its files are not those that were written")
    assert found["encoder"].mend == "Make it again: vlltr train cvlp"
    path = trained.path / "history" / f"{last.id}.json"
    path.write_text("{")
    (damaged,) = problems(trained)
    assert damaged.value.startswith(f"{path} is damaged: ")


def test_the_command(
    capsys: pytest.CaptureFixture[str], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line a check, exit code 1 where there is a problem; -q shows problems alone; JSON has it all."""
    good = [Check("torch", "ok", "2.13 (needs >=2.6)"), Check("gpu", "note", "none", "buy one")]
    monkeypatch.setattr(doctor, "diagnose", lambda start: good)
    code, out, _ = run(capsys, "-w", workspace.path, "doctor")
    assert (code, out.splitlines()[0]) == (0, "ok       torch              2.13 (needs >=2.6)")
    assert out.splitlines()[-1] == "Everything is in order."
    bad = [*good, Check("head", "problem", "damaged", "vlltr train lgr")]
    monkeypatch.setattr(doctor, "diagnose", lambda start: bad)
    code, out, _ = run(capsys, "-q", "doctor")
    assert (code, [line.strip() for line in out.splitlines()]) == (
        1, ["problem  head               damaged", "vlltr train lgr"],
    )  # fmt: skip
    code, out, _ = run(capsys, "--json", "doctor")
    report = json.loads(out)
    assert (code, report["ok"], report["checks"][2]["mend"]) == (1, False, "vlltr train lgr")


def test_completion_answers() -> None:
    """The program completes the words of commands, and options of commands in groups."""
    code = "from vlltr_index.cli.main import main; main()"

    def complete(words: str) -> list[str]:
        env = os.environ | {
            "_VLLTR_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert complete("vlltr ing") == ["plain,ingest"]
    assert complete("vlltr ingest wi") == ["plain,wikipedia"]
    assert complete("vlltr ingest wikipedia --hi") == ["plain,--hint"]


@pytest.mark.slow
def test_threads_are_set_before_torch_is_loaded(tmp_path: Path) -> None:
    """So that the command computes with as many."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    command = [sys.executable, "-m", "vlltr_index.cli", "doctor", "--threads", "1"]
    told = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert "the processor, 1 thread" + ("; no GPU: " if torch.version.cuda else "\n") in told.stdout


@pytest.mark.parametrize("words", ["--threads 3 status", "status --threads 3", "status"])
def test_threads_are_said_in_front_of_the_command_behind_it_or_by_the_environment(
    trained_once: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """The option counts before the environment."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # given back in the end
    monkeypatch.setenv("VLLTR_THREADS", "3" if words == "status" else "5")
    assert run(capsys, "-w", trained_once, *words.split())[0] == 0
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("busy", "threads"), [(0.0, 4), (50.0, 2), (100.0, 1)])
def test_cores_that_others_use_are_left_to_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, busy: float, threads: int
) -> None:
    """Long commands look how busy the machine is, unless it was said how many threads they may have."""
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: [busy] * 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv("VLLTR_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # given back in the end
    run(capsys, "train", "--help")
    assert os.environ.pop("OMP_NUM_THREADS") == "7"
    run(capsys, "train", "--help")
    assert os.environ.pop("OMP_NUM_THREADS") == str(threads)
    run(capsys, "status", "--help")
    assert "OMP_NUM_THREADS" not in os.environ
