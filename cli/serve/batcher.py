"""Answer the pictures of many requests together: each is read by itself, those asked for alike go through the model at
once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING

from fastapi import HTTPException
from PIL import Image

from vlltr_index.anchors.retrieval import possible_retrieval
from vlltr_index.data.capture import FORMATS
from vlltr_index.data.decoding import cores
from vlltr_index.embedding.pixels import IMAGE_BATCH, Reader
from vlltr_index.recognition.answering import answer_read
from vlltr_index.schemas.options import PredictOptions

if TYPE_CHECKING:
    from vlltr_index.cli.serve.follower import Follower
    from vlltr_index.embedding.pixels import ReadImage
    from vlltr_index.recognition.model import Model
    from vlltr_index.schemas.records import Prediction

MOST_WAITING = 256
"""Most crops of pictures that wait for their answer."""
DEADLINE = 30.0
"""Seconds from a request's last byte to its answer."""
_PAUSE = 0.002  # seconds without another request after which a batch is begun
_WINDOW = 0.02  # seconds that a request waits for others at most
_LARGE = 8_000_000  # pixels of a picture that is read only when no other such one is
_TOGETHER = 2  # pictures of one request that are read at a time
_THREADS = 8

Picture = tuple[str, bytes]
"""Its name in the answer, and the bytes of its file."""


@dataclass(eq=False)
class _Job:
    """A request: its pictures, what was read of them, and its answer."""

    model: Model
    options: PredictOptions
    reader: Reader
    pictures: Sequence[Picture]
    answer: asyncio.Future[list[Prediction]]
    read: dict[int, ReadImage] = field(default_factory=dict)  # by place
    begun: int = 0  # pictures that are being read, or were
    since: float = 0.0  # when all were read

    def is_like(self, other: _Job) -> bool:
        """Say whether both can be answered in one call."""
        return self.model is other.model and self.options == other.options


_Result = list["Prediction"] | Exception


class Batcher:
    """Answers requests with the newest model; its coroutines run in one event loop.

    A batch has at most 64 pictures; it is begun when it is full, when no request has come for some milliseconds, or
    when its first one has waited for some more. If it fails, its requests are answered one by one, so that none is
    refused for another's error.

    Args:
        follower: Has the model.
    """

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._waiting = 0
        self._reading = ThreadPoolExecutor(min(_THREADS, len(cores())), "read")
        self._reading_large = ThreadPoolExecutor(1, "read-large")
        self._jobs = deque[_Job]()
        self._ready = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="answer", daemon=True)
        self._thread.start()

    async def predict(self, pictures: Sequence[Picture], options: PredictOptions) -> list[Prediction]:
        """Answer the pictures of a request, all from one commit; those that cannot be read have a `problem`.

        Raises:
            HTTPException: 413 for more crops than may wait, 429 where too many pictures wait, 503 where the answer
                takes too long.
            VlltrError: As for `Recognizer.predict`.
        """
        model = self._follower.model
        reader = Reader(model.encoder, options.crops)
        crops = len(pictures) * options.crops
        if crops > MOST_WAITING:
            raise HTTPException(413, f"{crops} crops of pictures; {MOST_WAITING} are allowed in one request.")
        if self._waiting + crops > MOST_WAITING:
            raise HTTPException(429, "Too many pictures wait for an answer.", {"Retry-After": "1"})
        self._waiting += crops
        try:
            async with asyncio.timeout(DEADLINE):
                options = await self._settled(model, options, len(pictures))
                answer: asyncio.Future[list[Prediction]] = asyncio.get_running_loop().create_future()
                job = _Job(model, options, reader, pictures, answer)
                for _ in range(_TOGETHER):
                    self._read_next(job)
                return await answer
        except TimeoutError:
            raise HTTPException(503, "The answer took too long.", {"Retry-After": "5"}) from None
        finally:
            self._waiting -= crops

    async def _settled(self, model: Model, options: PredictOptions, pictures: int) -> PredictOptions:
        """Say how a request is scored, which must not depend on those that it is answered with; and check its names.

        Names are looked up beside the model's thread, since those that are unknown are compared with all others.
        """
        if options.some:
            await asyncio.to_thread(model.columns_among, options.only, options.parent)
        wanted = possible_retrieval(options.retrieval, options.prior, options.some)
        return replace(options, retrieval=model.used(wanted, pictures))

    def _read_next(self, job: _Job) -> None:
        """Let the next picture of a request be read, so that those of others come in between."""
        with self._ready:
            place = job.begun
            job.begun += 1
        if place < len(job.pictures) and not job.answer.cancelled():
            self._reading.submit(self._read, job, place, False)

    def _read(self, job: _Job, place: int, large: bool) -> None:
        """Read a picture in a thread for small or for large ones; after the last one the request can be answered."""
        picture = job.pictures[place]
        try:
            if not large and _is_large(picture[1]):
                self._reading_large.submit(self._read, job, place, True)
                return
            read = job.reader[picture]
        except Exception as error:
            job.answer.get_loop().call_soon_threadsafe(_deliver, [job], [error])
            return
        self._read_next(job)
        with self._ready:
            job.read[place] = read
            if len(job.read) == len(job.pictures):
                job.since = time.monotonic()
                self._jobs.append(job)
                self._ready.notify()

    def _take(self) -> list[_Job]:
        """Wait for a batch; return none at the end."""
        with self._ready:
            while True:
                while self._jobs and self._jobs[0].answer.cancelled():
                    self._jobs.popleft()
                if self._jobs:
                    batch, full = self._fitting(self._jobs[0])
                    left = min(batch[0].since + _WINDOW, batch[-1].since + _PAUSE) - time.monotonic()
                    if full or left <= 0 or self._ended:
                        for job in batch:
                            self._jobs.remove(job)
                        return batch
                    self._ready.wait(left)
                elif self._ended:
                    return []
                else:
                    self._ready.wait()

    def _fitting(self, first: _Job) -> tuple[list[_Job], bool]:
        """Return the waiting jobs that can be answered with the first one, and whether no other one would fit."""
        batch = list[_Job]()
        pictures = 0
        for job in self._jobs:
            if job.is_like(first) and not job.answer.cancelled():
                pictures += len(job.read)
                if batch and pictures > IMAGE_BATCH:
                    return batch, True
                batch.append(job)
        return batch, pictures >= IMAGE_BATCH

    def _work(self) -> None:
        while batch := self._take():
            results = _answered(batch)
            loop = batch[0].answer.get_loop()
            loop.call_soon_threadsafe(_deliver, batch, results)

    def close(self) -> None:
        """Answer what waits, and end."""
        with self._ready:
            self._ended = True
            self._ready.notify()
        self._thread.join()
        self._reading.shutdown(cancel_futures=True)
        self._reading_large.shutdown(cancel_futures=True)


def _is_large(data: bytes) -> bool:
    """Say whether a picture has many pixels, by its header."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height > _LARGE
    except Exception:  # reading it says what is wrong
        return False


def _answered(batch: Sequence[_Job]) -> list[_Result]:
    """Answer the requests of a batch, each by itself where they cannot be answered together."""
    first = batch[0]
    try:
        read = first.reader.collate([job.read[n] for job in batch for n in range(len(job.read))])
        answers = answer_read(first.model, [read], first.options)
        return [list(islice(answers, len(job.read))) for job in batch]
    except Exception as error:
        if len(batch) == 1:
            return [error]
    return [result for job in batch for result in _answered([job])]


def _deliver(batch: Sequence[_Job], results: Sequence[_Result]) -> None:
    for job, result in zip(batch, results, strict=True):
        if job.answer.done():  # it was not waited for
            continue
        if isinstance(result, Exception):
            job.answer.set_exception(result)
        else:
            job.answer.set_result(result)
