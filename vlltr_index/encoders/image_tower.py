"""Image towers of timm without a text tower: their description, their weights, and the model."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from open_clip.timm_model import TimmModel
from pydantic import ConfigDict, Field
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vlltr_index.encoders import packaged
from vlltr_index.encoders.hub import local_folder, model_folder
from vlltr_index.errors import EncoderError
from vlltr_index.schemas.encoders import TIMM
from vlltr_index.schemas.manifests import Manifest

_TAKES = f"--encoder {TIMM.model}:"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_INTERPOLATIONS = ("bicubic", "bilinear")
_MAX_NUMBER = 10_000  # in arguments of a model; the largest usual one is the temperature of rotary positions
_MAX_LIST = 64
_MAX_TENSORS = 10_000  # of a model; timm's largest has 1,831

_Side = Annotated[int, Field(ge=1, le=2048)]
_Mean = Annotated[float, Field(ge=-1000.0, le=1000.0)]
_Deviation = Annotated[float, Field(ge=1e-6, le=1000.0)]


class _Preprocessing(Manifest):
    """The part of timm's `pretrained_cfg` that says how images are prepared."""

    input_size: tuple[_Side, _Side, _Side]
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Deviation, _Deviation, _Deviation]
    interpolation: str = "bicubic"
    crop_pct: float = Field(default=0.875, ge=0.5, le=1.0)
    crop_mode: str = "center"


class _Described(Manifest):
    """The part of timm's config.json that is read."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    architecture: str
    global_pool: str | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    pretrained_cfg: _Preprocessing


class Building(TorchFunctionMode):
    """Context in which a model is built: one of very many tensors is refused before it has taken long.

    Args:
        drawn: Whether tensors are initialised with random values, which takes longer than loading weights.

    Raises:
        ValueError: The model has more than 10,000 tensors.
    """

    def __init__(self, drawn: bool = True) -> None:
        super().__init__()
        self._drawn = drawn
        self._tensors = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch; count what takes memory, and skip random initialisation if it is not drawn."""
        if func is torch.empty:
            self._tensors += 1
            if self._tensors > _MAX_TENSORS:
                raise ValueError(f"it has more than {_MAX_TENSORS:,} tensors")
        if not self._drawn and func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


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
            raise ValueError(
                f"{strange[0]!r} is no argument that is passed to timm: {args[strange[0]]!r:.80}"
            )
        side = vision_cfg["image_size"]
        self.image_size = (side, side)
        self.trunk = _make(vision_cfg, 0)
        self.head = nn.Identity()


def _make(vision_cfg: dict[str, Any], classes: int) -> nn.Module:
    """Make timm's model with a classifier of so many classes; without one for 0."""
    fixed = {"pretrained": False, "num_classes": classes}
    with Building():
        made: nn.Module = timm.create_model(
            vision_cfg["timm_model_name"], **{**vision_cfg["timm_args"], **fixed}
        )
    return made


def _is_plain(key: str, value: Any) -> bool:
    """Say whether an argument is a few numbers, or the kind of pooling: a text could name a file or an address."""
    if key == "global_pool":
        return isinstance(value, str)
    numbers = value if isinstance(value, list) else [value]
    return len(numbers) <= _MAX_LIST and all(
        isinstance(one, int | float) and -_MAX_NUMBER <= one <= _MAX_NUMBER for one in numbers
    )


def is_folder(name: str) -> bool:
    """Say whether a tower is on this machine, in a folder or a package, and not a repository of the hub.

    Raises:
        EncoderError: It is none of these.
    """
    return name == packaged.TOWER or local_folder(name, _TAKES) is not None


def describe_tower(name: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a tower, and its `model_cfg`, `preprocess_cfg` and `tokenizer`, as `Encoder` takes them.

    Args:
        name: A folder in timm's layout, `OWNER/NAME@COMMIT` of the hub, which is fetched, or `packaged.TOWER`.

    Raises:
        EncoderError: There is none, its files are malformed, or it is not for colour images that are squares.
    """
    named = name != packaged.TOWER
    folder = model_folder(name, _TAKES, [_CONFIG, _WEIGHTS]) if named else packaged.tower_folder()
    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():
            raise EncoderError(
                f"{folder} is no folder of a timm model: it has no {file}",
                "timm writes both files: timm.models.save_for_hf(model, FOLDER, safe_serialization=True)",
            )
    try:
        facts = _Described.load(folder / _CONFIG)
        args = {key: value for key, value in facts.model_args.items() if key != "num_classes"}
        if facts.global_pool:
            args["global_pool"] = facts.global_pool
        pre = _preprocessing(facts.pretrained_cfg)
        vision = {"timm_model_name": facts.architecture, "timm_args": args, "image_size": pre["size"]}
        with torch.device("meta"):
            width = feature_width(_Trunk(vision))
    except Exception as error:  # timm's models raise many kinds of errors
        raise EncoderError(f"the image tower in {folder} cannot be used: {_told(error)}") from None
    config = {
        "model_cfg": {"embed_dim": width, "vision_cfg": vision, "text_cfg": {}},
        "preprocess_cfg": pre,
        "tokenizer": "none",
    }
    return folder, config


def feature_width(trunk: Any) -> int:
    """Compute the width of the features of a `visual` on the device "meta", which takes no memory for weights.

    Raises:
        ValueError: It gives no single vector for an image.
    """
    with torch.no_grad():
        found = trunk.eval()(torch.zeros(1, 3, *trunk.image_size, device="meta"))
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise ValueError("it gives no single vector for an image")
    return int(found.shape[1])


def tower_weights(folder: Path, vision_cfg: dict[str, Any]) -> dict[str, Tensor]:
    """Read a tower's weights without its classifier, named as in an `ImageTower`.

    Names and shapes are compared with the model's before memory is taken for either.

    Raises:
        EncoderError: The file is damaged, or holds other tensors than the model has, or values that are no numbers.
    """
    path = folder / _WEIGHTS
    with torch.device("meta"):
        trunk = _Trunk(vision_cfg).trunk
        model = trunk.state_dict()
        classifier = _make(vision_cfg, 1).state_dict().keys() - model.keys()
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name not in classifier]  # noqa: SIM118  # it is no dictionary
            shapes = {name: file.get_slice(name).get_shape() for name in names}
            _compare(trunk, shapes, path)
            state = {name: file.get_tensor(name) for name in names}
    except EncoderError:
        raise
    except Exception as error:  # safetensors raises many kinds of errors for damaged files
        raise EncoderError(f"{path} cannot be read: {error}", "Fetch it again.") from None
    for name, value in state.items():
        kind = model[name].dtype
        fits = value.is_floating_point() if kind.is_floating_point else value.dtype == kind
        if not fits or not value.to(kind).isfinite().all():
            raise EncoderError(
                f"{path} holds weights that are not finite numbers, or not of the model's kind: {name}, {value.dtype}",
                "Fetch it again, or save the model's weights as they were in float32.",
            )
    return {f"visual.trunk.{name}": value for name, value in state.items()}


def _compare(trunk: nn.Module, shapes: dict[str, list[int]], path: Path) -> None:
    """Check that a model without memory for its weights has tensors of these names and shapes, and no others."""
    try:
        trunk.load_state_dict({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    except RuntimeError as error:
        raise EncoderError(
            f"{path} holds the weights of another model: {textwrap.shorten(str(error), 400)}",
            f"It must be of the same model as {_CONFIG} beside it.",
        ) from None


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


def _told(error: Exception) -> str:
    """Return the kind of an error and the first line of its message, which may be empty."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")
