"""Which images sentences are scored against, and how many become anchors, also without any image or any text."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.support import drawings
from tests.support.changes import anchors
from tests.support.tablerows import class_rows, sentence_rows
from vlltr_index.anchors.selection import anchors_without, score_images, select, update
from vlltr_index.classes import add_class
from vlltr_index.embedding.loading import image_set
from vlltr_index.errors import MissingStepError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.pipelines import train_lgr
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.status import status
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.anchors import read_anchors
from vlltr_index.schemas.config import EncoderConfig, Recipe, SelectConfig, WorkspaceConfig
from vlltr_index.store.holdout import held_images
from vlltr_index.store.snapshot import Snapshot
from vlltr_index.store.tables import one_of
from vlltr_index.store.workspace import Workspace


def losses(workspace: Workspace) -> dict[str, float | None]:
    rows = workspace.snapshot().table("sentence_scores", ["sentence_id", "loss"])
    return dict(zip(rows["sentence_id"].to_pylist(), rows["loss"].to_pylist(), strict=True))


def test_the_validation_split_may_select(trained: Workspace) -> None:
    """As the release does on ImageNet-LT and Places-LT: other images, other losses."""
    before = losses(trained)
    report = select(trained, trained.recipe.select.model_copy(update={"split": "val"}))
    kept = score_images(trained.snapshot(), SelectConfig(split="val"))
    assert report.images == len(kept.ids)
    assert set(kept.ids) <= set(image_set(trained.snapshot(), "val").image_ids)
    assert losses(trained) != before


def test_augmented_views_may_select(trained: Workspace) -> None:
    """As the release does on iNaturalist: the same images through the training augmentation."""
    plain = trained.recipe.select
    select(trained, plain)
    held = held_images(trained.snapshot())
    before, images = losses(trained), score_images(trained.snapshot(), plain, held)
    report = select(trained, plain.model_copy(update={"augmented": True}))
    augmented = score_images(trained.snapshot(), SelectConfig(augmented=True), held)
    assert augmented.ids == images.ids
    assert augmented.digest != images.digest
    assert augmented.view.startswith("1-")
    assert report.images == len(images.ids)
    assert losses(trained) != before


def test_vectors_say_whether_a_text_tower_made_them(trained: Workspace) -> None:
    """Whatever the recipe names since: without one the first sentences of each class are taken."""
    edited = trained.recipe.model_copy(update={"encoder": EncoderConfig(model="timm", pretrained="tower")})
    trained.write_config(WorkspaceConfig(recipe=edited))
    assert select(trained, edited.select).mode == edited.select.mode
    with trained.transaction("embed") as tx:
        tx.note(encoder=edited.encoder)
    assert select(trained, edited.select).mode == "cutoff"
    embed(trained)  # as after stage 2 tuned that tower: its checkpoint has no text tower, either
    assert select(trained, edited.select).mode == "cutoff"


def test_missing_images_and_views_are_named(trained: Workspace) -> None:
    """A split without images, and a workspace without augmented views, say which command mends it."""
    with pytest.raises(MissingStepError, match=r"vlltr ingest images PATH --split holdout, or use --set"):
        select(trained, SelectConfig(split="holdout"))
    embed(trained, views=1)
    with pytest.raises(MissingStepError, match=r"augmented views of the images \(select.augmented\)"):
        select(trained, SelectConfig(augmented=True))


def test_augmented_selection_needs_training_images_and_views() -> None:
    """The configuration refuses other splits, and a recipe that stores the plain view alone."""
    with pytest.raises(ValidationError, match="augmented views exist of split train alone"):
        SelectConfig(split="val", augmented=True)
    with pytest.raises(ValidationError, match=r"lgr\.views of 2 or more"):
        Recipe.model_validate({"name": "x", "select": {"augmented": True}, "lgr": {"views": 1}})


def fresh(
    folder: Path, texts: dict[str, list[str]], pictures: Path | None = None, **values: object
) -> Workspace:
    """A workspace with the small encoder, embedded; values go to the recipe."""
    encoder = {"model": "vlltr-tiny", "pretrained": "glyphs"}
    recipe = Recipe.model_validate(
        {"name": "x", "encoder": encoder, "prompts": (), "lgr": {"views": 1}, **values}
    )
    workspace = Workspace.create(folder, recipe)
    if texts:
        (folder / "texts.json").write_text(json.dumps(texts))
        ingest_text(workspace, folder / "texts.json")
    if pictures is not None:
        ingest_images(workspace, pictures, "train", group="name:.+")
    embed(workspace)
    return workspace


TEXTS = {
    "arrow": [f"An arrow that points {where}." for where in ("up", "down", "left", "right", "away", "back")],
    "circle": [f"A {kind} circle." for kind in ("round", "large", "small", "black")],
    "star": ["A star."],
}


def sizes(workspace: Workspace) -> dict[str, int]:
    """Anchors of each class by name."""
    names = workspace.snapshot().class_table().names
    return dict(Counter(names[class_id] for class_id, _ in anchors(workspace).values()))


@pytest.mark.slow
def test_without_any_image_texts_are_selected_by_each_other(tmp_path: Path) -> None:
    """All become anchors, and none has a loss; after new texts all is as if selected anew."""
    workspace = fresh(tmp_path / "one", TEXTS)
    report = select(workspace, workspace.recipe.select)
    assert (report.images, len(report.without_images), report.classes) == (0, 3, 3)
    assert sizes(workspace) == {"arrow": 6, "circle": 4, "star": 1}
    assert set(losses(workspace).values()) == {None}
    assert read_anchors(workspace.snapshot()).bank.num_classes == 3
    assert not [what for what in status(workspace).stale if "selection" in what]
    more = {**TEXTS, "star": ["A star.", "A star with five points.", "A bright star."]}
    other = fresh(tmp_path / "two", more)
    select(other, other.recipe.select)
    (tmp_path / "more.json").write_text(json.dumps({"star": more["star"][1:]}))
    ingest_text(workspace, tmp_path / "more.json")
    embed(workspace)
    with workspace.transaction("update") as tx:
        update(tx, workspace.recipe.select, score_images(tx, workspace.recipe.select), {2})
    assert anchors(workspace) == anchors(other)


def test_the_first_and_the_last_image_change_all_scores(tmp_path: Path, pictures: Path) -> None:
    """Pictures that come to a workspace without any, and go again: each time as if selected anew."""
    texts = {**TEXTS, "unseen": ["A letter.", "A sign."]}
    workspace = fresh(tmp_path / "one", texts)
    config = workspace.recipe.select
    select(workspace, config)
    shutil.copytree(pictures / "unseen", tmp_path / "pictures" / "unseen")
    alone, none = losses(workspace), score_images(workspace.snapshot(), config)
    ingest_images(workspace, tmp_path / "pictures", "train")
    embed(workspace)
    with workspace.transaction("update") as tx:
        update(tx, config, none, set())
    other = fresh(tmp_path / "two", texts, tmp_path / "pictures")
    select(other, config)
    assert losses(workspace) == pytest.approx(losses(other), abs=1e-3)
    some = score_images(workspace.snapshot(), config)
    with workspace.transaction("update") as tx:
        tx.delete("images", "split = 'train'")
        update(tx, config, some, set())
    assert losses(workspace) == pytest.approx(alone, abs=1e-3)


def test_anchors_without_some_images_are_as_if_these_had_never_been_there(trained: Workspace) -> None:
    """The same sentences in the same order, with their losses, as selected after the images are gone."""
    config = trained.recipe.select
    with trained.transaction("as if without stage 1") as tx:
        tx.set(checkpoint=None)
    select(trained, config)
    snapshot = trained.snapshot()
    before = read_anchors(snapshot).bank
    gone = score_images(snapshot, config).ids[::3]
    found, sentences = anchors_without(snapshot, config, before.class_ids, images=frozenset(gone))
    with trained.transaction("fewer images") as tx:
        tx.delete("images", one_of("image_id", gone))
    select(trained, config)
    after = read_anchors(trained.snapshot())
    wanted = after.bank
    assert sentences == after.sentence_ids
    assert torch.equal(found.offsets, wanted.offsets)
    assert torch.equal(found.vectors, wanted.vectors)
    assert not torch.equal(found.vectors, before.vectors)
    torch.testing.assert_close(found.losses, wanted.losses, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_training_and_changes_select_as_the_selection_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its settings, though the recipe has others: the folds of `train lgr` without their images, and a class added.

    Sentences of classes without images need no vector for that.
    """
    drawings.write(tmp_path / "all")
    for word in drawings.WORDS[:4]:
        shutil.move(tmp_path / "all" / word, tmp_path / "pictures" / word)
    told = dict(zip(drawings.WORDS[:4], drawings.texts(), strict=False))
    workspace = fresh(tmp_path / "workspace", told, tmp_path / "pictures")
    select(workspace, SelectConfig(max_anchors=2, max_share=None))
    (tmp_path / "more.json").write_text(json.dumps({"okapi": ["An okapi."]}))
    ingest_text(workspace, tmp_path / "more.json")
    asked = list[frozenset[str]]()

    def spy(
        snapshot: Snapshot, config: SelectConfig, ids: Tensor, images: frozenset[str]
    ) -> tuple[AnchorBank, list[str]]:
        asked.append(images)
        found = anchors_without(snapshot, config, ids, images=images)
        assert found[0].offsets.tolist() == [0, 2, 4, 6, 8]
        return found

    monkeypatch.setattr(train_lgr, "anchors_without", spy)
    train_lgr_stage(workspace, workspace.recipe.lgr)
    folds, later = asked[:5], asked[5:]
    images = image_set(workspace.snapshot(), "train").image_ids
    assert sorted(image for held_out in folds for image in held_out) == sorted(images)
    assert all(out < more for out, more in zip(folds, later, strict=False))  # four classes, five folds
    embed(workspace)
    add_class(workspace, "zebra", ("A zebra.", "It has stripes.", "It is no horse."))
    assert sizes(workspace) == dict.fromkeys((*drawings.WORDS[:4], "zebra"), 2) | {"okapi": 1}


def test_classes_without_sentences_have_no_anchor(tmp_path: Path, pictures: Path) -> None:
    """Where others have texts, and where there is no text at all: embed and select go through."""
    shutil.copytree(pictures / "unseen", tmp_path / "pictures" / "unseen")
    some = fresh(tmp_path / "some", TEXTS, tmp_path / "pictures")
    report = select(some, some.recipe.select)
    assert (report.classes, report.classes_without_sentences, report.anchors) == (3, 1, 11)
    assert "unseen" not in sizes(some)
    mute = fresh(tmp_path / "mute", {}, tmp_path / "pictures")
    report = select(mute, mute.recipe.select)
    assert (report.sentences, report.anchors, report.classes_without_sentences) == (0, 0, 1)
    commit = mute.history.last()
    assert commit.selection_id == report.selection_id
    assert read_anchors(mute.snapshot()).bank.num_classes == 0


def test_nothing_to_select_by_makes_no_commit(tmp_path: Path) -> None:
    """An empty workspace stays as it was, and readable."""
    workspace = fresh(tmp_path / "empty", {})
    before = workspace.history.last()
    with pytest.raises(MissingStepError, match="there is neither a sentence nor a training image"):
        select(workspace, workspace.recipe.select)
    assert workspace.history.last() == before


def order(workspace: Workspace, class_id: int) -> list[str]:
    """Sentences of a class in the order in which they came in."""
    rows = workspace.snapshot().table("sentences", ["position", "sentence_id"], f"class_id = {class_id}")
    return [i for _, i in sorted(zip(*(column.to_pylist() for column in rows.columns), strict=True))]


def test_sentences_are_numbered_as_they_come(workspace: Workspace) -> None:
    """Within a class, over commands; what comes again keeps its number, and is no change."""
    with workspace.transaction("ingest text") as tx:
        tx.upsert("classes", class_rows([0, 1]))
        tx.upsert("sentences", sentence_rows([5, 3, 8]))
        tx.upsert("sentences", sentence_rows([40, 41], class_id=1))
    with workspace.transaction("ingest text") as tx:
        assert tx.upsert("sentences", sentence_rows([8, 1, 5, 0])) == 2
    assert order(workspace, 0) == ["s5", "s3", "s8", "s1", "s0"]
    assert order(workspace, 1) == ["s40", "s41"]
    with workspace.transaction("ingest text") as tx:
        assert tx.upsert("sentences", sentence_rows([0, 1, 5])) == 0
    assert len(workspace.history.ids()) == 2
