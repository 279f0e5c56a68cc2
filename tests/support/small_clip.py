"""A CLIP of a few thousand weights under names of its own, and files of its weights in the layouts found outside."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from vlltr_index.encoders.encoder import Encoder

NAME = "small-vit"
"""Registered with open_clip, with plain GELU; `small-vit-quickgelu` is its twin."""

open_clip.add_model_config(Path(__file__).parent / "data" / "small_clip")
MODEL_CFG: dict[str, Any] = open_clip.get_model_config(NAME)


def make(seed: int = 0, **changes: Any) -> nn.Module:
    """The model with random weights, large enough for activations to matter."""
    torch.manual_seed(seed)
    cfg = {**deepcopy(MODEL_CFG), **changes}
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


def encoder() -> Encoder:
    """The model with those weights, on the CPU."""
    made = Encoder.scratch(NAME, device="cpu")
    made.model.load_state_dict(make().state_dict())
    return made
