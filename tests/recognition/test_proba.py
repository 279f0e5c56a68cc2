"""`predict_proba` in the manner of scikit-learn: a column a class, every kind of image, errors that name the image."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import encoded
from tests.support.rounding import PROBABILITY, same_order
from vlltr_index.errors import InputError, UsageError
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions, Prior
from vlltr_index.store.workspace import Workspace


def test_columns_are_the_classes(exported: Recognizer, pictures: Path) -> None:
    """Float64 [B, C] whose rows sum to one; the columns' names are `classes_`, and `predict` says the same."""
    images = sorted(pictures.glob("known-*.png"))
    found = exported.predict_proba(images)
    assert found.dtype == np.float64
    assert found.shape == (6, len(exported.classes_)) == (6, len(exported.current().class_ids))
    assert np.abs(found.sum(axis=1) - 1).max() < 1e-12
    assert found.min() >= 0
    predicted = exported.predict(images, PredictOptions(top=3, retrieval="exhaustive"))
    for row, prediction in zip(found, predicted, strict=True):
        chances = dict(zip(exported.classes_.tolist(), row.tolist(), strict=True))
        names = [c.name for c in prediction.classes]
        assert len(names) == 3
        assert same_order(names, chances)
        expected = [chances[name] for name in names]
        assert [c.probability for c in prediction.classes] == pytest.approx(expected, abs=PROBABILITY)
    assert exported.predict_names(images) == [p.classes[0].name for p in predicted]


@pytest.mark.parametrize("prior", ["training", "estimated"])
def test_classes_as_common_as_a_prior_says(trained: Workspace, pictures: Path, prior: Prior) -> None:
    """As `predict` has them; weights by name in `test_prior`."""
    recognizer = Recognizer.open(trained)
    images = sorted(pictures.glob("known-*.png"))
    found = recognizer.predict_proba(images, prior=prior)
    assert np.abs(found - recognizer.predict_proba(images)).max() > 1e-3
    predicted = recognizer.predict(images, PredictOptions(top=1, prior=prior))
    assert found.max(1) == pytest.approx([one.classes[0].probability for one in predicted], abs=PROBABILITY)
    assert recognizer.predict_names(images, prior=prior) == [one.classes[0].name for one in predicted]
    with pytest.raises(UsageError, match="the prior is 'balanced', 'training', 'estimated' or"):
        recognizer.predict_proba(images, prior="common")  # type: ignore[arg-type]  # none of them


def test_every_kind_of_image_gives_the_same(exported: Recognizer, pictures: Path) -> None:
    """A path, its bytes, a PIL image and an array are one picture."""
    path = pictures / "known-3.png"
    with Image.open(path) as opened:
        picture = opened.copy()
    array = np.asarray(picture.convert("RGB"))
    kinds: list[Any] = [path, str(path), path.read_bytes(), picture, picture.convert("RGB"), array]
    found = exported.predict_proba(kinds)
    assert np.abs(found - found[0]).max() < PROBABILITY  # the place in a batch moves the last bits
    labels = [p.image for p in exported.predict(kinds[2:], PredictOptions(top=1))]
    assert labels == ["(bytes)", "(Image)", "(Image)", "(ndarray)"]


def test_pil_images_are_turned_and_put_on_paper(exported: Recognizer, pictures: Path) -> None:
    """EXIF rotation and transparency count for a PIL image as for the file it came from."""
    with Image.open(pictures / "known-0.png") as opened:
        picture = opened.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture, exif=exif)
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    white = np.full((*picture.size[::-1], 3), 255, np.uint8)
    found = exported.predict_proba([data, Image.open(BytesIO(data)), clear, white])
    assert np.abs(found[0] - found[1]).max() < PROBABILITY
    assert np.abs(found[2] - found[3]).max() < PROBABILITY


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"an array must be uint8 \[H, W, 3\], got uint8 \[4, 4\]"),
        (b"no image", "cannot read the image of 8 bytes: not a JPEG"),
        ("none.png", "cannot read the image none.png: no such file"),
    ],
)
def test_an_image_that_cannot_be_read(exported: Recognizer, pictures: Path, image: Any, message: str) -> None:
    """It is named with its place; `predict` answers the others instead."""
    good = pictures / "known-0.png"
    with pytest.raises(InputError, match=r"images\[1\]: .*" + message.removeprefix("cannot read the image ")):
        exported.predict_proba([good, image])
    first, second = exported.predict([good, image], PredictOptions(top=1))
    assert first.problem is None
    assert second.problem is not None


def test_none_and_many(exported: Recognizer, pictures: Path) -> None:
    """No image gives no row; more than a batch go through in order; other numbers of crops are refused."""
    assert exported.predict_proba([]).shape == (0, len(exported.classes_))
    assert exported.predict_names([]) == []
    images = (sorted(pictures.glob("known-*.png")) * 11)[:64] * 2  # two batches that are alike
    found = exported.predict_proba(images)
    assert np.abs(found[:64] - found[64:]).max() < PROBABILITY
    with pytest.raises(UsageError, match="crops is 1 or 5"):
        exported.predict_proba(images[:1], crops=3)
