"""The program `vlltr serve`: how it starts and ends, what it refuses, and what the docs say of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.exports import Shared
from tests.support.pages import parse
from tests.support.served import READ, WRITE, served
from vlltr_index.cli.main import vlltr
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow  # FastAPI is of [test-all]

ROOT = Path(__file__).parents[2]


def started(*args: object, **variables: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """A program of its own, and what it printed when it was ready."""
    command = [sys.executable, "-m", "vlltr_index.cli", "--json", "serve", *map(str, args), "--port", "0"]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | variables
    )
    assert program.stdout is not None
    lines = [program.stdout.readline() for _ in range(2)]
    while not lines[-1].startswith("}"):
        assert lines[-1], program.communicate()
        lines.append(program.stdout.readline())
    printed: dict[str, str] = json.loads("".join(lines))
    return program, printed


def test_a_program_ends_in_order(trained_once: Path, pictures: Path) -> None:
    """By SIGTERM and Ctrl-C: what was asked is answered, and nobody is let in any more. Off this machine it takes
    requests by tokens, printed or taken from the environment, one of them for writing.
    """
    import httpx

    data = (pictures / "known-0.png").read_bytes()
    given = {"VLLTR_TOKEN": READ, "VLLTR_WRITE_TOKEN": WRITE}
    for variables, end, code in (({}, signal.SIGTERM, 143), (given, signal.SIGINT, 0)):
        program, printed = started(trained_once, "--host", "0.0.0.0", "--write", **variables)
        try:
            assert (printed.keys() == {"address"}) == bool(variables)
            read, write = printed.get("token", READ), printed.get("write_token", WRITE)
            port = printed["address"].rstrip("/").rpartition(":")[2]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                tokens = [{"Authorization": f"Bearer {token}"} for token in (read, write, "x" * 32)]
                statuses = [client.get("/classes", headers=token).status_code for token in tokens]
                assert statuses == [200, 200, 401]
                ask = partial(client.post, "/predict", headers=tokens[0])
                with ThreadPoolExecutor(16) as clients:
                    files = [("images", (f"{n}.png", data)) for n in range(64)]
                    coming = [clients.submit(ask, files=files) for _ in range(4)]
                    time.sleep(0.5)
                    program.send_signal(end)
                    statuses = [one.result().status_code for one in coming]
                assert statuses == [200] * 4
                assert program.wait(60) == code
                with pytest.raises(httpx.ConnectError):
                    client.get("/health")
            assert program.stderr is not None
            assert "Traceback" not in program.stderr.read()
        finally:
            program.kill()
            program.communicate()


@pytest.mark.parametrize(
    ("args", "variables", "said"),
    [
        (("--port", "99999"), {}, "Invalid value for '--port'"),
        (
            (),
            {"VLLTR_TOKEN": "short"},
            "VLLTR_TOKEN has 5 characters; a token that nobody guesses has 16 at least",
        ),
        ((), {"VLLTR_TOKEN": ""}, "VLLTR_TOKEN is empty: no request can match it"),
        (
            (),
            {"VLLTR_TOKEN": "a token of some words"},
            "VLLTR_TOKEN has white space or a character beyond ASCII at position 2",
        ),
        (
            (),
            {"VLLTR_TOKEN": f"{READ}\n"},
            "VLLTR_TOKEN has white space or a character beyond ASCII at position 33",
        ),
        (
            (),
            {"VLLTR_TOKEN": "\udcff" * 32},
            "VLLTR_TOKEN has white space or a character beyond ASCII at position 1",
        ),
        (
            ("--write",),
            {"VLLTR_WRITE_TOKEN": "schl\u00fcssel" * 4},
            "VLLTR_WRITE_TOKEN has white space or a character beyond ASCII at position 5",
        ),
        (
            ("--write",),
            {"VLLTR_TOKEN": READ, "VLLTR_WRITE_TOKEN": READ},
            "VLLTR_TOKEN and VLLTR_WRITE_TOKEN are the same",
        ),
        (("--host", "192.0.2.1"), {}, "cannot listen at 192.0.2.1, port 8000"),
    ],
)
def test_what_the_command_refuses(
    trained_once: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    variables: dict[str, str],
    said: str,
) -> None:
    """A mistake is told before a model is loaded."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = run(capsys, "serve", trained_once, *args)
    assert code == 2
    assert said in err


def test_what_can_be_served(
    trained_once: Path, shared: Shared, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One place, named once; an export cannot be changed."""
    code, _, err = run(capsys, "-w", trained_once, "serve", trained_once, "--port", "0")
    assert (code, err.splitlines()[0]) == (2, "Error: -w names a workspace, too")
    code, _, err = run(capsys, "serve", shared.folder, "--write", "--port", "0")
    assert (code, err.splitlines()[0]) == (2, "Error: an exported folder cannot be changed")
    code, _, err = run(capsys, "serve", tmp_path, "--port", "0")
    assert (code, err.splitlines()[0]) == (1, f"Error: {tmp_path} is not a workspace: it has no vlltr.toml")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's requests are sent by curl")
def test_requests_in_the_docs(trained: Workspace, pictures: Path, tmp_path: Path) -> None:
    """Each curl command of docs/howto.md is answered."""
    page = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    section = page.split("\n## Answer other programs over HTTP\n")[1].split("\n## ")[0]
    requests = re.findall(r"^curl .*$", section, re.MULTILINE)
    for name in ("photo.jpg", "other.jpg"):
        shutil.copy(pictures / "known-0.png", tmp_path / name)
    with served(trained, write=True) as server:
        for request in requests:
            command = request.replace(":8000/", f":{server.port}/").replace("curl", "curl -sSf", 1)
            variables = os.environ | {"VLLTR_WRITE_TOKEN": WRITE}
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (request, done.stderr)
            json.loads(done.stdout)
    assert len(requests) == 6


def test_the_container_starts_what_there_is() -> None:
    """The Dockerfile copies folders that are there, installs extras that there are, and starts a command as it is."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {place.partition("/")[0] for place in config["tool"]["setuptools"]["package-dir"].values()}
    assert {name for name in copied if (ROOT / name).is_dir()} == folders
    assert all((ROOT / name).exists() for name in copied)
    (extras,) = re.findall(r'"\.\[(.*?)\]"', "\n".join(lines))
    assert set(extras.split(",")) <= config["project"]["optional-dependencies"].keys()
    (entry,) = (
        json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT")
    )
    parse(vlltr, entry[1:], entry[0])
