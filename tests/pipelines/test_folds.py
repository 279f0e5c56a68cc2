"""The folds that `train lgr` keeps with the head: accuracy without a split test, also after changes, and why not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import drawings
from vlltr_index.classes import (
    ChangeOptions,
    add_class,
    add_images,
    merge_classes,
    relabel_images,
    remove_classes,
    remove_images,
)
from vlltr_index.cli.render import remarks
from vlltr_index.errors import MissingStepError, UsageError, WorkspaceError
from vlltr_index.evaluation.baselines import Limits, Logistic
from vlltr_index.evaluation.metrics import CROSS_VALIDATION, METHOD
from vlltr_index.evaluation.verdict import verdict
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import evaluate, evaluation
from vlltr_index.pipelines.fit import fit
from vlltr_index.pipelines.history import rollback
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.report import write_report
from vlltr_index.pipelines.status import status
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.pipelines.train_baseline import train_baseline_stage
from vlltr_index.pipelines.train_lgr import refit, train_lgr_stage
from vlltr_index.recognition.folds import open_folds
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.store.holdout import held_images
from vlltr_index.store.workspace import Workspace
from vlltr_index.train import stage_two

pytestmark = pytest.mark.slow

CLASSES = 4
UNITS = 12


def picture(rng: np.random.Generator) -> Image.Image:
    """Blots at random places: a class cannot be told from another by them."""
    canvas = np.full((32, 32), 255, np.uint8)
    for row, column, size in rng.integers(2, 26, (6, 3)):
        canvas[row : row + size // 3, column : column + size // 4] = 0
    return Image.fromarray(canvas)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes that nothing tells apart, each of pictures that are there three times, next to alike."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("noise") / "pictures"
    for owner in range(CLASSES):
        (folder / f"class-{owner}").mkdir(parents=True)
        for number in range(UNITS):
            image = picture(rng)
            for copy in range(3):
                shown = image.copy()
                shown.putpixel((copy, 0), 250)
                shown.save(folder / f"class-{owner}" / f"{number}-{copy}.png")
    return folder


@pytest.fixture(scope="module")
def fitted_once(noise: Path) -> Workspace:
    """A workspace of them, trained and measured."""
    return fit(noise, encoder="vlltr-tiny:glyphs").workspace


@pytest.fixture
def fitted(fitted_once: Workspace, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    return Workspace.open(shutil.copytree(fitted_once.path, tmp_path / "fitted"))


@pytest.fixture
def quick_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the baseline that takes longest."""
    monkeypatch.setattr(Logistic, "limits", Limits(0, 0))


def test_copies_are_not_recognised(fitted: Workspace) -> None:
    """Copies are held out together: what nothing tells apart is answered by chance, each picture once."""
    found = evaluation(fitted)
    report = found.report
    assert (report.split, report.folds, report.in_training) == (CROSS_VALIDATION, 5, 0)
    assert len(set(found.measured.data.image_ids)) == report.images == 3 * UNITS * CLASSES
    overall = report.rows[METHOD].top1["overall"]
    assert overall.units == UNITS * CLASSES
    assert overall.low < report.chance("training")
    assert overall.value < 0.5
    assert {"ncm", "discriminant", "logistic"} <= report.rows.keys()
    trained = evaluate(fitted, "train")
    for rule, least in {"discriminant": 0.7, "logistic": 0.5}.items():
        assert report.rows[rule].top1["overall"].value < 0.5
        assert trained.rows[rule].top1["overall"].value > least


def test_a_baseline_above_its_limits_is_absent(fitted: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not fitted again for the folds; the evaluation and the report say why."""
    monkeypatch.setattr(Logistic, "limits", Limits(CLASSES - 1, 20_000))
    report = evaluate(fitted)
    assert "logistic" not in report.rows
    images = 3 * UNITS * CLASSES
    note = (
        "absent, as it is limited to 3 classes and 20,000 training images, and there are 4 classes and"
        f" {images} images"
    )
    assert report.notes["logistic"] == note
    assert f"logistic: {note}" in remarks(report)
    html = Path(write_report(fitted).path).read_text(encoding="utf-8")
    assert f"logistic: {note}" in html
    with pytest.raises(UsageError, match="no row 'logistic' to compare with"):
        evaluate(fitted, against="logistic")


def test_a_fold_knows_nothing_of_its_images(fitted: Workspace) -> None:
    """Its statistics are those of all other images, its neighbours too."""
    model = Model.open(fitted.snapshot())
    folds = open_folds(model.snapshot)
    assert folds is not None
    held = 0
    for fold in folds.opened(model):
        held += len(fold.image_ids)
        left = fold.model.stats.counts.sum() + len(set(fold.units))
        assert int(left) == int(model.stats.counts.sum()) == UNITS * CLASSES
        class_id = int(fold.class_ids[0])
        near = fold.model.nearest(fold.features[0], class_id, 40)
        assert not {one.image_id for one in near} & set(fold.image_ids)
    assert held == 3 * UNITS * CLASSES


def test_training_again_makes_the_same_folds(fitted: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted between the folds commits nothing; the next one gives what the first gave."""
    before = fitted.history.last()
    made = stage_two.fold_models
    fits: list[int] = []

    def stops(*args: Any) -> Any:
        if len(fits) == 2:
            raise KeyboardInterrupt
        fits.append(1)
        return made(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stage_two, "fold_models", stops)
        with pytest.raises(KeyboardInterrupt):
            train_lgr_stage(fitted, fitted.recipe.lgr)
    assert fitted.history.last() == before
    report = train_lgr_stage(fitted, fitted.recipe.lgr)
    assert (report.images, report.units) == (3 * UNITS * CLASSES, UNITS * CLASSES)
    after = fitted.history.last()
    assert after.info.folds == before.info.folds
    assert after.info.folds is not None
    assert after.head == before.head


@pytest.mark.usefixtures("quick_rules")
def test_changes_of_classes_are_measured_on_it(fitted: Workspace, noise: Path) -> None:
    """A class that comes, one that is merged and images that go are seen in the figures, without a new fit."""
    added = add_class(fitted, "more", ["A class more."], noise / "class-0" / "0-0.png")
    assert not added.effect.unmeasured
    report = evaluate(fitted)
    assert added.effect.images == report.images
    assert (report.split, report.classes, report.images) == (
        CROSS_VALIDATION,
        CLASSES + 1,
        3 * UNITS * CLASSES,
    )
    merge_classes(fitted, "class-2", "class-1")
    assert evaluate(fitted).classes == CLASSES
    gone = evaluation(fitted).measured.data.image_ids[:4]
    remove_images(fitted, gone)
    left = evaluation(fitted).measured  # noise of two classes in one looks alike here and there
    assert len(left.data.image_ids) + left.torn == 3 * UNITS * CLASSES - 4
    assert left.torn <= 4 * 3


def test_a_relabelled_picture_counts_under_its_new_class(fitted: Workspace, tmp_path: Path) -> None:
    """The loss of a change is that of a process which has just opened the workspace."""
    copied = Workspace.open(shutil.copytree(fitted.path, tmp_path / "copied"))
    recognizer = Recognizer.open(fitted)
    rows = fitted.snapshot().table("images", ["uri", "class_id"]).to_pylist()
    wrong = [f"{row['uri']},class-1" for row in rows if row["class_id"] == 0]
    (tmp_path / "corrections.csv").write_text("\n".join(["path,class", *wrong[: 2 * UNITS]]))
    for workspace, kept in ((fitted, recognizer), (copied, None)):
        relabel_images(workspace, tmp_path / "corrections.csv", options=ChangeOptions(recognizer=kept))
    effects = [
        add_class(workspace, "more", ["A class more."], options=ChangeOptions(recognizer=kept)).effect
        for workspace, kept in ((fitted, recognizer), (copied, None))
    ]
    assert effects[0] == effects[1]
    assert effects[0].images > 0


@pytest.mark.usefixtures("quick_rules")
def test_pictures_whose_like_a_model_has_learned_are_left_out(
    fitted: Workspace, noise: Path, tmp_path: Path
) -> None:
    """A near duplicate of some was added, so that the fold's model learned from it; the sentence names the command."""
    before = evaluate(fitted)
    with Image.open(noise / "class-0" / "0-0.png") as image:
        image.putpixel((5, 5), 250)
        image.save(tmp_path / "again.png")
    add_images(fitted, "class-0", [tmp_path / "again.png"])
    after = evaluate(fitted)
    assert after.images == before.images - 3
    assert after.left_out == (
        "Not measured on: 1 image of existing classes added after training.",
        "Not measured on: 3 images grouped with others that were added or moved after training."
        " To measure on all: vlltr refit",
    )
    assert set(after.left_out) < set(verdict(after))
    assert before.left_out == ()
    refit(fitted, fitted.recipe.lgr)
    last = evaluate(fitted)
    assert (last.left_out, last.images) == ((), before.images + 1)


def test_folds_that_are_damaged_are_made_again(fitted: Workspace) -> None:
    """By the command that made them."""
    folds = fitted.snapshot().commit.info.folds
    assert folds is not None
    deal = fitted.objects.path("heads", folds) / "images.arrow"
    deal.write_bytes(deal.read_bytes()[::-1])
    with pytest.raises(WorkspaceError, match="is damaged") as damaged:
        evaluate(fitted)
    assert damaged.value.hint == "Make them again: vlltr train lgr"


@pytest.mark.usefixtures("quick_rules")
def test_pictures_are_known_by_what_they_show(fitted: Workspace, noise: Path, tmp_path: Path) -> None:
    """Files that swap names stay in the folds that they were in, so that none is asked of what it was trained on."""
    before = evaluate(fitted).rows[METHOD].top1["overall"]
    moved = Path(shutil.copytree(noise, tmp_path / "moved"))
    for folder in moved.iterdir():
        files = sorted(folder.iterdir())
        contents = [path.read_bytes() for path in files]
        for path, content in zip(files, contents[5:] + contents[:5], strict=True):
            path.write_bytes(content)
    shutil.copytree(moved, noise, dirs_exist_ok=True)
    ingest_images(fitted, noise, "train", sync=True)
    embed(fitted)
    after = evaluate(fitted)
    assert after.images == 3 * UNITS * CLASSES
    assert after.rows[METHOD].top1["overall"].value == pytest.approx(before.value)


def test_a_single_group_leaves_no_table(fitted: Workspace) -> None:
    """Nothing can be held out: the scalars are the usual ones, training says so, and there is no figure."""
    with fitted.transaction("groups") as tx:
        rows = tx.table("images")
        at = rows.schema.get_field_index("group")
        tx.upsert("images", rows.set_column(at, "group", [["one"] * len(rows)]))
    report = train_lgr_stage(fitted, fitted.recipe.lgr)
    none = "No image could be held out: nothing was chosen, and the accuracy is not measured."
    assert report.notes == (none,)
    weights = Model.open(fitted.snapshot()).saved.parts
    assert weights is not None
    assert (weights.weights.generative, weights.weights.text, weights.weights.image) == (1 / 12, 0.0, 0.0)
    assert fitted.history.last().info.folds is None
    with pytest.raises(MissingStepError, match="there is nothing to measure on"):
        evaluate(fitted)
    added = add_class(fitted, "more", ["A class more."])
    assert added.effect.unmeasured
    assert not fitted.history.last().info.offsets


@pytest.mark.usefixtures("quick_rules")
def test_an_earlier_commit_is_measured_on_its_own_classes(fitted: Workspace) -> None:
    """By the baselines of its images, although a class of them is gone."""
    commit = fitted.history.last().id
    before = evaluate(fitted)
    remove_classes(fitted, ["class-2"])
    assert evaluate(fitted).classes == CLASSES - 1
    assert evaluate(fitted, at=commit).rows == before.rows


@pytest.mark.usefixtures("quick_rules")
def test_an_added_class_is_tested_but_not_trained(fitted: Workspace, noise: Path) -> None:
    """The folds' heads have the classes of training; each fold's statistics have an added class's other images."""
    folder = noise.parent / "more"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(5):
        picture(rng).save(folder / f"{number}.png")
    add_class(fitted, "more", ["A class more."], folder)
    model = Model.open(fitted.snapshot())
    added = fitted.snapshot().class_table().lookup("more")
    folds = open_folds(fitted.snapshot())
    assert folds is not None
    for fold in folds.opened(model):
        stats = fold.model.stats
        assert added not in fold.model.saved.class_ids.tolist()
        assert int(stats.counts[stats.class_ids == added]) == 4
    found = evaluate(fitted)
    assert (found.classes, found.images) == (CLASSES + 1, 3 * UNITS * CLASSES + 5)
    assert next(one for one in found.by_class if one.name == "more").images == 5


@pytest.mark.usefixtures("quick_rules")
def test_each_head_has_its_own_folds(fitted: Workspace, noise: Path) -> None:
    """A refit makes those of its head; a rollback brings back the earlier ones, with the same figures."""
    first = fitted.history.last()
    before = evaluate(fitted)
    assert status(fitted).next == "vlltr predict IMAGE --explain 3", "fit measured it"
    add_class(fitted, "more", ["A class more."], noise / "class-0" / "0-0.png")
    add_images(fitted, "more", [noise / "class-0" / "1-0.png"])
    report = refit(fitted, fitted.recipe.lgr)
    assert report.new_classes == ["more"]
    last = fitted.history.last()
    assert last.info.folds is not None
    assert first.info.folds is not None
    assert last.info.folds != first.info.folds
    assert last.head != first.head
    assert not last.info.offsets, "all classes are base classes"
    assert status(fitted).next == "vlltr evaluate"
    assert evaluate(fitted).folds == 5
    assert status(fitted).next == "vlltr predict IMAGE --explain 3"
    rollback(fitted, first.id)
    assert fitted.history.last().info.folds == first.info.folds
    assert evaluate(fitted).rows == before.rows


@pytest.mark.usefixtures("quick_rules")
def test_the_report_shows_who_answered(fitted: Workspace) -> None:
    """It is of the folds' answers; pictures are explained by the model that had not seen them."""
    made = write_report(fitted)
    assert made.evaluation is not None
    assert (made.evaluation.split, made.evaluation.images) == (CROSS_VALIDATION, 3 * UNITS * CLASSES)
    assert f"report-{CROSS_VALIDATION}-" in made.path


@pytest.mark.usefixtures("quick_rules")
def test_an_image_only_tower_has_no_part_in_it(fitted: Workspace) -> None:
    """It was trained on all pictures, also if it came after the rows: these stay on the encoder's vectors."""
    before = evaluate(fitted).rows
    train_baseline_stage(fitted, fitted.recipe.baseline.model_copy(update={"epochs": 1}))
    assert evaluate(fitted).rows == before


@pytest.mark.usefixtures("quick_rules")
def test_a_picture_that_an_image_only_tower_cannot_read(fitted: Workspace, noise: Path) -> None:
    """It is kept aside, and the same command goes on without it."""
    more = shutil.copytree(noise, fitted.path.parent / "more")
    ingest_images(fitted, more, "test")
    embed(fitted)
    train_baseline_stage(fitted, fitted.recipe.baseline.model_copy(update={"epochs": 1}))
    (more / "class-0" / "0-0.png").unlink()
    with pytest.raises(MissingStepError) as caught:
        evaluate(fitted)
    assert caught.value.message == "1 image can no longer be read, and is kept aside now"
    assert caught.value.hint == "Run the same command again: it goes on without."
    assert evaluate(fitted).images == 3 * UNITS * CLASSES - 1


def test_a_report_on_old_baselines_and_on_nothing(fitted: Workspace, noise: Path) -> None:
    """The baselines are fitted again, on the added class too; without a head the report is of the same split."""
    add_class(fitted, "more", ["A class more."], noise / "class-0" / "0-0.png")
    add_images(fitted, "more", [noise / "class-0" / "1-0.png"])
    made = write_report(fitted)
    assert made.missing == ()
    assert made.evaluation is not None
    assert made.evaluation.against is not None
    assert made.evaluation.notes == {}
    digest = fitted.snapshot().commit.head
    assert digest is not None
    shutil.rmtree(fitted.objects.path("heads", digest))
    assert f"report-{CROSS_VALIDATION}-" in write_report(fitted).path


def test_what_cannot_be_measured(fitted: Workspace, tmp_path: Path) -> None:
    """Retrieval under a prior, and a workspace without a head."""
    with pytest.raises(UsageError, match="index"):
        evaluate(fitted, retrieval="faiss", prior="training")
    with pytest.raises(MissingStepError, match="no anchor sentences have been selected yet"):
        evaluate(Workspace.create(tmp_path / "empty", fitted.recipe), CROSS_VALIDATION)


@pytest.mark.usefixtures("quick_rules")
def test_after_a_stage_one_there_is_one_part(trained: Workspace) -> None:
    """It is what the stage held out, for the scalars in five; no image of it is known to the model that answers it."""
    found = evaluation(trained, CROSS_VALIDATION)
    ids = found.measured.data.image_ids
    assert 0 < len(ids) == len(set(ids)) < trained.snapshot().count("images", "split = 'train'")
    held = held_images(trained.snapshot())
    assert set(ids) <= held
    folds = open_folds(trained.snapshot())
    assert folds is not None
    model = Model.open(trained.snapshot())
    opened = list(folds.opened(model))
    assert len(opened) > 1
    assert len({fold.without for fold in opened}) == 1
    assert all(set(ids) <= fold.without for fold in opened)


@pytest.mark.usefixtures("quick_rules")
def test_training_the_head_holds_out_one_part(fitted: Workspace) -> None:
    """With `lgr.train` a tenth is held out; the fifth of it by which training stops is not in the table."""
    settings = fitted.recipe.lgr.model_copy(update={"train": True, "epochs": 1})
    train_lgr_stage(fitted, settings)
    found = evaluate(fitted)
    images = 3 * UNITS * CLASSES
    assert 0 < found.images < images // 10
    folds = open_folds(fitted.snapshot())
    assert folds is not None
    model = Model.open(fitted.snapshot())
    opened = list(folds.opened(model))
    assert sum(len(fold.image_ids) for fold in opened) == found.images
    assert len({fold.without for fold in opened}) == 1


def test_a_stage_one_that_saw_all_images_leaves_no_figure(tmp_path: Path) -> None:
    """Its encoder is too confident of them: there are no folds, and the evaluation says how to get a figure."""
    settings = ("cvlp.epochs=1", "cvlp.batch_size=28", "cvlp.hold_out=0", *drawings.QUICK)
    workspace = drawings.workspace(tmp_path, *settings)
    train_all(workspace, workspace.recipe)
    assert workspace.snapshot().commit.info.folds is None
    with pytest.raises(MissingStepError, match="train lgr could hold out no image") as caught:
        evaluate(workspace)
    assert caught.value.hint == "Add images: vlltr ingest images PATH --split test"
