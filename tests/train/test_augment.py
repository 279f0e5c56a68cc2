"""Augmentation of batches and of single photographs."""

from __future__ import annotations

import pickle

import pytest
import torch
from PIL import Image

from tests.support import drawings
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import AugmentConfig
from vlltr_index.train.augment import BatchAugment, PhotoTransform, ViewAugment

KINDS = [
    AugmentConfig(kind="glyph"),
    AugmentConfig(kind="photo"),
    AugmentConfig(kind="photo", auto_augment=None, random_erase=0.5),
]


@pytest.mark.parametrize("config", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_values_stay_in_range_and_images_change(config: AugmentConfig, channels: int) -> None:
    """Shape and range hold; the same generator gives the same images, another one others."""
    pixels = torch.rand(12, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    augment = BatchAugment(config)

    def augmented(seed: int) -> torch.Tensor:
        return augment.apply(pixels, augment.draw(len(pixels), torch.Generator().manual_seed(seed)))

    first = augmented(1)
    if channels == 1 and config.auto_augment and config.kind == "photo":
        assert first.shape == (12, 3, 16, 16)
    else:
        assert first.shape == pixels.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, augmented(1))
    assert not torch.equal(first, augmented(2))


@pytest.mark.parametrize("config", KINDS)
def test_a_part_of_a_batch_is_augmented_as_in_the_whole(config: AugmentConfig) -> None:
    """Two processes with half a batch each see what one sees with all of it."""
    pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    augment = BatchAugment(config)
    draws = augment.draw(8, torch.Generator().manual_seed(1))
    halves = [augment.apply(pixels[part], draws[part]) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(halves), augment.apply(pixels, draws))


def test_strokes_widen_as_a_maximum_over_neighbours() -> None:
    """The widened half of the choices is the neighbourhood's maximum, mixed with the image."""
    pixels = torch.zeros(1, 1, 9, 9)
    pixels[0, 0, 4, 4] = 1.0
    draws = torch.full((1, 12), 0.5)
    draws[0, 6], draws[0, 7] = 0.0, 1.0
    wide = BatchAugment(drawings.AUGMENT).apply(pixels, draws)
    expected = torch.zeros(9, 9)
    expected[3:6, 3:6] = 1.0
    torch.testing.assert_close(wide[0, 0], expected)


def test_normalised_pixels_are_augmented_in_their_own_range() -> None:
    """`ViewAugment` undoes the normalisation, augments, and puts it back."""
    encoder = drawings.encoder()
    pixels = torch.rand(4, 3, 32, 32)
    mean, std = encoder.mean.view(1, 3, 1, 1), encoder.std.view(1, 3, 1, 1)
    plain, seeds = BatchAugment(drawings.AUGMENT), [3, 1, 2, 3]
    expected = torch.cat(
        [
            plain.apply(one[None], plain.draw(1, torch.Generator().manual_seed(s)))
            for one, s in zip(pixels, seeds, strict=True)
        ]
    )
    augment = pickle.loads(pickle.dumps(ViewAugment(drawings.AUGMENT, encoder)))  # noqa: S301 - our own
    torch.testing.assert_close(augment((pixels - mean) / std, seeds), (expected - mean) / std)


def test_an_unknown_policy_is_refused() -> None:
    """The message shows a spelling that works."""
    with pytest.raises(ConfigError, match=r"'augmix'.*\n.*rand-m6"):
        BatchAugment(AugmentConfig(auto_augment="augmix"))


def test_a_tower_that_sees_grey_is_trained_on_grey() -> None:
    """Streamed photographs lose their colour as they do for embedding and prediction."""
    encoder = Encoder.load("vlltr-tiny", "glyphs")
    assert encoder.config["preprocess_cfg"]["mode"] == "L"
    red = Image.new("RGB", (64, 48), "red")
    made = PhotoTransform(AugmentConfig(kind="photo", auto_augment=None, color_jitter=0.0), encoder)(red, 0)
    expected = encoder.transform(red)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    assert torch.allclose(made.mean((1, 2)), expected.mean((1, 2)), atol=0.02)
