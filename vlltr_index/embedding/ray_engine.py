"""Images and sentences through Ray Data, on this machine or a cluster. The only ray import.

Tasks read and decode, actors hold a model each, and the process that runs the command receives what they made: it alone
writes. Where a machine or an actor is lost, Ray computes again what was under way there; where that stands still, since
the machines that are left have no place for the actor, the rest begins anew on these.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vlltr_index.embedding.vectors import (
    Augment,
    ImageSource,
    ImageVectors,
    Reader,
    StoredImages,
    image_features,
    text_vectors,
)
from vlltr_index.errors import ConfigError, UsageError, VlltrError

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder


_BATCH = 64  # images that are decoded, and go through a model, at once
_PART = 4  # batches at most that are read by one task
_READERS = 2  # tasks that read, on the machine of the command: it has the tables
_ACTOR_CPUS = 0.1  # an actor's share: decoding gets the rest
_STALLED = (
    600.0  # seconds without any progress: an actor waits in vain for a place on the machines that are left
)
_TRIES = 2  # without a single image done in between
_PLACE = pa.field("place", pa.int64())
_ID = pa.field("id", pa.string())
_PROBLEM = pa.field("problem", pa.string())
_PIXELS = pa.schema([_PLACE, _ID, pa.field("pixels", pa.large_binary()), _PROBLEM])
_VECTORS = pa.schema([_PLACE, _ID, pa.field("vector", pa.large_binary()), _PROBLEM])


class Sources(Protocol):
    """Images by number, of which bytes are read when they are loaded, in whatever process: it can be pickled."""

    def __len__(self) -> int: ...

    def take(self, places: Sequence[int]) -> Sources:
        """Those at some places."""
        ...

    def load(self) -> Iterable[ImageSource]:
        """All of them, in their order."""
        ...


class RayData:
    """Ray Data, where Ray runs already or RAY_ADDRESS names a cluster; else it is started here for the block.

    Args:
        actors: How many models; default: one a GPU, or where there is none one a CPU. Several share a GPU where there
            are fewer GPUs.

    Raises:
        ConfigError: If ray is not installed.
        UsageError: If there is to be no actor.
    """

    def __init__(self, actors: int | None = None) -> None:
        if actors is not None and actors < 1:
            raise UsageError(f"the ray engine needs one actor at least, got {actors}")
        try:
            import ray
            import ray.data.exceptions
        except ImportError:
            raise ConfigError(
                "--engine ray needs the package ray, which is not installed",
                'Install it: pip install "vlltr-index[ray]", or run it with --engine local',
            ) from None
        self.ray: Any = ray
        self._actors = actors
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if not self.ray.is_initialized():
            self._start()
        logger = logging.getLogger("ray.data")
        self._stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)  # errors come out as ours
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        """Join the cluster that RAY_ADDRESS names, or start Ray on this machine.

        Raises:
            VlltrError: If it does not come up.
        """
        if os.environ.pop("VLLTR_FREE_CORES", None):
            os.environ.pop("OMP_NUM_THREADS", None)  # Ray gives each actor its share
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS")
        options = {} if address else {"include_dashboard": False}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # lancedb's, about processes that are started
                self.ray.init(log_to_driver=False, logging_level="error", **options)
        except Exception as error:  # a bare one where the machine is too busy, other kinds for addresses
            what = "ray cannot be started on this machine"
            mend = "Run"
            if address:
                what = f"ray at RAY_ADDRESS={address} cannot be reached"
                mend = "Mend or unset RAY_ADDRESS, or run"
            raise VlltrError(f"{what}: {_first_line(error)}", f"{mend} it with --engine local.") from None
        self._stack.callback(self.ray.shutdown)

    def run(
        self,
        sources: Sources,
        reader: Reader | None,
        model: type,
        arguments: Sequence[Any],
    ) -> Iterator[pa.Table]:
        """What a model makes of sources, in tables of any number of rows, each source once, in their order.

        Args:
            sources: They are loaded on this machine.
            reader: Decodes them in tasks, to pixels; None: the model gets them as they were loaded.
            model: Made once an actor. Called with a table that has `place`, `id` and `pixels` (bytes of float32) or
                `problem`, without a reader `source` (bytes); gives a table with the same `place`.
            arguments: Of the model; what is large by `ray.put`.

        Raises:
            VlltrError: What a task or an actor raised; or if machines or actors are lost again and again.
        """
        left = list(range(len(sources)))
        tries = _TRIES
        while left:
            done = set[int]()
            try:
                for table in self._once(sources, left, reader, model, arguments):
                    done.update(table["place"].to_pylist())
                    yield table
            except (self.ray.exceptions.RayError, self.ray.data.exceptions.ExecutionTimeoutError) as error:
                if isinstance(error, self.ray.exceptions.RayTaskError):
                    raise error.cause if isinstance(error.cause, VlltrError) else error from None
                tries = _TRIES if done else tries - 1
                if not tries:
                    raise VlltrError(
                        f"the ray engine stood still or lost a machine {_TRIES} times without a result in between: "
                        f"{_first_line(error)}",
                        "What was done is kept. Run it again, with fewer --actors if memory ran out, or with "
                        "--engine local.",
                    ) from None
            left = [place for place in left if place not in done]

    def _once(
        self,
        sources: Sources,
        places: list[int],
        reader: Reader | None,
        model: type,
        arguments: Sequence[Any],
    ) -> Iterator[pa.Table]:
        """`run` of some of the sources, until something is lost."""
        from ray.data import ActorPoolStrategy, read_datasource

        there = self.ray.cluster_resources()
        cpus = int(there.get("CPU", 1))
        gpus = int(there.get("GPU", 0))
        most = max(node["Resources"].get("CPU", 0) for node in self.ray.nodes() if node["Alive"])
        batches = min(_PART, -(-len(places) // (4 * max(1, cpus) * _BATCH)))
        parts = [places[at : at + batches * _BATCH] for at in range(0, len(places), batches * _BATCH)]
        size = min(self._actors or gpus or max(1, cpus), len(parts))
        here = {"ray.io/node-id": self.ray.get_runtime_context().get_node_id()}
        data = read_datasource(
            _datasource(sources, parts),
            override_num_blocks=len(parts),
            concurrency=min(_READERS, len(parts)),
            num_cpus=0,
            label_selector=here,
        )
        if reader is not None:
            data = data.map_batches(
                partial(_decode, reader),
                batch_size=_BATCH,
                batch_format="pyarrow",
                num_cpus=min(1.0, most / 2),
            )
        data = data.map_batches(
            model,
            fn_constructor_args=arguments,
            batch_size=_BATCH,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=size),
            num_cpus=min(_ACTOR_CPUS, cpus / (2 * size)),
            num_gpus=1 / -(-size // gpus) if gpus else 0,
        )
        context = data.context
        context.raise_original_map_exception = True
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = _STALLED
        context.execution_options.preserve_order = True
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _datasource(sources: Sources, parts: Sequence[Sequence[int]]) -> Any:
    """The sources as Ray Data reads them, a task for each part."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class OfSources(Datasource):  # type: ignore[misc]  # ray has no types here
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            return [
                ReadTask(
                    partial(_load, sources.take(part), list(part)), BlockMetadata(len(part), None, None, None)
                )
                for part in parts
            ]

    return OfSources()


def _load(sources: Sources, places: Sequence[int]) -> Iterator[pa.Table]:
    """Tables of `place`, `id`, `source` (bytes, or a path or text as such) and `is_text`, a batch each."""
    rows = zip(places, sources.load(), strict=True)
    while batch := list(islice(rows, _BATCH)):
        found = [source for _, (_, source) in batch]
        data = [source if isinstance(source, bytes) else os.fsencode(source) for source in found]
        columns = {"place": [place for place, _ in batch], "id": [i for _, (i, _) in batch]}
        columns["is_text"] = [not isinstance(source, bytes) for source in found]
        yield pa.table({**columns, "source": pa.array(data, pa.large_binary())})


def _sources(table: pa.Table) -> list[ImageSource]:
    columns = (table[name].to_pylist() for name in ("id", "source", "is_text"))
    return [(i, os.fsdecode(data) if is_text else data) for i, data, is_text in zip(*columns, strict=True)]


def _decode(reader: Reader, table: pa.Table) -> pa.Table:
    """A table of `_PIXELS`: all views of an image one after the other."""
    ids, pixels, problems = reader.__getitems__(_sources(table))
    of = dict(zip(ids, (image.numpy().tobytes() for image in pixels.transpose(0, 1)), strict=True))
    names = table["id"].to_pylist()
    columns = [table["place"], names, [of.get(i) for i in names], [problems.get(i) for i in names]]
    return pa.table(columns, schema=_PIXELS)


class RayEngine(RayData):
    """An `Engine` whose actors each hold a copy of the encoder.

    Images given by path must be there under the same path on all machines.

    Args:
        encoder: What the actors compute with.
        augment: Of the views after the plain one.
        actors: As for `RayData`; and so are the errors.
    """

    def __init__(self, encoder: Encoder, augment: Augment | None = None, actors: int | None = None) -> None:
        super().__init__(actors)
        self._encoder = encoder
        self._augment = augment

    def __enter__(self) -> Self:
        super().__enter__()
        device = self._encoder.device
        encoder = self._encoder.to("cpu")
        names = encoder.text_fp, encoder.image_fp
        self._arguments = self.ray.put(encoder), names, on_cpu()
        encoder.to(device)
        return self

    def texts(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[list[str], Tensor, int]]:
        """See `Engine`."""
        for table in self.run(_Texts(texts), None, _TextTower, self._arguments):
            yield table["id"].to_pylist(), _tensor(table["vector"].to_pylist()), pc.sum(table["cut"]).as_py()

    def images(self, batches: StoredImages, views: Sequence[int]) -> Iterator[ImageVectors]:
        """See `Engine`."""
        reader = Reader(self._encoder.transform, self._augment, views)
        for table in self.run(batches, reader, _ImageTower, self._arguments):
            rows = list(zip(*(table[name].to_pylist() for name in ("id", "vector", "problem")), strict=True))
            ids = [i for i, vector, _ in rows if vector is not None]
            flat = _tensor([vector for _, vector, _ in rows if vector is not None])
            vectors = flat.view(len(ids), len(views), self._encoder.dim).transpose(0, 1)
            yield ImageVectors(ids, vectors, {i: problem for i, _, problem in rows if problem is not None})


def _tensor(rows: Sequence[bytes]) -> Tensor:
    """float32 [N, ...]."""
    if not rows:
        return torch.empty(0)
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.float32).view(len(rows), -1)


class _Texts(list[tuple[str, str]]):
    """Sentences as sources."""

    def take(self, places: Sequence[int]) -> _Texts:
        return _Texts(self[place] for place in places)

    def load(self) -> _Texts:
        return self


class _Tower:
    """What an actor holds: the encoder on the actor's device, had at the first call, whose errors are told."""

    def __init__(self, shared: Any, names: tuple[str, str], on_cpu: bool) -> None:
        self._shared = shared
        self._names = names
        self._on_cpu = on_cpu

    @cached_property
    def _encoder(self) -> Encoder:
        import ray

        encoder: Encoder = ray.get(self._shared).copy()  # what Ray shares is read-only memory
        encoder.to("cpu" if self._on_cpu or not torch.cuda.is_available() else "cuda").eval()
        if (found := (encoder.text_fp, encoder.image_fp)) != self._names:
            raise VlltrError(
                f"an actor's encoder is {found}, expected {self._names}",
                "Install the same versions of vlltr-index and torch on all machines.",
            )
        return encoder


class _TextTower(_Tower):
    def __call__(self, table: pa.Table) -> pa.Table:
        vectors, cut = text_vectors(self._encoder, [str(text) for _, text in _sources(table)])
        rows = pa.array([row.numpy().tobytes() for row in vectors], pa.large_binary())
        cuts = [cut, *[0] * (len(rows) - 1)]
        return pa.table({"place": table["place"], "id": table["id"], "vector": rows, "cut": cuts})


class _ImageTower(_Tower):
    def __call__(self, table: pa.Table) -> pa.Table:
        pixels = [image for image in decoded(table, self._encoder.image_size) if image is not None]
        found = image_features(self._encoder, torch.cat(pixels)) if pixels else torch.empty(0)
        vectors = iter(found.view(len(pixels), -1))
        problems = table["problem"].to_pylist()
        made = [next(vectors).numpy().tobytes() if problem is None else None for problem in problems]
        return pa.table([table["place"], table["id"], made, table["problem"]], schema=_VECTORS)


def decoded(table: pa.Table, size: tuple[int, int]) -> list[Tensor | None]:
    """Pixels float32 [views, 3, H, W] of each row that a model is called with; None where there are none.

    Args:
        table: See `RayData.run`.
        size: (H, W) of the encoder.
    """
    return [
        None
        if pixels is None
        else torch.frombuffer(bytearray(pixels), dtype=torch.float32).view(-1, 3, *size)
        for pixels in table["pixels"].to_pylist()
    ]


def on_cpu() -> bool:
    """Whether actors are to leave GPUs alone, as this process was told to."""
    return os.environ.get("VLLTR_DEVICE") == "cpu"
