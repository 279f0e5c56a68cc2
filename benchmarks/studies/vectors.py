"""Vectors of drawn pictures by the shipped encoder, and the PLDA fitted to them without texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from benchmarks.collections.sources import Kind
from vlltr_index.data.decoding import open_image
from vlltr_index.embedding.loading import recipe_encoder
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.checkpoint import RuleParameters
from vlltr_index.heads.dealing import row_keys
from vlltr_index.heads.moments import class_sums
from vlltr_index.heads.plda import PLDA
from vlltr_index.schemas.config import EncoderConfig, LGRConfig
from vlltr_index.tensors import unit_rows
from vlltr_index.train.stage_two import fit_stage_two
from vlltr_index.train.training_set import TrainingSet

__all__ = ["SHIPPED", "features_of", "features_of_kinds", "fitted", "without_texts"]

SHIPPED = EncoderConfig(model="vlltr-tiny", pretrained="glyphs")
_BATCH = 128


@cache
def _shipped() -> Encoder:
    return recipe_encoder(SHIPPED).eval()


@torch.inference_mode()
def features_of(images: Sequence[bytes], encoder: Encoder | None = None) -> Tensor:
    """Return features [N, D] of encoded images, unnormalised; by default of the shipped encoder."""
    tower = encoder or _shipped()
    pixels = [tower.preprocess(open_image(image)) for image in images]
    parts = [tower.encode_pixels(torch.stack(pixels[i : i + _BATCH])) for i in range(0, len(pixels), _BATCH)]
    return torch.cat(parts).float()


def features_of_kinds(kinds: Sequence[Kind], test: bool = True) -> tuple[Tensor, Tensor]:
    """Return features [N, D] of the pictures of classes, and their classes, int64 [N]."""
    pictures = [[data for _, data in (kind.test if test else kind.train)] for kind in kinds]
    labels = torch.arange(len(kinds)).repeat_interleave(torch.tensor([len(some) for some in pictures]))
    return features_of([one for some in pictures for one in some]), labels


def fitted(
    features: Tensor, labels: Tensor, classes: int, units: Tensor | None = None
) -> tuple[PLDA, RuleParameters]:
    """Fit the generative model of classes without text as `train lgr` does; by default each image is a unit."""
    numbers = torch.arange(len(labels)) if units is None else units
    data = without_texts(features, labels, classes, [str(unit) for unit in numbers.tolist()])
    parts = fit_stage_two(data, LGRConfig()).parts
    assert parts is not None
    counts, sums = class_sums(unit_rows(features), labels, classes, data.weights)
    return PLDA(parts.shared, counts, sums, data.prototypes), parts


def without_texts(features: Tensor, labels: Tensor, classes: int, groups: Sequence[str]) -> TrainingSet:
    """Return the training data of classes without text, of features [N, D]."""
    none = torch.empty(0, dtype=torch.int64)
    bank = AnchorBank(
        torch.empty(0, features.shape[1]), torch.zeros(1, dtype=torch.int64), none, none, torch.empty(0)
    )
    return TrainingSet(
        features=features[None],
        labels=labels,
        bank=bank,
        places=torch.full((classes,), -1),
        units=groups,
        keys=row_keys(features),
        unseen=torch.zeros(len(labels), dtype=torch.bool),
        unseen_classes=torch.zeros(classes, dtype=torch.bool),
        visual_init=None,
        logit_scale=1.0,
    )
