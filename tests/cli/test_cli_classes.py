"""Changes to classes from the command line: what is written, as text and as JSON, and how it exits."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.support.changes import World
from tests.support.commands import run
from vlltr_index.classes import add_class
from vlltr_index.heads.checkpoint import SavedHead
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.store.workspace import Workspace


def test_removing_asks_first(
    small: Workspace, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal and without --yes it is refused; at a terminal `n` stops it, and `y` does it."""
    name = world.classes[0].name
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, out, err = run(capsys, "-w", small.path, "classes", "remove", name)
    assert (code, out) == (2, "")
    assert err == (
        "Error: removing classes asks first, and there is no terminal to ask at\nSay so beforehand: --yes\n"
    )
    for answer, expected in (("n", 1), ("y", 0)):
        typed = io.StringIO(answer + "\n")
        typed.isatty = lambda: True  # type: ignore[method-assign]  # a terminal, as far as anyone can tell
        monkeypatch.setattr(sys, "stdin", typed)
        code, out, err = run(capsys, "-w", small.path, "classes", "remove", name)
        assert code == expected
    assert out.startswith(f"Removed {name!r} (class 0) with 8 sentences and ")
    code, _, err = run(capsys, "-w", small.path, "classes", "remove", "--yes", name)
    assert code == 1
    assert err.startswith(f"Error: no class {name!r}")


@pytest.mark.slow
def test_the_class_list_from_end_to_end(
    small: Workspace, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command takes --json, and what `show --all` lists can be handed to `remove`."""
    first, second = world.classes[0].name, world.classes[1].name

    def answer(*args: str | Path) -> dict[str, object]:
        code, out, _ = run(capsys, "-q", "-w", small.path, "--json", *args)
        assert code == 0
        value = json.loads(out)
        assert isinstance(value, dict)
        return value

    assert answer("classes", "rename", first, "alpha")["changed"] is True
    assert answer("classes", "merge", "alpha", second, "--dry-run")["dry_run"] is True
    assert answer("sentences", "add", "alpha", "--sentence", "It is the first.")["changed"] is True
    shown = answer("classes", "show", "alpha", "--all")
    keys = [s["sentence_id"] for s in [*shown["anchors"], *shown["others"]]]  # type: ignore[misc]  # JSON
    assert len(keys) == 9
    assert answer("sentences", "remove", "alpha", keys[0])["changed"] is True
    picture = world.pictures[0]
    assert answer("images", "add", "alpha", picture)["changed"] is True
    images = answer("classes", "show", "alpha")["pictures"]
    key = next(i["image_id"] for i in images if i["uri"] == picture)  # type: ignore[attr-defined]  # JSON
    assert answer("images", "remove", key)["changed"] is True
    assert answer("classes", "merge", "alpha", second, "--yes")["changed"] is True
    assert answer("refit")["classes"] == 9


def test_a_class_is_shown_for_people(
    small: Workspace, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Head line, rivals, anchors with their losses, images; with --all the ids too."""
    code, out, _ = run(capsys, "-w", small.path, "classes", "show", world.classes[0].name)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith(f"{world.classes[0].name} (class 0, ingested, ")
    assert lines[0].endswith("8 sentences, trained on its images)")
    assert lines[1].startswith("nearest by images: ")
    assert sum("  loss " in line for line in lines) == 4  # a third of six, and as many prompts
    assert sum(line.startswith("  train ") for line in lines) == len(world.classes[0].pictures)
    _, out, _ = run(capsys, "-w", small.path, "classes", "show", world.classes[0].name, "--all")
    assert sum("  loss " in line for line in out.splitlines()) == 8


def test_what_a_class_without_training_pictures_is_known_by(
    small: Workspace, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text alone, if that counts, whatever pictures are of other splits."""

    def shown() -> str:
        code, out, _ = run(capsys, "-w", small.path, "classes", "show", "okapi")
        assert code == 0
        return out.splitlines()[0]

    start = "okapi (class 10, added, 0 training images, 3 sentences, "
    add_class(small, "okapi", ["Its legs are striped."])
    assert shown() == f"{start}known by text alone)"
    (tmp_path / "test" / "okapi").mkdir(parents=True)
    shutil.copy(world.pictures[0], tmp_path / "test" / "okapi")
    ingest_images(small, tmp_path / "test", "test")
    assert shown() == f"{start}known by text alone, and none of its pictures is to train on)"
    with patch.object(SavedHead, "texts_are_mute", True):
        assert shown() == (
            f"{start}not recognised yet: texts do not predict class means, see vlltr status, and none of its pictures"
            " is to train on)"
        )


def test_a_manifest(
    small: Workspace, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`add --from` makes its classes."""
    name = min(world.texts)
    values = {name: {"sentences": world.texts[name], "images": world.pictures[:2], "aliases": ["beta"]}}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(values), encoding="utf-8")
    code, out, _ = run(capsys, "-w", small.path, "classes", "add", "--from", manifest)
    assert (code, out.startswith(f"Added {name!r} (class 10): ")) == (0, True)
    code, out, _ = run(capsys, "-w", small.path, "classes", "show", "beta")
    assert (code, out.splitlines()[1]) == (0, "also: beta")


def test_images_may_be_named_one_by_one(
    small: Workspace, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--images` again adds more."""
    words = [word for picture in world.pictures[:2] for word in ("--images", picture)]
    code, out, _ = run(capsys, "-w", small.path, "classes", "add", "okapi", *words)
    assert code == 0
    assert ", 2 images" in out


def test_merging_asks_first(
    small: Workspace, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is nobody to ask, `--yes` says it."""
    one, two = (world.classes[i].name for i in (0, 1))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    code, _, err = run(capsys, "classes", "merge", one, two, "-w", small.path)
    assert code == 2
    assert err == (
        "Error: merging classes asks first, and there is no terminal to ask at\nSay so beforehand: --yes\n"
    )


def test_global_options_behind_the_command(
    small: Workspace, world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """They do what they do in front; a dry run is shown under `-q`, too."""
    code, out, _ = run(capsys, "classes", "list", "--json", "-w", small.path)
    assert (code, len(json.loads(out))) == (0, len(world.classes))
    name = world.classes[0].name
    code, out, _ = run(capsys, "sentences", "add", name, "--sentence", "It is round.", "-q", "-w", small.path)
    assert (code, out) == (0, "")
    command = ["classes", "rename", name, "another", "--dry-run", "--quiet", "--workspace", small.path]
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "")
    assert out.startswith("A dry run, which commits nothing:\n")
    assert "-q" not in run(capsys, "classes", "rename", "--help")[1]


def test_an_ingest_that_was_not_embedded_blocks_no_change(
    small: Workspace, world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its pictures and texts are embedded with the change."""
    folder = tmp_path / "more" / world.classes[0].name
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(Path(world.pictures[0]).read_bytes())
    (tmp_path / "texts.json").write_text(json.dumps({world.classes[1].name: ["Something else is known."]}))
    for words in (("images", tmp_path / "more", "--split", "train"), ("text", tmp_path / "texts.json")):
        assert run(capsys, "ingest", *words, "-w", small.path)[0] == 0
    code, out, _ = run(capsys, "classes", "add", "okapi", "--sentence", "It is striped.", "-w", small.path)
    assert (code, out.startswith("Added 'okapi'")) == (0, True)
