"""Tests of `vlltr doctor` and `vlltr completion`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_cli import run

from vlltr_index import doctor, storage
from vlltr_index.doctor import (
    Check,
    check_disk,
    check_extras,
    check_faiss,
    check_python,
    check_requirement,
    check_threads,
    check_workspace,
    diagnose,
)
from vlltr_index.schemas.config import EncoderConfig, Recipe
from vlltr_index.workspace import Workspace


@pytest.mark.parametrize(
    ("version", "state", "value", "mend"),
    [
        ("2.6.0", "ok", "2.6.0 (needs >=2.6)", None),
        ("2.13.0+cpu", "ok", "2.13.0+cpu (needs >=2.6)", None),
        ("2.7.0rc1", "ok", "2.7.0rc1 (needs >=2.6)", None),
        ("2.5.1", "problem", "2.5.1, needs >=2.6", 'pip install "torch>=2.6"'),
        (None, "problem", "not installed, needs >=2.6", 'pip install "torch>=2.6"'),
    ],
)
def test_versions_against_their_bounds(version: str | None, state: str, value: str, mend: str | None) -> None:
    """A version in bounds is fine; another, or none, comes with the command that mends it."""
    assert check_requirement(Requirement("torch>=2.6"), version) == Check("torch", state, value, mend)  # type: ignore[arg-type]  # a literal by way of the table


def test_python_against_its_bounds() -> None:
    """An old Python is a problem."""
    assert check_python("3.11.7", ">=3.11").state == "ok"
    assert check_python("3.10.2", ">=3.11") == Check(
        "python", "problem", "3.10.2, needs >=3.11", "Make an environment with a newer Python."
    )


def test_which_faiss_there_is() -> None:
    """Both at once is a problem, none a note, an old one a problem."""
    needed = [Requirement('faiss-cpu>=1.10; extra == "cpu"')]
    both = check_faiss({"faiss-cpu": "1.15", "faiss-gpu": "1.15"}, needed)
    assert (both.state, both.value) == (
        "problem", "faiss-cpu and faiss-gpu are both installed, in the same folder",
    )  # fmt: skip
    assert both.mend == 'pip uninstall -y faiss-cpu faiss-gpu && pip install "vlltr-index[cpu]"'
    assert check_faiss({}, needed).state == "note"
    assert check_faiss({"faiss-cpu": "1.9"}, needed).value == "faiss-cpu 1.9, needs >=1.10"
    assert check_faiss({"faiss-cpu": "1.15.1"}, needed) == Check("faiss", "ok", "faiss-cpu 1.15.1")
    assert "FAISS sees no GPU" in check_faiss({"faiss-gpu": "1.15.1"}, []).value


def test_threads_and_disk() -> None:
    """More threads than cores are a note; less than 1 GiB is a problem."""
    assert check_threads(2, 2, None) == Check("threads", "ok", "2 of 2 cores")
    many = check_threads(16, 2, "16")
    assert (many.state, many.mend) == ("note", "export OMP_NUM_THREADS=2")
    assert check_disk(Path("x"), 2**29).state == "problem"
    assert check_disk(Path("x"), 2**29).mend == "Make room, or give up old commits: vlltr prune --keep 3"
    assert check_disk(Path("x"), 5 * 2**30).state == "note"
    assert check_disk(Path("x"), 50 * 2**30) == Check("disk", "ok", "50.0 GiB free at x")


def test_optional_parts() -> None:
    """An extra whose packages are missing is a note with the command that installs it."""
    needed = [Requirement('tensorboard>=2.17; extra == "tensorboard"'), Requirement("torch>=2.6")]
    assert check_extras(needed, {"tensorboard": "2.20"}.get) == [
        Check("extra tensorboard", "ok", "installed")
    ]
    assert check_extras(needed, {}.get) == [
        Check("extra tensorboard", "note", "without tensorboard", 'pip install "vlltr-index[tensorboard]"')
    ]


def test_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, unwritable, and without its weights' file: each says what mends it."""
    monkeypatch.chdir(tmp_path)
    none, _ = check_workspace()
    assert (none.state, none.value.startswith("no workspace")) == ("note", True)
    asked, _ = check_workspace(tmp_path / "ws", named=True)
    assert (asked.state, asked.mend) == ("problem", f"Make one: vlltr init {tmp_path / 'ws'}")
    recipe = Recipe(name="x", encoder=EncoderConfig(pretrained="/gone/clip.pt"))
    workspace = Workspace.create(tmp_path / "ws", recipe)
    opened, writing, _, weights = check_workspace(workspace.path, named=True)
    assert (opened.state, writing.state) == ("ok", "ok")
    assert weights.value == "the recipe starts ViT-B-16 from /gone/clip.pt, which is not there"
    assert weights.mend == f"Put it back, or change encoder.pretrained in {workspace.path / 'vlltr.toml'}"
    assert sorted(p.name for p in workspace.path.iterdir()) == ["vlltr.toml"]

    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage.tempfile, "NamedTemporaryFile", refuse)
    assert (
        check_workspace(workspace.path)[1].value == f"{workspace.path} cannot be written: Permission denied"
    )


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> None:
    """What is installed and broken is found."""
    monkeypatch.setitem(sys.modules, "open_clip", None)
    broken = [check for check in diagnose(workspace.path, named=True) if check.state == "problem"]
    assert [(c.name, c.mend) for c in broken] == [
        ("open_clip", "pip install --force-reinstall open_clip_torch")
    ]
    assert broken[0].value.startswith("cannot be imported: ModuleNotFoundError:")


def test_the_command(
    capsys: pytest.CaptureFixture[str], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line a check, exit code 1 where there is a problem; -q shows problems alone; JSON has it all."""
    good = [Check("torch", "ok", "2.13 (needs >=2.6)"), Check("gpu", "note", "none", "buy one")]
    monkeypatch.setattr(doctor, "diagnose", lambda start, named: good)
    code, out, _ = run(capsys, "-w", workspace.path, "doctor")
    assert (code, out.splitlines()[0]) == (0, "ok       torch              2.13 (needs >=2.6)")
    assert out.splitlines()[-1] == "Everything is in order."
    bad = [*good, Check("disk", "problem", "full", "vlltr prune --keep 3")]
    monkeypatch.setattr(doctor, "diagnose", lambda start, named: bad)
    code, out, _ = run(capsys, "-q", "doctor")
    assert (code, [line.strip() for line in out.splitlines()]) == (
        1, ["problem  disk               full", "vlltr prune --keep 3"],
    )  # fmt: skip
    code, out, _ = run(capsys, "--json", "doctor")
    report = json.loads(out)
    assert (code, report["ok"], report["checks"][2]["mend"]) == (1, False, "vlltr prune --keep 3")


def test_this_machine_is_in_order(workspace: Workspace) -> None:
    """Where the tests run, nothing is broken, and all there is to check is checked."""
    checks = diagnose(workspace.path, named=True)
    names = {check.name for check in checks}
    assert {"python", "torch", "faiss", "gpu", "threads", "workspace", "writing", "disk"} <= names
    assert not [c for c in checks if c.state == "problem" and c.name != "disk"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    """Each shell's script asks the program itself."""
    code, out, _ = run(capsys, "completion", shell)
    assert code == 0
    assert f"_VLLTR_COMPLETE={shell}_complete" in out


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
