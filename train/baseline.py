"""The image-only baseline: the visual tower and a linear layer under cross-entropy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.schemas.config import BaselineConfig
from vlltr_index.train.augment import BatchMixer
from vlltr_index.train.cvlp import visual_classifier
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import join_processes
from vlltr_index.train.loop import Run, StageOne
from vlltr_index.train.losses import adjusted_loss, sampler_prior

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress


def train_image_only(
    encoder: Encoder,
    images: TrainImages,
    config: BaselineConfig,
    *,
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> StageOne:
    """Train the visual tower, in place, and a linear classifier of its unnormalised features; texts play no part.

    With `config.logit_adjustment` at zero this is plain cross-entropy; subtract the log of the sampler's prior
    from its logits afterwards for logit adjustment after training.

    Args:
        encoder: Where to start; its text tower stays as it is.
        images: Training images, labels 0..C-1.
        config: The recipe's `baseline` section.
        run_dir: Where the state of an unfinished run is kept; None keeps none.
        progress: Called after every step.

    Raises:
        ConfigError: The batch cannot be shared out among the processes, or not into pairs to mix.
    """
    join_processes(encoder)
    visual = visual_classifier(encoder, images.num_classes, config.seed)
    tower = encoder.model.visual
    assert isinstance(tower, nn.Module)
    module = nn.ModuleDict({"tower": tower, "visual": visual})
    log_prior = sampler_prior(images.class_counts, config.sampler_power).log().float()
    mixer = BatchMixer.of(config, images.num_classes)

    def objective(
        pixels: Tensor, positions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        labels, soft = images.labels[positions], None
        if mixer is not None:
            pixels, soft = mixer(pixels, labels, generator)
        features = images.encode(encoder, pixels, config.micro_batch)
        with torch.autocast(features.device.type, enabled=False):
            logits = visual(features.float())
        loss = adjusted_loss(logits, labels, soft, log_prior, config)
        return loss, {"visual": loss}

    run = Run("train baseline fc", config, encoder, module, images, objective, run_dir, progress)
    return StageOne.of(encoder, visual, run.train())
