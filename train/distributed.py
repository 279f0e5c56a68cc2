"""Training with several processes, and with batches that a tower encodes in parts.

Every process computes the whole loss from the gathered features. The gradient of a gathered row is the sum over the
processes' losses, so the average that DistributedDataParallel takes equals the gradient of a single process with the
whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlltr_index.errors import ConfigError, PeerError, VlltrError
from vlltr_index.tensors import choose_device

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder

# Time-out of waiting for the first process, which may embed and write for hours. It holds in a gloo group of its own;
# gradients keep the time-out of their backend, so that a process that hangs is noticed.
_PATIENCE = timedelta(days=7)
_waiting: dist.ProcessGroup | None = None
_alone = False  # whether the first process is in the work of `by_first`, for which the others wait

P = ParamSpec("P")
T = TypeVar("T")


def meet() -> torch.device | None:
    """Join the process group if this process was started with others: `--processes`, `torchrun`, `accelerate launch`.

    Returns:
        The device of this process; None if it was started alone.
    """
    if int(os.environ.get("WORLD_SIZE") or "1") == 1 or not dist.is_available():
        return None
    global _waiting
    device = choose_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if _waiting is None:
        _waiting = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return device


def join_processes(encoder: Encoder) -> None:
    """Join the process group and move the encoder to this process's device; do nothing if started alone."""
    device = meet()
    if device is not None:
        encoder.to(device)


def leave() -> None:
    """End the process group, if there is one."""
    global _waiting
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        _waiting = None


def world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def by_first(work: Callable[P, T]) -> Callable[P, T]:
    """Return a function that does `work` in the first process alone; its result, which can be pickled, is that of all.

    Within `work` the first process does the work of another such function by itself.

    Raises:
        PeerError: In the other processes, if `work` raises an error in the first.
    """

    @wraps(work)
    def done(*args: P.args, **kwargs: P.kwargs) -> T:
        global _alone
        rank, processes = world()
        if processes == 1 or _alone:
            return work(*args, **kwargs)
        said: list[Any] = [None]
        if rank == 0:
            _alone = True
            try:
                said = [(None, work(*args, **kwargs))]
            except Exception as error:
                code = error.exit_code if isinstance(error, VlltrError) else 1
                dist.broadcast_object_list([(code, None)], group=_waiting)
                raise
            finally:
                _alone = False
        dist.broadcast_object_list(said, group=_waiting)
        code, result = said[0]
        if code is not None:
            raise PeerError(code)
        value: T = result
        return value

    return done


def first_then_all(work: Callable[P, T]) -> Callable[P, T]:
    """Return a function that does `work` in the first process, then in each of the others: an error of all is raised by
    the first alone.

    Raises:
        PeerError: In the other processes, if `work` raises an error in the first.
    """

    @wraps(work)
    def done(*args: P.args, **kwargs: P.kwargs) -> T:
        made: list[T] = []

        @by_first
        def first() -> None:
            made.append(work(*args, **kwargs))

        first()
        return made[0] if made else work(*args, **kwargs)

    return done


def own_part(batch_size: int) -> slice:
    """Return the rows of a global batch that this process encodes.

    Raises:
        ConfigError: The batch cannot be divided evenly.
    """
    rank, processes = world()
    if batch_size % processes:
        raise ConfigError(
            f"batch_size is global: {batch_size} cannot be shared out evenly among {processes} processes",
            f"Use a multiple of {processes}, for example --set cvlp.batch_size={batch_size // processes * processes}",
        )
    share = batch_size // processes
    return slice(rank * share, (rank + 1) * share)


def gather_rows(rows: Tensor) -> Tensor:
    """Stack the rows [b, ...] of all processes, as many in each, by rank: [b * processes, ...], with gradients."""
    if world()[1] == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    gathered: tuple[Tensor, ...] = all_gather(rows)
    return torch.cat(gathered)


def in_parts(encode: Callable[[Tensor], Tensor], rows: Tensor, size: int | None) -> Tensor:
    """Encode rows [B, ...] to features [B, D], `size` at a time, with the values and gradients of the whole batch.

    Only the features are kept in memory. The backward pass encodes each part again, with the same random numbers, and
    gives it the gradients of its features: the gradient cache of Gao et al., "Scaling Deep Contrastive Learning Batch
    Size under Memory Limited Setup" (2021). This costs one more forward pass.

    Args:
        encode: A tower, without BatchNorm in training mode.
        rows: The tower's input.
        size: Rows at a time; None: all.
    """
    if size is None or len(rows) <= size:
        return encode(rows)
    if not torch.is_grad_enabled():
        return torch.cat([encode(part) for part in rows.split(size)])
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in rows.split(size)])


def share_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Make BatchNorm in training mode use the statistics of all processes' rows, in place.

    Raises:
        ConfigError: The device is a CPU, for which there is no such BatchNorm.
    """
    if world()[1] == 1:
        return
    if device.type != "cuda":
        raise ConfigError(
            "several processes on CPUs cannot share the statistics of the model's BatchNorm",
            "Keep them as they are, --set cvlp.batch_norm=eval (or lgr.batch_norm), or train in one process.",
        )
    from timm.layers import convert_sync_batchnorm

    convert_sync_batchnorm(module)
