"""What the machine lacks, and options that nobody can mean: messages, no tracebacks."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock
from unittest.mock import Mock

import pytest

from tests.support.commands import run
from tests.support.pictures import put
from vlltr_index.cli.main import main
from vlltr_index.data.decoding import cores
from vlltr_index.errors import ConfigError, reason, write_error
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
        (
            RuntimeError("can't start new thread"),
            "Error: no more threads can be started here\n"
            "Allow more memory and processes: ulimit -v, ulimit -u.\n",
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


@pytest.mark.slow
def test_an_output_that_cannot_hold_every_character(trained_once: Path, pictures: Path) -> None:
    """As in Latin-1 locales, and on Windows: what it lacks is spelled out."""
    command = [sys.executable, "-m", "vlltr_index.cli", "-w", str(trained_once), "predict"]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    image = str(pictures / "known-0.png")
    done = subprocess.run([*command, image], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\\u2" in done.stdout


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
    assert parse_toml(b"\xef\xbb\xbfa = 1", "x") == {"a": 1}  # as Notepad writes it
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
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    each: str | None,
) -> None:
    """OpenMP takes a number for each depth of nesting; the first counts, and what is no number counts for nothing."""
    started = Mock()
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", started)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert run(capsys, "-w", workspace.path, "train", "all", "--processes", "2")[0] == 0
    assert started.called
    assert os.environ["OMP_NUM_THREADS"] == (each or str(max(1, len(cores()) // 2)))


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let the system refuse to write files beyond a size: a failure as of a full disk, for every library.

    Python would cut off the bytecode of modules that are imported meanwhile, and import it so in other processes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    with mock.patch("sys.dont_write_bytecode", True):
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "command", "said"),
    [
        (100, ("classes", "add", "okapi", "--sentence", "It has stripes."), "lance cannot be written"),
        (100_000, ("index", "--kind", "flat"), "index cannot be written"),
        (1000, ("export", "model"), "model cannot be written"),
        (1000, ("export", "--tables", "model"), "model cannot be written"),
        (10, ("predict", "shots", "--out", "a.csv"), "a.csv cannot be written"),
    ],
)
def test_a_disk_that_takes_no_more(
    trained_once: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    command: tuple[str, ...],
    said: str,
) -> None:
    """Where, and the system's reason: no traceback, no path of another program's source, nothing half-written."""
    workspace = Workspace.open(shutil.copytree(trained_once, tmp_path / "workspace"))
    before = workspace.history.last()
    (tmp_path / "shots").symlink_to(pictures)
    monkeypatch.chdir(tmp_path)
    with small_files(size):
        code, out, err = run(capsys, "-w", workspace.path, "-q", *command)
    assert (code, out) == (1, "")
    assert said in err
    assert ": File too large\n" in err
    for other in (".rs:", ".cpp:", ".py:", "cargo", "LanceError", "Traceback"):
        assert other not in err
    assert workspace.history.last() == before
    assert not [
        path for path in os.listdir(tmp_path) if path not in ("workspace", "shots") and "a.csv." not in path
    ]


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (
            RuntimeError(
                "lance error: LanceError(IO): Generic LocalFileSystem error: Unable to copy data to file: No space left"
                " on device (os error 28), /build/.cargo/registry/src/index/lance-table-13.0.0/src/io/commit.rs:1663:50"
            ),
            os.strerror(errno.ENOSPC),
        ),
        (
            ValueError(
                "Failed to connect: IO { source: Io { err: Os { code: 13, kind: PermissionDenied } }, location: "
                'Location { file: "/build/.cargo/lance-io-13.0.0/src/object_store.rs", line: 1506, column: 92 } }'
            ),
            os.strerror(errno.EACCES),
        ),
        (
            RuntimeError(
                "Error in write_index at /project/faiss/impl/index_write.cpp:499: 'x' failed: write error"
            ),
            "Error in write_index: 'x' failed: write error",
        ),
        (
            RuntimeError("lance error: Not found: birds/x.lance, /build/.cargo/src/local.rs:133:9"),
            "lance error: Not found: birds/x.lance",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"), os.strerror(errno.ENOSPC)),
        (OSError("odd"), "odd"),
    ],
)
def test_what_libraries_raise_is_said_without_their_sources(raised: Exception, why: str) -> None:
    """A full disk in the system's words, whichever library met it; a hint that fits."""
    assert reason(raised) == why
    assert write_error("/data", raised).message == f"/data cannot be written: {why}"


def test_tables_that_cannot_be_read(
    trained: Workspace, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of tables that the system does not open: every command says so that needs them; answers do not."""
    shutil.rmtree(trained.path / "lance")
    (trained.path / "lance").symlink_to("lance")
    picture = pictures / "known-0.png"
    for command in (
        ("status",),
        ("classes", "list"),
        ("doctor",),
        ("select",),
        ("export", "x"),
    ):
        code, out, err = run(capsys, "-w", trained.path, *command)
        assert code == 1, command
        assert f"{trained.path / 'lance'}" in out + err
        assert ".rs" not in out + err
    assert run(capsys, "-w", trained.path, "predict", picture)[0] == 0


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\x7fb", "a\udcffb"])
def test_a_path_that_cannot_hold_a_workspace(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """LanceDB takes no control characters: it is said when the workspace is made, and of one that was moved there."""
    said = f"Error: {str(tmp_path / name)!r} cannot hold a workspace: LanceDB takes no path with a tab, a line feed,"
    code, _, err = run(capsys, "init", tmp_path / name)
    assert code == 2
    assert err.startswith(said)
    assert not (tmp_path / name).exists()
    workspace.path.rename(tmp_path / name)
    code, _, err = run(capsys, "-w", tmp_path / name, "status")
    assert code == 2
    assert err.startswith(said)
