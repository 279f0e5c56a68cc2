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
from tests.pictures import put
from vlltr_index.cli.main import main
from vlltr_index.cli.train import _shared_out
from vlltr_index.data.decoding import cores
from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import parse_toml
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.store.ingestion import probe_all
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


def test_a_system_without_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nobody says which cores a process may use (macOS, Windows), images are probed and cores counted."""
    picture = ImageRecord("x", str(put(tmp_path / "x.png")), None, "train")
    assert set(cores()) <= set(range(os.cpu_count() or 1))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == list(range(os.cpu_count() or 1))
    assert [found.problem for found in probe_all([picture])] == [None]
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: [0.0] * 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert os.environ.pop("OMP_NUM_THREADS") == str(len(cores()))


@pytest.mark.parametrize(
    ("asked", "each"), [("4,2", "2"), ("4", "2"), ("1", "1"), (" 6, 3 ", "3"), ("many", None)]
)
def test_processes_share_the_threads_of_a_list(
    monkeypatch: pytest.MonkeyPatch, asked: str, each: str | None
) -> None:
    """OpenMP takes a number for each depth of nesting; the first counts, and what is no number counts for nothing."""
    started = Mock()
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", started)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert _shared_out(2)
    assert started.called
    assert os.environ["OMP_NUM_THREADS"] == (each or str(max(1, len(cores()) // 2)))
