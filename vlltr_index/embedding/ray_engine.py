"""Embedding of images and sentences by Ray Data, on this machine or a cluster. Only this module imports ray.

Tasks read and decode, each actor holds a model, and the process that runs the command receives and writes the results.
If a machine or an actor is lost, Ray repeats its unfinished work. If that makes no progress, since the remaining
machines have no room for the actor, the rest of the work is started again on these machines.
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

from vlltr_index.embedding.pixels import Augment, PixelBatch, Reader, StoredReader, image_features
from vlltr_index.embedding.vectors import ImageVectors, StoredImage, StoredImages, text_vectors
from vlltr_index.errors import ConfigError, UsageError, VlltrError

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder


_BATCH = 64  # images that are decoded, and go through a model, at once
_PART = 4  # most batches that one task reads
_READERS = 2  # tasks that read, on the machine of the command, which has the tables
_ACTOR_CPUS = 0.1  # CPUs reserved for an actor; the rest is for decoding
_STALLED = 600.0  # seconds without progress after which no machine is taken to have room for an actor
_TRIES = 2  # failures in a row, without any image done in between
_PLACE = pa.field("place", pa.int64())
_ID = pa.field("id", pa.string())
_PROBLEM = pa.field("problem", pa.string())
_PIXELS = pa.schema([_PLACE, _ID, pa.field("pixels", pa.large_binary()), _PROBLEM])
_VECTORS = pa.schema([_PLACE, _ID, pa.field("vector", pa.large_binary()), _PROBLEM])


class Sources(Protocol):
    """Sources by position, whose bytes are read only by `load`, in any process: it can be pickled."""

    def __len__(self) -> int: ...

    def take(self, places: Sequence[int]) -> Sources:
        """Return the sources at some positions."""
        ...

    def load(self) -> Iterable[StoredImage]:
        """Read all sources, in their order."""
        ...


class RayData:
    """Context manager around Ray Data: it uses a running Ray, or the cluster of RAY_ADDRESS, or starts Ray here.

    Args:
        actors: Number of models. None: one per GPU, or one per CPU where there is no GPU. With fewer GPUs than actors
            several share a GPU.

    Raises:
        ConfigError: Ray is not installed.
        UsageError: The number of actors is below 1.
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
        """Start or join Ray, unless it runs already."""
        if not self.ray.is_initialized():
            self._start()
        logger = logging.getLogger("ray.data")
        self._stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)  # errors are raised as errors of this package
        return self

    def __exit__(self, *_: object) -> None:
        """Stop Ray if it was started here."""
        self._stack.close()

    def _start(self) -> None:
        """Join the cluster that RAY_ADDRESS names, or start Ray on this machine.

        Raises:
            VlltrError: Ray does not start, or the cluster cannot be reached.
        """
        if os.environ.pop("VLLTR_FREE_CORES", None):
            os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it for each actor
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS")
        options = {} if address else {"include_dashboard": False}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # lancedb warns about forked processes
                self.ray.init(log_to_driver=False, logging_level="error", **options)
        except (
            Exception
        ) as error:  # Ray raises bare Exception if the machine is too busy, others for addresses
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
        """Apply a model to sources; yield tables of any number of rows, each source once, in their order.

        Args:
            sources: The sources, which are loaded on this machine.
            reader: Decodes them to pixels, in tasks; None: the model gets them as they were loaded.
            model: Class that each actor makes an instance of. It is called with a table that has `place`, `id` and
                `pixels` (bytes of float32) or `problem`, without a reader `source` (bytes), and gives a table with the
                same `place`.
            arguments: Arguments of the class; large ones by `ray.put`.

        Raises:
            VlltrError: A task or an actor raised it, or machines or actors are lost repeatedly.
        """
        left = list(range(len(sources)))
        tries = _TRIES
        while left:
            done = set[int]()
            try:
                for table in self._once(sources, left, reader, model=model, arguments=arguments):
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
        """Apply the model to the sources at `places`, until a machine or an actor is lost."""
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
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = _STALLED
        context.execution_options.preserve_order = True
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def _datasource(sources: Sources, parts: Sequence[Sequence[int]]) -> Any:
    """Make a data source of Ray Data with one read task for each part of the sources."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class OfSources(Datasource):  # type: ignore[misc]  # ray has no types here
        """Data source of the parts."""

        def estimate_inmemory_data_size(self) -> None:
            """Give no estimate."""
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            """Make one task for each part."""
            tasks = []
            for part in parts:
                load = partial(_load, sources.take(part), list(part))
                tasks.append(ReadTask(load, BlockMetadata(len(part), None, None, None)))
            return tasks

    return OfSources()


def _load(sources: Sources, places: Sequence[int]) -> Iterator[pa.Table]:
    """Load sources; yield a table of `place`, `id`, `source` (bytes, path or text) and `is_text` for each batch."""
    rows = zip(places, sources.load(), strict=True)
    while True:
        batch = list(islice(rows, _BATCH))
        if not batch:
            return
        found = [source for _, (_, source) in batch]
        data = [source if isinstance(source, bytes) else os.fsencode(source) for source in found]
        columns = {"place": [place for place, _ in batch], "id": [i for _, (i, _) in batch]}
        columns["is_text"] = [not isinstance(source, bytes) for source in found]
        yield pa.table({**columns, "source": pa.array(data, pa.large_binary())})


def _sources(table: pa.Table) -> list[StoredImage]:
    """Convert a table of `_load` to ids with bytes, path or text."""
    columns = (table[name].to_pylist() for name in ("id", "source", "is_text"))
    return [(i, os.fsdecode(data) if is_text else data) for i, data, is_text in zip(*columns, strict=True)]


def _decode(reader: Reader, table: pa.Table) -> pa.Table:
    """Decode the images of a table to a table of `_PIXELS`, with all views of an image in one value."""
    batch = reader.collate([reader[image] for image in _sources(table)])
    read = iter(batch.pixels)
    pixels = [next(read).numpy().tobytes() if problem is None else None for problem in batch.problems]
    return pa.table([table["place"], batch.names, pixels, batch.problems], schema=_PIXELS)


class RayEngine(RayData):
    """`Engine` whose actors each hold a copy of the encoder.

    Images given by path must have the same path on all machines.

    Args:
        encoder: The encoder that the actors use.
        augment: Augmentation of the views after the plain one.
        actors: As for `RayData`, which raises the same errors.
    """

    def __init__(self, encoder: Encoder, augment: Augment | None = None, actors: int | None = None) -> None:
        super().__init__(actors)
        self._encoder = encoder
        self._augment = augment

    def __enter__(self) -> Self:
        """Start or join Ray, and share the encoder with the actors."""
        super().__enter__()
        device = self._encoder.device
        encoder = self._encoder.to("cpu")
        names = (encoder.text_fp, encoder.image_fp)
        self._arguments = (self.ray.put(encoder), names, on_cpu())
        encoder.to(device)
        return self

    def texts(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[list[str], Tensor, int]]:
        """Yield the vectors of texts, as `Engine` says."""
        for table in self.run(_Texts(texts), None, _TextTower, self._arguments):
            yield table["id"].to_pylist(), _tensor(table["vector"].to_pylist()), pc.sum(table["cut"]).as_py()

    def images(self, batches: StoredImages, views: Sequence[int]) -> Iterator[ImageVectors]:
        """Yield the vectors of images, as `Engine` says."""
        reader = StoredReader(self._encoder, augment=self._augment, views=views)
        for table in self.run(batches, reader, _ImageTower, self._arguments):
            columns = [table[name].to_pylist() for name in ("id", "vector", "problem")]
            rows = list(zip(*columns, strict=True))
            ids = [i for i, vector, _ in rows if vector is not None]
            flat = _tensor([vector for _, vector, _ in rows if vector is not None])
            vectors = flat.view(len(ids), len(views), self._encoder.dim).transpose(0, 1)
            yield ImageVectors(ids, vectors, {i: problem for i, _, problem in rows if problem is not None})


def _tensor(rows: Sequence[bytes]) -> Tensor:
    """Convert N rows of bytes to float32 [N, K]."""
    if not rows:
        return torch.empty(0)
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.float32).view(len(rows), -1)


class _Texts(list[tuple[str, str]]):
    """Sentences as sources."""

    def take(self, places: Sequence[int]) -> _Texts:
        """Return the sentences at some positions."""
        return _Texts(self[place] for place in places)

    def load(self) -> _Texts:
        """Return the sentences, which are in memory already."""
        return self


class _Tower:
    """Base of the actors' models: it gets the encoder at the first call, whose errors Ray reports to the caller."""

    def __init__(self, shared: Any, names: tuple[str, str], on_cpu: bool) -> None:
        self._shared = shared
        self._names = names
        self._on_cpu = on_cpu

    @cached_property
    def _encoder(self) -> Encoder:
        """The encoder, on the actor's device."""
        import ray

        encoder: Encoder = ray.get(self._shared).copy()  # Ray's shared memory is read-only
        encoder.to("cpu" if self._on_cpu or not torch.cuda.is_available() else "cuda").eval()
        found = (encoder.text_fp, encoder.image_fp)
        if found != self._names:
            raise VlltrError(
                f"an actor's encoder is {found}, expected {self._names}",
                "Install the same versions of vlltr-index and torch on all machines.",
            )
        return encoder


class _TextTower(_Tower):
    """Model of an actor that encodes sentences."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Encode a table's sentences; `cut` counts those that were cut, in the first row for all."""
        vectors, cut = text_vectors(self._encoder, [str(text) for _, text in _sources(table)])
        rows = pa.array([row.numpy().tobytes() for row in vectors], pa.large_binary())
        cuts = [0] * len(rows)
        cuts[0] = cut
        return pa.table({"place": table["place"], "id": table["id"], "vector": rows, "cut": cuts})


class _ImageTower(_Tower):
    """Model of an actor that encodes images."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Encode a table's images, to a table of `_VECTORS`."""
        batch = decoded(table, self._encoder.image_size)
        vectors = iter(image_features(self._encoder, batch.pixels).cpu())
        made = [next(vectors).numpy().tobytes() if problem is None else None for problem in batch.problems]
        return pa.table([table["place"], batch.names, made, batch.problems], schema=_VECTORS)


def decoded(table: pa.Table, size: tuple[int, int]) -> PixelBatch:
    """Convert a table of `_PIXELS` to the images that were read.

    Args:
        table: The table that a model is called with, see `RayData.run`.
        size: (H, W) of the encoder.
    """
    names, data, problems = (table[name].to_pylist() for name in ("id", "pixels", "problem"))
    read = [torch.frombuffer(bytearray(one), dtype=torch.float32) for one in data if one is not None]
    pixels = torch.stack(read).view(len(read), -1, 3, *size) if read else torch.empty(0, 1, 3, *size)
    return PixelBatch(names, problems, pixels)


def on_cpu() -> bool:
    """Say whether this process, and so its actors, must not use GPUs."""
    return os.environ.get("VLLTR_DEVICE") == "cpu"
