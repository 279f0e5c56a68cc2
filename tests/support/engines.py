"""An engine of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from vlltr_index.embedding.vectors import ImageVectors, LocalEngine

__all__ = ["Halved"]


class Halved(LocalEngine):
    """The encoder's vectors, half as long."""

    def texts(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[list[str], Tensor, int]]:
        """Vectors of texts."""
        for keys, vectors, cut in super().texts(texts):
            yield keys, vectors / 2, cut

    def images(self, batches: Any, views: Sequence[int]) -> Iterator[ImageVectors]:
        """Vectors of images."""
        for found in super().images(batches, views):
            yield found._replace(vectors=found.vectors / 2)
