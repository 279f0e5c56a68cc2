"""A user's own colour pictures with a local CLIP checkpoint, through the command line from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.support import small_clip
from tests.support.commands import vlltr
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow
COLOURS = {"red kite": (200, 60, 40), "blue tit": (60, 90, 210), "green finch": (70, 170, 60)}
ENCODER = f"{small_clip.NAME}-quickgelu:clip.safetensors"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures and OpenAI-format weights; the current folder is the project."""
    for name, colour in COLOURS.items():
        for number in range(4):
            path = tmp_path / ("pictures" if number else "test") / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = torch.randint(-20, 20, (80, 120, 3), generator=torch.Generator().manual_seed(number))
            image = (torch.tensor(colour) + noise).clamp(0, 255).to(torch.uint8)
            Image.fromarray(image.numpy()).save(path)
    state = small_clip.openai_state(small_clip.make(quick_gelu=True))
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "clip.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pictures_without_any_text_go_through_the_readmes_commands(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each class has CLIP's 80 prompts as soon as its pictures are in, and an answer names them."""
    vlltr("init", "birds", "--encoder", ENCODER)
    vlltr("-w", "birds", "ingest", "images", "pictures", "--split", "train")
    said = capsys.readouterr().out
    assert "Made from the class names: 240 prompts." in said
    assert "or without text: vlltr embed   (3 classes have no text but prompts)" in said
    for step in (("embed",), ("select",), ("train", "lgr"), ("index",)):
        vlltr("-w", "birds", *step)
    capsys.readouterr()
    vlltr("-w", "birds", "--json", "predict", "test/red kite/0.jpg", "--explain", "3")
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
