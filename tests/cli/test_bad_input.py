"""What damaged workspaces and unusable input are answered with: the exact text, and nothing half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import run
from vlltr_index.errors import ConfigError
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.store.workspace import Workspace


def test_numbers_are_finite_and_seeds_have_64_bits() -> None:
    """Else training would give nans, or fail in torch after the data has been read."""
    with pytest.raises(ConfigError) as caught:
        load_recipe("ours", (f"cvlp.seed={2**63}", "lgr.seed=-1", "lgr.lr=inf", "fusion.alpha=nan"))
    assert caught.value.message == (
        f"recipe ours does not fit: cvlp.seed: Input should be less than {2**63}; "
        "lgr.seed: Input should be greater than or equal to 0; "
        "lgr.lr: Input should be a finite number; "
        "fusion.alpha: Input should be a finite number"
    )


def test_one_class_is_not_explained_against_itself(
    trained: Workspace, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice the same class is a usage error; an empty name is of no class."""
    name = trained.snapshot().class_table().names[0]
    args = ("-w", trained.path, "explain", (pictures / "known-0.png"), "--class")
    code, _, err = run(capsys, *args, name, "--against", name)
    assert code == 2
    assert err.endswith(f"Error: --class and --against are the same class, {name!r}\n")
    code, _, err = run(capsys, *args, "")
    assert (code, err) == (1, "Error: no class ''\nList all: vlltr classes list\n")


@pytest.mark.slow
def test_damaged_checkpoints(trained: Workspace, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights cut short, and stage 1's classifier cut short or another file: the commands that make them again."""
    commit = trained.history.last()
    folder = trained.objects.path("checkpoints", str(commit.checkpoint))
    path = folder / "visual.safetensors"
    for content, why in (
        (b"xx", ""),
        ((folder / "model.safetensors").read_bytes(), "'weight'"),
    ):
        path.write_bytes(content)
        code, _, err = run(capsys, "-w", trained.path, "train", "lgr")
        assert code == 1
        assert f"Error: the visual classifier {path} cannot be read: {why}" in err
        assert err.endswith("Bring it back from a backup, or make it again: vlltr train cvlp\n")
    assert trained.history.last() == commit
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    _, _, err = run(capsys, "-w", trained.path, "predict", pictures / "known-0.png")
    message, hint = err.splitlines()[-2:]
    assert message.startswith("Error: ")
    assert str(file) in message
    assert hint == (
        f"Bring {folder} back from a backup, or make it again: vlltr train cvlp "
        "(or vlltr import release, if it came from there)"
    )


def test_commands_to_run_next_quote_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with a space in its name, and a file that is no workspace."""
    folder = tmp_path / "my birds"
    code, _, err = run(capsys, "-w", folder, "status")
    assert (code, err.splitlines()[-1]) == (1, f"Make one: vlltr init '{folder}'")
    code, out, _ = run(capsys, "init", folder, "--recipe", "glyphs_lt/fast")
    assert code == 0
    assert f"Next: vlltr -w '{folder}' ingest text" in out
    code, _, err = run(capsys, "-w", folder / "vlltr.toml", "status")
    assert (code, err) == (
        1,
        f"Error: {folder / 'vlltr.toml'} is a file, not a workspace\nName a folder: vlltr -w DIR ...\n",
    )


def test_more_views_than_are_stored(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that is named makes them: `vlltr embed` alone would not."""
    stored = trained.history.last().info.views
    code, _, err = run(capsys, "-w", trained.path, "train", "lgr", "--set", "lgr.views=9")
    assert (code, err) == (
        1,
        f"Error: the head is to be trained on 9 views of each image (lgr.views), and {stored} are stored\n"
        f"Make them: vlltr embed --views 9, or use --set lgr.views={stored}\n",
    )


@pytest.mark.parametrize(
    ("encoder", "message", "hint"),
    [
        ("ViT-B16", "no encoder is called 'ViT-B16'", "Did you mean ViT-B-16 or "),
        ("nosuch", "no encoder is called 'nosuch'", "For example ViT-B-16-quickgelu:openai. "),
        (
            "ViT-B-16:opnai",
            "ViT-B-16 has no weights called 'opnai', and there is no such file",
            "Its tags: openai, ",
        ),
        (
            "ViT-B-16:w/x.pt",
            "ViT-B-16 has no weights called 'w/x.pt', and there is no such file",
            "Its tags: ",
        ),
        (
            "vlltr-tiny:w.safetensors",
            "vlltr-tiny needs its words beside its weights, and 'w.safetensors' is no folder of both",
            "Name the weights that ship, glyphs, or a folder that was exported: --encoder vlltr-tiny:FOLDER/encoder",
        ),
        ("local-dir:nowhere", "no such folder: nowhere", "Check the path."),
        (
            "ViT-B-16:FOLDER",
            "FOLDER holds no encoder: neither encoder.json nor open_clip_config.json",
            "A local folder needs open_clip_config.json and open_clip_model.safetensors.",
        ),
    ],
)
def test_encoders_that_cannot_be_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: str, message: str, hint: str
) -> None:
    """`vlltr init` names what is closest, and makes nothing."""
    folder = tmp_path / "empty"
    folder.mkdir()
    encoder, message = (text.replace("FOLDER", str(folder)) for text in (encoder, message))
    _, _, said = run(capsys, "init", tmp_path / "ws", "--encoder", encoder)
    assert said.startswith(f"Error: {message}\n{hint}")
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("content", ["format = 1\n[recipe\n", "\xe9"])
def test_broken_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    """The file, the place in it, and how a whole one looks; for a workspace's file and for a recipe's."""
    (tmp_path / "ws").mkdir()
    file = tmp_path / "ws" / "vlltr.toml"
    file.write_bytes(content.encode("latin-1"))
    hint = (
        "Mend it there: texts stand in quotes, names of sections in brackets. "
        "To compare, `vlltr init NEWDIR` writes a whole one."
    )
    for args, path in (
        (("-w", tmp_path / "ws", "status"), file),
        (("init", tmp_path / "new", "--recipe", file), file),
    ):
        code, _, err = run(capsys, *args)
        assert code == 2
        said = err.splitlines()
        assert said[0].startswith(f"Error: {path} is not valid TOML: ")
        assert said[-1] == hint
