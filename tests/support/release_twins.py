"""Small checkpoints with the VL-LTR release's names and shapes, and the towers and head as plain functions of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

WORDS = 49_408


def _fill(state: State, scale: float = 0.15) -> State:
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.ndim:
            value.normal_(std=scale)
        if value.ndim == 1 and name.endswith(
            ("ln_1.weight", "ln_2.weight", "pre.weight", "post.weight", "final.weight")
        ):
            value.add_(1)
    return state


def _blocks(prefix: str, width: int, layers: int) -> State:
    state: State = {}
    for n in range(layers):
        at = f"{prefix}.resblocks.{n}"
        shapes = {
            "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
            "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
        }  # fmt: skip
        state |= {f"{at}.{name}": torch.empty(shape) for name, shape in shapes.items()}
    return state


def vit(width: int = 64, layers: int = 2, patch: int = 8, size: int = 32, dim: int = 24) -> State:
    """An image tower of the kind ViT, by the names under `visual`."""
    state = {
        "conv1.weight": torch.empty(width, 3, patch, patch),
        "class_embedding": torch.empty(width),
        "positional_embedding": torch.empty((size // patch) ** 2 + 1, width),
        "proj": torch.empty(width, dim),
    }
    for name in ("ln_pre", "ln_post"):
        state |= {f"{name}.weight": torch.empty(width), f"{name}.bias": torch.empty(width)}
    return {f"visual.{k}": v for k, v in _fill(state | _blocks("transformer", width, layers)).items()}


def resnet(width: int = 8, layers: tuple[int, ...] = (1, 2, 1, 1), size: int = 64, dim: int = 24) -> State:
    """An image tower of the kind ModifiedResNet, by the names under `visual`."""
    state: State = {}

    def conv(name: str, outputs: int, inputs: int, side: int, norm: str) -> None:
        state[f"{name}.weight"] = torch.empty(outputs, inputs, side, side)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{part}"] = torch.empty(outputs)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(3)

    conv("conv1", width // 2, 3, 3, "bn1")
    conv("conv2", width // 2, width // 2, 3, "bn2")
    conv("conv3", width, width // 2, 3, "bn3")
    inputs = width
    for level, blocks in enumerate(layers):
        planes = width * 2**level
        for n in range(blocks):
            at = f"layer{level + 1}.{n}"
            conv(f"{at}.conv1", planes, inputs, 1, f"{at}.bn1")
            conv(f"{at}.conv2", planes, planes, 3, f"{at}.bn2")
            conv(f"{at}.conv3", 4 * planes, planes, 1, f"{at}.bn3")
            if n == 0:
                conv(f"{at}.downsample.0", 4 * planes, inputs, 1, f"{at}.downsample.1")
            inputs = 4 * planes
    state["attnpool.positional_embedding"] = torch.empty((size // 32) ** 2 + 1, inputs)
    for name in ("k_proj", "q_proj", "v_proj", "c_proj"):
        outputs = dim if name == "c_proj" else inputs
        state |= {
            f"attnpool.{name}.weight": torch.empty(outputs, inputs),
            f"attnpool.{name}.bias": torch.empty(outputs),
        }
    return {f"visual.{k}": v for k, v in _fill(state).items()}


def text_tower(width: int = 64, layers: int = 2, dim: int = 24, length: int = 77) -> State:
    """The text tower's weights and the scale."""
    state = {
        "positional_embedding": torch.empty(length, width),
        "text_projection": torch.empty(width, dim),
        "token_embedding.weight": torch.empty(WORDS, width),
        "ln_final.weight": torch.empty(width),
        "ln_final.bias": torch.empty(width),
    }
    return {**_fill(state | _blocks("transformer", width, layers)), "logit_scale": torch.tensor(4.1)}


def head(classes: int, sentences: int, dim: int = 24) -> State:
    """Stage 2 beside the image tower; classes have 1 to `sentences` anchors, the rest is padding."""
    block = {
        "attn.norm1q.weight": torch.empty(dim), "attn.norm1q.bias": torch.empty(dim),
        "attn.norm1k.weight": torch.empty(dim), "attn.norm1k.bias": torch.empty(dim),
        "attn.wq.weight": torch.empty(dim, dim), "attn.wk.weight": torch.empty(dim, dim),
        "visual_fc.0.weight": torch.empty(4 * dim, dim), "visual_fc.0.bias": torch.empty(4 * dim),
        "visual_fc.2.weight": torch.empty(classes, 4 * dim), "visual_fc.2.bias": torch.empty(classes),
    }  # fmt: skip
    anchors = torch.randn(classes, sentences, dim)
    for n in range(classes):
        anchors[n, 1 + n % sentences :] = 0
    named = {f"text_block.{k}": v for k, v in _fill(block, 0.6).items()}
    return {"logit_scale": torch.tensor(4.1), "text_embeddings": anchors, **named}


def save(path: Path, state: State, **args: Any) -> Path:
    """A file as the release's training program writes it: options, optimiser and scheduler beside the weights."""
    options = argparse.Namespace(clip_ms=True, opt_betas=None, batch_size=256, lr=5e-5, **args)
    whole = {
        "model": state,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"t_initial": 50, "base_values": [0.1], "noise_range_t": None},
        "epoch": 49,
        "scaler": {"scale": 65536.0},
        "args": options,
    }
    torch.save(whole, path)
    return path


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _transform(x: Tensor, state: State, prefix: str, mask: Tensor | None = None) -> Tensor:
    """Pre-norm attention blocks on [B, L, W], heads of 64."""
    n = 0
    while f"{prefix}.resblocks.{n}.ln_1.weight" in state:
        w = {
            k.split(f"resblocks.{n}.")[1]: v
            for k, v in state.items()
            if k.startswith(f"{prefix}.resblocks.{n}.")
        }
        y = F.layer_norm(x, x.shape[-1:], w["ln_1.weight"], w["ln_1.bias"])
        q, k, v = (y @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]).chunk(3, -1)
        split = [t.unflatten(-1, (-1, 64)).transpose(1, 2) for t in (q, k, v)]
        scores = split[0] @ split[1].mT / 8
        attended = (scores if mask is None else scores + mask).softmax(-1) @ split[2]
        x = x + attended.transpose(1, 2).flatten(2) @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
        y = F.layer_norm(x, x.shape[-1:], w["ln_2.weight"], w["ln_2.bias"])
        y = _quick_gelu(y @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"])
        x = x + y @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
        n += 1
    return x


def encode_image(state: State, pixels: Tensor) -> Tensor:
    """Image features [B, D] of pixels [B, 3, H, W]."""
    w = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    if "attnpool.c_proj.weight" in w:
        return _encode_resnet(w, pixels)
    patches = F.conv2d(pixels, w["conv1.weight"], stride=w["conv1.weight"].shape[2]).flatten(2).mT
    first = w["class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], 1) + w["positional_embedding"]
    x = F.layer_norm(x, x.shape[-1:], w["ln_pre.weight"], w["ln_pre.bias"])
    x = _transform(x, w, "transformer")[:, 0]
    return F.layer_norm(x, x.shape[-1:], w["ln_post.weight"], w["ln_post.bias"]) @ w["proj"]


def _encode_resnet(w: State, x: Tensor) -> Tensor:
    def step(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        kernel = w[f"{conv}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        stats = (w[f"{norm}.running_mean"], w[f"{norm}.running_var"])
        return F.batch_norm(x, *stats, w[f"{norm}.weight"], w[f"{norm}.bias"])

    x = step(x, "conv1", "bn1", 2).relu()
    x = step(x, "conv2", "bn2").relu()
    x = F.avg_pool2d(step(x, "conv3", "bn3").relu(), 2)
    for level in (1, 2, 3, 4):
        n = 0
        while f"layer{level}.{n}.conv1.weight" in w:
            at, shrink = f"layer{level}.{n}", level > 1 and n == 0
            y = step(step(x, f"{at}.conv1", f"{at}.bn1").relu(), f"{at}.conv2", f"{at}.bn2").relu()
            y = step(F.avg_pool2d(y, 2) if shrink else y, f"{at}.conv3", f"{at}.bn3")
            if n == 0:
                x = step(F.avg_pool2d(x, 2) if shrink else x, f"{at}.downsample.0", f"{at}.downsample.1")
            x = (x + y).relu()
            n += 1
    x = x.flatten(2).mT
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + w["attnpool.positional_embedding"]
    heads = x.shape[-1] // 64
    q, k, v = (
        (x @ w[f"attnpool.{p}_proj.weight"].T + w[f"attnpool.{p}_proj.bias"])
        .unflatten(-1, (heads, -1))
        .transpose(1, 2)
        for p in "qkv"
    )
    attended = (q[:, :, :1] @ k.mT / 8).softmax(-1) @ v
    pooled = attended.transpose(1, 2).flatten(2)[:, 0]
    return pooled @ w["attnpool.c_proj.weight"].T + w["attnpool.c_proj.bias"]


def encode_text(state: State, ids: Tensor) -> Tensor:
    """Text features [B, D] of token ids [B, 77]; the end token has the highest number."""
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
    x = _transform(x, {k: v for k, v in state.items() if not k.startswith("visual.")}, "transformer", mask)
    x = F.layer_norm(x, x.shape[-1:], state["ln_final.weight"], state["ln_final.bias"])
    return x[torch.arange(len(ids)), ids.argmax(1)] @ state["text_projection"]


def logits(state: State, images: Tensor) -> tuple[Tensor, Tensor]:
    """Visual logits and text logits (Eqs. 4-7), [B, C] each, a class and an image at a time."""
    w = {k.removeprefix("text_block."): v for k, v in state.items() if k.startswith("text_block.")}
    hidden = (images @ w["visual_fc.0.weight"].T + w["visual_fc.0.bias"]).relu()
    visual = hidden @ w["visual_fc.2.weight"].T + w["visual_fc.2.bias"]
    dim = images.shape[1]
    text = torch.empty(len(images), len(state["text_embeddings"]))
    for c, padded in enumerate(state["text_embeddings"]):
        keys = padded[padded.abs().sum(1) > 0]
        k = F.layer_norm(keys, (dim,), w["attn.norm1k.weight"], w["attn.norm1k.bias"]) @ w["attn.wk.weight"].T
        for b, image in enumerate(images):
            q = w["attn.wq.weight"] @ F.layer_norm(
                image, (dim,), w["attn.norm1q.weight"], w["attn.norm1q.bias"]
            )
            guide = (k @ q / dim**0.5).softmax(0) @ keys
            text[b, c] = state["logit_scale"].exp() * F.cosine_similarity(image, guide, dim=0)
    return visual, text
