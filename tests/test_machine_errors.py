"""What the machine lacks, and options that nobody can mean: messages, no tracebacks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.commands import run
from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import parse_toml
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.store.workspace import Workspace


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"),
            "Error: No space left on device: /data/x\nFree some space there, then run the same command again.\n",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "/data/x"),
            "Error: Read-only file system: /data/x\nChoose a folder that you may write to.\n",
        ),
        (OSError("odd"), "Error: odd\n"),
        (MemoryError("8 TiB"), "Error: there is not enough memory: 8 TiB\n"),
        (MemoryError(), "Error: there is not enough memory: none is left\n"),
    ],
)
def test_what_no_command_foresees(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    trained_once: Path,
    error: Exception,
    said: str,
) -> None:
    """A full disk, a folder that cannot be written, too little memory: a message and exit code 1."""
    monkeypatch.setattr(Workspace, "open", Mock(side_effect=error))
    assert run(capsys, "-w", trained_once, "status") == (1, "", said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.slow
@pytest.mark.parametrize("args", [("--json", "classes", "list"), ("--help",)])
def test_an_output_that_is_full(trained_once: Path, args: tuple[str, ...]) -> None:
    """Results that cannot be written are an error, said once."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "vlltr_index.cli", "-w", str(trained_once), *args]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: No space left on device\nFree some space there, then run the same command again.\n"
    )


def test_settings_that_cannot_be_read_or_meant() -> None:
    """Endless numbers and nesting in TOML, batches beyond all memory, an empty split."""
    hint = "Mend it there: texts stand in quotes"
    for content in (b"a = " + b"1" * 5000, b"a = " + b"[" * 40_000):
        with pytest.raises(ConfigError, match="x is not valid TOML: ") as caught:
            parse_toml(content, "x")
        assert str(caught.value.hint).startswith(hint)
    recipe = load_recipe("glyphs_lt/fast")
    for raw in ("1" * 5000, "[" * 40_000):
        with pytest.raises(ConfigError, match=r"lgr\.lr: Input should be a "):
            override(recipe, (f"lgr.lr={raw}",))
    for item, why in (
        ("lgr.batch_size=99999999999", "Input should be less than or equal to 1000000"),
        ("cvlp.warmup_epochs=1e308", "Input should be less than or equal to 1000000"),
        ("select.split=", "String should have at least 1 character"),
    ):
        with pytest.raises(ConfigError, match=f"{item.partition('=')[0]}: {why}"):
            override(recipe, (item,))
