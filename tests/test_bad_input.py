"""What damaged workspaces and unusable input are answered with: the exact text, and nothing half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlltr_index.cli.main import main
from vlltr_index.workspace import Workspace


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[object, str]:
    """Exit code and stderr of a command that fails."""
    with pytest.raises(SystemExit) as left:
        main(list(args))
    return left.value.code, capsys.readouterr().err


def test_damaged_table_files_are_named(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Data files cut short are reported with the table's name and a way on, not as a traceback."""
    for path in (trained.path / "lance" / "classes.lance" / "data").iterdir():
        path.write_bytes(path.read_bytes()[:10])
    code, err = refused(capsys, "-w", str(trained.path), "classes", "list")
    assert code == 1
    assert f"Error: table 'classes' in {trained.path / 'lance'} cannot be read: " in err
    assert "Bring the folder back from a backup, or make a new workspace: vlltr init DIR\n" in err


@pytest.mark.parametrize("given", ["--images", "--sentence"])
def test_a_class_of_which_nothing_is_known(
    trained: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    """A folder of broken images only, or a blank sentence, makes no class and no commit."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.png").write_bytes(b"no image")
    value = str(tmp_path / "broken") if given == "--images" else " "
    before = trained.history.last()
    code, err = refused(capsys, "-w", str(trained.path), "classes", "add", "okapi", given, value)
    assert code == 1
    assert err.endswith(
        "Error: nothing is known of class 'okapi': no sentence and no readable image\n"
        "Give it a --sentence, a --text file, or --images.\n"
    )
    assert trained.history.last() == before


def test_history_shows_at_least_one_commit(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit below one is refused as a usage error."""
    code, err = refused(capsys, "-w", str(trained.path), "history", "--limit", "-1")
    assert code == 2
    assert "Invalid value for '--limit': -1 is not in the range x>=1." in err
