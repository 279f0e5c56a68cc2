"""`vlltr quickstart --fast`: end to end, again, after an interruption, and from an installed wheel."""

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

from vlltr_index.store.workspace import Workspace

ROOT = Path(__file__).parents[2]
VLLTR = [sys.executable, "-m", "vlltr_index.cli"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A quickstart that was interrupted in stage 1 by Ctrl-C and then run to its end."""
    folder = tmp_path_factory.mktemp("quick start")
    command = [*VLLTR, "quickstart", "--fast"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = folder / "vlltr-quickstart-fast" / "runs"
    while process.poll() is None and not list(runs.glob("cvlp-*/state.safetensors")):
        sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    return folder, subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
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


@pytest.mark.slow
def test_again_only_shows(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """A second run trains nothing and commits nothing; --json gives one document on stdout."""
    folder, _ = first
    workspace = Workspace.open(folder / "vlltr-quickstart-fast")
    before = workspace.history.last()
    command = [*VLLTR, "--json", "quickstart", "--fast"]
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["workspace"] == "vlltr-quickstart-fast"
    assert workspace.history.last() == before


@pytest.mark.slow
def test_the_wheel_has_every_module_and_runs(tmp_path: Path) -> None:
    """A wheel from a clean export has the tree's modules and data, and `quickstart --fast` runs from it elsewhere."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()]
    left_out = {n for n in files if n.startswith("recipes/icons_lt/") and not n.endswith(".toml")}
    export = tmp_path / "export"
    for name in files:
        (export / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, export / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(export)], check=True, cwd=tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    folders = {"vlltr_index": "", **{name: f"{name}/" for name in ("cli", "train", "schemas", "recipes")}}
    parts = [name.partition("/") for name in files if name not in left_out]
    expected = {f"vlltr_index/{folders[top]}{rest}" for top, _, rest in parts if top in folders}
    found = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert found == expected
    site = tmp_path / "site"
    install = [*pip, "install", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, cwd=tmp_path)
    command, env = [*VLLTR, "quickstart", "--fast"], {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Done in" in done.stdout
