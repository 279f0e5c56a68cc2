"""What `vlltr doctor` finds in workspaces that somebody broke: a row a problem, with the way to mend it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vlltr_index.cli.main import main
from vlltr_index.doctor import Check, check_workspace
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.workspace import Workspace


def problems(workspace: Workspace) -> list[Check]:
    """What is wrong with a workspace; the disk of the machine aside."""
    found = check_workspace(workspace.path, named=True)
    return [check for check in found if check.state == "problem" and check.name != "disk"]


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change a byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(bytes(data))


def test_a_whole_workspace_is_in_order(trained: Workspace) -> None:
    """All that the newest commit names is looked at."""
    last = trained.history.last()
    assert last is not None
    assert problems(trained) == []
    said = {check.name: check.value for check in check_workspace(trained.path)}
    assert said["commit"] == (
        f"{last.id} ({last.command}): its tables can be read, and the files that it names are whole"
    )


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "{}"])
def test_a_damaged_commit(trained: Workspace, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error of every other command, and an exit code of 1."""
    number = max(trained.history.ids())
    path = trained.path / "history" / f"{number}.json"
    path.write_text(content)
    (found,) = problems(trained)
    assert (found.name, found.value.startswith(f"{path} is damaged: ")) == ("commit", True)
    assert found.mend is not None
    assert found.mend.startswith("Bring the file back from a backup.")
    with pytest.raises(SystemExit) as left:
        main(["-w", str(trained.path), "-q", "doctor"])
    assert left.value.code == 1
    assert f"{path} is damaged: " in capsys.readouterr().out


def test_damage_to_what_was_pruned(trained: Workspace) -> None:
    """The note of the oldest commit that is kept."""
    (trained.path / "history" / "pruned.json").write_text("{")
    (found,) = problems(trained)
    assert found.value.startswith(f"{trained.path / 'history' / 'pruned.json'} is damaged: ")


def test_deleted_tables(trained: Workspace) -> None:
    """A row a table that the commit names."""
    last = trained.history.last()
    assert last is not None
    shutil.rmtree(trained.path / "lance")
    found = problems(trained)
    assert [c.name for c in found] == [*(f"table {name}" for name in sorted(last.tables)), "text vectors"]
    assert found[0].value == (
        f"commit {last.id} names the table 'anchors', which is gone from {trained.path / 'lance'}"
    )
    assert found[-1].mend == "vlltr embed"


def test_a_version_that_is_gone(trained: Workspace) -> None:
    """The newest commit's version of one table."""
    last = trained.history.last()
    assert last is not None
    path = trained.path / "history" / f"{last.id}.json"
    values = json.loads(path.read_text())
    values["tables"]["classes"] = 999
    path.write_text(json.dumps(values))
    (found,) = problems(trained)
    assert found.name == "table classes"
    assert found.value.startswith(f"version 999 of table 'classes' in {trained.path / 'lance'} is gone: ")


def test_a_table_that_the_commit_forgot(trained: Workspace) -> None:
    """It has the table by its tag."""
    last = trained.history.last()
    assert last is not None
    path = trained.path / "history" / f"{last.id}.json"
    values = json.loads(path.read_text())
    del values["tables"]["images"]
    path.write_text(json.dumps(values))
    (found,) = problems(trained)
    assert found.value == (
        f"commit {last.id} is damaged: it does not name the table 'images', which it or a commit before it has written"
    )


@pytest.mark.parametrize("name", ["classes", "sentences", "images", "anchors", "sentence_scores", "vectors"])
@pytest.mark.parametrize("how", [cut, flip, lambda path: path.write_bytes(b""), Path.unlink])
def test_corrupt_tables(trained: Workspace, name: str, how: Callable[[Path], object]) -> None:
    """Data files cut, changed or deleted; a changed byte that can still be read is no business of this check."""
    last = trained.history.last()
    assert last is not None
    table = sentence_vectors_name(str(last.text_fp)) if name == "vectors" else name
    for path in (trained.path / "lance" / f"{table}.lance" / "data").iterdir():
        how(path)
    found = problems(trained)
    row = "text vectors" if name == "vectors" else f"table {name}"
    if how is not flip or found:
        assert [c.name for c in found] == [row]
        assert f"table {table!r} in {trained.path / 'lance'} cannot be " in found[0].value


def garbage(path: Path) -> None:
    """Something else in a file's place, as long as it was."""
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize("part", ["data", "_versions"])
def test_something_else_in_a_tables_files(trained: Workspace, part: str) -> None:
    """LanceDB says that in other ways than it does of a file cut short."""
    for path in (trained.path / "lance" / "anchors.lance" / part).iterdir():
        garbage(path)
    (found,) = problems(trained)
    assert found.name == "table anchors"
    assert f"table 'anchors' in {trained.path / 'lance'} cannot be " in found.value


def test_what_a_library_says_is_passed_on(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is a row too, and not a traceback."""

    def refuse(*_: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(Workspace, "check_object", refuse)
    assert {c.value for c in problems(trained)} == {"cannot be read: ZeroDivisionError: of all things"}


@pytest.mark.parametrize(
    ("kind", "name", "row", "mend"),
    [
        ("heads", "head.json", "head", "vlltr train lgr"),
        ("heads", "head.safetensors", "head", "vlltr train lgr"),
        ("checkpoints", "words.json", "encoder", "vlltr train cvlp"),
        ("checkpoints", "encoder.json", "encoder", "vlltr train cvlp"),
        ("checkpoints", "model.safetensors", "encoder", "vlltr train cvlp"),
        ("index", "index.json", "index", "vlltr index"),
        ("index", "anchors.safetensors", "index", "vlltr index"),
    ],
)
@pytest.mark.parametrize("how", [cut, flip, Path.unlink])
def test_damaged_objects(
    trained: Workspace, kind: str, name: str, row: str, mend: str, how: Callable[[Path], object]
) -> None:
    """Each file of encoder, head and index: cut, changed, gone."""
    last = trained.history.last()
    assert last is not None
    assert last.index is not None
    digest = {"heads": last.head, "checkpoints": last.checkpoint, "index": last.index["digest"]}[kind]
    folder = trained.path / kind / str(digest)[:16]
    how(folder / name)
    (found,) = problems(trained)
    assert (found.name, found.value) == (
        row,
        f"{folder} is damaged: its files are not those that were written: the digest differs",
    )
    assert found.mend is not None
    assert f"make it again: {mend}." in found.mend
    shutil.rmtree(folder)
    (found,) = problems(trained)
    assert (found.name, found.mend) == (row, f"Make it again: {mend}")


def test_baselines_that_are_gone(workspace: Workspace) -> None:
    """Each with the command that makes it."""
    with workspace.transaction("train baseline") as tx:
        tx.note(baseline_fc="ab" * 32, baselines={"ncm": "cd" * 32})
    found = problems(workspace)
    assert [(c.name, c.mend) for c in found] == [
        ("baseline fc", "vlltr train baseline fc"),
        ("baseline ncm", "vlltr train baseline ncm"),
    ]
