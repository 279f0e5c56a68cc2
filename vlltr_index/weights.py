"""Reading weights that somebody else wrote: tensors only, never code."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlltr_index.errors import EncoderError

__all__ = ["OPENAI_MARKS", "half_with_float_norms", "load_checkpoint", "read_json", "read_weights"]

OPENAI_MARKS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries that only OpenAI's own CLIP files have beside their weights."""

_PICKLED = {".pt", ".pth", ".bin", ".ckpt"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        EncoderError: If the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EncoderError(f"no such file: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise EncoderError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt, .pth, .bin or .ckpt file, on the CPU, by name.

    A training checkpoint's `state_dict` is taken out, and the `module.` that data-parallel training puts before
    every name is dropped. Nothing in the file is executed.

    Raises:
        EncoderError: If the file is missing or damaged, or holds anything but tensors.
    """
    value = load_checkpoint(path)
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    state = value if isinstance(value, dict) else {}
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise EncoderError(f"{path} does not hold weights by name", _CONVERT_HINT)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def load_checkpoint(path: Path, allowed: Sequence[type] = ()) -> Any:
    """What a file of weights holds, on the CPU: tensors, numbers, texts, lists and dictionaries of them.

    Nothing in the file is executed.

    Args:
        path: A .safetensors, .pt, .pth, .bin or .ckpt file.
        allowed: Classes whose instances may be in it too. Only such as merely hold values: `argparse.Namespace`.

    Raises:
        EncoderError: If the file is missing or damaged, or holds anything else.
    """
    suffix = path.suffix.lower()
    if suffix not in {".safetensors", *_PICKLED}:
        hint = "Weights end in .safetensors, .pt, .pth, .bin or .ckpt."
        raise EncoderError(
            f"{path} does not end like a file of weights",
            f"Unpack it first: unzip '{path}'" if suffix == ".zip" else hint,
        )
    if not path.is_file():
        raise EncoderError(f"no such file: {path}", "Check the path.")
    return _read_safetensors(path) if suffix == ".safetensors" else _read_pickled(path, allowed)


_AGAIN = "Fetch or copy it again."
_CONVERT_HINT = "Save them with: safetensors.torch.save_file(model.state_dict(), 'FILE.safetensors')"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{path} is damaged or not a safetensors file: {error}", _AGAIN) from None


def _read_pickled(path: Path, allowed: Sequence[type]) -> Any:
    if _is_torchscript(path):
        out = path.with_suffix(".safetensors").name
        raise EncoderError(
            f"{path} is a TorchScript archive: opening it would run the program inside",
            "If you trust where it comes from, take the weights out once, and name the new file instead: "
            'python -c "import torch, safetensors.torch as s; '
            f"s.save_file({{k: v.clone() for k, v in torch.jit.load({path.name!r}, 'cpu').state_dict().items()}}, "
            f'{out!r})"',
        )
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        release = f"If it is a checkpoint of the VL-LTR release: vlltr import release {path}. Other weights: "
        raise EncoderError(
            f"{path} is refused: it holds more than tensors, and loading it could run code (or it is damaged)",
            f"{'' if allowed else release}{_CONVERT_HINT}",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        first = (str(error).splitlines() or [""])[0]
        raise EncoderError(
            f"{path} is damaged or not a file of weights: {type(error).__name__}: {first}", _AGAIN
        ) from None


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def half_with_float_norms(state: dict[str, Tensor]) -> bool:
    """Whether matrices are float16 and norms float32, the way OpenAI saved its models."""
    matrix, norm = state.get("transformer.resblocks.0.mlp.c_fc.weight"), state.get("ln_final.weight")
    return (
        matrix is not None
        and norm is not None
        and matrix.dtype == torch.float16
        and norm.dtype == torch.float32
    )
