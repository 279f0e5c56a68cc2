"""From pictures to pixels: crops, batches read ahead, and batches that memory does not suffice for."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.support import drawings
from tests.support.commands import run
from tests.support.parts import check_parts
from tests.support.rounding import PROBABILITY
from vlltr_index.data.decoding import open_image
from vlltr_index.embedding.loading import image_set
from vlltr_index.embedding.pixels import (
    CropPixels,
    ImageReader,
    ReadAhead,
    Reader,
    image_features,
    pool_crops,
)
from vlltr_index.embedding.vectors import LocalEngine, embed_crops
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.openclip import Preprocessing
from vlltr_index.errors import UsageError, VlltrError
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace


def test_five_crops_are_the_centre_and_the_corners() -> None:
    """Of the drawing preprocessed to 36 pixels instead of 32; one crop is the plain preprocessing."""
    encoder = drawings.encoder()
    image = Image.fromarray(drawings.pixels()[0, 0].numpy()).resize((72, 72))
    plain = CropPixels(encoder)(image)
    assert torch.equal(plain, encoder.preprocess(image)[None])
    five = CropPixels(encoder, 5)(image)
    assert five.shape == (5, 3, 32, 32)
    centre, top_left, top_right, bottom_left, bottom_right = five
    assert torch.equal(top_left[:, 2:, 2:], centre[:, :-2, :-2])
    assert torch.equal(bottom_right[:, :-2, :-2], centre[:, 2:, 2:])
    assert torch.equal(top_left[:, :, 4:], top_right[:, :, :-4])
    assert torch.equal(top_left[:, 4:], bottom_left[:, :-4])


@pytest.mark.parametrize(("resize", "seen"), [(33, 36), (48, 48)])
def test_five_crops_of_an_encoder_that_cuts_out_the_middle(resize: int, seen: int) -> None:
    """Its own resize where that leaves room for the corners, else as much as they need."""
    encoder = Encoder.scratch("vlltr-tiny", ["a"], resize=resize)
    image = Image.fromarray(drawings.pixels()[0, 0].numpy())
    five = CropPixels(encoder, 5)(image)
    whole = Preprocessing(encoder.config["preprocess_cfg"] | {"resize": None, "size": seen})(image)
    edge = (seen - 36) // 2
    torch.testing.assert_close(five[1], whole[:, edge : edge + 32, edge : edge + 32])


@settings(max_examples=25, deadline=None)
@given(images=st.integers(1, 3), crops=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_pooling_is_the_mean_direction_at_the_mean_length(images: int, crops: int, seed: int) -> None:
    """Against loops in float64; one crop stays as it is."""
    features = torch.randn(images, crops, 6, generator=torch.Generator().manual_seed(seed)).double()
    pooled = pool_crops(features)
    for row, parts in zip(pooled, features, strict=True):
        direction = sum(part / part.norm() for part in parts)
        length = sum(part.norm() for part in parts) / crops
        torch.testing.assert_close(row, direction / torch.linalg.vector_norm(direction) * length)
    assert torch.equal(pool_crops(features[:, :1]), features[:, 0])
    opposite = torch.cat([features[:, :1], -features[:, :1]], 1)
    assert bool(pool_crops(opposite).isfinite().all())
    assert not bool(pool_crops(torch.zeros(1, 2, 4)).any())


class Garbage:
    """An object of a cycle, which notes in which process it is freed."""

    def __init__(self, note: Path) -> None:
        self.note = note
        self.itself = self

    def __del__(self) -> None:
        """Note the process."""
        with self.note.open("a") as file:
            file.write(f"{os.getpid()}\n")


class Collecting(ImageReader[int, int, list[int]]):
    """A reader that collects garbage before it reads."""

    def __getitem__(self, wanted: int) -> int:
        """Return the position."""
        gc.collect()
        return wanted

    def collate(self, read: list[int]) -> list[int]:
        """Return the positions."""
        return read


def test_processes_that_read_free_nothing_of_this_one(tmp_path: Path) -> None:
    """Freed there, objects of lancedb can wait forever for a lock that a thread held at the fork."""
    gc.disable()
    try:
        Garbage(tmp_path / "freed")
        assert list(ReadAhead(Collecting(), [[1, 2], [3]], workers=2)) == [[1, 2], [3]]
    finally:
        gc.enable()
    gc.collect()
    assert (tmp_path / "freed").read_text().split() == [str(os.getpid())]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_read_ahead_are_those_read_one_by_one(workers: int) -> None:
    """In their order, with what cannot be read named in its place; each time they are looked through anew."""
    encoder = drawings.encoder()
    images = [(f"image {n}", drawings.png(values[0])) for n, values in enumerate(drawings.pixels()[:12])]
    images += [("image 3", b"no image"), *((f"no image {n}", b"none either") for n in range(8))]
    batches = [images[:5], images[5:12], images[12:13], images[13:]]
    ahead = ReadAhead(Reader(encoder, 5), batches, workers=workers)
    for _ in range(2):
        read = list(ahead)
        assert [batch.names for batch in read] == [[name for name, _ in batch] for batch in batches]
        for batch, wanted in zip(read, batches, strict=True):
            broken = [source.startswith(b"no") for _, source in wanted]
            assert [problem is not None for problem in batch.problems] == broken
            assert all("not a JPEG, PNG" in problem for problem in filter(None, batch.problems))
            good = [image for image, bad in zip(wanted, broken, strict=True) if not bad]
            assert batch.readable == [name for name, _ in good]
            assert batch.pixels.shape == (len(good), 5, 3, 32, 32)
            plain = [CropPixels(encoder, 5)(open_image(source)) for _, source in good]
            assert all(torch.equal(*pair) for pair in zip(batch.pixels, plain, strict=True))


SHORT = [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("none is left")]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], None]:
    """Sets how many pictures a tower has memory for, and what is raised for more."""
    plain = Encoder.encode_pixels

    def set_to(most: int, error: Exception) -> None:
        def little(self: Encoder, pixels: Tensor) -> Tensor:
            if len(pixels) > most:
                raise error
            return plain(self, pixels)

        monkeypatch.setattr(Encoder, "encode_pixels", little)

    return set_to


@pytest.mark.parametrize("error", SHORT, ids=["gpu", "host"])
def test_a_batch_that_does_not_fit_is_halved_everywhere(
    trained: Workspace, pictures: Path, fits: Callable[[int, Exception], None], error: Exception
) -> None:
    """For vectors in views, stored crops, features and answers alike: the same within 1e-5, down to two pictures."""
    recognizer = Recognizer.open(trained)
    encoder = recognizer.current().encoder
    ids = image_set(trained.snapshot(), "test").image_ids[:5]
    paths = sorted(pictures.glob("known-*.png"))
    batch = [(path.name, str(path)) for path in paths]
    again = Workspace.open(shutil.copytree(trained.path, trained.path.with_name("again")))

    def computed(of: Workspace) -> list[Tensor]:
        (found,) = LocalEngine(encoder).images([batch], [0])
        answers = recognizer.predict(paths, PredictOptions(crops=5, top=99))
        chances = [sorted((c.class_id, c.probability) for c in answer.classes) for answer in answers]
        crops = embed_crops(of, encoder, ids, 5)
        return [found.vectors, crops, recognizer.features(paths, 5)[0], torch.tensor(chances)]

    whole = computed(trained)
    fits(2, error)
    torch.testing.assert_close(computed(again), whole, atol=1e-5, rtol=1e-5)


def test_a_picture_that_does_not_fit(fits: Callable[[int, Exception], None]) -> None:
    """For a GPU's memory the error names what mends it; that of the machine is told by the command."""
    encoder = drawings.encoder()
    pixels = torch.zeros(3, 1, 3, 32, 32)
    fits(0, SHORT[0])
    with pytest.raises(VlltrError) as caught:
        image_features(encoder, pixels)
    assert caught.value.message == "encode an image: CUDA out of memory"
    assert caught.value.hint == "Free memory of the GPU, or use --device cpu."
    fits(0, SHORT[1])
    with pytest.raises(MemoryError, match="none is left"):
        image_features(encoder, pixels)


def test_embedded_crops_are_kept_and_are_the_features_of_the_crops(trained: Workspace) -> None:
    """The second time nothing is encoded; they are not the plain vectors."""
    recognizer = Recognizer.open(trained)
    data = image_set(trained.snapshot(), "test")
    ids = data.image_ids[:5]
    calls: list[str] = []

    def watch(step: str, done: int, total: int | None) -> None:
        calls.append(step)

    first = embed_crops(trained, recognizer.current().encoder, ids, 5, watch)
    with trained.transaction("another writer"):  # what is there is read without waiting
        again = embed_crops(trained, recognizer.current().encoder, ids, 5, watch)
    assert calls == ["embed images, 5 crops each"]
    assert torch.equal(first, again)
    assert not torch.equal(first, data.features[:5])


def test_predictions_and_explanations_are_of_the_feature_that_is_scored(
    trained: Workspace, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shares add up to the text score of the pooled feature, parts to the log-odds, from Python and by command."""
    recognizer = Recognizer.open(trained)
    image = pictures / "known-0.png"
    (plain,) = recognizer.predict([image], PredictOptions(retrieval="exhaustive"))
    (cropped,) = recognizer.predict([image], PredictOptions(explain=99, retrieval="exhaustive", crops=5))
    features, _ = recognizer.features([image], crops=5)
    fused, _ = recognizer.score(features, "exhaustive")
    position = {int(c): n for n, c in enumerate(recognizer.current().class_ids)}
    assert [c.probability for c in plain.classes] != [c.probability for c in cropped.classes]
    with torch.inference_mode():
        logits = recognizer.current().saved.head.text_logits(features, recognizer.current().bank)[0]
    scale = float(recognizer.current().saved.head.logit_scale.detach())
    for found in cropped.classes:
        at = position[found.class_id]
        assert found.probability == pytest.approx(float(fused.probabilities[0, at]), abs=PROBABILITY)
        assert sum(s.share for s in found.sentences) == pytest.approx(found.text_score, abs=1e-6)
        assert scale * found.cosine == pytest.approx(float(logits[at]), abs=1e-3)
    check_parts(cropped.classes)
    again = recognizer.explain(image, cropped.classes[0].name, crops=5)
    assert again.cosine == pytest.approx(cropped.classes[0].cosine)
    options = ("--crops", "5", "--retrieval", "exhaustive")
    code, out, _ = run(capsys, "--json", "-w", trained.path, "predict", image, *options)
    (said,) = json.loads(out)
    assert said["classes"][0]["probability"] == pytest.approx(cropped.classes[0].probability, abs=PROBABILITY)
    assert code == 0
    with pytest.raises(UsageError) as error:
        recognizer.predict([image], PredictOptions(crops=3))
    assert str(error.value) == "crops is 1 or 5 (the centre and the corners), got 3\nUse --crops 5"
