"""Training images and sentences."""

from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.support import drawings
from tests.support.pictures import encoded
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import InputError
from vlltr_index.schemas.config import AugmentConfig
from vlltr_index.train.data import TrainImages, TrainTexts

PLAIN = AugmentConfig(kind="none")
PHOTO = AugmentConfig(kind="photo")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return drawings.encoder()


def colour_images(count: int) -> list[bytes | str]:
    rng = np.random.default_rng(0)
    return [encoded(Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8))) for _ in range(count)]


def epoch(images: TrainImages, batches: Tensor, part: slice = slice(None), seed: int = 0) -> Tensor:
    return torch.stack(list(images.epoch(batches, part, seed)))


def test_grey_images_are_held_in_one_channel_as_preprocessing_sees_them(encoder: Encoder) -> None:
    """Decoded, held as uint8 and normalised again, an image equals `encoder.preprocess` of it."""
    sources: list[bytes | str] = [drawings.png(p[0]) for p in drawings.pixels()[:5]]
    images = TrainImages(sources, torch.arange(5), encoder, PLAIN)
    assert images.pixels is not None
    assert images.pixels.shape == (5, 1, 32, 32)
    expected = torch.stack([encoder.preprocess(Image.open(BytesIO(s)).convert("RGB")) for s in sources])  # type: ignore[arg-type]  # all bytes
    torch.testing.assert_close(epoch(images, torch.arange(5)[None])[0], expected)


def test_images_too_large_for_memory_are_streamed_alike(encoder: Encoder) -> None:
    """Without augmentation, held and streamed images give the same pixels, in order, whatever the workers."""
    sources = colour_images(6)
    held = TrainImages(sources, torch.arange(6), encoder, PLAIN)
    batches = torch.tensor([[0, 5], [3, 3], [1, 2]])
    for workers in (0, 1):
        streamed = TrainImages(sources, torch.arange(6), encoder, PLAIN, workers=workers, memory_limit=0)
        assert streamed.pixels is None
        torch.testing.assert_close(epoch(streamed, batches), epoch(held, batches), atol=0.01, rtol=0)


@pytest.mark.parametrize("config", [PHOTO, drawings.AUGMENT])
@pytest.mark.parametrize("memory_limit", [0, 1 << 30])
def test_parts_and_workers_do_not_change_what_is_seen(
    encoder: Encoder, config: AugmentConfig, memory_limit: int
) -> None:
    """Halves of each step's columns put together equal the whole; another seed gives other pixels."""
    sources = colour_images(4)
    images = TrainImages(sources, torch.arange(4), encoder, config, workers=0, memory_limit=memory_limit)
    batches = torch.tensor([[0, 1, 2, 3], [3, 2, 2, 0]])
    whole = epoch(images, batches)
    halves = [epoch(images, batches, part) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(torch.cat(halves, 1), whole)
    assert not torch.equal(whole[1, 1], whole[1, 2])
    assert not torch.equal(epoch(images, batches, seed=1), whole)


def test_a_broken_image_does_not_stop_the_run(
    encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of its class stands in; a class without any readable image is blank; each is told once, by name."""
    good = colour_images(1)
    sources: list[bytes | str] = [*good, str(tmp_path / "gone.png"), b"no image"]
    held = TrainImages(sources, torch.tensor([0, 0, 1]), encoder, PLAIN)
    streamed = TrainImages(sources, torch.tensor([0, 0, 1]), encoder, PLAIN, workers=0, memory_limit=0)
    batches = torch.tensor([[0, 1, 2], [0, 1, 2]])
    with caplog.at_level(logging.WARNING):
        for images in (held, streamed):
            first = epoch(images, batches)[0]
            assert torch.equal(first[0], first[1])
            assert first[2].abs().max() < 0.01
            assert images.replaced == {1, 2}
    assert caplog.text.count("gone.png cannot be read") == 2  # once each


def test_images_that_cannot_be_trained_on(encoder: Encoder) -> None:
    """None that can be read, and none at all."""
    with pytest.raises(InputError, match="none of the 1 training images can be read"):
        TrainImages([b"no"], torch.tensor([0]), encoder, PLAIN)
    with pytest.raises(InputError, match="no training images"):
        TrainImages([], torch.empty(0, dtype=torch.int64), encoder, PLAIN)


@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.5, 0.95]))
@settings(max_examples=30, deadline=None)
def test_word_dropout_strikes_words_out(seed: int, share: float) -> None:
    """A sentence keeps start, end, the order of what is left, and one word at least; padding follows."""
    encoder = drawings.encoder()
    texts = TrainTexts(drawings.texts(), encoder)
    rows = torch.arange(24)
    ids, lengths = texts.tokens(rows, share, torch.Generator().manual_seed(seed))
    assert ids.shape[1] == int(lengths.max())
    for row, length, source in zip(ids.tolist(), lengths.tolist(), texts.ids.tolist(), strict=True):
        words, pads = row[:length], row[length:]
        assert not any(pads)
        assert length >= 3
        assert words[0] == source[0]
        assert words[-1] == max(source)
        left = iter(source)
        assert all(word in left for word in words)
    assert share != 0.5 or lengths.sum() < texts.lengths[rows].sum()
