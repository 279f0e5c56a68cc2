"""`vlltr import release` from the command line: commits, classes, predictions, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from tests.support import benchmark_trees, release_twins, small_clip
from tests.support.benchmark_trees import PLACES
from tests.support.commands import inside as run
from tests.support.commands import refusal
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.release_weights import model_config, read_release
from vlltr_index.heads.checkpoint import load_head
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import FusionConfig, Recipe
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """An empty workspace with one prompt and one view."""
    values = {"lgr": {"views": 1}, "fusion": {"alpha": 0.4}}
    recipe = Recipe.model_validate({"name": "test", "prompts": ("a photo of a {}.",), **values})
    return Workspace.create(tmp_path / "ws", recipe)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Checkpoints of both stages, of Places-LT with three classes, and that data set."""
    folder = tmp_path_factory.mktemp("release")
    torch.manual_seed(5)
    one = release_twins.vit() | release_twins.text_tower()
    visual = {k: v for k, v in one.items() if k.startswith("visual.")}
    two = visual | release_twins.head(3, 4)
    return {
        "one": release_twins.save(folder / "one.pth", one, model="CVLP_vit16", data_set="PLACES_LT"),
        "two": release_twins.save(folder / "two.pth", two, model="LGR_vit16", data_set="PLACES_LT"),
        "state": two,
        "data": benchmark_trees.places_lt(folder / "places"),
    }


def ingest(space: Workspace, data: Path) -> None:
    """Texts and the three lists; the workspace's class numbers are not the benchmark's."""
    names = ("--names", data / "labels.txt")
    (data / "last.txt").write_text("train/art_studio/00000.jpg 2\n")
    run(space, "ingest", "images", data / "last.txt", "--split", "train", *names)
    for split in ("train", "test"):
        run(space, "ingest", "images", data / f"Places_LT_{split}.txt", "--split", split, *names)
    run(space, "ingest", "text", data)


@pytest.mark.slow
def test_the_way_through_both_stages(
    space: Workspace, files: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage 1, data, stage 2, embed, select, index: the head's rows follow the workspace's class numbers."""
    data = files["data"]
    run(space, "import", "release", files["one"])
    assert capsys.readouterr().out == (
        f"{files['one']}: stage 1 of the release, saved after epoch 49.\n"
        "Encoder: ViT of width 64, 24 wide, images of 32 pixels.\n"
        "Next: vlltr ingest text PATH\n"
    )
    ingest(space, data)
    run(space, "embed")
    before = space.history.last()
    run(space, "import", "release", files["one"])
    assert space.history.last() == before
    with space.transaction("train lgr") as tx:
        tx.note(lgr={"epochs": 9}, recipe="glyphs_lt/fast", protocol="ours")
    capsys.readouterr()
    run(space, "import", "release", files["two"], "--names", data / "labels.txt")
    assert capsys.readouterr().out == (
        f"{files['two']}: stage 2 of the release, saved after epoch 49.\n"
        "Encoder: ViT of width 64, 24 wide, images of 32 pixels.\n"
        "Head: 3 classes, 0 of them new in the workspace, weight of the visual branch 0.2.\n"
        "Next: vlltr embed, then vlltr select and vlltr index\n"
    )
    for command in ("embed", "select", "index"):
        run(space, command)
    commit = space.history.last()
    assert (commit.info.lgr, commit.info.recipe, commit.info.protocol) == (None, None, None)
    assert commit.fusion == FusionConfig(rule="paper", alpha=0.2)  # it has no weights for the recipe's rule
    table = space.snapshot().class_table()
    assert [table.lookup(name) for name in PLACES] == [1, 2, 0]
    saved = load_head(space.objects.path("heads", str(commit.head)))
    images = torch.randn(4, 24)
    visual, _ = release_twins.logits(files["state"], images)
    assert torch.allclose(saved.head.visual_logits(images), visual[:, [2, 0, 1]], atol=1e-4)
    image = data / "val" / "airfield" / "Places365_val_00000000.jpg"
    run(space, "predict", image, "--explain", "1")
    assert "airfield" in capsys.readouterr().out
    run(space, "evaluate", "--split", "test")


@pytest.mark.slow
def test_predictions_on_the_checkpoints_anchors(
    space: Workspace, files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --anchors, probabilities are the release's: 0.2 and 0.8 of the two softmaxes; classes are made by name."""
    data, image = files["data"], files["data"] / "val" / "airfield" / "Places365_val_00000000.jpg"
    run(space, "import", "release", files["one"])
    run(space, "import", "release", files["two"], "--names", data / "labels.txt", "--anchors")
    said = capsys.readouterr().out
    assert "Head: 3 classes, 3 of them new in the workspace, weight of the visual branch 0.2.\n" in said
    assert "Anchors: 6 vectors without their sentences (vlltr select would choose new ones).\n" in said
    assert said.endswith("Next: vlltr embed, then vlltr index\n")
    recognizer = Recognizer.open(space)
    features, _ = recognizer.features([image])
    visual, text = release_twins.logits(files["state"], features)
    expected = 0.2 * visual.softmax(1) + 0.8 * text.softmax(1)
    (prediction,) = recognizer.predict([image], PredictOptions(top=3, explain=1))
    found = {score.name: score.probability for score in prediction.classes}
    assert [found[name] for name in PLACES] == pytest.approx(expected[0].tolist(), abs=1e-5)
    assert prediction.classes[0].sentences[0].source == "anchors of the release"
    before = space.history.last()
    run(space, "import", "release", files["two"], "--names", data / "labels.txt", "--anchors")
    assert space.history.last() == before
    state = {**files["state"], "text_embeddings": 2 * files["state"]["text_embeddings"]}
    other = release_twins.save(tmp_path / "other.pth", state)
    run(space, "import", "release", other, "--names", data / "labels.txt", "--anchors")
    assert space.snapshot().count("sentences") == space.snapshot().count("anchors") == 6
    bank = Recognizer.open(space).current().bank
    assert float(bank.vectors.norm()) == pytest.approx(float(state["text_embeddings"].norm()))


def test_what_stage_two_needs(
    space: Workspace, files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names, as many as classes, an encoder; options of stage 2 are refused for stage 1."""
    one, two, labels = files["one"], files["two"], files["data"] / "labels.txt"
    base = ("import", "release", two)
    assert refusal(space, capsys, *base, "--names", labels) == (
        "Error: a checkpoint of stage 2 has no text tower, and the workspace has no encoder to take one from\n"
        "Import the checkpoint of stage 1 first: vlltr import release CHECKPOINT\n"
    )
    assert refusal(space, capsys, *base, code=2) == (
        f"Error: which classes are the rows of the head in {two}?\n"
        f"Name the benchmark's class names: vlltr import release {two} --names labels.txt\n"
    )
    (tmp_path / "few.txt").write_text("airfield\nalley\n")
    assert refusal(space, capsys, *base, "--names", tmp_path / "few.txt") == (
        f"Error: the head in {two} has 3 classes, {tmp_path / 'few.txt'} names 2\n"
        "Give the names of the benchmark it was trained on: --names FILE\n"
    )
    assert refusal(space, capsys, "import", "release", one, "--anchors", code=2) == (
        f"Error: {one} is a checkpoint of stage 1: it has no classes and no anchors\n"
        f"Leave the options out: vlltr import release {one}\n"
    )
    run(space, "import", "release", one)
    capsys.readouterr()
    state = {**files["state"], "text_embeddings": files["state"]["text_embeddings"][:2]}
    few = release_twins.save(tmp_path / "few.pth", state, model="LGR_vit16", data_set="PLACES_LT")
    assert refusal(space, capsys, "import", "release", few, "--names", labels, "--anchors") == (
        "Error: the checkpoint has 3 classes in its head and 2 among its anchors\n"
        "Leave its anchors out; vlltr embed and vlltr select choose new ones.\n"
    )


def test_the_recipe_must_name_the_checkpoints_model(
    files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that open_clip knows by name goes into a workspace whose recipe names it, with or without QuickGELU."""
    cfg = {**model_config(read_release(files["one"]).state, "x"), "quick_gelu": True}
    path = tmp_path / "release-small-quickgelu.json"
    path.write_text(json.dumps(cfg))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS})
    open_clip.add_model_config(path)
    for model in ("release-small", "release-small-quickgelu"):
        recipe = Recipe.model_validate({"name": "test", "encoder": {"model": model, "pretrained": "openai"}})
        run(Workspace.create(tmp_path / model, recipe), "import", "release", files["one"])
        assert "Encoder: release-small-quickgelu, 24 wide" in capsys.readouterr().out
    other = Workspace.create(tmp_path / "other", Recipe(name="test"))
    assert refusal(other, capsys, "import", "release", files["one"], code=2) == (
        f"Error: {files['one']} holds a release-small-quickgelu, the workspace's recipe names ViT-B-16\n"
        "Make a workspace for it: vlltr init DIR --encoder release-small-quickgelu:openai\n"
    )


def test_stage_two_over_weights_that_are_not_stage_ones(
    tmp_path: Path, files: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe's own weights give the text tower with a warning; plain GELU is refused."""
    weights = tmp_path / "w.pt"
    torch.save(small_clip.make().state_dict(), weights)
    args = ("import", "release", files["two"], "--names", files["data"] / "labels.txt")
    spaces = []
    for name, words in (
        (small_clip.NAME, "has plain GELU, the release's has QuickGELU"),
        (f"{small_clip.NAME}-quickgelu", "Import the stage 1 checkpoint that belongs to it first."),
    ):
        values = {"name": "test", "encoder": {"model": name, "pretrained": str(weights)}}
        spaces.append(Workspace.create(tmp_path / name, Recipe.model_validate(values)))
        assert words in refusal(spaces[-1], capsys, *args)
    own = Encoder.load(f"{small_clip.NAME}-quickgelu", str(weights)).model.state_dict()
    visual = {k: v for k, v in own.items() if k.startswith("visual.")}
    path = release_twins.save(tmp_path / "fits.pth", visual | release_twins.head(3, 2))
    run(spaces[-1], "import", "release", path, "--names", files["data"] / "labels.txt")
    assert "  the text tower is that of small-vit-quickgelu:" in capsys.readouterr().out
