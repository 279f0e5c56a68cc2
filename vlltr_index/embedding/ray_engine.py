"""Vectors by Ray actors, on this machine or a cluster. The only ray import.

Actors compute and nothing else: the process that runs the command hands out batches, and writes what comes back. So
tables have one writer as ever, and nothing but vectors travels. Ray Data is not needed for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vlltr_index.embedding.engines import (
    Augment,
    ImageSource,
    ImageVectors,
    image_vectors_of_batch,
    text_vectors_of_batch,
)
from vlltr_index.errors import ConfigError, UsageError, VlltrError

if TYPE_CHECKING:
    from types import TracebackType

    from vlltr_index.encoders.encoder import Encoder

__all__ = ["RayEngine"]

_CPUS = (
    0.5  # an actor's share: with more, two actors and the driver's own work wait for each other on two CPUs
)
_AHEAD = 2  # batches in hand for each actor, so that none waits for the writer

_KEPT = (
    "What was embedded is kept. Run it again, with fewer --actors if memory ran out, or with --engine local."
)


class RayEngine:
    """An `Engine` whose actors each hold a copy of the encoder; they start with the first batch.

    Where Ray runs already, or RAY_ADDRESS names a cluster, it is used, and images given by path must be there under
    the same path on its machines. Otherwise Ray is started on this machine, and ended with the block.

    Args:
        encoder: What the actors compute with.
        augment: Of the views after the plain one.
        actors: How many; default: one a GPU, or where there is none one a CPU.

    Raises:
        ConfigError: If ray is not installed.
    """

    def __init__(self, encoder: Encoder, augment: Augment | None = None, actors: int | None = None) -> None:
        if actors is not None and actors < 1:
            raise UsageError(f"the ray engine needs one actor at least, got {actors}")
        self._ray, self._pool_type = _import_ray()
        self._encoder = encoder
        self._augment = augment
        self._actors = actors
        self._started = False

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__dict__.pop("_pool", None)
        if self._started:
            self._ray.shutdown()
            self._started = False

    def texts(self, batches: Iterable[Sequence[str]]) -> Iterator[tuple[Tensor, int]]:
        """See `Engine`."""
        yield from self._map("texts", ((list(batch),) for batch in batches))

    def images(
        self, batches: Iterable[Sequence[ImageSource]], views: Sequence[int]
    ) -> Iterator[ImageVectors]:
        """See `Engine`."""
        yield from self._map("images", ((list(batch), views) for batch in batches))

    def _map(self, method: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """`method` of the actors on each call's arguments; a few batches are under way, results keep their order."""

        def submit(actor: Any, arguments: tuple[Any, ...]) -> Any:
            return getattr(actor, method).remote(*arguments)

        waiting = 0
        for arguments in calls:
            pool, size = self._pool
            if waiting >= _AHEAD * size:
                yield self._next(pool)
                waiting -= 1
            pool.submit(submit, arguments)
            waiting += 1
        for _ in range(waiting):
            yield self._next(self._pool[0])

    def _next(self, pool: Any) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            return pool.get_next()
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, VlltrError):
                raise cause from None
            raise
        except RayError as error:
            first = str(error).strip().partition("\n")[0]
            raise VlltrError(f"the ray engine lost an actor: {first}", _KEPT) from None

    @cached_property
    def _pool(self) -> tuple[Any, int]:
        """The pool and its size; the actors are started at the first use."""
        ray = self._ray
        if not ray.is_initialized():
            self._init()
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        size = self._actors or gpus or max(1, int(there.get("CPU", 1)))
        share = {"num_gpus": min(1.0, gpus / size)} if gpus else {}
        actor = ray.remote(num_cpus=min(_CPUS, there.get("CPU", 1) / size), **share)(_Worker)
        device, encoder = self._encoder.device, self._encoder.to("cpu")
        shared = ray.put((encoder, self._augment))
        encoder.to(device)
        names = (encoder.text_fp, encoder.image_fp)
        return self._pool_type([actor.remote(shared, names) for _ in range(size)]), size

    def _init(self) -> None:
        """Join the cluster that RAY_ADDRESS names, or start Ray on this machine.

        Raises:
            VlltrError: If it does not come up.
        """
        if os.environ.pop("VLLTR_FREE_CORES", None):
            os.environ.pop("OMP_NUM_THREADS", None)  # Ray gives each actor its share
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS")
        self._started = True
        options = {} if address else {"include_dashboard": False}
        try:
            self._ray.init(log_to_driver=False, logging_level="error", **options)
        except Exception as error:  # a bare one where the machine is too busy, other kinds for addresses
            raise _not_up(address, error) from None


def _not_up(address: str | None, error: Exception) -> VlltrError:
    what, mend = "ray cannot be started on this machine", "Run"
    if address:
        what, mend = f"ray at RAY_ADDRESS={address} cannot be reached", "Mend or unset RAY_ADDRESS, or run"
    first = str(error).strip().partition("\n")[0]
    return VlltrError(f"{what}: {first}", f"{mend} it with --engine local.")


class _Worker:
    """What an actor runs: the encoder on the actor's device."""

    def __init__(self, shared: tuple[Encoder, Augment | None], names: tuple[str, str]) -> None:
        import torch

        encoder, self._augment = shared
        self._encoder = encoder.copy()  # what Ray shares is read-only memory
        cpu = os.environ.get("VLLTR_DEVICE") == "cpu" or not torch.cuda.is_available()
        self._encoder.to("cpu" if cpu else "cuda").eval()
        found = (self._encoder.text_fp, self._encoder.image_fp)
        if found != names:
            raise VlltrError(f"an actor's encoder is {found}, expected {names}")

    def texts(self, batch: list[str]) -> tuple[Tensor, int]:
        return text_vectors_of_batch(self._encoder, batch)

    def images(self, batch: list[ImageSource], views: Sequence[int]) -> ImageVectors:
        return image_vectors_of_batch(self._encoder, batch, views, self._augment)


def _import_ray() -> tuple[Any, Any]:
    """ray, and its pool of actors.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise ConfigError(
            "--engine ray needs the package ray, which is not installed",
            'Install it: pip install "vlltr-index[ray]", or run it with --engine local',
        ) from None
    return ray, ActorPool
