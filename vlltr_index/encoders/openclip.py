"""open_clip's models, tokenizers and preprocessing by plain functions."""

from __future__ import annotations

import textwrap
from contextlib import nullcontext
from copy import copy, deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.modified_resnet import ModifiedResNet
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.transforms.functional import center_crop

from vlltr_index.encoders.tokenizing import BPETokenizer, HubTokenizer, Tokenizer
from vlltr_index.encoders.weights import check_side
from vlltr_index.errors import EncoderError

__all__ = [
    "Preprocessing",
    "build_model",
    "clip_templates",
    "encode_text",
    "insert_tokens",
    "known_as",
    "load_state",
    "make_tokenizer",
    "prefer_channels_last",
    "set_timm_size",
    "trims_exactly",
]


_POSITION_IDS = "text.transformer.embeddings.position_ids"


def clip_templates() -> tuple[str, ...]:
    """The 80 prompts that CLIP was evaluated with on ImageNet; `{}` stands for the class name."""
    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def known_as(model_cfg: dict[str, Any]) -> str | None:
    """The name under which open_clip has this configuration; None if it has none."""
    names = open_clip.list_models()
    return next((name for name in names if open_clip.get_model_config(name) == model_cfg), None)


class _NoDraws(TorchFunctionMode):
    """While it is entered, tensors are left as they are instead of being drawn, which takes longer than loading."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def build_model(model_cfg: dict[str, Any], drawn: bool = True) -> nn.Module:
    """A model in float32, on torch's default device, with random weights if they are `drawn`; nothing is downloaded.

    Raises:
        EncoderError: If the configuration is not one that open_clip can build.
    """
    import vlltr_index.encoders.tiny  # noqa: F401 - registers the tower with timm

    cfg = deepcopy(model_cfg)
    try:
        cfg["vision_cfg"]["timm_model_pretrained"] = cfg["text_cfg"]["hf_model_pretrained"] = False
        kind = open_clip.CLIP
        if cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]:
            kind = open_clip.CoCa if "multimodal_cfg" in cfg else open_clip.CustomTextCLIP
        with nullcontext() if drawn else _NoDraws():
            return cast(nn.Module, kind(**cfg))
    except OSError as error:  # transformers' account of a hub that it cannot reach
        first = (str(error).splitlines() or [""])[0]
        raise EncoderError(
            f"the configuration of the text tower {cfg['text_cfg'].get('hf_model_name')} cannot be had: {first}",
            "It is fetched from the hub the first time: run the command again with a network, or name an encoder\n"
            "that open_clip builds by itself: vlltr init DIR --encoder ViT-B-16-quickgelu:openai",
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        raise EncoderError(f"open_clip cannot build this model: {type(error).__name__}: {error}") from error


def load_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Put weights into `model`, by open_clip's means: older layouts are converted, image positions interpolated.

    (`open_clip.load_checkpoint` takes files alone, which were read already, and leaves ResNets' positions.) The numbers
    0, 1, 2... that BERT towers saved by an older transformers hold are left out.

    Raises:
        EncoderError: If names or shapes do not fit.
    """
    state = convert_state_dict(model, dict(state))
    if _POSITION_IDS not in model.state_dict():
        state.pop(_POSITION_IDS, None)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    try:
        resize_pos_embed(state, model)
        if isinstance(model.visual, ModifiedResNet) and "visual.attnpool.positional_embedding" in state:
            grid = SimpleNamespace(grid_size=cast(int, model.visual.image_size) // 32)
            pooling = {"visual.positional_embedding": state["visual.attnpool.positional_embedding"]}
            resize_pos_embed(pooling, SimpleNamespace(visual=grid))
            state["visual.attnpool.positional_embedding"] = pooling["visual.positional_embedding"]
        model.load_state_dict(state)
    except RuntimeError as error:
        raise EncoderError(
            f"{where} holds the weights of another model: {textwrap.shorten(str(error), 400)}",
            "Name the model that the file belongs to: vlltr init DIR --encoder MODEL:FILE",
        ) from None


def set_timm_size(model: nn.Module, image_size: int) -> None:
    """Give a timm image tower another input size, its positions interpolated; leave other towers alone.

    Raises:
        EncoderError: If patches would not fill it.
    """
    visual: Any = model.visual
    if hasattr(visual, "set_input_size"):
        patches = getattr(visual.trunk, "patch_embed", None)
        check_side(image_size, getattr(patches, "patch_size", (1, 1))[0])
        visual.set_input_size(image_size)


def prefer_channels_last(model: nn.Module) -> bool:
    """Lay out CLIP's ResNets with channels last (1.7 times as fast in bfloat16 on a CPU); whether that was done."""
    if not isinstance(model.visual, ModifiedResNet):
        return False
    model.visual.to(memory_format=torch.channels_last)
    return True


def make_tokenizer(config: dict[str, Any], folder: Path | None = None) -> Tokenizer:
    """The tokenizer that a configuration names; CLIP's needs no network, a Hugging Face one may.

    Args:
        config: A model's configuration.
        folder: Where a Hugging Face tokenizer's files are looked for before the hub; nothing in them is executed.

    Raises:
        EncoderError: If a Hugging Face tokenizer is named and cannot be loaded.
    """
    text = config["model_cfg"]["text_cfg"]
    length, options = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    source = text.get("hf_tokenizer_name")
    if not source:
        simple = open_clip.SimpleTokenizer(context_length=length, **options)
        return BPETokenizer(simple, options.get("clean", "lower"))
    options = {**options, "tokenizer_mode": text.get("tokenizer_mode"), "trust_remote_code": False}
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        source, options["local_files_only"] = str(folder), True
    try:
        return HubTokenizer(HFTokenizer(source, length, **options))
    except Exception as error:  # transformers raises whatever it meets
        first = (str(error).splitlines() or [""])[0]
        raise EncoderError(
            f"the tokenizer {source} cannot be loaded: {type(error).__name__}: {first}",
            "It is a Hugging Face tokenizer: it needs a network the first time, or its files beside\n"
            "open_clip_config.json: vlltr init DIR --encoder local-dir:FOLDER",
        ) from error


class Preprocessing:
    """PIL image to float32 [3, H, W], normalised; it can be pickled.

    Two values are ours: mode "L" takes the colour out first; `resize` is what the image is resized to before the
    square of `size` is cropped out of its middle.

    Raises:
        EncoderError: If the configuration is not one that open_clip knows.
    """

    def __init__(self, preprocess_cfg: dict[str, Any]) -> None:
        cfg = dict(preprocess_cfg)
        size, resize = cfg.get("size"), cfg.pop("resize", None)
        self._grey, self._crop = cfg.get("mode") == "L", None if resize is None else [size, size]
        cfg |= {"mode": "RGB"} if self._grey else {}
        try:
            if resize is not None and resize < size:
                raise ValueError(f"resize {resize} is less than size {size}")
            cfg |= {} if resize is None else {"size": resize}
            self._transform = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
        except (TypeError, ValueError, AssertionError) as error:
            raise EncoderError(f"this preprocessing cannot be used: {preprocess_cfg}: {error}") from error

    def __call__(self, image: Image.Image) -> Tensor:
        """Of one image."""
        image = image.convert("L") if self._grey else image
        pixels = cast(Tensor, self._transform(image if image.mode == "RGB" else image.convert("RGB")))
        return pixels if self._crop is None else center_crop(pixels, self._crop)


def trims_exactly(model: nn.Module) -> bool:
    """Whether padding on the right cannot matter: attention is causal, and a token of the text is pooled."""
    part = getattr(model, "text", model)
    if getattr(part, "attn_mask", None) is None or getattr(part, "cls_emb", None) is not None:
        return False
    if getattr(part, "use_pad_mask", False):
        return False
    return getattr(part, "text_pool_type", getattr(part, "pool_type", None)) in {"argmax", "eos", "first"}


def insert_tokens(model: nn.Module, at: int, count: int, seed: int) -> None:
    """Make room for `count` more tokens before token `at`: rows drawn from `seed` as in a new model, others kept."""
    clip: Any = model
    rows = clip.token_embedding.weight.detach()
    generator = torch.Generator().manual_seed(seed)
    new = 0.02 * torch.randn(count, rows.shape[1], generator=generator)  # CLIP's own standard deviation
    weight = torch.cat([rows[:at], new.to(rows), rows[at:]])
    clip.token_embedding = nn.Embedding(len(weight), rows.shape[1], _weight=weight).to(rows.device)
    clip.vocab_size = len(weight)


def encode_text(model: nn.Module, ids: Tensor) -> Tensor:
    """Text features [B, D], unnormalised, of ids int64 [B, L].

    L may be shorter than the context where `trims_exactly` holds: open_clip's own encoding then runs on a copy of the
    tower, the weights shared, whose positions and mask are cut to L. The model itself stays as it is.
    """
    if not trims_exactly(model):
        return cast(Tensor, model.encode_text(ids, normalize=False))  # type: ignore[operator]  # nn.Module types its methods as Tensor
    part: Any = copy(getattr(model, "text", model))
    length = ids.shape[1]
    positions, mask = part.positional_embedding[:length], part.attn_mask[:length, :length]
    if positions.requires_grad and positions.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # A mask that asks for a gradient keeps attention off torch's CPU flash kernel, whose bfloat16 backward takes
        # five times as long on short texts. (Choosing a kernel by name would be a setting of the whole process.)
        mask = mask.clone().requires_grad_()
    part._parameters = {**part._parameters, "positional_embedding": positions}
    part._buffers = {**part._buffers, "attn_mask": mask}
    return cast(Tensor, part(ids) if hasattr(model, "text") else part.encode_text(ids))
