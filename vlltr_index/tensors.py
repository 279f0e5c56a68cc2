"""What the numeric modules share: shape checks, unit rows, and full precision under an ambient autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.errors import InputError

__all__ = [
    "check_labels",
    "check_matrix",
    "check_vector",
    "full_precision",
    "unit_rows",
    "work_device",
    "working_dtype",
]


def check_matrix(name: str, value: Tensor, columns: int | None = None, rows: int | None = None) -> None:
    """Refuse anything but a floating [rows, columns] tensor.

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
    """Refuse anything but a one-dimensional tensor of the given size.

    Raises:
        InputError: `value` has another shape.
    """
    if value.dim() != 1 or (size is not None and value.shape[0] != size):
        raise InputError(f"{name} must have shape [{'N' if size is None else size}], got {list(value.shape)}")


def check_labels(name: str, value: Tensor, size: int | None = None, classes: int | None = None) -> None:
    """Refuse anything but an integer vector, with values in 0..classes-1 where `classes` is given.

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


def working_dtype(*values: Tensor) -> torch.dtype:
    """The dtype to compute in: the widest of the tensors', and float32 at least."""
    dtype = torch.float32
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
    return dtype


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """A context in which an ambient autocast does not narrow anything."""
    return torch.autocast(device_type=device.type, enabled=False)


def work_device(value: Tensor) -> torch.device:
    """Where heavy work on `value` is done: on a GPU where it lies on the CPU and there is one, else where it lies."""
    if value.device.type == "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    return value.device


def unit_rows(value: Tensor) -> Tensor:
    """Rows scaled to length one, in float32 at least; a zero row stays zero. Shape [N, D] -> [N, D]."""
    return F.normalize(value.to(working_dtype(value)), dim=-1)
