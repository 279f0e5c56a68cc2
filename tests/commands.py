"""Running `vlltr` in the test's own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlltr_index.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `vlltr ARGS`."""
    code = 0
    try:
        main([str(a) for a in args])
    except SystemExit as leave:
        code = int(leave.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def vlltr(*args: str | Path) -> None:
    """Run a command that must succeed."""
    with pytest.raises(SystemExit) as leave:
        main([str(a) for a in args])
    assert not leave.value.code, args
