"""What is said, and what to do about it, where an encoder's name, an image, a checkpoint or a TOML file is bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlltr_index.cli.main import main
from vlltr_index.workspace import Workspace

UNREADABLE = (
    "Give JPEG, PNG, WebP, BMP, GIF or TIFF files; open the image elsewhere to see whether it is whole.\n"
)


def refused(capsys: pytest.CaptureFixture[str], *args: object, code: int = 1) -> str:
    """Stderr of a command that fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([*map(str, args)])
    assert left.value.code == code
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoder", "message", "hint"),
    [
        ("ViT-B16", "no encoder is called 'ViT-B16'", "Did you mean ViT-B-16 or "),
        ("vlltr-tini", "no encoder is called 'vlltr-tini'", "Did you mean vlltr-tiny"),
        ("nosuch", "no encoder is called 'nosuch'", "For example ViT-B-16-quickgelu:openai. "),
        (
            "ViT-B-16:opnai",
            "ViT-B-16 has no weights called 'opnai', and there is no such file",
            "Did you mean ViT-B-16:openai? Its tags: openai, ",
        ),
        ("ViT-B-16:w/x.pt", "no such file: w/x.pt", "Check the path."),
        ("local-dir:nowhere", "no such folder: nowhere", "Check the path."),
        (
            "ViT-B-16:FOLDER",
            "FOLDER holds no encoder: neither encoder.json nor open_clip_config.json with a model_cfg",
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
    said = refused(capsys, "init", tmp_path / "ws", "--encoder", encoder)
    assert said.startswith(f"Error: {message}\n{hint}")
    assert not (tmp_path / "ws").exists()
    if encoder == "nosuch":
        other = refused(capsys, "init", tmp_path / "ws", "--set", "encoder.model=nosuch")
        assert other == said


def test_images_that_cannot_be_read(
    trained: Workspace, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`predict` answers the others; both it and `explain` say what to do."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG nothing")
    with pytest.raises(SystemExit) as left:
        main(["-w", str(trained.path), "predict", str(bad), str(pictures / "known-0.png")])
    out, err = capsys.readouterr()
    assert left.value.code == 1
    assert f"{bad}: not read: cannot read the image {bad}: a damaged PNG file\n" in out
    assert f"{pictures / 'known-0.png'}\n" in out
    assert err.endswith(f"1 of 2 images cannot be read. {UNREADABLE}")
    name = min(trained.snapshot().class_table().names.values())
    said = refused(capsys, "-w", trained.path, "explain", bad, "--class", name)
    assert said.endswith(f"Error: cannot read the image {bad}: a damaged PNG file\n{UNREADABLE}")


@pytest.mark.parametrize("name", ["model.safetensors", "encoder.json", "words.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_damaged_checkpoints(
    trained: Workspace, pictures: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    """Each of a checkpoint's files, cut short or gone, is answered with the commands that make it again."""
    commit = trained.history.last()
    assert commit is not None
    assert commit.checkpoint is not None
    folder = trained.object_path("checkpoints", commit.checkpoint)
    file = folder / name
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = refused(capsys, "-w", trained.path, "predict", pictures / "known-0.png")
    message, hint = said.splitlines()[-2:]
    assert message.startswith("Error: ")
    assert str(folder) in message
    assert name in message
    assert hint == (
        f"Bring {folder} back from a backup, or make it again: vlltr train cvlp "
        "(or vlltr import release, if it came from there)"
    )


@pytest.mark.parametrize("content", ['recipe = "', "format = 1\n[recipe\n", "a\0b = 1", "\xe9"])
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
        said = refused(capsys, *args, code=2).splitlines()
        assert said[0].startswith(f"Error: {path} is not valid TOML: ")
        assert said[-1] == hint
