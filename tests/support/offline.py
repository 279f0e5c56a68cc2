"""No network: sockets that reach no other machine, and a Hugging Face cache that is empty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_CLOSED = """
import socket

connect = socket.socket.connect


def refuse(*args, **options):
    raise OSError("the network is not to be used")


def local(self, address):
    return connect(self, address) if self.family == socket.AF_UNIX else refuse()  # processes of one program


socket.socket.connect = socket.socket.connect_ex = local
socket.getaddrinfo = refuse
"""


def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every connection of this process to a machine fail."""
    import socket

    for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # is put back after the test
    exec(_CLOSED, {})


def environment(home: Path) -> dict[str, str]:
    """Environment of a program that has no network, which the hub's libraries find out by trying.

    Args:
        home: A folder for Hugging Face's cache, and for the module that closes the sockets.
    """
    home.mkdir(exist_ok=True)
    (home / "sitecustomize.py").write_text(_CLOSED, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_HOME": str(home / "hf"), "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    return kept | own


def python(code: str, place: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start Python code in a folder."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=place, env=environment, stdout=pipe, stderr=pipe, text=True)
