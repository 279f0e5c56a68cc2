"""Running `vlltr` in the test's own process."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from vlltr_index.cli.main import main
from vlltr_index.store.workspace import Workspace


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `vlltr ARGS`."""
    code = 0
    try:
        main([str(a) for a in args])
    except SystemExit as leave:
        code = int(leave.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def vlltr(*args: object, code: int = 0) -> None:
    """Run a command that must end so."""
    with pytest.raises(SystemExit) as leave:
        main([str(a) for a in args])
    assert (leave.value.code or 0) == code, args


def inside(space: Workspace, *args: object, code: int = 0) -> None:
    """A command in a workspace."""
    vlltr("-w", space.path, *args, code=code)


def refusal(space: Workspace, capsys: pytest.CaptureFixture[str], *args: object, code: int = 1) -> str:
    """What a command that fails writes to stderr; nothing is committed."""
    before = space.history.last()
    capsys.readouterr()
    inside(space, *args, code=code)
    assert space.history.last() == before
    return capsys.readouterr().err


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let nobody list a folder, not even root, who may do everything."""
    listing = os.scandir

    def scandir(path: Any = ".") -> Any:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
