"""`vlltr quickstart --fast` from an installed wheel: end to end after an interruption, and again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from time import sleep

import pytest

from tests.support.commands import run
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
COMMAND = [sys.executable, "-m", "vlltr_index.cli"]


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the tree that are kept."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, made of a clean export."""
    folder = tmp_path_factory.mktemp("wheel")
    export = folder / "export"
    for name in tracked:
        (export / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, export / name)
    subprocess.run([*PIP, "wheel", "--no-deps", "-w", str(folder), str(export)], check=True, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> dict[str, str]:
    """The environment of programs that find the installed wheel alone."""
    site = wheel.parent / "site"
    subprocess.run(
        [*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, cwd=wheel.parent
    )
    env = {**os.environ, "PYTHONPATH": str(site)}
    ask = [sys.executable, "-c", "import vlltr_index.cli; print(vlltr_index.cli.__file__)"]
    asked = subprocess.run(ask, cwd=wheel.parent, env=env, capture_output=True, text=True, check=True)
    assert asked.stdout.startswith(str(site))
    return env


@pytest.fixture(scope="module")
def first(
    installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A quickstart that was interrupted in stage 1 by Ctrl-C and then run to its end."""
    folder = tmp_path_factory.mktemp("quick start")
    command = [*COMMAND, "quickstart", "--fast"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=folder, env=installed, stdout=pipe, stderr=pipe, text=True)
    runs = folder / "vlltr-quickstart-fast" / "runs"
    while process.poll() is None and not list(runs.glob("cvlp-*/state.safetensors")):
        sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    return folder, subprocess.run(
        command, cwd=folder, env=installed, capture_output=True, text=True, check=False
    )


def test_the_wheel_has_every_module(tracked: list[str], wheel: Path) -> None:
    """The tree's modules and data, and nothing else."""
    lists = ("recipes/icons_lt/", "recipes/photos_lt/")
    left_out = {n for n in tracked if n.startswith(lists) and not n.endswith(".toml")}
    folders = {"vlltr_index": "", **{name: f"{name}/" for name in ("cli", "train", "schemas", "recipes")}}
    parts = [name.partition("/") for name in tracked if name not in left_out]
    expected = {f"vlltr_index/{folders[top]}{rest}" for top, _, rest in parts if top in folders}
    found = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert found == expected


def test_it_goes_on_and_shows_everything(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """After Ctrl-C it resumes; every step is printed as a command; a class is added by its text alone."""
    folder, done = first
    assert done.returncode == 0, done.stderr
    assert "(resumed)" in done.stdout
    assert "done before" in done.stdout
    for words in ("train cvlp", "embed", "select", "train lgr", "index", "evaluate", "classes add"):
        assert f"$ vlltr -w vlltr-quickstart-fast {words}" in done.stdout
    assert "vl-ltr" in done.stdout
    assert "known by text alone" in done.stdout
    steps = json.loads((folder / "vlltr-quickstart-fast" / "quickstart.json").read_text(encoding="utf-8"))
    assert len(steps) > 10


def test_again_only_shows(
    first: tuple[Path, subprocess.CompletedProcess[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second run trains nothing and commits nothing; --json gives one document on stdout."""
    folder, _ = first
    workspace = Workspace.open(folder / "vlltr-quickstart-fast")
    before = workspace.history.last()
    monkeypatch.chdir(folder)
    code, out, err = run(capsys, "--json", "quickstart", "--fast")
    assert code == 0, err
    assert json.loads(out)["workspace"] == "vlltr-quickstart-fast"
    assert workspace.history.last() == before
