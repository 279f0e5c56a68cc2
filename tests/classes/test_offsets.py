"""Offsets of added classes: the same whatever came first, computed again at every change, and kept by exports."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import blots
from vlltr_index.classes import (
    NewClass,
    add_class,
    add_classes,
    add_images,
    add_sentences,
    merge_classes,
    relabel_images,
    remove_classes,
    remove_images,
    rename_class,
)
from vlltr_index.pipelines.history import rollback
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.recognition.added import FoldScores, fold_scores
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow

BASE = ("comb", "gate", "knot", "mast", "reel")
ADDED = ("plus", "quill", "rung")
GROUPS = 9
IMAGES = 2 * GROUPS


@pytest.fixture(scope="module")
def fitted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes with a table of five folds; images of three classes that can be added lie in the folder `more`."""
    folder = tmp_path_factory.mktemp("offsets")
    for name in BASE:
        blots.write(folder / "train", name, GROUPS)
    for name in ADDED:
        blots.write(folder / "more", name, 2)
    told = "{" + ", ".join(f'"{name}": ["It is a {name}."]' for name in BASE) + "}"
    (folder / "texts.json").write_text(told, encoding="utf-8")
    workspace = Workspace.create(
        folder / "workspace", override(load_recipe("glyphs_lt/quick"), ("lgr.views=1",))
    )
    ingest_text(workspace, folder / "texts.json")
    ingest_images(workspace, folder / "train", "train", group=blots.GROUP)
    train_all(workspace, workspace.recipe, stage_one=False)
    return folder


@pytest.fixture
def fitted(fitted_once: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    return Workspace.open(shutil.copytree(fitted_once / "workspace", tmp_path / "fitted"))


@pytest.fixture
def new(fitted_once: Path) -> dict[str, NewClass]:
    """The classes that can be added, by name: one by images, one by images and text, one by text."""
    images = {name: tuple(sorted((fitted_once / "more" / name).iterdir())) for name in ADDED}
    return {
        "plus": NewClass("plus", images=images["plus"]),
        "quill": NewClass("quill", ("It is a quill.",), images=images["quill"]),
        "rung": NewClass("rung", ("It is a rung.",)),
    }


def offsets(workspace: Workspace) -> dict[str, float]:
    """The offset of each added class by its name."""
    names = workspace.snapshot().class_table().names
    return {names[i]: offset for i, offset in workspace.history.last().info.offsets.items()}


def probabilities(workspace: Workspace, images: list[Path]) -> dict[str, np.ndarray]:
    """The probability of each class for the images, by its name."""
    recognizer = Recognizer.open(workspace)
    columns = recognizer.predict_proba(images).T
    return dict(zip(recognizer.classes_.tolist(), columns, strict=True))


def asked(folder: Path) -> list[Path]:
    """Some images of base and added classes."""
    train = [folder / "train" / name / "0-0.png" for name in BASE]
    return [*train, *sorted((folder / "more").rglob("*-0.png"))]


def check_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The same classes have the same probabilities."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)


def rows_of(workspace: Workspace) -> FoldScores:
    """The scores of the held-out images of a workspace."""
    found = fold_scores(Model.open(workspace.snapshot()))
    assert found is not None
    return found


def test_the_order_of_additions_makes_no_difference(
    fitted: Workspace, fitted_once: Path, new: dict[str, NewClass], tmp_path: Path
) -> None:
    """One by one in any order, or all at once: the same offsets and answers, and the base classes keep their ratios."""
    images = asked(fitted_once)
    before = probabilities(fitted, images)
    together = Workspace.open(shutil.copytree(fitted.path, tmp_path / "together"))
    add_classes(together, list(new.values()))
    expected = offsets(together)
    assert expected.keys() <= set(ADDED)
    assert min(expected.values()) < -0.1, "an offset counts"
    answers = probabilities(together, images)
    for number, order in enumerate(itertools.islice(itertools.permutations(ADDED), 0, 6, 3)):
        workspace = Workspace.open(shutil.copytree(fitted.path, tmp_path / str(number)))
        for name in order:
            add_classes(workspace, [new[name]])
        assert offsets(workspace) == pytest.approx(expected, abs=1e-6)
        check_same(probabilities(workspace, images), answers)
    base = sum(answers[name] for name in BASE)
    check_same({name: answers[name] / base for name in BASE}, before)


def test_every_change_computes_them_again(
    fitted: Workspace, fitted_once: Path, new: dict[str, NewClass], tmp_path: Path
) -> None:
    """After additions, removals and merges of added classes the offsets are those of a workspace that has the rest."""
    one = Workspace.open(shutil.copytree(fitted.path, tmp_path / "one"))
    add_classes(one, [new["plus"]])
    alone = offsets(one)
    add_classes(fitted, [new["plus"], new["quill"]])
    both = offsets(fitted)
    assert both["plus"] != pytest.approx(alone["plus"], abs=1e-3), "two classes share the budget"
    remove_classes(fitted, ["quill"])
    assert offsets(fitted) == pytest.approx(alone, abs=1e-6)
    # More images of an added class are as if they had been there from the start.
    whole = blots.write(tmp_path / "whole", "plus", 4)
    two = Workspace.open(shutil.copytree(fitted_once / "workspace", tmp_path / "two"))
    add_class(two, "plus", images=whole)
    add_images(fitted, "plus", sorted(whole.glob("[23]-*.png")))
    assert offsets(fitted) == pytest.approx(offsets(two), abs=1e-6)
    assert offsets(fitted) != pytest.approx(alone, abs=1e-3)
    add_classes(fitted, [NewClass("rung", images=(fitted_once / "more" / "rung",))])
    merge_classes(fitted, "plus", "rung")
    assert offsets(fitted).keys() <= {"plus"}


def test_a_rollback_brings_back_table_and_offsets(
    fitted: Workspace, fitted_once: Path, new: dict[str, NewClass]
) -> None:
    """Also over a removal of a base class, whose column is gone from the table meanwhile."""
    images = asked(fitted_once)
    add_classes(fitted, [new["plus"]])
    at = fitted.history.last()
    before = offsets(fitted), probabilities(fitted, images), rows_of(fitted)
    add_classes(fitted, [new["quill"]])
    remove_classes(fitted, ["comb"])
    assert offsets(fitted) != before[0]
    assert len(rows_of(fitted).image_ids) < len(before[2].image_ids)
    rollback(fitted, at.id)
    after = fitted.history.last()
    assert (after.info.offsets, after.info.folds) == (at.info.offsets, at.info.folds)
    assert offsets(fitted) == before[0]
    check_same(probabilities(fitted, images), before[1])
    rows = rows_of(fitted)
    assert rows.image_ids == before[2].image_ids
    np.testing.assert_allclose(rows.scores.numpy(), before[2].scores.numpy(), atol=1e-6)


def test_a_rename_changes_nothing(fitted: Workspace, fitted_once: Path, new: dict[str, NewClass]) -> None:
    """Neither of a base class nor of an added one, where no sentence was made from the name."""
    images = asked(fitted_once)
    add_classes(fitted, [new["quill"]])
    before = fitted.history.last().info.offsets, probabilities(fitted, images)
    assert before[0]
    called = {"quill": "feather", "comb": "rake"}
    for old, name in called.items():
        rename_class(fitted, old, name)
    assert fitted.history.last().info.offsets == before[0]
    expected = {called.get(name, name): values for name, values in before[1].items()}
    check_same(probabilities(fitted, images), expected)


def corrected(workspace: Workspace, folder: Path, given: Mapping[Path, str]) -> None:
    """Give images other classes, which are made if there are none."""
    lines = ["path,class", *(f"{path},{name}" for path, name in given.items())]
    (folder / "corrections.csv").write_text("\n".join(lines), encoding="utf-8")
    relabel_images(workspace, folder / "corrections.csv", create_classes=True)


def test_splitting_a_class_loses_none_of_its_images(
    fitted: Workspace, fitted_once: Path, tmp_path: Path
) -> None:
    """Images that move to an added class are not lost by their former class, nor are others of their groups."""
    comb = fitted_once / "train" / "comb"
    moved = {comb / f"{group}-0.png": "rake" for group in range(4)}
    groups = [{f"{comb}/{group}-{number}.png" for number in range(2)} for group in range(4)]
    corrected(fitted, tmp_path, moved)
    rows = fitted.snapshot().table("images", ["image_id", "uri"]).to_pylist()
    place = {row["image_id"]: row["uri"] for row in rows}
    found = rows_of(fitted)
    assert {place[i] for i in found.image_ids} >= set.union(*groups)
    dropped = {
        place[image_id]
        for image_id, same in zip(found.image_ids, found.same.tolist(), strict=True)
        if not same
    }
    assert dropped == set.union(*groups)
    counted = replace(found, same=torch.ones_like(found.same)).offsets()
    assert fitted.history.last().info.offsets == pytest.approx(found.offsets(), abs=1e-6)
    assert found.offsets() != pytest.approx(counted, abs=1e-3)


def test_only_rows_of_base_classes_with_their_label_count(
    fitted: Workspace, fitted_once: Path, new: dict[str, NewClass], tmp_path: Path
) -> None:
    """Images that are gone or relabelled are dropped; those of a merged class are of the class that it is now."""
    train = fitted_once / "train"
    relabelled = [train / "comb" / f"0-{number}.png" for number in range(2)]
    corrected(fitted, tmp_path, dict.fromkeys(relabelled, "gate"))
    rows = fitted.snapshot().table("images", ["image_id", "uri"]).to_pylist()
    ids = {row["uri"]: row["image_id"] for row in rows}
    gone = [ids[str(train / "knot" / f"1-{number}.png")] for number in range(2)]
    remove_images(fitted, gone)
    merge_classes(fitted, "mast", "reel")
    add_classes(fitted, [new["plus"]])
    found = rows_of(fitted)
    same = {i for i, kept in zip(found.image_ids, found.same.tolist(), strict=True) if kept}
    added = {i for i in found.image_ids if i not in set(ids.values())}
    assert len(added) == 4
    assert not set(gone) & set(found.image_ids)
    assert same == set(ids.values()) - set(gone) - {ids[str(path)] for path in relabelled}
    names = fitted.snapshot().class_table().names
    merged = [names[i] for i in found.labels[found.same].tolist()]
    assert (merged.count("mast"), merged.count("reel"), merged.count("comb")) == (2 * IMAGES, 0, IMAGES - 2)
    # Taken back, the label is again that of training.
    corrected(fitted, tmp_path, dict.fromkeys(relabelled, "comb"))
    again = rows_of(fitted)
    assert {ids[str(path)] for path in relabelled} <= {
        i for i, kept in zip(again.image_ids, again.same.tolist(), strict=True) if kept
    }


def test_changes_of_texts_and_labels_compute_them_again(
    fitted: Workspace, fitted_once: Path, new: dict[str, NewClass], tmp_path: Path
) -> None:
    """Of added classes and of base classes; each time the stored ones are those that the table gives afterwards."""

    def check() -> dict[str, float]:
        found = offsets(fitted)
        names = fitted.snapshot().class_table().names
        expected = {names[i]: offset for i, offset in rows_of(fitted).offsets().items()}
        assert found == pytest.approx(expected, abs=1e-6)
        return found

    add_classes(fitted, [new["plus"], new["quill"]])
    before = check()
    add_sentences(fitted, "quill", ["A quill is made of a feather."])
    check()
    relabelled = {fitted_once / "train" / "knot" / f"{group}-0.png": "gate" for group in range(3)}
    corrected(fitted, tmp_path, relabelled)
    assert check() != pytest.approx(before, abs=1e-3)


def test_an_exported_model_has_the_offsets(
    fitted: Workspace, fitted_once: Path, new: dict[str, NewClass], tmp_path: Path
) -> None:
    """It answers as the workspace does, with added classes of each kind."""
    add_classes(fitted, list(new.values()))
    assert min(offsets(fitted).values()) < -0.1
    images = asked(fitted_once)
    recognizer = Recognizer.open(fitted)
    recognizer.export(tmp_path / "model")
    exported = Recognizer.from_pretrained(tmp_path / "model")
    assert exported.current().offsets == recognizer.current().offsets
    assert exported.classes_.tolist() == recognizer.classes_.tolist()
    expected = recognizer.predict_proba(images)
    np.testing.assert_allclose(exported.predict_proba(images), expected, atol=1e-6)
