"""The routes of `vlltr serve`, and their description for OpenAPI."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_json, to_jsonable_python
from starlette.requests import ClientDisconnect

from vlltr_index.classes import NewClass, add_classes, add_sentences, remove_classes, remove_sentences
from vlltr_index.cli.serve.forms import MOST_TEXT, Form
from vlltr_index.cli.serve.writer import Changed
from vlltr_index.data.files import no_twins
from vlltr_index.errors import (
    InputError,
    MissingFileError,
    MissingStepError,
    UnknownClassError,
    UsageError,
    VlltrError,
)
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.schemas.records import ClassScore, Prediction
from vlltr_index.version import VERSION

if TYPE_CHECKING:
    from vlltr_index.cli.serve.batcher import Batcher
    from vlltr_index.cli.serve.follower import Follower
    from vlltr_index.cli.serve.forms import Forms
    from vlltr_index.cli.serve.writer import Writer
    from vlltr_index.recognition.model import Model

_log = logging.getLogger(__name__)
T = TypeVar("T")
# In the query: clients shorten a path with `..` before they send it.
_Name = Annotated[str, Query(description="The class.")]

_MOST_SAID = 20_000  # classes, sentences and neighbours in all answers of a request
_ASKED_FOR: tuple[type[VlltrError], ...] = (UsageError, InputError, UnknownClassError, MissingStepError)
"""Errors of what a client asked for; others may tell of this machine, and are logged."""


class _Options(PredictOptions):
    """The options as a client gives them; others are refused."""

    __pydantic_config__ = ConfigDict(extra="forbid")


_OPTIONS = TypeAdapter(_Options)


@dataclass(frozen=True)
class Listed:
    """A class that can be the answer, as `GET /classes` lists it."""

    class_id: int
    name: str
    aliases: tuple[str, ...]
    parent: str | None = None


@dataclass(frozen=True)
class ClassList:
    """All classes that can be the answer, by the commit that answers now."""

    commit: int
    classes: tuple[Listed, ...]


@dataclass(frozen=True)
class Health:
    """Whether requests are answered, and by which commit; after a rollback, the one whose state was restored."""

    status: str
    commit: int


@dataclass(frozen=True)
class Problem:
    """Why a request was refused, and what mends it."""

    detail: str
    hint: str | None = None


_BODY = "multipart/form-data"
_PICTURES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_PICTURE_HELP = "JPEG, PNG, WebP, BMP, GIF or TIFF files; the field may be there several times."


def _form_of(properties: dict[str, Any], required: list[str], example: dict[str, Any]) -> dict[str, Any]:
    """Describe a form for OpenAPI."""
    schema = {"type": "object", "properties": properties, "required": required}
    content = {_BODY: {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def _texts(about: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, "description": about}


_PREDICT_FORM = _form_of(
    {
        "images": {**_PICTURES, "description": _PICTURE_HELP},
        "options": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": _OPTIONS.json_schema(),
            "description": "`PredictOptions` as JSON; what is left out has its default.",
        },
    },
    ["images"],
    {"images": ["(a file)"], "options": '{"top": 3, "explain": 2, "only": ["kestrel", "merlin", "hobby"]}'},
)
_CLASS_FORM = _form_of(
    {
        "name": {"type": "string"},
        "sentences": _texts("Sentences about it; the field may be there several times."),
        "aliases": _texts("Other names; the field may be there several times."),
        "images": {**_PICTURES, "description": _PICTURE_HELP},
    },
    ["name"],
    {"name": "okapi", "sentences": ["Its legs are striped like a zebra's."], "aliases": ["forest giraffe"]},
)
_SENTENCES_FORM = _form_of(
    {"name": {"type": "string"}, "sentences": _texts("The field may be there several times.")},
    ["name", "sentences"],
    {"name": "okapi", "sentences": ["Its legs are striped like a zebra's."]},
)
_PREDICTION = Prediction(
    "photo.jpg",
    (ClassScore(7, "kestrel", 0.91, 2.1, 0.3, 0.31, unit="log-odds"),),
    residual=0.0,
    retrieval="exhaustive",
    commit=12,
)
_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The token is missing or wrong."},
    413: {"model": Problem, "description": "Too large, or too many."},
    422: {"model": Problem, "description": "Something asked for is not possible."},
    429: {"model": Problem, "description": "Too many requests wait; try again after `Retry-After` seconds."},
    503: {
        "model": Problem,
        "description": "It took too long, or is busy; try again after `Retry-After` seconds.",
    },
}


class QueryRoutes:
    """What clients may ask.

    Args:
        follower: Has the model.
        batcher: Answers by it.
        forms: Reads what is sent.
    """

    def __init__(self, follower: Follower, batcher: Batcher, forms: Forms) -> None:
        self._follower = follower
        self._batcher = batcher
        self._forms = forms
        self._list: tuple[Model, bytes] | None = None

    async def root(self) -> dict[str, str]:
        """Name what can be asked."""
        return {"predict": "POST /predict", "classes": "GET /classes", "all": "GET /openapi.json"}

    async def health(self) -> Health:
        """Say that requests are answered; needs no token."""
        return Health("ok", self._follower.model.first_commit)

    async def predict(self, request: Request) -> Response:
        """Recognise pictures: an answer for each, in their order, as by `vlltr predict --json`.

        All are of one commit. A picture that cannot be read has a `problem`; the others are answered.
        """
        async with self._forms.read(request, ("options",), "images") as form:
            if not form.files:
                raise HTTPException(422, "There is no picture: send files in the field 'images'.")
            told = form.one("options")
            options = await asyncio.to_thread(self._options, told, len(form.files))
            answers = await _unless_gone(request, self._batcher.predict(form.files, options))
        return _json(answers)

    def _options(self, told: str | None, pictures: int) -> PredictOptions:
        """Read the options of a request; errors are told to the client."""
        try:
            options = PredictOptions() if told is None else _OPTIONS.validate_json(told)
            json.loads(told or "{}", object_pairs_hook=no_twins)
        except ValidationError as error:
            raise HTTPException(422, _told(error.errors(), "options")) from None
        except ValueError as error:
            raise HTTPException(422, f"options: {error}") from None
        if options.prior == "estimated":
            raise UsageError(
                "the prior 'estimated' needs many pictures at once, and a request has few",
                "Give 'training', or a weight for each class.",
            )
        top = min(options.top, len(self._follower.model.class_ids))
        said = pictures * (top * (1 + options.explain) + options.neighbours)
        if said > _MOST_SAID:
            raise UsageError(
                f"the answers would have up to {said:,} classes and sentences; {_MOST_SAID:,} are allowed",
                "Send fewer pictures, or ask for less: top, explain, neighbours.",
            )
        return options

    async def classes(self) -> Response:
        """List the classes that can be the answer."""
        model = self._follower.model
        if self._list is None or self._list[0] is not model:
            listed = await asyncio.get_running_loop().run_in_executor(None, _listed, model)
            self._list = model, to_json(listed)
        return Response(self._list[1], media_type="application/json")


class ChangeRoutes:
    """What clients with the writing token may change. Each request is one commit, as by the command.

    Args:
        writer: Makes the changes.
        forms: Reads what is sent.
    """

    def __init__(self, writer: Writer, forms: Forms) -> None:
        self._writer = writer
        self._forms = forms

    async def add_class(self, request: Request) -> Response:
        """Add a class by sentences, pictures, or both, as by `vlltr classes add`; it can be recognised at once."""
        from vlltr_index.cli.ui.service import file_name

        async with self._forms.read(request, ("name", "sentences", "aliases"), "images") as form:
            name = _name(form)
            images = tuple((file_name(given), data) for given, data in form.files)
            aliases = tuple(form.texts.get("aliases", ()))
            wanted = NewClass(name, _sentences(form), images=images, aliases=aliases)
            return _json(await self._writer.make(add_classes, [wanted]))

    async def remove_class(self, name: _Name) -> Response:
        """Remove a class with its sentences and images, as by `vlltr classes remove`."""
        return _json(await self._writer.make(remove_classes, [name]))

    async def add_sentences(self, request: Request) -> Response:
        """Give a class more sentences, as by `vlltr sentences add`."""
        async with self._forms.read(request, ("name", "sentences")) as form:
            name = _name(form)
            given = _sentences(form)
            return _json(await self._writer.make(add_sentences, name, given))

    async def remove_sentences(
        self, name: _Name, matching: Annotated[str, Query(description="Those that hold this text.")]
    ) -> Response:
        """Take sentences from a class, as by `vlltr sentences remove --matching`."""
        return _json(await self._writer.make(remove_sentences, name, matching=matching))


def build_app(follower: Follower, batcher: Batcher, forms: Forms, writer: Writer | None = None) -> FastAPI:
    """Make the application; without `writer` nothing can be changed."""
    app = FastAPI(
        title="vlltr",
        version=VERSION,
        description="Recognise pictures, with the sentences behind each answer.",
        dependencies=[
            Depends(HTTPBearer(auto_error=False))
        ],  # for the description; `Guard` looks at the token
        docs_url=None,  # they ask other hosts for scripts
        redoc_url=None,
    )
    queries = QueryRoutes(follower, batcher, forms)
    example = {"content": {"application/json": {"example": [to_jsonable_python(_PREDICTION)]}}}
    app.add_api_route("/", queries.root, include_in_schema=False)
    app.add_api_route("/health", queries.health, response_model=Health)
    app.add_api_route("/classes", queries.classes, responses={200: {"model": ClassList}, 401: _REFUSALS[401]})
    app.add_api_route(
        "/predict",
        queries.predict,
        methods=["POST"],
        responses={200: {"model": list[Prediction], **example}, **_REFUSALS},
        openapi_extra=_PREDICT_FORM,
    )
    if writer is not None:
        changes = ChangeRoutes(writer, forms)
        for method, path, change, form in (
            ("POST", "/classes", changes.add_class, _CLASS_FORM),
            ("DELETE", "/classes", changes.remove_class, None),
            ("POST", "/sentences", changes.add_sentences, _SENTENCES_FORM),
            ("DELETE", "/sentences", changes.remove_sentences, None),
        ):
            told = {200: {"model": Changed}, 404: {"model": Problem}, **_REFUSALS}
            checks = [Depends(_check_query)]
            app.add_api_route(
                path, change, methods=[method], responses=told, openapi_extra=form, dependencies=checks
            )
    app.add_exception_handler(VlltrError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_query)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _fail)
    return app


def _json(record: Any) -> Response:
    return Response(to_json(record), media_type="application/json")


def _check_query(request: Request) -> None:
    """Refuse a query as a form is refused: for a parameter that is unknown, is there twice, or is not UTF-8."""
    try:
        query = request.scope["query_string"].decode("ascii")
        given = Counter(name for name, _ in parse_qsl(query, keep_blank_values=True, errors="strict"))
    except UnicodeDecodeError:
        raise HTTPException(422, "The query is not UTF-8.") from None
    known = {one.name for one in request.scope["route"].dependant.query_params}
    for name, times in given.items():
        if name not in known:
            raise HTTPException(422, f"There is no parameter {name[:100]!r}.")
        if times > 1:
            raise HTTPException(422, f"The parameter {name!r} is given {times} times.")


def _name(form: Form) -> str:
    """Return the class that a form names."""
    name = form.one("name")
    if name is None:
        raise HTTPException(422, "The field 'name' is missing.")
    return name


def _sentences(form: Form) -> tuple[str, ...]:
    """Return the sentences of a form."""
    given = tuple(form.texts.get("sentences", ()))
    size = sum(map(len, given))
    if size > MOST_TEXT:
        raise HTTPException(413, f"{size:,} characters; {MOST_TEXT:,} are allowed in one request.")
    return given


def _listed(model: Model) -> ClassList:
    """List a model's classes."""
    classes = model.classes
    tree = model.taxonomy
    rows = []
    for class_id in model.class_ids.tolist():
        name = classes.names[class_id]
        parent = tree[name].parent if name in tree else None
        rows.append(Listed(class_id, name, classes.aliases.get(class_id, ()), parent))
    return ClassList(model.first_commit, tuple(rows))


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for an answer as long as its client does.

    Raises:
        ClientDisconnect: If the client has gone; the work is cancelled.
    """
    answering = asyncio.ensure_future(work)
    going = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answering, going}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and going.result()["type"] == "http.disconnect":
            raise ClientDisconnect
        return await answering
    finally:
        answering.cancel()
        going.cancel()


def _told(errors: Any, place: str = "") -> str:
    """Say the first of pydantic's errors in a line."""
    where = ".".join(str(part) for part in (place, *errors[0]["loc"]) if part != "")
    return f"{where}: {errors[0]['msg']}"


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer for an error that has a message for people; those that tell of this machine are logged instead."""
    assert isinstance(error, VlltrError)
    if not isinstance(error, _ASKED_FOR) or isinstance(error, MissingFileError):
        return await _fail(request, error)
    # A client has no commands and their options.
    said = re.split(r"(?<=[.?]) ", error.hint or "")
    hint = " ".join(sentence for sentence in said if not re.search("vlltr |--", sentence))
    if isinstance(error, UnknownClassError):
        status = 422 if request.url.path == "/predict" else 404
        return _json_problem(status, error.message, f"{hint} GET /classes lists all.".strip())
    return _json_problem(422, error.message, hint or None)


async def _refuse_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _json_problem(422, _told(error.errors()))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _fail(request: Request, error: Exception) -> Response:
    _log.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
    return _json_problem(500, "The server failed; its log says why.")


def _json_problem(status: int, detail: str, hint: str | None = None) -> Response:
    return JSONResponse({"detail": detail} | ({} if hint is None else {"hint": hint}), status)
