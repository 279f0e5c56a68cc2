"""Checkpoints of the VL-LTR release, converted to encoder, head, and the vectors of their anchor sentences.

Stage 1 (`CVLP`) has OpenAI CLIP's names and shapes. Stage 2 (`LGR`) has the image tower under `visual`, the anchors
`text_embeddings` [C, M, D] (padded with zeros), `logit_scale` (a logarithm), and under `text_block` the attention
(`norm1q`, `norm1k`, `wq`, `wk`: one head, no bias) and the visual classifier (`visual_fc`: linear, ReLU, linear).
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vlltr_index.encoders import openclip
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.weights import OPENAI_MARKS, Precision, load_checkpoint, preprocessing, tensors_in
from vlltr_index.errors import EncoderError
from vlltr_index.heads.lgr import LGRHead

_HEAD_WIDTH = 64
_MEAN = (0.4815, 0.4578, 0.4082)
_STD = (0.2686, 0.2613, 0.2758)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_HEAD_PARTS = {
    "text_block.attn.norm1q": "query_norm",
    "text_block.attn.norm1k": "key_norm",
    "text_block.attn.wq": "query_proj",
    "text_block.attn.wk": "key_proj",
    "text_block.visual_fc": "visual_head",
    "logit_scale": "log_logit_scale",
}


@dataclass(frozen=True)
class ReleaseCheckpoint:
    """Checkpoint of the release.

    Attributes:
        path: The file.
        stage: 1 (both towers) or 2 (image tower, head and anchors).
        state: The weights by the release's names, in float32.
        args: The training program's options that are plain values.
        epoch: The epoch after which it was saved, from 0; None if unknown.
    """

    path: Path
    stage: Literal[1, 2]
    state: dict[str, Tensor]
    args: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    epoch: int | None = None


def read_release(path: Path) -> ReleaseCheckpoint:
    """Read a checkpoint of tensors, plain values and `argparse.Namespace`; nothing in it is executed.

    Args:
        path: A file that the release's training program saved, or its weights alone.

    Raises:
        EncoderError: The file is missing or damaged, holds anything else, or is no checkpoint of the release.
    """
    whole = load_checkpoint(path, [argparse.Namespace])
    state = tensors_in(whole, path)
    found = _stage(path, state)
    floats = {k: v.float() if v.is_floating_point() else v for k, v in state.items() if k not in OPENAI_MARKS}
    args = whole.get("args")
    epoch = whole.get("epoch")
    options: dict[Any, Any] = {}
    if isinstance(args, argparse.Namespace):
        options = vars(args)
    elif isinstance(args, dict):
        options = args
    plain = {str(k): v for k, v in options.items() if v is None or isinstance(v, str | int | float | bool)}
    return ReleaseCheckpoint(
        path=path, stage=found, state=floats, args=plain, epoch=epoch if isinstance(epoch, int) else None
    )


def _stage(path: Path, state: dict[str, Tensor]) -> Literal[1, 2]:
    """Say which stage a checkpoint is of, by the names of its weights."""
    if "token_embedding.weight" in state and "visual.conv1.weight" in state:
        return 1
    if any(name.startswith("text_block.") for name in state) and "visual.conv1.weight" in state:
        return 2
    shown = ", ".join(sorted(state)[:3]) or "no weights"
    raise EncoderError(
        f"{path} is no checkpoint of the VL-LTR release: it holds {shown}",
        "Expected checkpoint.pth of its pre-training or its fine-tuning; its model without text has no head for here.",
    )


def fusion_alpha(checkpoint: ReleaseCheckpoint) -> float | None:
    """Return the weight of the visual branch in the release's evaluation of the data set; None if that is unknown."""
    data = checkpoint.args.get("data_set")
    if not isinstance(data, str):
        return None
    return 0.7 if "INAT" in data else 0.2


def model_config(state: dict[str, Tensor], where: str) -> dict[str, Any]:
    """Derive open_clip's `model_cfg`, with QuickGELU, from the shapes of weights with OpenAI's names.

    Args:
        state: Weights of both towers.
        where: Where they come from, for messages.

    Raises:
        EncoderError: A weight is missing or has an impossible shape.
    """
    try:
        text_width = state["ln_final.weight"].shape[0]
        pooled = "visual.attnpool.positional_embedding"
        resnet = pooled in state
        positions = state[pooled if resnet else "visual.positional_embedding"].shape[0]
        patch = state["visual.conv1.weight"].shape[3]
        grid = round((positions - 1) ** 0.5)
        vision: dict[str, Any]
        if resnet:
            vision = {
                "image_size": 32 * grid,
                "layers": [_count(state, rf"visual\.layer{n}\.(\d+)\.") for n in (1, 2, 3, 4)],
                "width": state["visual.layer1.0.conv1.weight"].shape[0],
                "patch_size": None,
            }
        else:
            vision = {
                "image_size": patch * grid,
                "layers": _count(state, r"visual\.transformer\.resblocks\.(\d+)\."),
                "width": state["visual.conv1.weight"].shape[0],
                "patch_size": patch,
            }
        text = {
            "context_length": state["positional_embedding"].shape[0],
            "vocab_size": state["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_width // _HEAD_WIDTH,
            "layers": _count(state, r"transformer\.resblocks\.(\d+)\."),
        }
        dim = state["text_projection"].shape[1]
        counts = [dim, *text.values(), *(value for value in vision.values() if isinstance(value, int))]
        if not all(counts):
            raise IndexError("a size or number of layers is 0")
    except (KeyError, IndexError, TypeError) as error:
        raise EncoderError(
            f"{where} lacks weights of CLIP's towers, or one has another shape: {error}",
            "Fetch or copy the file again.",
        ) from None
    return {"embed_dim": dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """Count the different values of a pattern's group in the names of weights."""
    found = re.compile(pattern)
    return len({m[1] for m in map(found.match, state) if m})


def _preprocess(checkpoint: ReleaseCheckpoint, image_size: int) -> dict[str, Any]:
    """Return the release's evaluation preprocessing: bicubic to 256 / 224 of the size, centre crop, mean and std."""
    clip = checkpoint.args.get("clip_ms") is not False
    mean, std = (_MEAN, _STD) if clip else (_IMAGENET_MEAN, _IMAGENET_STD)
    own = preprocessing({"size": image_size, "mean": mean, "std": std})
    return {**own, "resize": image_size * 256 // 224}


def stage_one_encoder(checkpoint: ReleaseCheckpoint, precision: Precision = "fp32") -> Encoder:
    """Make an encoder from a stage 1 checkpoint, with QuickGELU and the release's evaluation preprocessing.

    Raises:
        EncoderError: The weights are not those of a CLIP ResNet or ViT, or the vocabulary is not CLIP's.
    """
    where = str(checkpoint.path)
    cfg = model_config(checkpoint.state, where)
    config = {
        "model_cfg": cfg,
        "preprocess_cfg": _preprocess(checkpoint, cfg["vision_cfg"]["image_size"]),
        "tokenizer": "open_clip",
    }
    tokenizer = openclip.make_tokenizer(config)
    if cfg["text_cfg"]["vocab_size"] != tokenizer.vocab_size:
        raise EncoderError(
            f"{where} has {cfg['text_cfg']['vocab_size']:,} tokens, CLIP's tokenizer {tokenizer.vocab_size:,}",
            "Only checkpoints that were trained from CLIP's weights can be imported.",
        )
    model = openclip.build_model(cfg, drawn=False)
    openclip.load_state(model, checkpoint.state, where)
    kind = "RN" if isinstance(cfg["vision_cfg"]["layers"], list) else "ViT"
    name = openclip.known_as(cfg) or f"{kind} of width {cfg['vision_cfg']['width']}"
    return Encoder(model, tokenizer, config, name=name, precision=precision)


def stage_two_encoder(checkpoint: ReleaseCheckpoint, base: Encoder) -> Encoder:
    """Make an encoder from the image tower of a stage 2 checkpoint and the text tower of `base`.

    Stage 2 checkpoints hold no text tower.

    Raises:
        EncoderError: The image tower is of another architecture than `base`'s, or `base` lacks QuickGELU.
    """
    config = base.config
    if not config["model_cfg"].get("quick_gelu"):
        raise EncoderError(
            f"the workspace's encoder {base.name} has plain GELU, the release's has QuickGELU",
            "Import the checkpoint of stage 1 first: vlltr import release CHECKPOINT",
        )
    size = config["model_cfg"]["vision_cfg"].get("image_size", 224)
    config["preprocess_cfg"] = _preprocess(checkpoint, int(size))
    model = openclip.build_model(config["model_cfg"], drawn=False)
    own = {k: v.cpu() for k, v in base.model.state_dict().items() if not k.startswith("visual.")}
    visual = {k: v for k, v in checkpoint.state.items() if k.startswith("visual.")}
    try:
        openclip.load_state(model, {**own, **visual}, str(checkpoint.path))
    except EncoderError as error:
        raise EncoderError(
            error.message,
            f"Its image tower is not {base.name}'s. Import the stage 1 checkpoint that belongs to it first.",
        ) from None
    return Encoder(model, base.tokenizer, config, name=base.name, precision=base.precision)


def release_head(checkpoint: ReleaseCheckpoint, rows: Tensor | None = None) -> LGRHead:
    """Make the head of a stage 2 checkpoint, in eval mode, which gives the same logits as the release.

    Args:
        checkpoint: A checkpoint of stage 2.
        rows: Int64 [C], the release's class of each row of the new head; None: all rows in their order.

    Raises:
        EncoderError: It is not the two-branch head of the paper, or shapes do not fit each other.
    """
    own = dict[str, Tensor]()
    for theirs, ours in _HEAD_PARTS.items():
        for name, value in checkpoint.state.items():
            if name.startswith(theirs):
                own[name.replace(theirs, ours, 1)] = value
    try:
        own["log_logit_scale"] = own["log_logit_scale"].reshape(())
        for name in ("visual_head.2.weight", "visual_head.2.bias"):
            weights = own[name]
            own[name] = weights if rows is None else weights[rows]
        classes = own["visual_head.2.weight"].shape[0]
        width = len(own["query_norm.weight"])
        head = LGRHead(width, classes, visual="mlp", loss_bias=False)
        head.load_state_dict(own)
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise EncoderError(
            f"{checkpoint.path} does not hold the release's two-branch head with a scale: {error}",
            "Heads of the paper's method can be imported: LGR_r50, LGR_vit16 and their variants.",
        ) from None
    return head.eval()


def anchor_vectors(checkpoint: ReleaseCheckpoint) -> list[Tensor]:
    """Return the vectors of each class's sentences, float32 [M, D] unnormalised, by class number, without padding.

    Raises:
        EncoderError: There are none, they are not finite, or a class has none.
    """
    table = checkpoint.state.get("text_embeddings")
    usable = table is not None and table.ndim == 3 and bool(table.isfinite().all())
    parts = [rows[rows.abs().amax(1) > 0] for rows in table] if table is not None and usable else []
    if not parts or not all(map(len, parts)):
        raise EncoderError(
            f"{checkpoint.path} holds no usable text_embeddings [classes, sentences, width] for each class",
            "Leave its anchors out; vlltr embed and vlltr select choose new ones.",
        )
    return parts
