"""A small image tower with random weights, in timm's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_tower(folder: Path, architecture: str = "test_resnet", side: int = 32, **args: Any) -> Path:
    """Write a model of timm with a classifier of three classes, as timm saves it; return the folder."""
    import timm
    import torch
    from timm.models import save_for_hf

    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"input_size": (3, side, side)}
        model = timm.create_model(architecture, num_classes=3, pretrained_cfg_overlay=size, **args)
    save_for_hf(model, folder, safe_serialization=True)
    return folder
