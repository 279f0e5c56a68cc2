"""Low-rank adapters (LoRA) on an encoder's towers, merged at the end so that checkpoints have plain weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import LoRAConfig
from vlltr_index.train.sampling import seed_of

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder


@contextmanager
def adapted(encoder: Encoder, config: LoRAConfig | None, visual_only: bool, seed: int) -> Iterator[None]:
    """Add adapters to the encoder's towers, in place, and merge them into the weights at the end of the block.

    Within the block only the adapters require gradients. At first they change nothing: features are those of the
    encoder as it was. If the block raises, the adapters stay, and the encoder must not be used any more.

    Args:
        encoder: The encoder to adapt.
        config: Rank, scale, and whether attention gets adapters; None adds none.
        visual_only: Adapt the visual tower alone.
        seed: Seed of the adapters' initial weights.

    Raises:
        ConfigError: peft is not installed, or no layer of the encoder takes an adapter.
    """
    if config is None:
        yield
        return
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError:
        raise ConfigError(
            "low-rank adapters (tune = lora) need the package peft, which is not installed",
            'Install it: pip install "vlltr-index[lora]"',
        ) from None
    modules, parameters = lora_targets(encoder.model, visual_only, config.attention)
    if not modules and not parameters:
        raise ConfigError(
            f"{encoder.name} has no layer that takes a low-rank adapter", "Use --set lgr.tune=visual"
        )
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=modules,
        target_parameters=parameters or None,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "lora"))
        wrapped = LoraModel(encoder.model, {"default": settings}, "default")
    yield
    wrapped.merge_and_unload()
    encoder.model.requires_grad_(True)


def lora_targets(model: nn.Module, visual_only: bool, attention: bool) -> tuple[list[str], list[str]]:
    """Return the names of the layers, and of the packed attention matrices, that get an adapter.

    Layers are linear ones and ungrouped convolutions. Left out are those whose weights another module reads rather
    than calls (the output projection inside `nn.MultiheadAttention`, the projections of CLIP's attention pooling):
    an adapter there would do nothing.

    Args:
        model: An open_clip model.
        visual_only: Leave the text tower out.
        attention: Include the packed query, key and value matrices of `nn.MultiheadAttention`.
    """
    parents = dict(model.named_modules())
    modules = []
    parameters = []
    for name, module in parents.items():
        parent = parents[name.rpartition(".")[0]]
        if visual_only and not name.startswith("visual."):
            continue
        if isinstance(module, nn.MultiheadAttention):
            packed = module.in_proj_weight is not None  # None where keys and values have widths of their own
            parameters += [f"{name}.in_proj_weight"] if attention and packed else []
        elif isinstance(parent, nn.MultiheadAttention) or type(parent).__name__ == "AttentionPool2d":
            continue
        elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            modules.append(name)
    return modules, parameters
