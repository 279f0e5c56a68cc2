"""Large batches on small cards: a tower sees a few rows at a time, the loss all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vlltr_index.errors import ConfigError

__all__ = ["check_micro_batch", "in_parts"]


def in_parts(encode: Callable[[Tensor], Tensor], rows: Tensor, size: int | None) -> Tensor:
    """Features [B, D] of rows [B, ...], `size` at a time; values and gradients are those of the whole batch.

    Nothing but the features is kept. Once the loss over all of them has given their gradients, each part is encoded
    again and handed its own: the cached gradients of Gao et al., "Scaling Deep Contrastive Learning Batch Size under
    Memory Limited Setup" (2021), with the random numbers of the first time. It costs one more forward pass.

    Args:
        encode: A tower, without BatchNorm in training mode.
        rows: What it takes.
        size: Rows at a time; None: all.
    """
    if size is None or len(rows) <= size:
        return encode(rows)
    if not torch.is_grad_enabled():
        return torch.cat([encode(part) for part in rows.split(size)])
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in rows.split(size)])


def check_micro_batch(module: nn.Module, size: int | None, section: str) -> None:
    """Refuse parts of a batch where BatchNorm is to learn from all of it.

    Raises:
        ConfigError: Naming the settings of the recipe's `section`.
    """
    if size is not None and any(isinstance(part, _BatchNorm) for part in module.modules()):
        raise ConfigError(
            f"{section}.micro_batch is {size}, and the model's BatchNorm needs the whole batch at once",
            f"Leave it out with --set {section}.micro_batch=none"
            + ("." if section == "baseline" else f", or use --set {section}.batch_norm=eval."),
        )
