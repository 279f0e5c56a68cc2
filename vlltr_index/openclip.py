"""The only open_clip import: configurations, models, tokenizers and preprocessing by plain functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import text_global_pool
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import center_crop

from vlltr_index.errors import EncoderError
from vlltr_index.tokenizing import BPETokenizer, HubTokenizer, Tokenizer

__all__ = [
    "build_model",
    "clip_templates",
    "default_preprocess",
    "encode_text",
    "fetch_repository",
    "fetch_tag",
    "find_config",
    "find_tag",
    "insert_tokens",
    "known_as",
    "load_state",
    "make_tokenizer",
    "make_transform",
    "prefer_channels_last",
    "published_as",
    "quick_gelu_twin",
    "set_timm_size",
    "tags_of",
    "trims_exactly",
]

Config = dict[str, Any]
"""`model_cfg` and `preprocess_cfg` as in an open_clip_config.json, and `tokenizer`: "open_clip" or "words"."""


def default_preprocess() -> Config:
    """open_clip's preprocessing where a model says nothing else: bicubic, centre crop, CLIP's mean and std."""
    cfg = PreprocessCfg()
    return {
        "size": cfg.size,
        "mode": cfg.mode,
        "mean": list(cfg.mean),
        "std": list(cfg.std),
        "interpolation": cfg.interpolation,
        "resize_mode": cfg.resize_mode,
        "fill_color": cfg.fill_color,
    }


def find_config(model: str) -> Config:
    """The configuration of one of our own models, or of one that open_clip knows by name.

    Raises:
        EncoderError: If there is none; the hint names the closest.
    """
    own = {
        path.name.removesuffix(".json"): path
        for path in files("vlltr_index.models").iterdir()
        if path.name.endswith(".json")
    }
    if model in own:
        return cast(Config, json.loads(own[model].read_text(encoding="utf-8")))
    found = open_clip.get_model_config(model.replace("/", "-")) if ":" not in model else None
    if found is None:
        names = [*own, *open_clip.list_models()]
        close = get_close_matches(model, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(close)}? " if close else "For example ViT-B-16-quickgelu:openai. "
        raise EncoderError(
            f"no encoder is called {model!r}",
            hint + "`python -c 'import open_clip; print(open_clip.list_models())'` lists them.",
        )
    return {"model_cfg": found, "preprocess_cfg": default_preprocess(), "tokenizer": "open_clip"}


def clip_templates() -> tuple[str, ...]:
    """The 80 prompts that CLIP was evaluated with on ImageNet; `{}` stands for the class name."""
    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def tags_of(model: str) -> list[str]:
    """The tags under which open_clip knows weights of `model`."""
    return list(open_clip.list_pretrained_tags_by_model(_clean(model)))


def find_tag(model: str, tag: str) -> Config | None:
    """What open_clip knows of a tag: address, activation, preprocessing. A tag of the twin counts as the model's."""
    for name in (_clean(model), _clean(model).removesuffix("-quickgelu")):
        found = get_pretrained_cfg(name, tag)
        if found:
            return dict(found)
    return None


def published_as(filename: str) -> Iterator[tuple[str, str, Config, str]]:
    """Weights that open_clip publishes under this file name: (model, tag, facts, start of the SHA-256 or "")."""
    for model, tag in open_clip.list_pretrained():
        facts = get_pretrained_cfg(model, tag)
        url = str(facts.get("url") or "")
        if not url or url.rpartition("/")[2] != filename:
            continue
        if "openaipublic" in url:
            yield model, tag, dict(facts), url.split("/")[-2]
        elif "mlfoundations" in url:
            yield model, tag, dict(facts), filename.rpartition(".")[0].rpartition("-")[2]
        else:
            yield model, tag, dict(facts), ""


def quick_gelu_twin(model: str) -> str | None:
    """The name of the same model with QuickGELU, where open_clip has one and `model` is not it."""
    name = f"{_clean(model)}-quickgelu"
    return name if name in open_clip.list_models() else None


def known_as(model_cfg: Config) -> str | None:
    """The name under which open_clip knows a CLIP of these sizes and this activation; None if it has none."""
    names = sorted(open_clip.list_models(), key=len)
    found = (name for name in names if _sizes(open_clip.get_model_config(name)) == _sizes(model_cfg))
    return next(found, None)


def _sizes(cfg: Config) -> list[Any]:
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    whole = [cfg.get("embed_dim"), bool(cfg.get("quick_gelu")), bool(cfg.get("custom_text"))]
    keys: tuple[str, ...] = (
        "timm_model_name",
        "hf_model_name",
        "image_size",
        "layers",
        "width",
        "patch_size",
        "heads",
    )
    keys += ("context_length", "vocab_size")
    return whole + [part.get(key) for part in (vision, text) for key in keys]


def _clean(model: str) -> str:
    return model.replace("/", "-")


def fetch_tag(model: str, tag: str, facts: Config) -> Path:
    """The file of a tag, from the local cache or the network.

    Raises:
        EncoderError: If it can be had from neither.
    """
    return Path(_fetch(f"{model}:{tag}", model, lambda: download_pretrained(facts)))


def fetch_repository(repository: str) -> Path:
    """A local folder with the configuration and the weights of a hub repository.

    Raises:
        EncoderError: If it can be had neither from the local cache nor from the network.
    """

    def both() -> str:
        download_pretrained_from_hf(repository)
        return str(download_pretrained_from_hf(repository, filename="open_clip_config.json"))

    return Path(_fetch(f"hf-hub:{repository}", "MODEL", both)).parent


def _fetch(what: str, model: str, download: Callable[[], str]) -> str:
    try:
        return download()
    except Exception as error:  # urllib, http, huggingface_hub and the file system each raise their own
        raise EncoderError(
            f"the weights {what} are not on this machine, and cannot be downloaded: {_first_line(error)}",
            "Without a network, copy the file here and name it instead: "
            f"vlltr init DIR --encoder {model}:/path/to/open_clip_model.safetensors",
        ) from error


def build_model(model_cfg: Config) -> nn.Module:
    """A model with random weights in float32; nothing is downloaded.

    Raises:
        EncoderError: If the configuration is not one that open_clip can build.
    """
    import vlltr_index.models.tiny  # noqa: F401 - registers the tower with timm

    cfg = deepcopy(model_cfg)
    try:
        vision, text = cfg["vision_cfg"], cfg["text_cfg"]
        if "timm_model_name" in vision:
            vision["timm_model_pretrained"] = False
        if "hf_model_name" in text:
            text["hf_model_pretrained"] = False
        custom = cfg.pop("custom_text", False) or "hf_model_name" in text
        kind = (
            open_clip.CoCa
            if "multimodal_cfg" in cfg
            else open_clip.CustomTextCLIP
            if custom
            else open_clip.CLIP
        )
        return cast(nn.Module, kind(**cfg))
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        raise EncoderError(f"open_clip cannot build this model: {type(error).__name__}: {error}") from error


def load_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Put weights into `model`: older layouts are converted, image positions interpolated to its size.

    Raises:
        EncoderError: If names or shapes do not fit; the message shows the first few.
    """
    state = convert_state_dict(model, dict(state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if own is not None and name in state:
            state[name] = state[name].reshape(own.shape)
    if getattr(model, "logit_bias", None) is not None and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros_like(cast(Tensor, model.logit_bias))
    _resize_positions(model, state)
    own_state = model.state_dict()
    problems = [f"{n} is missing" for n in own_state if n not in state]
    problems += [f"{n} is not part of the model" for n in state if n not in own_state]
    problems += [
        f"{n} is {list(v.shape)}, the model's is {list(own_state[n].shape)}"
        for n, v in state.items()
        if n in own_state and v.shape != own_state[n].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise EncoderError(
            f"{where} holds the weights of another model: {'; '.join(problems[:3])}{more}",
            "Name the model that the file belongs to: vlltr init DIR --encoder MODEL:FILE",
        )
    model.load_state_dict(state)


def _resize_positions(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Interpolate (bicubic) image positions of ViTs and of ResNets' attention pooling to the model's grid."""
    resize_pos_embed(state, model)
    name = "visual.attnpool.positional_embedding"
    own = model.state_dict().get(name)
    if own is None or name not in state or state[name].shape == own.shape or state[name].ndim != 2:
        return
    first, grid = state[name][:1], state[name][1:]
    old, new = round(len(grid) ** 0.5), round((len(own) - 1) ** 0.5)
    if old * old != len(grid) or grid.shape[1] != own.shape[1]:
        return
    square = grid.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    state[name] = torch.cat([first.float(), square.permute(0, 2, 3, 1).reshape(new * new, -1)])


def set_timm_size(model: nn.Module, image_size: int | list[int]) -> None:
    """Give a timm image tower another input size, its positions interpolated; leave other towers alone."""
    visual: Any = model.visual
    if hasattr(visual, "trunk") and hasattr(visual.trunk, "set_input_size"):
        visual.set_input_size(image_size)


def prefer_channels_last(model: nn.Module) -> bool:
    """Lay out CLIP's ResNets with channels last (1.7 times as fast in bfloat16 on a CPU); whether that was done."""
    if not isinstance(model.visual, ModifiedResNet):
        return False
    model.visual.to(memory_format=torch.channels_last)
    return True


def make_tokenizer(config: Config, folder: Path | None = None) -> Tokenizer:
    """The tokenizer that a configuration names; CLIP's needs no network, a Hugging Face one may.

    Args:
        config: A model's configuration.
        folder: Where a Hugging Face tokenizer's files are looked for before the hub.

    Raises:
        EncoderError: If a Hugging Face tokenizer is named and cannot be loaded.
    """
    text = config["model_cfg"]["text_cfg"]
    length, options = int(text.get("context_length", 77)), dict(text.get("tokenizer_kwargs") or {})
    name = text.get("hf_tokenizer_name")
    if not name:
        simple = open_clip.SimpleTokenizer(context_length=length, **options)
        return BPETokenizer(simple, options.get("clean", "lower"))
    local = folder is not None and (folder / "tokenizer_config.json").is_file()
    source = str(folder) if local else str(name)
    try:
        hub = HFTokenizer(source, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **options)
    except (
        Exception
    ) as error:  # transformers raises whatever it meets: OSError, ImportError, ValueError, its own
        raise EncoderError(
            f"the tokenizer {source} cannot be loaded: {_first_line(error)}",
            "It is a Hugging Face tokenizer: it needs `pip install transformers` and a network the first time,\n"
            "or its files beside open_clip_config.json: vlltr init DIR --encoder local-dir:FOLDER",
        ) from error
    return HubTokenizer(hub, str(name))


def make_transform(preprocess_cfg: Config) -> Callable[[Image.Image], Tensor]:
    """PIL image to float32 [3, H, W], normalised.

    Two values are ours: mode "L" takes the colour out first; `resize` is what the image is resized to before the
    square of `size` is cropped out of its middle.

    Raises:
        EncoderError: If the configuration is not one that open_clip knows.
    """
    cfg = dict(preprocess_cfg)
    mode, resize = cfg.pop("mode", "RGB"), cfg.pop("resize", None)
    size = cfg.get("size", 224)
    cfg["size"] = tuple(size) if isinstance(size, (list, tuple)) else int(size)
    try:
        if mode not in {"RGB", "L"}:
            raise ValueError(f"mode {mode!r} is neither 'RGB' nor 'L'")
        if resize is not None:
            if not isinstance(size, int) or not isinstance(resize, int) or resize < size:
                raise ValueError(f"resize {resize!r} is no whole number of at least size {size!r}")
            cfg["size"] = resize
        transform = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    except (TypeError, ValueError, AssertionError) as error:
        raise EncoderError(f"this preprocessing cannot be used: {preprocess_cfg}: {error}") from error

    def apply(image: Image.Image) -> Tensor:
        if mode == "L":
            image = image.convert("L")
        pixels = cast(Tensor, transform(image.convert("RGB")))
        return pixels if resize is None else center_crop(pixels, [size, size])

    return apply


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _text_part(model: nn.Module) -> nn.Module:
    """Where the text transformer's parts hang: the model itself (CLIP), or its `text` (CustomTextCLIP)."""
    return cast(nn.Module, getattr(model, "text", model))


def trims_exactly(model: nn.Module) -> bool:
    """Whether padding on the right cannot matter: attention is causal, and a token of the text is pooled."""
    part = _text_part(model)
    if getattr(part, "attn_mask", None) is None or getattr(part, "cls_emb", None) is not None:
        return False
    if getattr(part, "use_pad_mask", False):
        return False
    return getattr(part, "text_pool_type", getattr(part, "pool_type", None)) in {"argmax", "eos", "first"}


def insert_tokens(model: nn.Module, at: int, count: int, seed: int) -> None:
    """Make room for `count` more tokens before token `at`: rows drawn from `seed` as in a new model, others kept."""
    part: Any = _text_part(model)
    old: nn.Embedding = part.token_embedding
    rows = old.weight.detach()
    generator = torch.Generator().manual_seed(seed)
    new = 0.02 * torch.randn(count, rows.shape[1], generator=generator)  # CLIP's own standard deviation
    weight = torch.cat([rows[:at], new.to(rows), rows[at:]])
    part.token_embedding = nn.Embedding(len(weight), rows.shape[1], _weight=weight).to(rows.device)
    if hasattr(part, "vocab_size"):
        part.vocab_size = len(weight)


def encode_text(model: nn.Module, ids: Tensor) -> Tensor:
    """Text features [B, D], unnormalised, of ids int64 [B, L].

    L may be shorter than the context where `trims_exactly` holds. Positions and mask are cut to L on the way, and
    nothing of the model is changed, so callers do not disturb each other.
    """
    if not trims_exactly(model):
        return cast(Tensor, model.encode_text(ids, normalize=False))  # type: ignore[operator]  # nn.Module types its methods as Tensor
    part: Any = _text_part(model)
    length = ids.shape[1]
    dtype = part.transformer.get_cast_dtype()
    x = part.token_embedding(ids).to(dtype) + part.positional_embedding[:length].to(dtype)
    mask = part.attn_mask[:length, :length]
    if x.requires_grad and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # A mask that asks for a gradient keeps attention off torch's CPU flash kernel, whose bfloat16 backward takes
        # five times as long on short texts. (Choosing a kernel by name would be a setting of the whole process.)
        mask = mask.clone().requires_grad_()
    x = part.ln_final(part.transformer(x, attn_mask=mask))
    pool = getattr(part, "text_pool_type", getattr(part, "pool_type", "argmax"))
    eos = getattr(part, "text_eos_id", getattr(part, "eos_id", None))
    x = text_global_pool(x, ids, pool, eos_token_id=eos)
    projection = part.text_projection
    if projection is None:
        return cast(Tensor, x)
    return cast(Tensor, projection(x) if isinstance(projection, nn.Linear) else x @ projection)
