"""What no answer depends on: the order of classes, images and sentences, and images of other splits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support import blots
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.recognition.folds import open_folds
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow

NAMES = ("comb", "gate", "knot", "mast")
SENTENCES = ("It is a {}.", "There is a {} in the middle.", "A {} is made of blots.")


def made(folder: Path, names: Sequence[str] = NAMES, step: int = 1) -> Workspace:
    """A workspace of images below `folder`, whose classes come in the order of `names`, and sentences in steps."""
    told = {name: [one.format(name) for one in SENTENCES[::step]] for name in names}
    (folder / "texts.json").write_text(json.dumps(told), encoding="utf-8")
    recipe = override(load_recipe("glyphs_lt/quick"), ("lgr.views=1",))
    workspace = Workspace.create(folder / "workspace", recipe)
    ingest_text(workspace, folder / "texts.json")
    for split in ("train", "val", "test"):
        if (folder / split).exists():
            ingest_images(workspace, folder / split, split, group=blots.GROUP)
    train_all(workspace, recipe, stage_one=False)
    return workspace


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Four classes of twenty images in ten groups; the last class has six in three."""
    folder = tmp_path_factory.mktemp("plain")
    for name in NAMES:
        blots.write(folder / "train", name, 3 if name == NAMES[-1] else 10)
    return made(folder)


def answers(workspace: Workspace, asked: Workspace) -> dict[str, np.ndarray]:
    """The probability of each class, by its name, for the training images of a workspace."""
    images = sorted((asked.path.parent / "train").rglob("*.png"))
    recognizer = Recognizer.open(workspace)
    columns = recognizer.predict_proba(images).T
    return dict(zip(recognizer.classes_.tolist(), columns, strict=True))


def check_same(workspace: Workspace, other: Workspace) -> None:
    """Both answer alike."""
    found, expected = answers(workspace, other), answers(other, other)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)


def folds_of(workspace: Workspace) -> dict[str, int]:
    """The fold of each image that is held out, by its class and file name."""
    snapshot = workspace.snapshot()
    rows = snapshot.table("images", ["image_id", "uri"]).to_pylist()
    place = {row["image_id"]: "/".join(Path(row["uri"]).parts[-2:]) for row in rows}
    folds = open_folds(snapshot)
    assert folds is not None
    opened = folds.opened(Model.open(snapshot))
    return {place[i]: number for number, fold in enumerate(opened) for i in fold.image_ids}


def test_an_image_of_another_split_changes_no_answer(plain: Workspace, tmp_path: Path) -> None:
    """Neither in val nor in test, and it is in no fold."""
    shutil.copytree(plain.path.parent / "train", tmp_path / "train")
    for split, number in (("val", 20), ("test", 21)):
        place = tmp_path / split / "comb"
        place.mkdir(parents=True)
        blots.picture("comb", number).save(place / f"{number}-0.png")
    other = made(tmp_path)
    check_same(other, plain)
    assert folds_of(other) == folds_of(plain)


def test_the_order_of_classes_images_and_sentences_changes_no_answer(
    plain: Workspace, tmp_path: Path
) -> None:
    """Numbers of classes and names of files follow from it, and nothing else does."""
    for name in NAMES:
        (tmp_path / "train" / name).mkdir(parents=True)
        for path in (plain.path.parent / "train" / name).iterdir():
            group, number = path.stem.split("-")
            shutil.copy(path, tmp_path / "train" / name / f"{50 - int(group)}-{1 - int(number)}.png")
    other = made(tmp_path, NAMES[::-1], step=-1)
    tables = [workspace.snapshot().class_table() for workspace in (plain, other)]
    assert tables[0].lookup("comb") != tables[1].lookup("comb")
    check_same(other, plain)


def test_another_training_image_moves_groups_of_its_class_alone(plain: Workspace, tmp_path: Path) -> None:
    """The images of the other classes are in the folds that they were in."""
    shutil.copytree(plain.path.parent / "train", tmp_path / "train")
    blots.picture("comb", 20).save(tmp_path / "train" / "comb" / "20-0.png")
    before = folds_of(plain)
    after = folds_of(made(tmp_path))
    assert after.keys() - before.keys() == {"comb/20-0.png"}
    for name, fold in before.items():
        assert after[name] == fold or name.startswith("comb/")
    assert len({after[name] for name in after if name.startswith("comb/")}) == 5
