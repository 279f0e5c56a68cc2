"""Mixup and cutmix of whole batches (timm's), drawn from a stage's own random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import BaselineConfig, LGRConfig
from vlltr_index.train.augment import seeded
from vlltr_index.train.distributed import gather_rows, world

__all__ = ["BatchMixer"]


class BatchMixer:
    """Mixes each image of a batch with the one at the mirrored place; one share and kind of mixing a batch.

    With both `mixup` and `cutmix` above 0 a coin decides a batch. Processes that share a batch draw the same share and
    kind, and mix within their own parts of it.

    Args:
        mixup: The beta distribution's parameter; 0 turns mixup off.
        cutmix: The same for cutmix.
        label_smoothing: Share of the target spread evenly over all classes.
        classes: C.
    """

    def __init__(self, mixup: float, cutmix: float, label_smoothing: float, classes: int) -> None:
        from timm.data.mixup import Mixup

        self._mix: Any = Mixup(
            mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=label_smoothing, num_classes=classes
        )

    @classmethod
    def of(cls, config: LGRConfig | BaselineConfig, classes: int) -> BatchMixer | None:
        """As the configuration says; None where it mixes nothing.

        Raises:
            ConfigError: If a process's part of the batch is odd.
        """
        if not (config.mixup or config.cutmix):
            return None
        share, left = divmod(config.batch_size, world()[1])
        if left == 0 and share % 2:
            section = "lgr" if isinstance(config, LGRConfig) else "baseline"
            raise ConfigError(
                f"mixup and cutmix pair images up: each process has {share} of the batch, which is odd",
                f"Use --set {section}.batch_size={(share + 1) * world()[1]}",
            )
        return cls(config.mixup, config.cutmix, config.label_smoothing, classes)

    def __call__(self, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix a process's part of a batch.

        Args:
            pixels: Float [b, 3, H, W], this process's part, b even; left as they are.
            labels: int64 [B], the classes of all processes' images.
            generator: The same in every process.

        Returns:
            Mixed pixels [b, 3, H, W], and the targets of all processes' images, float32 [B, C], on the pixels' device.
        """
        seed = int(torch.randint(2**31, (1,), generator=generator))
        own = labels.to(pixels.device).split(len(pixels))[world()[0]]
        mixed, targets = seeded(seed, lambda: self._mix(pixels.clone(), own))
        return mixed, gather_rows(targets)
