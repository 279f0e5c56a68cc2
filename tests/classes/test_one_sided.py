"""Workspaces in which all classes, or some, have images or texts alone: steps run; answers and exports agree."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import drawings
from tests.support.commands import run
from tests.support.parts import check_parts
from vlltr_index.classes import (
    ChangeOptions,
    NewClass,
    add_class,
    add_classes,
    add_images,
    remove_classes,
    remove_sentences,
)
from vlltr_index.cli.render import report_lines, status_rows
from vlltr_index.errors import MissingStepError
from vlltr_index.pipelines.classlist import show_class
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.status import status
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.pipelines.train_lgr import refit
from vlltr_index.recognition.counterfactual import Examination
from vlltr_index.recognition.exported.writing import export_model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow


def spread(folder: Path, splits: Sequence[str]) -> None:
    """Move images by their numbers to folders of these names beside `folder`."""
    for path in folder.glob("*/*.png"):
        target = folder.parent / splits[int(path.stem) % len(splits)] / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


@pytest.fixture(scope="module")
def mute_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight classes of drawings without any sentence, by the encoder that ships: every step of `train all` is done."""
    folder = tmp_path_factory.mktemp("mute")
    spread(drawings.write(folder / "all"), ("test", "val", "train", "train"))
    recipe = override(load_recipe("glyphs_lt/quick"), ("lgr.views=1",))
    assert recipe.prompts == ()
    workspace = Workspace.create(folder / "workspace", recipe)
    for split in ("train", "val", "test"):
        ingest_images(workspace, folder / split, split, group="name:.+")
    train_all(workspace, recipe, stage_one=False)
    return workspace.path


@pytest.fixture
def mute(mute_once: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    return Workspace.open(shutil.copytree(mute_once, tmp_path / "mute"))


@pytest.fixture
def drawn(mute_once: Path) -> list[Path]:
    """Its test images."""
    return sorted((mute_once.parent / "test").rglob("*.png"))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Four images of a class that is not there."""
    for number in range(4):
        values = 255 - drawings.pixels(seed=number)[0, 0] // 2
        path = tmp_path / "new" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(drawings.png(values))
    return tmp_path / "new"


def check_export(workspace: Workspace, images: list[Path], folder: Path) -> None:
    """An export reads back, and gives the workspace's probabilities and verdicts."""
    export_model(workspace, folder)
    mine, read = Recognizer.open(workspace), Recognizer.from_pretrained(folder)
    np.testing.assert_allclose(read.predict_proba(images), mine.predict_proba(images), atol=1e-6)
    assert read.classes_.tolist() == mine.classes_.tolist()
    if mine.current().saved.parts is not None and mine.current().saved.parts.ood_threshold is not None:
        known = [[p.known for p in r.predict(images, PredictOptions(reject=True))] for r in (mine, read)]
        assert known[0] == known[1]


def test_without_a_sentence_the_images_answer(mute: Workspace, drawn: list[Path], tmp_path: Path) -> None:
    """Predictions, explanations, the evaluation and an export are of the images alone."""
    assert mute.snapshot().count("sentences") == mute.snapshot().count("anchors") == 0
    recognizer = Recognizer.open(mute)
    for image in drawn:
        best, other, *_ = recognizer.predict([image], PredictOptions(explain=3))[0].classes
        assert best.sentences == ()
        assert (best.text_part, best.cosine) == (0.0, None)
        if other.probability > 1e-30:  # below that it is rounded
            odds = math.log(best.probability / other.probability)
            assert best.image_part == pytest.approx(odds, abs=1e-4)
        else:
            assert best.image_part > 60.0
    explained = recognizer.explain(drawn[0], "wave")
    assert (explained.text_part, explained.sentences) == (0.0, ())
    found = evaluate(mute).rows
    assert found["vl-ltr"].top1["overall"].value > 0.9
    assert found["vl-ltr"].top1["overall"].value == found["image branch"].top1["overall"].value
    shown = show_class(mute, "ring")
    assert (shown.visual, shown.sentences, shown.anchors) == ("trained", 0, [])
    assert (shown.rivals_by, len(shown.rivals), "ring" in shown.rivals) == ("images", 3, False)
    check_export(mute, drawn, tmp_path / "model")


def test_without_a_sentence_nothing_is_left_to_do_but_text(
    mute: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no index, and none is asked for; training again says that the images alone count."""
    assert status(mute).stale == ("there is no text",)
    before = mute.history.last()
    for flag, verb in ((["--plan"], "Would build"), ([], "Built")):
        code, out, _ = run(capsys, "-w", mute.path, "index", *flag)
        said = f"{verb} no index: no class has a sentence, so all are scored by their images."
        assert (code, out.splitlines()[0]) == (0, said)
    assert mute.history.last() == before
    code, out, _ = run(capsys, "-w", mute.path, "train", "lgr")
    assert code == 0
    told = "There is no sentence: images alone decide."
    assert told in out
    assert status(mute).texts == told
    assert ("texts", told) in status_rows(status(mute))
    code, _, err = run(capsys, "-w", mute.path, "train", "cvlp")
    assert code == 1
    assert err.startswith("Error: 8 classes with training images have no sentence: ")


def test_classes_come_and_go_without_a_sentence(
    mute: Workspace, drawn: list[Path], new: Path, tmp_path: Path
) -> None:
    """A class that came by its images alone is recognised, and leaves nothing behind; its name is its only text."""
    before = Recognizer.open(mute).predict_proba(drawn)
    report = add_class(mute, "okapi", images=new)
    added = report.classes[0]
    assert (added.visual, added.images, added.sentences, added.anchors) == ("images", 4, 1, 1)
    assert report.effect.images == 26, "all but those of classes with one"
    assert "4 images, known by its images alone. Nearest by images: " in report_lines(report)[0]
    told = "Text-only classes cannot be recognised: the texts do not predict class means. Add images: vlltr images add"
    assert told not in report_lines(report)
    lines = report_lines(add_class(mute, "gnu", ["It is an animal."]))
    assert told in lines
    assert ", 0 images, not known yet. Nearest by text: " in lines[0]
    assert show_class(mute, "gnu").mute
    unknown = Recognizer.open(mute)
    assert unknown.classes_[-1] == "gnu"
    assert unknown.predict_proba(drawn)[:, -1].max() < 1e-6
    strange = torch.randn(50, unknown.current().bank.dim, generator=torch.Generator().manual_seed(0))
    assert unknown.score(strange, "exhaustive")[0].probabilities[:, -1].max() < 1e-6
    remove_classes(mute, ["gnu"])
    recognizer = Recognizer.open(mute)
    found = [p.classes[0].name for p in recognizer.predict(sorted(new.glob("*.png")))]
    assert found == ["okapi"] * 4
    check_export(mute, [*drawn, *sorted(new.glob("*.png"))], tmp_path / "model")
    after = recognizer.predict_proba(drawn)[:, :-1]
    np.testing.assert_allclose(after / after.sum(1, keepdims=True), before, atol=1e-5)
    remove_classes(mute, ["okapi"])
    np.testing.assert_allclose(Recognizer.open(mute).predict_proba(drawn), before, atol=1e-6)


def test_the_nearest_classes_are_those_by_images(mute: Workspace, drawn: list[Path]) -> None:
    """Of a class whose pictures are like those of another one; also where it has a text, too."""
    rings = tuple(path for path in drawn if path.parent.name == "ring")
    assert rings
    for sentences in ((), ("It is round.",)):
        change = ChangeOptions(dry_run=True)
        report = add_classes(mute, [NewClass("hoop", sentences, images=rings)], change)
        (added,) = report.classes
        assert (added.rivals_by, added.rivals[0], len(added.rivals)) == ("images", "ring", 3)
        assert any("Nearest by images: ring, " in str(line) for line in report_lines(report))


@pytest.fixture(scope="module")
def told_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight classes known by their texts alone, by an encoder that was trained on drawings of them elsewhere."""
    folder = tmp_path_factory.mktemp("told")
    source = drawings.workspace(folder / "seen", "lgr.views=1", "cvlp.epochs=40", "cvlp.batch_size=32")
    train_cvlp_stage(source, source.recipe.cvlp)
    spread(drawings.write(folder / "all", seed=7), ("more", "test"))
    workspace = Workspace.create(folder / "workspace", source.recipe)
    ingest_text(workspace, folder / "seen" / "texts.json")
    ingest_images(workspace, folder / "test", "test")
    commit = source.history.last()
    shutil.copytree(source.path / "checkpoints", workspace.path / "checkpoints")
    with workspace.transaction("an encoder") as tx:
        tx.set(checkpoint=commit.checkpoint)
    train_all(workspace, workspace.recipe, stage_one=False)
    return workspace.path


@pytest.fixture
def told(told_once: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    return Workspace.open(shutil.copytree(told_once, tmp_path / "told"))


@pytest.fixture
def asked(told_once: Path) -> list[Path]:
    """Its test images."""
    return sorted((told_once.parent / "test").rglob("*.png"))


def test_without_an_image_the_texts_answer(
    told: Workspace, asked: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Probabilities are those of the text branch, far above chance; no class has an image side, or a level."""
    recognizer = Recognizer.open(told)
    features, _ = recognizer.features(asked)
    with torch.inference_mode():
        expected = recognizer.current().saved.head.text_logits(features, recognizer.current().bank).softmax(1)
    np.testing.assert_allclose(recognizer.predict_proba(asked), expected.numpy(), atol=1e-5)
    assert recognizer.current().known.visual_sides() == {}
    best = recognizer.predict(asked[:1], PredictOptions(explain=2))[0].classes[0]
    assert (best.image_part, len(best.sentences)) == (0.0, 2)
    looked = Examination(recognizer.current(), features[0])
    struck = {looked.look(best.name).sentences[0].sentence_id}
    left = looked.scores(struck).probabilities
    report = evaluate(told).rows
    assert report["vl-ltr"].top1["overall"].value == report["text branch"].top1["overall"].value > 0.5
    with pytest.raises(MissingStepError, match="fewer than 20 groups of images were held out"):
        recognizer.predict(asked[:1], PredictOptions(reject=True))
    code, out, _ = run(capsys, "-w", told.path, "train", "lgr")
    assert code == 0
    assert "There is no training image: the classes are recognised by their texts alone." in out
    assert status(told).stale == ("there are no training images",)
    remove_sentences(told, best.name, ids=sorted(struck))
    removed = Recognizer.open(told).current().exhaustive(features[:1]).probabilities
    torch.testing.assert_close(left, removed, rtol=0, atol=1e-5)


def test_images_come_to_a_workspace_of_texts(told: Workspace, asked: list[Path], tmp_path: Path) -> None:
    """They count once the head is trained again; until then the texts alone go on answering. Exports agree."""
    check_export(told, asked, tmp_path / "before")
    before = Recognizer.open(told).predict_proba(asked)
    more = asked[0].parents[2] / "more"
    for name in sorted(p.name for p in more.iterdir()):
        assert add_images(told, name, [more / name]).classes[0].visual == "images"
    shown = Recognizer.open(told)
    assert set(shown.current().known.visual_sides().values()) == {"images"}
    fused = shown.current().exhaustive(shown.features(asked)[0])
    np.testing.assert_allclose(fused.by_image.numpy(), 1 / 8, atol=1e-6)
    refit(told, told.recipe.lgr)
    after = Recognizer.open(told)
    assert Counter(after.current().known.visual_sides().values()) == {"trained": 7}  # one has no image yet
    owners = np.array([after.classes_.tolist().index(image.parent.name) for image in asked])
    now = after.predict_proba(asked)
    assert np.abs(now - before).max() > 1e-3
    right = [float((p.argmax(1) == owners).mean()) for p in (before, now)]
    assert right[1] >= right[0]
    check_export(told, asked, tmp_path / "after")


def test_some_classes_by_pictures_and_some_by_texts(tmp_path: Path) -> None:
    """Two classes have no sentence, and two no image: all are answered, alike by the index, in full, from an export and
    on the page; parts add up; those with images are trained.
    """
    recipe = override(load_recipe("glyphs_lt/quick"), ("lgr.views=1",))
    workspace = Workspace.create(tmp_path / "workspace", recipe)
    texts = dict(zip(drawings.WORDS, drawings.texts(), strict=True))
    told = {name: texts[name] for name in drawings.WORDS[2:]}
    told |= {"okapi": ["An animal with striped legs."], "gnu": ["An animal with a beard."]}
    (tmp_path / "texts.json").write_text(json.dumps(told), encoding="utf-8")
    ingest_text(workspace, tmp_path / "texts.json")
    for seed, split in enumerate(("train", "val", "test")):
        ingest_images(workspace, drawings.write(tmp_path / split, seed), split, group="name:.+")
    train_all(workspace, recipe, stage_one=False)
    recognizer, image = Recognizer.open(workspace), tmp_path / "test" / "ring" / "0.png"
    assert int(recognizer.current().trained.sum()) == 8
    looked = [one.name for one in Examination.of(recognizer.current(), image).best(99)]
    assert sorted(looked) == sorted({*drawings.WORDS, *told})
    recognizer.export(tmp_path / "model")
    for asked in (recognizer, Recognizer.from_pretrained(tmp_path / "model")):
        for retrieval in ("faiss", "exhaustive"):
            (found,) = asked.predict([image], PredictOptions(top=99, explain=2, retrieval=retrieval))
            check_parts(found.classes)
            assert [one.name for one in found.classes] == looked
    assert evaluate(workspace).rows["vl-ltr"].top1["overall"].value > 0.8
