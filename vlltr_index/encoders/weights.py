"""Reading what somebody else wrote (weights as tensors only, never code, and JSON), and digests of weights."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlltr_index.errors import EncoderError

__all__ = ["OPENAI_MARKS", "load_checkpoint", "read_json", "read_weights", "revision", "weights_digest"]

OPENAI_MARKS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries that only OpenAI's own CLIP files have beside their weights."""

_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_CONVERT_HINT = "Save them with: safetensors.torch.save_file(model.state_dict(), 'FILE.safetensors')"
_Json = TypeVar("_Json", dict[str, Any], list[Any])


def read_json(path: Path, kind: type[_Json]) -> _Json:
    """A JSON object (`dict`) or array (`list`).

    Raises:
        EncoderError: If the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EncoderError(f"no such file: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, kind):
        raise EncoderError(f"{path} must hold a JSON {'object' if kind is dict else 'array'}")
    return value


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, by name.

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
    if path.suffix.lower() not in _ENDINGS:
        raise EncoderError(
            f"{path} does not end like a file of weights",
            f"Weights end in one of {', '.join(_ENDINGS)}. An archive has to be unpacked first.",
        )
    if not path.is_file():
        raise EncoderError(f"no such file: {path}", "Check the path.")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(str(path))
        if _is_torchscript(path):
            raise EncoderError(
                f"{path} is a TorchScript archive: opening it would run the program inside",
                "If you trust where it comes from, take the weights out once, and name the new file instead: "
                'python -c "import torch, safetensors.torch as s; '
                f"s.save_file({{k: v.clone() for k, v in torch.jit.load({path.name!r}, 'cpu').state_dict().items()}}, "
                f'{path.with_suffix(".safetensors").name!r})"',
            )
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise EncoderError(
            f"{path} is refused: it is damaged, or holds more than tensors, and loading it could run code",
            _CONVERT_HINT
            if allowed
            else f"{_CONVERT_HINT}\nIf it is a checkpoint of the VL-LTR release: vlltr import release {path}",
        ) from None
    except (
        SafetensorError,
        zipfile.BadZipFile,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        first = (str(error).splitlines() or [""])[0]
        raise EncoderError(
            f"{path} is damaged or not a file of weights: {type(error).__name__}: {first}",
            "Fetch or copy it again.",
        ) from None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order of the names.

    The device and the memory layout do not count, so a saved and opened copy has the same digest.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def revision(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Changes when one of the tensors is written in place or replaced: an optimiser's step, a load, a move."""
    return tuple((value._version, value.data_ptr()) for value in tensors)
