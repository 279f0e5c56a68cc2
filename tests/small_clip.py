"""A CLIP of a few thousand weights under names of its own, and files of its weights in the layouts found outside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

NAME = "small-vit"
"""Registered with open_clip, with plain GELU; `small-vit-quickgelu` is its twin."""

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def register(folder: Path) -> None:
    """Make both names known to open_clip."""
    for name, extra in ((NAME, {}), (f"{NAME}-quickgelu", {"quick_gelu": True})):
        path, scratch = folder / f"{name}.json", folder / f"{name}.{os.getpid()}"
        scratch.write_text(json.dumps({**MODEL_CFG, **extra}), encoding="utf-8")
        scratch.replace(path)  # another process may read it meanwhile
        open_clip.add_model_config(path)


def make(seed: int = 0, **changes: Any) -> nn.Module:
    """The model with random weights, large enough for activations to matter."""
    torch.manual_seed(seed)
    cfg = {**json.loads(json.dumps(MODEL_CFG)), **changes}
    custom = cfg.pop("custom_text", False)
    model: nn.Module = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**cfg)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.mul_(3.0)
            elif name.endswith("bias"):
                value.normal_(std=0.1)
    return model.eval()


def openai_state(model: nn.Module, *, half: bool = True) -> dict[str, Tensor]:
    """The state dict as OpenAI's files have it: three integers beside the weights, matrices in float16."""
    state = {}
    for name, value in model.state_dict().items():
        matrix = value.ndim > 1 and "embedding" not in name
        state[name] = value.half() if half and matrix else value.clone()
    marks = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    return {**state, **{name: torch.tensor(value) for name, value in marks.items()}}
