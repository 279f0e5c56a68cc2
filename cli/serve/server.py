"""Command `vlltr serve`: predictions of a workspace or an exported folder over HTTP."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.listening import address_of, bind, check_token, end_by_signals, is_local
from vlltr_index.cli.options import device_option
from vlltr_index.cli.terminal import echo
from vlltr_index.errors import MissingStepError, UsageError

if TYPE_CHECKING:
    from vlltr_index.recognizer import Recognizer
    from vlltr_index.store.workspace import Workspace

_TOKEN = "VLLTR_TOKEN"
_WRITE_TOKEN = "VLLTR_WRITE_TOKEN"
_SHORTEST = 16
_SWITCH = 0.0005  # seconds after which Python lets another thread run: here many wait for each other
_ENDING = 60  # seconds for the requests that are being answered at the end


@click.command("serve")
@click.argument("place", required=False, metavar="[WORKSPACE|EXPORT]")
@click.option(
    "--host", default="127.0.0.1", help="The address to listen at; others than this machine need a token."
)
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--name", "names", multiple=True, help="A host name that clients use; repeatable.")
@click.option(
    "--write", is_flag=True, help="Let clients with the writing token change classes and sentences."
)
@device_option
@pass_context
def serve_command(
    context: Context, place: str | None, host: str, port: int, names: tuple[str, ...], write: bool
) -> None:
    """Answer `POST /predict` over HTTP, with the model of WORKSPACE's newest commit, or of EXPORT.

    WORKSPACE is by default the nearest folder upward, EXPORT a folder that `vlltr export` wrote. GET /openapi.json
    describes all requests.

    VLLTR_TOKEN and VLLTR_WRITE_TOKEN are the tokens that clients send; without them new ones are printed. Ctrl-C
    ends it, once what was asked is answered. Needs the extra `serve`.
    """
    if find_spec("fastapi") is None or find_spec("python_multipart") is None:
        raise MissingStepError(
            "the server needs FastAPI, which is not installed", 'Install it: pip install "vlltr-index[serve]"'
        )
    with bind(host, port) as listening:
        local = is_local(listening.getsockname()[0])
        token = _token(_TOKEN, needed=not local)
        write_token = _token(_WRITE_TOKEN, needed=True) if write else ""
        if token and token == write_token:
            raise UsageError(
                f"{_TOKEN} and {_WRITE_TOKEN} are the same", "Give two tokens, or leave --write out."
            )
        recognizer, workspace = _opened(context, place)
        if write and workspace is None:
            raise UsageError("an exported folder cannot be changed", "Leave out: --write")
        if not local:
            echo("Warning: nothing is encrypted on the way, the token neither.", err=True)

        def ready(address: str) -> None:
            tokens = (("token", token, _TOKEN), ("write_token", write_token, _WRITE_TOKEN))
            new = {name: made for name, made, given in tokens if made and not os.environ.get(given)}
            lines = [address, *(f"{name}: {made}" for name, made in new.items())]
            context.show({"address": address, **new}, lines, always=True)

        own = {name.lower() for name in (socket.gethostname(), host, *names)}
        serve(recognizer, workspace if write else None, listening, ready, own, token, write_token)


def _token(variable: str, needed: bool) -> str:
    """Return the token that a variable of the environment gives, or a new one if one is needed."""
    given = os.environ.get(variable)
    if given is None:
        return secrets.token_urlsafe(32) if needed else ""
    if len(check_token(given, variable)) < _SHORTEST:
        raise UsageError(
            f"{variable} has {len(given)} characters; a token that nobody guesses has {_SHORTEST} at least",
            f"Leave it out, and take the one that is printed, or: export {variable}=$(openssl rand -hex 32)",
        )
    return given


def _opened(context: Context, place: str | None) -> tuple[Recognizer, Workspace | None]:
    """Open what is to be served; there is no workspace of an exported folder."""
    from vlltr_index.recognition.exported.reading import SUMS
    from vlltr_index.recognizer import Recognizer

    if place is not None and context.workspace is not None:
        raise UsageError("-w names a workspace, too", "Name what is served once.")
    if place is not None and (Path(place).expanduser() / SUMS).is_file():
        return Recognizer.from_pretrained(Path(place)), None
    context.workspace = place or context.workspace
    workspace = context.open()
    return Recognizer.open(workspace), workspace


@contextmanager
def serving(
    recognizer: Recognizer,
    workspace: Workspace | None = None,
    names: Collection[str] = (),
    token: str = "",
    write_token: str = "",
) -> Iterator[Any]:
    """Yield the server as an ASGI application.

    Args:
        recognizer: Answers.
        workspace: The one that clients may change; None: they may change nothing.
        names: As for `wrong_sender`.
        token: As for `Guard`.
        write_token: As for `Guard`.

    Raises:
        MissingStepError: If a step before has not been run; the hint names what to do.
        EncoderError: If the encoder cannot be loaded.
    """
    from vlltr_index.cli.serve.app import build_app
    from vlltr_index.cli.serve.batcher import Batcher
    from vlltr_index.cli.serve.follower import Follower
    from vlltr_index.cli.serve.forms import Forms
    from vlltr_index.cli.serve.guard import Guard
    from vlltr_index.cli.serve.writer import Writer

    with ExitStack() as ends:
        follower = ends.enter_context(closing(Follower(recognizer)))
        batcher = ends.enter_context(closing(Batcher(follower)))
        writer = None if workspace is None else ends.enter_context(closing(Writer(workspace, follower)))
        yield Guard(build_app(follower, batcher, Forms(), writer), names, token, write_token)


def serve(
    recognizer: Recognizer,
    workspace: Workspace | None,
    listening: socket.socket,
    ready: Callable[[str], None],
    names: Collection[str] = (),
    token: str = "",
    write_token: str = "",
) -> None:
    """Serve until it is interrupted; requests that are being answered then are answered first.

    Args:
        recognizer: Answers.
        workspace: As for `serving`.
        listening: Socket from `bind`.
        ready: Called with the address once requests are answered.
        names: As for `wrong_sender`.
        token: As for `Guard`.
        write_token: As for `Guard`.

    Raises:
        MissingStepError, EncoderError: As for `serving`.
    """
    # While it runs, uvicorn ends by itself and sends the signal again.
    end_by_signals()
    with serving(recognizer, workspace, names, token, write_token) as app:
        sys.setswitchinterval(_SWITCH)
        running = http_server(app)
        ready(address_of(listening))
        try:
            running.run(sockets=[listening])
        except KeyboardInterrupt:  # Ctrl-C is how it is stopped
            return


def http_server(app: Any) -> Any:
    """Return uvicorn's server for the application."""
    import uvicorn

    from vlltr_index.cli.serve.guard import Connection

    # Both log a line for each request that is none; errors of this program are logged by the application.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    quiet = {"log_level": "critical", "access_log": False, "ws": "none", "lifespan": "off", "loop": "asyncio"}
    return uvicorn.Server(uvicorn.Config(app, http=Connection, timeout_graceful_shutdown=_ENDING, **quiet))
