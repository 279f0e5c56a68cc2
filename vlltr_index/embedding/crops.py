"""Test-time crops: an image seen a little larger, at its centre and corners, as one feature.

The crops' features are brought to length one, averaged, and the mean is given the crops' mean length. What is scored is
that one feature; so fusion, retrieval and explanation are what they are for any feature, and stay exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.data.decoding import open_image
from vlltr_index.embedding.vectors import all_embedded, image_vector_table, load_sources
from vlltr_index.encoders.openclip import Preprocessing
from vlltr_index.errors import UsageError
from vlltr_index.schemas.tables import image_vectors, image_vectors_name

if TYPE_CHECKING:
    from PIL import Image

    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace


_NUMBERS = (1, 5)
_MARGIN = 14  # the enlarged square has a margin of a fourteenth of the side on each side: 224 -> 256
_IMAGES = 64


class CropPixels:
    """Turns an image into its crops' pixels; it can be pickled, and holds no weights.

    Args:
        encoder: Whose size and preprocessing count.
        number: 1: the image as it is preprocessed. 5: preprocessed a seventh larger, then its centre and corners.

    Raises:
        UsageError: Another number.
    """

    def __init__(self, encoder: Encoder, number: int = 1) -> None:
        if number not in _NUMBERS:
            raise UsageError(f"crops is 1 or 5 (the centre and the corners), got {number}", "Use --crops 5")
        self._size = height, width = encoder.image_size
        self.number = number
        self._margins = max(1, round(height / _MARGIN)), max(1, round(width / _MARGIN))
        self._transform: Callable[[Image.Image], Tensor] = encoder.transform
        if number > 1:
            larger = height + 2 * self._margins[0], width + 2 * self._margins[1]
            cfg = encoder.config["preprocess_cfg"]
            cfg["size"] = larger[0] if larger[0] == larger[1] else list(larger)
            if "resize" in cfg:
                cfg["resize"] = max(cfg["resize"], *larger)
            self._transform = Preprocessing(cfg)

    def __call__(self, image: Image.Image) -> Tensor:
        """The crops of one image, normalised for the encoder: float32 [number, 3, H, W]."""
        whole = self._transform(image)
        if self.number == 1:
            return whole[None]
        (height, width), (down, right) = self._size, self._margins
        corners = [(y, x) for y in (0, 2 * down) for x in (0, 2 * right)]
        return torch.stack([whole[:, y : y + height, x : x + width] for y, x in ((down, right), *corners)])


class Crops:
    """Turns images into their crops' pixels, and pixels into features, for one encoder; arguments as `CropPixels`."""

    def __init__(self, encoder: Encoder, number: int = 1) -> None:
        self.encoder, self.pixels = encoder, CropPixels(encoder, number)

    @torch.inference_mode()
    def features(self, pixels: Sequence[Tensor]) -> Tensor:
        """One feature for each image from its crops [number, 3, H, W]: float32 [B, D], unnormalised.

        They are on the encoder's device.
        """
        batch = torch.cat(list(pixels)).to(self.encoder.device, non_blocking=True)
        features = self.encoder.encode_pixels(batch)
        return pool_crops(features.view(len(pixels), self.pixels.number, -1))


def pool_crops(features: Tensor) -> Tensor:
    """Features of crops to one feature an image: the mean direction, at the crops' mean length.

    Args:
        features: Float [B, N, D], unnormalised.

    Returns:
        [B, D], unnormalised; with one crop, that crop's feature.
    """
    if features.shape[1] == 1:
        return features[:, 0]
    lengths = torch.linalg.vector_norm(features, dim=2, keepdim=True)
    mean = (features / lengths.clamp(min=1e-12)).mean(1)
    unit = mean / torch.linalg.vector_norm(mean, dim=1, keepdim=True).clamp(min=1e-12)
    pooled: Tensor = unit * lengths.mean(1)
    return pooled


def embed_crops(
    workspace: Workspace,
    encoder: Encoder,
    image_ids: Sequence[str],
    number: int,
    progress: Progress | None = None,
) -> Tensor:
    """Features of images through `number` crops, from the cache or computed and kept there: float32 [N, D].

    Raises:
        UsageError: Another number of crops than there is.
        InputError: An image cannot be read any more.
    """
    crops, name = Crops(encoder, number), image_vectors_name(encoder.image_fp)
    suffix, view = (f"crops-{number}", -number) if number > 1 else ("0", 0)
    keys = {image_id: f"{image_id}:{suffix}" for image_id in image_ids}
    if not all_embedded(workspace.snapshot(), encoder.image_fp, image_ids, suffix):
        with workspace.transaction("evaluate") as tx:  # only the cache grows: no commit
            tx.store.create(name, image_vectors(encoder.dim), "vector_key")
            have = tx.store.keys(name, "vector_key")
            todo = [image_id for image_id, key in keys.items() if key not in have]
            for start in range(0, len(todo), _IMAGES):
                part = todo[start : start + _IMAGES]
                pixels = [crops.pixels(open_image(source)) for _, source in load_sources(tx, part)]
                tx.store.append(name, image_vector_table(part, suffix, view, crops.features(pixels).cpu()))
                if progress:
                    progress(f"embed images, {number} crops each", start + len(part), len(todo))
    return workspace.store.vectors(name, "vector_key", [keys[i] for i in image_ids])[1]
