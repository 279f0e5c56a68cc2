"""Helpers of the numeric modules: checks of shapes, normalised rows, the device, and its float32 precision."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.errors import InputError, UsageError, VlltrError


def check_matrix(name: str, value: Tensor, columns: int | None = None, rows: int | None = None) -> None:
    """Refuse any tensor but a floating-point one of shape [rows, columns].

    Raises:
        InputError: `value` has another number of dimensions, another size, or an integer dtype.
    """
    expected = f"[{'N' if rows is None else rows}, {'D' if columns is None else columns}]"
    shape = tuple(value.shape)
    if (
        value.dim() != 2
        or (columns is not None and shape[1] != columns)
        or (rows is not None and shape[0] != rows)
    ):
        raise InputError(f"{name} must have shape {expected}, got {list(shape)}")
    if not value.is_floating_point():
        raise InputError(f"{name} must be floating point, got {value.dtype}")


def check_vector(name: str, value: Tensor, size: int | None = None) -> None:
    """Refuse any tensor but a one-dimensional one of the given size.

    Raises:
        InputError: `value` has another shape.
    """
    if value.dim() != 1 or (size is not None and value.shape[0] != size):
        raise InputError(f"{name} must have shape [{'N' if size is None else size}], got {list(value.shape)}")


def check_labels(name: str, value: Tensor, size: int | None = None, classes: int | None = None) -> None:
    """Refuse any tensor but an integer vector, with values in 0..classes-1 if `classes` is given.

    Raises:
        InputError: `value` has another shape, a floating dtype, or a value out of range.
    """
    check_vector(name, value, size)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise InputError(f"{name} must be integers, got {value.dtype}")
    if classes is not None and value.numel() and not 0 <= int(value.min()) <= int(value.max()) < classes:
        raise InputError(
            f"{name} must lie in 0..{classes - 1}, got values from {int(value.min())} to {int(value.max())}"
        )


def class_positions(class_ids: Tensor, wanted: Tensor) -> Tensor:
    """Find the position of each of `wanted`, int64 [N], in the ascending `class_ids`, int64 [C]; -1 if missing."""
    if class_ids.numel() == 0:
        return torch.full_like(wanted, -1)
    at = torch.searchsorted(class_ids, wanted).clamp(max=class_ids.numel() - 1)
    return torch.where(class_ids[at] == wanted, at, -1)


def working_dtype(*values: Tensor) -> torch.dtype:
    """Return the dtype to compute in: the widest of the tensors' dtypes, and float32 at least."""
    dtype = torch.float32
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
    return dtype


@contextmanager
def float32_by(tf32: bool) -> Iterator[None]:
    """Multiply float32 on a GPU in full precision or, with `tf32`, with 10 bits (TensorFloat-32), within the block.

    torch's default is full precision for products but TensorFloat-32 for convolutions, so that the vectors of one
    encoder would differ by 1e-3 between machines. The setting is global to the process; it is restored at the end.
    """
    matmul = torch.backends.cuda.matmul
    cudnn = torch.backends.cudnn
    matmul_before = matmul.allow_tf32
    cudnn_before = cudnn.allow_tf32
    matmul.allow_tf32 = tf32
    cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32 = matmul_before
        cudnn.allow_tf32 = cudnn_before


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 in full precision within the block: without autocast, and without TensorFloat-32."""
    with torch.autocast(device_type=device.type, enabled=False), float32_by(tf32=False):
        yield


def choose_device(wanted: str | torch.device | None = None) -> torch.device:
    """Choose the device to compute on.

    Args:
        wanted: `cpu`, `cuda`, `cuda:N`, or `auto`: a GPU if torch can use one. None: the value of VLLTR_DEVICE, else
            `auto`. Without a number each of several processes on a machine takes a GPU of its own.

    Raises:
        UsageError: The name is unknown, or torch cannot use the GPU; the message has the driver's reason.
    """
    name = str(wanted or os.environ.get("VLLTR_DEVICE") or "auto")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UsageError(f"the device is auto, cpu, cuda or cuda:N, got {name!r}", "Use --device auto")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    number = name.partition(":")[2] or os.environ.get("LOCAL_RANK") or "0"
    device = torch.device("cuda", int(number))
    problem = cuda_problem(device)
    if problem is not None:
        raise UsageError(
            f"the device {name} cannot be used: {problem}",
            "Use --device cpu, or install a torch with CUDA that fits the driver; vlltr doctor shows what there is.",
        )
    return device


@contextmanager
def computing_on(device: str | None, otherwise: str = "auto") -> Iterator[None]:
    """Compute within the block on `device`, else on that of VLLTR_DEVICE, else on `otherwise`, such as a recipe's.

    Raises:
        UsageError: As for `choose_device`.
    """
    before = os.environ.get("VLLTR_DEVICE")
    name = device or before or otherwise
    choose_device(name)
    os.environ["VLLTR_DEVICE"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["VLLTR_DEVICE"]
        else:
            os.environ["VLLTR_DEVICE"] = before


def cuda_problem(device: torch.device) -> str | None:
    """Return the reason of torch or the driver why a GPU cannot be used; None if it can be used."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0]
    return None


def device_name(device: torch.device) -> str:
    """Describe a device for the user."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"the processor, {threads} {'thread' if threads == 1 else 'threads'}"


@contextmanager
def memory_mended_by(what: str, mend: str) -> Iterator[None]:
    """Raise an error with the advice `mend` if a GPU's memory does not suffice within the block.

    Raises:
        VlltrError: Instead of torch's OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise VlltrError(
            f"{what}: {str(error).partition('. Including')[0].partition(chr(10))[0]}", mend
        ) from None


def work_device(value: Tensor) -> torch.device:
    """Return the device for heavy work on `value`: its own, or for a tensor on the CPU that of `choose_device`."""
    return choose_device() if value.device.type == "cpu" else value.device


def unit_rows(value: Tensor) -> Tensor:
    """Normalise rows [N, D] to length one, in float32 at least; a row of zeros stays zero."""
    return F.normalize(value.to(working_dtype(value)), dim=-1)


def cosine_logits(features: Tensor, weight: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Compute scale * cosine of rows of features [N, D] with rows of weight [C, D]: [N, C], float32 at least."""
    dtype = working_dtype(features, weight)
    return scale * (unit_rows(features.to(dtype)) @ unit_rows(weight.to(dtype)).T)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of names, dtypes, shapes and values, in the order of the names.

    Device and memory layout do not matter, so a copy that was saved and opened has the same digest.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
