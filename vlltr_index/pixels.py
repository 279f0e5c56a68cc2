"""Images as an encoder's preprocessing gives them, kept in a cache so that they are decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlltr_index.images.cache import PixelCache
from vlltr_index.images.decode import open_image
from vlltr_index.schemas.fingerprint import digest_json, short

if TYPE_CHECKING:
    from vlltr_index.encoder import Encoder

__all__ = ["cropped", "normalised", "plain_cache", "plain_need"]

_FORMAT = 1


def plain_cache(folder: Path, encoder: Encoder) -> PixelCache:
    """A cache below `folder` of images resized and cropped for `encoder`; another preprocessing has another cache."""
    name = f"plain-{short(digest_json(encoder.config['preprocess_cfg']))}-v{_FORMAT}"
    return PixelCache(folder / name, lambda data: cropped(open_image(data), encoder))


def plain_need(digests: list[str], encoder: Encoder) -> dict[str, int]:
    """Bytes that each image takes in `plain_cache`, by its digest."""
    height, width = encoder.image_size
    return dict.fromkeys(digests, 3 * height * width)


def cropped(image: Image.Image, encoder: Encoder) -> Image.Image:
    """What `encoder.preprocess` makes of an image before it normalises, in 8 bits: RGB, the encoder's size."""
    mean, std = encoder.mean.view(3, 1, 1), encoder.std.view(3, 1, 1)
    values = (encoder.preprocess(image) * std + mean) * 255
    return Image.fromarray(values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def normalised(image: Image.Image, encoder: Encoder) -> Tensor:
    """`encoder.preprocess` of the image that `cropped` was made from: float32 [3, H, W], bit for bit."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return values.sub_(encoder.mean.view(3, 1, 1)).div_(encoder.std.view(3, 1, 1))
