"""Image towers of timm without a text tower: their description, their weights, and the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.timm_model import TimmModel
from pydantic import ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor, nn

from vlltr_index.encoders.hub import local_folder, model_folder
from vlltr_index.errors import EncoderError
from vlltr_index.schemas.manifests import Manifest

SCHEME = "timm"
"""What `encoder.model` is for such a tower; `encoder.pretrained` then names its folder or repository."""
_TAKES = "--encoder timm:"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_INTERPOLATIONS = ("bicubic", "bilinear")
_MADE = "timm writes both files: timm.models.save_for_hf(model, FOLDER, safe_serialization=True)"


class _Preprocessing(Manifest):
    """The part of timm's `pretrained_cfg` that says how images are prepared, and which weights are the classifier's."""

    input_size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop_pct: float = Field(default=0.875, gt=0.0, le=1.0)
    crop_mode: str = "center"
    classifier: str | list[str] | None = None


class _Described(Manifest):
    """The part of timm's config.json that is read."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    architecture: str
    global_pool: str | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    pretrained_cfg: _Preprocessing


class ImageTower(nn.Module):
    """Image tower of timm in the place of an open_clip model; only `visual` has weights.

    Args:
        vision_cfg: `timm_model_name`; `timm_args`, what timm makes the model with; `image_size`.
    """

    logit_scale: Tensor

    def __init__(self, vision_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.visual = _Trunk(vision_cfg)
        # There is no text to compare with; it has the value that a CLIP starts from.
        self.register_buffer("logit_scale", torch.tensor(math.log(1 / 0.07)), persistent=False)

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """Encode pixels [B, 3, H, W] to features [B, D], not normalised. The signature is open_clip's."""
        features: Tensor = self.visual(pixels)
        return features


class _Trunk(TimmModel):  # type: ignore[misc]  # open_clip publishes no types
    """open_clip's adapter of timm, around a model that is made with arguments of its own and has no classifier."""

    def __init__(self, vision_cfg: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        name = vision_cfg["timm_model_name"]
        if not timm.is_model(name):  # anything else might be fetched
            raise ValueError(f"timm {timm.__version__} has no model {name!r}")
        args = vision_cfg["timm_args"]
        if strange := [key for key, value in args.items() if not _is_plain(key, value)]:
            raise ValueError(f"{strange[0]!r} is no argument that is passed to timm")
        side = vision_cfg["image_size"]
        self.image_size = (side, side)
        self.trunk = timm.create_model(name, **{**args, "pretrained": False, "num_classes": 0})
        self.head = nn.Identity()


def _is_plain(key: str, value: Any) -> bool:
    """Say whether an argument is numbers, or the kind of pooling: a text could name a file or an address."""
    if key == "global_pool":
        return isinstance(value, str)
    return all(isinstance(one, int | float) for one in (value if isinstance(value, list) else [value]))


def is_here(name: str) -> bool:
    """Say whether a tower is named by a folder, and not by a repository of the hub with its commit.

    Raises:
        EncoderError: It is named by neither.
    """
    return local_folder(name, _TAKES) is not None


def describe_tower(name: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a tower, and its `model_cfg`, `preprocess_cfg` and `tokenizer`, as `Encoder` takes them.

    Args:
        name: A folder in timm's layout, or `OWNER/NAME@COMMIT` of the hub, which is fetched.

    Raises:
        EncoderError: There is none, its files are malformed, or it is not for colour images that are squares.
    """
    folder = model_folder(name, _TAKES, [_CONFIG, _WEIGHTS])
    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():
            raise EncoderError(f"{folder} is no folder of a timm model: it has no {file}", _MADE)
    try:
        facts = _Described.load(folder / _CONFIG)
        args = {key: value for key, value in facts.model_args.items() if key != "num_classes"}
        if facts.global_pool:
            args["global_pool"] = facts.global_pool
        pre = _preprocessing(facts.pretrained_cfg)
        vision = {"timm_model_name": facts.architecture, "timm_args": args, "image_size": pre["size"]}
        width = _width(vision)
    except Exception as error:  # timm's models raise many kinds of errors
        raise EncoderError(f"the image tower in {folder} cannot be used: {error}", _MADE) from None
    config = {
        "model_cfg": {"embed_dim": width, "vision_cfg": vision, "text_cfg": {}},
        "preprocess_cfg": pre,
        "tokenizer": "none",
    }
    return folder, config


def tower_weights(folder: Path) -> dict[str, Tensor]:
    """Read a tower's weights without its classifier, named as in an `ImageTower`.

    Raises:
        EncoderError: The file is damaged.
    """
    named = _Described.load(folder / _CONFIG).pretrained_cfg.classifier or ()
    without = tuple(f"{one}." for one in ([named] if isinstance(named, str) else named))
    try:
        state = load_file(str(folder / _WEIGHTS))
    except Exception as error:  # safetensors raises many kinds of errors for damaged files
        raise EncoderError(f"{folder / _WEIGHTS} cannot be read: {error}", "Fetch it again.") from None
    return {f"visual.trunk.{key}": value for key, value in state.items() if not key.startswith(without)}


def _preprocessing(facts: _Preprocessing) -> dict[str, Any]:
    """Return the preprocessing that timm evaluates a model with, as open_clip calls it.

    Raises:
        ValueError: There is none here that does the same.
    """
    channels, height, width = facts.input_size
    if channels != 3 or height != width:
        raise ValueError(
            f"it takes images of {channels} x {height} x {width}, not colour images that are squares"
        )
    if facts.interpolation not in _INTERPOLATIONS or facts.crop_mode not in ("center", "squash"):
        raise ValueError(f"images are resized by {facts.interpolation!r}, crop mode {facts.crop_mode!r}")
    found = {
        "size": width,
        "mode": "RGB",
        "mean": list(facts.mean),
        "std": list(facts.std),
        "interpolation": facts.interpolation,
        "resize_mode": "shortest" if facts.crop_mode == "center" else "squash",
        "fill_color": 0,
    }
    resize = math.floor(width / facts.crop_pct)
    return found if resize == width else {**found, "resize": resize}


def _width(vision_cfg: dict[str, Any]) -> int:
    """Compute the width of a tower's features, without memory for its weights.

    Raises:
        ValueError: It gives no single vector for an image.
    """
    side = vision_cfg["image_size"]
    with torch.device("meta"), torch.no_grad():
        found = _Trunk(vision_cfg).eval()(torch.zeros(1, 3, side, side))
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise ValueError("it gives no single vector for an image")
    return found.shape[1]
