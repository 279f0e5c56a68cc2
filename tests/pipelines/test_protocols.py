"""Every protocol from the command line: lists and texts come in, both stages train, evaluation answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import benchmark_trees, drawings
from tests.support.commands import vlltr
from tests.support.parts import check_parts
from vlltr_index.cli.main import main
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow
NETS = {"imagenet_lt": "rn50", "places_lt": "vit_b16", "inat2018": "rn50"}
SMALL = (
    *("encoder.model=vlltr-tiny", "encoder.pretrained=none", "encoder.resize=36"),
    *("cvlp.epochs=1", "cvlp.batch_size=8", "cvlp.workers=0", "cvlp.extra_classes=2"),
    *("lgr.epochs=1", "lgr.batch_size=8", "select.max_anchors=4"),
)


SPLITS = ("train", "val", "test")
TREES: dict[str, tuple[Callable[[Path], Path], str, dict[str, str]]] = {
    "imagenet_lt": (benchmark_trees.imagenet_lt, "labels.txt", {s: f"ImageNet_LT_{s}.txt" for s in SPLITS}),
    "places_lt": (benchmark_trees.places_lt, "labels.txt", {s: f"Places_LT_{s}.txt" for s in SPLITS}),
    "inat2018": (
        benchmark_trees.inat2018,
        "categories.json",
        {"train": "train2018.json", "test": "val2018.json"},
    ),
}


@pytest.fixture(scope="module", params=list(TREES))
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A benchmark's name, and a workspace of the default recipe with a tiny tree in its published form."""
    make, names, sources = TREES[request.param]
    data = make(tmp_path_factory.mktemp(request.param) / "data")
    workspace = data.parent / "workspace"
    vlltr("-q", "init", workspace)
    vlltr("-q", "-w", workspace, "ingest", "text", data / "wiki")
    for split, source in sources.items():
        given = (data / source, "--split", split, "--names", data / names)
        vlltr("-q", "-w", workspace, "ingest", "images", *given)
    return request.param, workspace


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with drawings in three splits and texts of the classes."""
    workspace = drawings.workspace(tmp_path_factory.mktemp("drawn"), 'prompts=["a drawing of a {}."]')
    for seed, split in ((1, "val"), (2, "test")):
        ingest_images(workspace, drawings.write(workspace.path.parent / split, seed), split, group="name:.+")
    return workspace.path


def train(workspace: Path, recipe: str, *more: str) -> None:
    settings = [part for value in (*SMALL, *more) for part in ("--set", value)]
    vlltr("-q", "-w", workspace, "train", "all", "--recipe", recipe, *settings)


def recorded(folder: Path) -> dict[str, Any]:
    """What the workspace, its commit and its first-stage checkpoint say of the run."""
    workspace = Workspace.open(folder)
    commit = workspace.history.last()
    assert commit.checkpoint is not None
    path = workspace.objects.path("checkpoints", str(commit.untuned)) / "train.json"
    return {
        "recipe": workspace.recipe,
        "stage 1": json.loads(path.read_text(encoding="utf-8"))["config"],
        "stage 2": commit.info.lgr,
        "named": (commit.info.protocol, commit.info.recipe),
        "tuned": commit.info.tuned is not None,
        "rule": commit.fusion.rule if commit.fusion is not None else None,
        "visual": Recognizer.open(workspace).current().saved.head.visual,
    }


def check(folder: Path, name: str, images: int) -> None:
    """Train, evaluate and predict; what is recorded is the protocol's, and the parts of each answer add up."""
    train(folder, name)
    vlltr("-q", "-w", folder, "evaluate", "--split", "test")
    (path,) = (folder / "reports").glob("evaluate-test-*.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["images"] == images
    assert set(report["rows"]) >= {"vl-ltr", "image branch", "text branch"}
    errors = report["calibration_error"]
    assert ("vl-ltr" in errors) == (images >= 30)
    assert all(0 <= error <= 1 for error in errors.values())
    found = recorded(folder)
    recipe: Recipe = found["recipe"]
    assert found["named"] == (recipe.protocol, name)
    assert name.split("/")[1].split("-")[0] == recipe.protocol
    assert found["stage 1"] == recipe.cvlp.model_dump(mode="json")
    assert found["stage 2"] == recipe.lgr.model_dump(mode="json")
    assert found["rule"] == ("ours" if recipe.protocol == "ours" else "paper")
    assert found["visual"] == ("linear" if recipe.protocol == "ours" else "mlp")
    tuned = recipe.protocol == "paper" or name.startswith("inat2018/release")
    assert found["tuned"] is tuned is (recipe.lgr.tune == "visual")
    snapshot = Workspace.open(folder).snapshot()
    source = snapshot.table("images", ["uri"], "split = 'test'")["uri"].to_pylist()[0]
    (prediction,) = Recognizer.open(folder).predict([source], PredictOptions(explain=2))
    assert prediction.problem is None
    unit = "log-odds" if recipe.protocol == "ours" else "probability"
    assert {score.unit for score in prediction.classes} == {unit}
    check_parts(prediction.classes)


@pytest.mark.parametrize("protocol", ["paper", "release", "ours"])
def test_a_protocol_runs_on_a_tree_of_its_benchmark(
    tree: tuple[str, Path], tmp_path: Path, protocol: str
) -> None:
    """From the lists, JSON files and texts as they are published to an evaluated workspace."""
    folder, workspace = tree
    copy = Path(shutil.copytree(workspace, tmp_path / "workspace"))
    images = {"imagenet_lt": 4, "places_lt": 3, "inat2018": 3}[folder]
    check(copy, f"{folder}/{protocol}-{NETS[folder]}", images)


@pytest.mark.parametrize("protocol", ["paper", "release", "ours"])
def test_a_protocol_runs_on_drawings(ingested: Path, tmp_path: Path, protocol: str) -> None:
    """The recipes of Glyphs-LT."""
    check(Path(shutil.copytree(ingested, tmp_path / "workspace")), f"glyphs_lt/{protocol}", 56)


def test_a_recipe_of_another_encoder_is_refused_once_one_is_trained(
    ingested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names both and what to do; the workspace's recipe stays. Other prompts are warned of."""
    folder = Path(shutil.copytree(ingested, tmp_path / "workspace"))
    train(folder, "glyphs_lt/ours")
    before = Workspace.open(folder).recipe
    capsys.readouterr()
    with pytest.raises(SystemExit) as leave:
        main(["-w", str(folder), "train", "all", "--recipe", "imagenet_lt/paper-rn50"])
    assert leave.value.code == 2
    assert capsys.readouterr().err == (
        "Error: the workspace has a trained encoder, vlltr-tiny; recipe imagenet_lt/paper-rn50 is for RN50-quickgelu\n"
        "Make a workspace for it: vlltr init DIR --recipe imagenet_lt/paper-rn50,"
        " or keep the encoder: --set encoder.model=vlltr-tiny\n"
    )
    assert Workspace.open(folder).recipe == before
    assert before.prompts == ()  # the recipe's, no longer the one template that the texts came in with
