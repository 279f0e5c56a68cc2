"""Read forms (multipart/form-data) of clients: into memory alone, of bounded size, number and time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import HTTPException, Request
from starlette.formparsers import MultiPartException, MultiPartParser

if TYPE_CHECKING:
    from starlette.datastructures import FormData, Headers

MOST_BYTES = 64 * 2**20
"""Most bytes of a form."""
MOST_TOGETHER = 512 * 2**20
"""Most bytes of all forms that are being read or wait for their answer."""
MOST_PICTURES = 64
"""Most pictures of a form."""
MOST_TEXT = 200_000
"""Most characters of the sentences of a form; a field may have as many, of four bytes each."""
READING = 30.0
"""Seconds that a form may take to arrive."""
_MOST_PARTS = 1000


@dataclass
class Form:
    """What a form holds: texts, and files with their names as the client gives them, by field."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    files: list[tuple[str, bytes]] = field(default_factory=list)

    def one(self, name: str) -> str | None:
        """Return the text of a field, None if it is not there.

        Raises:
            HTTPException: 422 if it is there twice.
        """
        given = self.texts.get(name, [])
        if len(given) > 1:
            raise HTTPException(422, f"The field {name!r} is given {len(given)} times.")
        return given[0] if given else None


class _Parser(MultiPartParser):
    """Starlette's parser, that writes nothing to the disk and stops at too many parts."""

    spool_max_size = sys.maxsize

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], most: int) -> None:
        super().__init__(headers, stream, max_files=most, max_fields=most, max_part_size=4 * MOST_TEXT)
        self._left = most
        self.ended = False

    def on_part_begin(self) -> None:
        """Count the parts."""
        self._left -= 1
        if self._left < 0:
            raise HTTPException(413, f"More than {self.max_files} parts in one form.")
        super().on_part_begin()

    def on_part_end(self) -> None:
        """Refuse a text that is not UTF-8, which starlette would take for Latin-1."""
        part = self._current_part
        if part.file is None:
            try:
                part.data.decode()
            except UnicodeDecodeError:
                raise HTTPException(422, f"The field {part.field_name[:100]!r} is not UTF-8.") from None
        super().on_part_end()

    def on_end(self) -> None:
        """Note that the form is whole."""
        self.ended = True


class Forms:
    """Reads the forms of all clients; its coroutines run in one event loop."""

    def __init__(self) -> None:
        self._held = 0

    @asynccontextmanager
    async def read(
        self, request: Request, texts: Collection[str], files: str | None = None
    ) -> AsyncIterator[Form]:
        """Read a form, whose bytes count until the block ends.

        Args:
            request: Has the form.
            texts: Names of the fields with text.
            files: Name of the field with files; default: there is none.

        Raises:
            HTTPException: 415 if it is no form, 400 if it is damaged, 413 if something is too large or too many, 422 if
                it has another field or a text that is not UTF-8, 408 if it does not arrive in time, 503 if all forms
                together are too large.
        """
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise HTTPException(415, "Send a form: multipart/form-data.")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > MOST_BYTES:  # what is longer than it says is no HTTP
            raise HTTPException(413, f"More than {MOST_BYTES >> 20} MiB in one request.")
        size = 0

        async def pieces() -> AsyncGenerator[bytes, None]:
            nonlocal size
            async for chunk in request.stream():
                size += len(chunk)
                self._held += len(chunk)
                if self._held > MOST_TOGETHER:
                    raise HTTPException(503, "Too much is being sent at once.", {"Retry-After": "5"})
                yield chunk
            if not parser.ended:
                raise MultiPartException("its end is missing")

        parser = _Parser(request.headers, pieces(), _MOST_PARTS)
        try:
            async with asyncio.timeout(READING):
                parts = await parser.parse()
        except MultiPartException as error:
            raise HTTPException(400, f"This form cannot be read: {error.message}") from None
        except TimeoutError:
            raise HTTPException(408, "The request did not arrive in time.", {"Connection": "close"}) from None
        else:
            yield await _form(parts, texts, files)
        finally:
            self._held -= size


async def _form(parts: FormData, texts: Collection[str], files: str | None) -> Form:
    """Sort the parts of a form; errors as for `Forms.read`."""
    form = Form()
    try:
        for name, value in parts.multi_items():
            if isinstance(value, str) and name in texts:
                form.texts.setdefault(name, []).append(value)
            elif not isinstance(value, str) and name == files:
                form.files.append((value.filename or "", await value.read()))
            else:
                known = ", ".join([*([f"{files} (files)"] if files else []), *texts])
                raise HTTPException(
                    422, f"There is no field {name[:100]!r} of this kind here. There are: {known}"
                )
    finally:
        await parts.close()
    if len(form.files) > MOST_PICTURES:
        raise HTTPException(413, f"{len(form.files)} pictures; {MOST_PICTURES} are allowed in one request.")
    return form
