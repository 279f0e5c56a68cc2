"""Images to features, in batches that are read ahead; through test-time crops, too.

An image may be encoded through crops: it is resized a little larger, and cropped at its centre and corners. The crops'
features are normalised to length one and averaged, and the mean gets the crops' mean length. The result is a single
feature, so that fusion, retrieval and explanation work as for any image, and stay exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.data.decoding import ImageSource, cores, read_image
from vlltr_index.embedding.loading import image_vectors_of
from vlltr_index.embedding.vectors import IMAGE_BATCH, all_embedded, image_vector_table, load_sources
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.openclip import Preprocessing
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.tables import image_vectors, image_vectors_name

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

_MARGIN = 14  # the enlarged square has a margin of a fourteenth of the side on each side: 224 -> 256
_BATCH = 64
_READERS = 8


class ReadImage(NamedTuple):
    """A named image that was read: the pixels of its crops, or why it has none."""

    name: str
    pixels: Tensor | None
    problem: str | None


class CropPixels:
    """Preprocessing of an image into its crops' pixels; it can be pickled, and holds no weights.

    Args:
        encoder: Encoder whose size and preprocessing are used.
        number: 1: the image as it is preprocessed. 5: preprocessed a seventh larger, and cropped at centre and corners.

    Raises:
        UsageError: Another number of crops.
    """

    def __init__(self, encoder: Encoder, number: int = 1) -> None:
        if number not in (1, 5):
            raise UsageError(f"crops is 1 or 5 (the centre and the corners), got {number}", "Use --crops 5")
        height, width = encoder.image_size
        self._size = (height, width)
        self.number = number
        self._margins = (max(1, round(height / _MARGIN)), max(1, round(width / _MARGIN)))
        self._transform: Callable[[Image.Image], Tensor] = encoder.transform
        if number > 1:
            larger = (height + 2 * self._margins[0], width + 2 * self._margins[1])
            cfg = encoder.config["preprocess_cfg"]
            cfg["size"] = larger[0] if larger[0] == larger[1] else list(larger)
            if "resize" in cfg:
                cfg["resize"] = max(cfg["resize"], *larger)
            self._transform = Preprocessing(cfg)

    def __call__(self, image: Image.Image) -> Tensor:
        """Make the crops of one image, normalised for the encoder: float32 [number, 3, H, W]."""
        whole = self._transform(image)
        if self.number == 1:
            return whole[None]
        height, width = self._size
        down, right = self._margins
        places = [(down, right), (0, 0), (0, 2 * right), (2 * down, 0), (2 * down, 2 * right)]
        return torch.stack([whole[:, y : y + height, x : x + width] for y, x in places])


class Crops:
    """Crops of images and their features for one encoder; arguments as for `CropPixels`."""

    def __init__(self, encoder: Encoder, number: int = 1) -> None:
        self.encoder = encoder
        self.pixels = CropPixels(encoder, number)

    @torch.inference_mode()
    def features(self, pixels: Sequence[Tensor]) -> Tensor:
        """Compute one feature for each image from its crops [number, 3, H, W]: float32 [B, D], unnormalised.

        The features are on the encoder's device.
        """
        batch = torch.cat(list(pixels)).to(self.encoder.device, non_blocking=True)
        features = self.encoder.encode_pixels(batch)
        return pool_crops(features.view(len(pixels), self.pixels.number, -1))


def pool_crops(features: Tensor) -> Tensor:
    """Pool the features of crops into one feature per image: the mean direction, with the crops' mean length.

    Args:
        features: Float [B, N, D], unnormalised.

    Returns:
        [B, D], unnormalised; with one crop, that crop's feature.
    """
    if features.shape[1] == 1:
        return features[:, 0]
    length: Tensor = torch.linalg.vector_norm(features, dim=2).mean(1, keepdim=True)
    return F.normalize(F.normalize(features, dim=2).mean(1), dim=1) * length


def embed_crops(
    workspace: Workspace,
    encoder: Encoder,
    image_ids: Sequence[str],
    number: int,
    progress: Progress | None = None,
) -> Tensor:
    """Read the features of images through `number` crops, more than 1, and compute and store those that are missing.

    Returns:
        Float32 [N, D], unnormalised.

    Raises:
        UsageError: The number of crops is not supported.
        InputError: An image can no longer be read.
    """
    crops = Crops(encoder, number)
    name = image_vectors_name(encoder.image_fp)
    suffix = f"crops-{number}"
    if not all_embedded(workspace.snapshot(), encoder.image_fp, image_ids, suffix):
        with workspace.transaction("evaluate") as tx:  # it only adds to the cache, so there is no commit
            tx.store.create(name, image_vectors(encoder.dim), "vector_key")
            have = tx.store.keys(name, "vector_key")
            todo = [image_id for image_id in image_ids if f"{image_id}:{suffix}" not in have]
            for start in range(0, len(todo), IMAGE_BATCH):
                part = todo[start : start + IMAGE_BATCH]
                pixels = [read_image(source, crops.pixels) for _, source in load_sources(tx, part)]
                tx.store.append(name, image_vector_table(part, suffix, -number, crops.features(pixels).cpu()))
                if progress:
                    progress(f"embed images, {number} crops each", start + len(part), len(todo))
    return image_vectors_of(workspace.snapshot(), image_ids, suffix, encoder.image_fp)


def read_ahead(images: Iterable[tuple[str, ImageSource]], pixels: CropPixels) -> Iterator[list[ReadImage]]:
    """Read named images in batches of 64; the next batch is read while the caller works on one."""

    def read(image: tuple[str, ImageSource]) -> ReadImage:
        name, source = image
        try:
            return ReadImage(name, read_image(source, pixels), None)
        except InputError as error:
            return ReadImage(name, None, error.message)

    source = iter(images)
    with ThreadPoolExecutor(min(_READERS, len(cores()))) as pool:
        coming = pool.map(read, islice(source, _BATCH))
        while batch := list(coming):
            coming = pool.map(read, islice(source, _BATCH))
            yield batch
