"""What the competitors share: the same encoder, photographs and plan; only where pixels come from differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.clock import Clock
from benchmarks.speed.embedding.common import photographs
from benchmarks.speed.harness import Arrays
from vlltr_index.data.decoding import reduced_bytes
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.schemas.config import AugmentConfig, BaselineConfig
from vlltr_index.train.cvlp import train_image_only
from vlltr_index.train.data import TrainImages
from vlltr_index.train.sampling import epoch_batches, stream

__all__ = ["Epoch"]

AUGMENT = AugmentConfig(kind="photo")


class Epoch:
    """One epoch of the image-only stage, from the same start every time."""

    def __init__(self, values: dict[str, Any], kept: bool, in_memory: bool = False) -> None:
        self.values = values
        files = [str(path) for path in photographs(values["number"])]
        labels = torch.arange(len(files)) % 8
        self.encoder = Encoder.scratch(values["model"], seed=0)
        self.start = {k: v.clone() for k, v in self.encoder.model.state_dict().items()}
        self.config = BaselineConfig(epochs=1, batch_size=values["batch"], lr=1e-6)
        sources: list[bytes | str] = [*files]
        if kept:
            sources = [reduced_bytes(file, (800, 600), values["side"]) for file in files]
        self.images: Any = TrainImages(
            sources,
            labels,
            self.encoder,
            AUGMENT,
            workers=self.config.workers,
        )
        if in_memory:
            self.images = _Recorded(self.images, list(self._pixels()))

    def _pixels(self) -> Iterator[Tensor]:
        config = self.config
        labels = self.images.labels
        batches = epoch_batches(
            labels, config.batch_size, config.sampler_power, stream(config.seed, 0, "images")
        )
        yield from self.images.epoch(batches, slice(0, config.batch_size), config.seed, 0)

    def _alone(self) -> None:
        for _ in self._pixels():
            pass

    def __call__(self) -> Arrays:
        """An epoch with the model; then one of the loader alone, not in the time."""
        self.encoder.model.load_state_dict(self.start)
        clock = Clock()
        stage = train_image_only(self.encoder, self.images, self.config)
        took = clock.read()
        clock = Clock()
        self._alone()
        alone = clock.read()
        extra = {**took, "loader_alone_cpu_s": alone["cpu_seconds"], "loader_alone_s": alone["seconds"]}
        return {"loss": np.array([stage.log[-1]["loss"]]), "_extra": extra}  # type: ignore[dict-item] # the harness takes it out


class _Recorded(TrainImages):
    """The pixels of an epoch, held in memory."""

    def __init__(self, images: TrainImages, pixels: list[Tensor]) -> None:
        vars(self).update(vars(images))
        self._pixels = pixels

    def epoch(self, batches: Tensor, part: slice, *seed: object) -> Iterator[Tensor]:
        """What the loader gave for this epoch."""
        yield from self._pixels
