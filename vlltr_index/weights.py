"""Reading weights that somebody else wrote: tensors only, never code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlltr_index.errors import EncoderError

__all__ = ["read_json", "read_weights", "set_image_size"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        EncoderError: If the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EncoderError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise EncoderError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU.

    Raises:
        EncoderError: If the file is missing or damaged.
    """
    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise EncoderError(f"no such file: {path}") from None
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{path} is damaged or not a safetensors file: {error}") from None


def set_image_size(config: dict[str, Any], image_size: int | None) -> None:
    """Write the side in pixels into `config`, for the model and the preprocessing; None takes the model's own."""
    vision = config["model_cfg"]["vision_cfg"]
    if image_size is not None:
        vision["image_size"] = image_size
    config["preprocess_cfg"]["size"] = vision.get("image_size", 224)
