"""A user's own colour photographs with a local CLIP checkpoint, through the command line from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_clip
import torch
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import save_file

from tests.commands import vlltr
from vlltr_index.recognizer import Recognizer
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow
COLOURS = {"red kite": (200, 60, 40), "blue tit": (60, 90, 210), "green finch": (70, 170, 60)}
COUNTS = {"red kite": 9, "blue tit": 5, "green finch": 2}
EXIF_ORIENTATION = 0x0112
ENCODER = f"{small_clip.NAME}-quickgelu:clip.safetensors"


def photograph(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """A blurred scene of 120 x 80 pixels: sky above, ground below, a bird of that colour on the left."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(-20, 20, (80, 120, 3), generator=generator)
    base = torch.tensor([150, 180, 200]).expand(80, 120, 3).clone()
    base[50:] = torch.tensor([110, 100, 70])
    image = Image.fromarray((base + noise).clamp(0, 255).to(torch.uint8).numpy())
    x, y = torch.randint(5, 30, (2,), generator=generator).tolist()
    ImageDraw.Draw(image).ellipse((x, y, x + 45, y + 30), fill=colour)
    return image.filter(ImageFilter.GaussianBlur(1))


def write(image: Image.Image, path: Path, orientation: int | None = None) -> None:
    """A JPEG, stored rotated with the EXIF entry that turns it back if asked for; a PNG by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation == 6:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[EXIF_ORIENTATION] = 6
    image.save(path, exif=exif) if path.suffix == ".jpg" else image.save(path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures (one of them broken), texts and OpenAI-format weights; the current folder is the project."""
    small_clip.register(tmp_path)
    for name, colour in COLOURS.items():
        for number in range(COUNTS[name]):
            path = tmp_path / "pictures" / name / f"{number}{'.jpg' if number % 3 else '.png'}"
            write(photograph(colour, number), path, 6 if number == 1 else None)
        write(photograph(colour, 99), tmp_path / "test" / name / "a.jpg", 6)
        text = tmp_path / "texts" / f"{name}.txt"
        text.parent.mkdir(exist_ok=True)
        text.write_text(
            f"The {name} is a bird. Its body is {name.split()[0]}. It lives in Europe.", encoding="utf-8"
        )
    (tmp_path / "pictures" / "red kite" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    model = small_clip.make(quick_gelu=True)
    save_file(
        {k: v.contiguous() for k, v in small_clip.openai_state(model).items()}, tmp_path / "clip.safetensors"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_photographs_from_init_to_predict(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From ingest to predict; rotation is undone, the broken file reported."""
    vlltr("init", "birds", "--encoder", ENCODER, "--set", "lgr.epochs=30")
    vlltr("-w", "birds", "ingest", "text", "texts")
    vlltr("-w", "birds", "ingest", "images", "pictures", "--split", "train")
    out = capsys.readouterr().out
    assert "broken.jpg" in out
    vlltr("-w", "birds", "ingest", "images", "test", "--split", "test")
    for step in (("embed",), ("select",), ("train", "lgr"), ("index",), ("evaluate", "--split", "test")):
        vlltr("-w", "birds", *step)
    capsys.readouterr()
    vlltr("-w", "birds", "--json", "predict", "test/red kite/a.jpg", "--explain", "2")
    found = json.loads(capsys.readouterr().out)[0]
    assert {c["name"] for c in found["classes"]} == set(COLOURS)
    assert all(len(c["sentences"]) == 2 for c in found["classes"])
    workspace = Workspace.open("birds")
    assert workspace.snapshot().count("sentences") == 3 * (3 + 80)
    recognizer = Recognizer.open(workspace)
    assert recognizer.encoder.preprocess(Image.new("RGB", (64, 48))).shape == (3, 32, 32)
    turned, _ = recognizer.features([project / "pictures" / "blue tit" / "1.jpg"])
    upright = project / "upright.jpg"
    photograph(COLOURS["blue tit"], 1).save(upright)
    straight, _ = recognizer.features([upright])
    assert float(torch.cosine_similarity(turned, straight)) > 0.98


def test_pictures_without_any_text_go_through_the_readmes_commands(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each class has CLIP's 80 prompts as soon as its pictures are in, and an answer names them."""
    vlltr("init", "birds", "--encoder", ENCODER)
    vlltr("-w", "birds", "ingest", "images", "pictures", "--split", "train")
    said = capsys.readouterr().out
    assert "240 prompts were made from the class names." in said
    assert "or without text: vlltr embed   (3 classes have no text but prompts)" in said
    for step in (("embed",), ("select",), ("train", "lgr"), ("index",)):
        vlltr("-w", "birds", *step)
    capsys.readouterr()
    vlltr("-w", "birds", "--json", "predict", "test/red kite/a.jpg", "--explain", "3")
    (found,) = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in found["classes"]} == set(COLOURS)
    assert sum(c["probability"] for c in found["classes"]) == pytest.approx(1)
    for one in found["classes"]:
        assert {s["source"] for s in one["sentences"]} == {"prompt"}
        assert all(one["name"] in s["text"] for s in one["sentences"])
    vlltr("-w", "birds", "classes", "add", "snow_owl", "--images", "test/red kite")
    snapshot = Workspace.open("birds").snapshot()
    texts = snapshot.table("sentences", ["text"], "class_id = 3")["text"].to_pylist()
    assert (len(texts), "a photo of a snow owl." in texts) == (80, True)


def test_kept_photographs_need_no_files(project: Path) -> None:
    """With `--store`, training and embedding see what the workspace keeps."""
    vlltr("init", "ws", "--encoder", ENCODER, "--set", "prompts=[]")
    vlltr("-w", "ws", "ingest", "text", "texts")
    vlltr("-w", "ws", "ingest", "images", "pictures", "--split", "train", "--store", "60")
    (project / "pictures").rename(project / "away")
    vlltr("-w", "ws", "train", "baseline", "fc", "--set", "baseline.epochs=1")
    vlltr("-w", "ws", "embed")
    images = Workspace.open(project / "ws").table("images", columns=["problem"])
    assert images["problem"].null_count == sum(COUNTS.values())
