"""Serve the page (`vlltr ui`) at its own address, with its own temporary folder; nothing leaves the machine."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from filelock import FileLock, Timeout

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.listening import address_of, bind, end_by_signals, is_local
from vlltr_index.cli.options import device_option, prior_option, read_prior
from vlltr_index.cli.terminal import echo
from vlltr_index.errors import MissingStepError

if TYPE_CHECKING:
    from vlltr_index.schemas.options import Prior
    from vlltr_index.store.workspace import Workspace

_UPLOADS = "vlltr-ui-"
_LOCK = "lock"
_MANIFEST = {"name": "vlltr", "start_url": "/", "display": "browser"}


@click.command("ui")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...")
@click.option(
    "--host", default="127.0.0.1", help="The address to listen at; other machines need the printed link."
)
@click.option("--port", default=7860, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.option("--read-only", is_flag=True, help="Nothing can be added, decided or undone on the page.")
@prior_option
@device_option
@pass_context
def ui_command(
    context: Context,
    folders: tuple[str, ...],
    host: str,
    port: int,
    open_browser: bool,
    read_only: bool,
    prior: str,
) -> None:
    """Serve a page: drop a picture, strike sentences out, compare classes, add a class, undo; look over labels.

    The tab Review shows the list of `vlltr review` one by one, with FOLDER first pictures without labels (as there).

    Ctrl-C ends it. Needs the extra `ui`.
    """
    if find_spec("gradio") is None:
        raise MissingStepError(
            "the page needs Gradio, which is not installed", 'Install it: pip install "vlltr-index[ui]"'
        )
    workspace = context.open()
    if prior == "estimated":
        raise click.UsageError(
            "--prior estimated: the page is asked one picture at a time; give training or a file"
        )
    known = read_prior(prior)

    def ready(address: str) -> None:
        context.show({"address": address}, [address], always=True)
        if open_browser:
            click.launch(address)

    listening = bind(host, port)
    if not is_local(listening.getsockname()[0]):
        can = (
            "see this workspace's classes, sentences and pictures, with their paths"
            if read_only
            else "change this workspace"
        )
        echo(f"Warning: who has the link can {can}, and nothing is encrypted on the way.", err=True)
        if not read_only:
            echo("With --read-only nothing can be added, decided or undone.", err=True)
    serve(workspace, listening, host, read_only, prior=known, folders=folders, ready=ready)


def _sweep() -> None:
    """Remove uploads that killed pages of this user left; a page that runs holds its lock."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_UPLOADS}*/{_LOCK}"):
        with suppress(OSError, Timeout), FileLock(lock, timeout=0):  # another user's cannot be locked
            shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def page_app(
    workspace: Workspace,
    read_only: bool = False,
    token: str = "",
    names: Collection[str] = (),
    prior: Prior = "balanced",
    folders: Sequence[str] = (),
) -> Iterator[Any]:
    """Yield the page as an ASGI application; uploads lie in a temporary folder that is removed afterwards.

    Args:
        workspace: With a trained head.
        read_only: Nothing can be added, decided or undone.
        token: Token that a browser must send once; without one, the page is for this machine only.
        names: With a token: host names of the page, in lower case, beside its addresses.
        prior: As for `PageService`.
        folders: As for `ReviewService`.

    Raises:
        MissingStepError: If a step before has not been run; the hint names what to do.
        UsageError: If the prior is none for this workspace.
    """
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_UPLOADS) as folder, FileLock(os.path.join(folder, _LOCK)):
        folder = os.path.realpath(folder)
        os.environ |= {  # for Gradio: no telemetry, and files only in `folder`
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_EXAMPLES_CACHE": os.path.join(folder, "examples"),
            "GRADIO_SHARE": "False",
            "GRADIO_MCP_SERVER": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        import gradio as gr
        from fastapi import FastAPI

        from vlltr_index.cli.ui.blocks import build_page
        from vlltr_index.cli.ui.guard import Guard
        from vlltr_index.cli.ui.review_service import ReviewService
        from vlltr_index.cli.ui.service import MAX_UPLOAD, PageService

        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        app.get("/manifest.json")(lambda: _MANIFEST)  # the page refers to one, which Gradio does not serve
        desk = PageService(workspace, read_only, prior)
        reviewing = ReviewService(workspace, folders, read_only, desk.recognizer)
        page = build_page(desk, reviewing)
        gr.mount_gradio_app(
            app,
            page,
            path="/",
            allowed_paths=[],
            blocked_paths=[str(workspace.path.resolve())],
            max_file_size=MAX_UPLOAD,
            show_error=False,  # unexpected errors may name files, so clients do not see them
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            pwa=False,
            run_history=False,
            footer_links=[],
            theme=gr.themes.Default(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css=files("vlltr_index.cli.ui").joinpath("page.css").read_text(encoding="utf-8"),
        )
        try:
            yield Guard(app, page, folder, token, names=names)
        finally:
            reviewing.close()


def serve(
    workspace: Workspace,
    listening: socket.socket,
    host: str,
    read_only: bool,
    ready: Callable[[str], None],
    prior: Prior = "balanced",
    folders: Sequence[str] = (),
) -> None:
    """Serve the page until it is interrupted; if other machines can reach it, only those that have its link.

    Args:
        workspace: With a trained head.
        listening: Socket from `bind`; it is closed at the end.
        host: The host that `bind` was called with.
        read_only: Nothing can be added, decided or undone.
        ready: Called with the page's link once the page can be opened.
        prior: As for `PageService`.
        folders: As for `ReviewService`.

    Raises:
        MissingStepError, UsageError: As for `page_app`.
    """
    token = "" if is_local(listening.getsockname()[0]) else secrets.token_urlsafe(32)
    link = f"{address_of(listening)}{f'?token={token}' if token else ''}"
    # An exit lets uploads be removed; while it runs, uvicorn ends by itself and sends the signal again.
    end_by_signals()
    names = {socket.gethostname().lower(), host.lower()}
    with listening, page_app(workspace, read_only, token, names, prior, folders) as app:
        import uvicorn

        # Open tabs hold connections, and uvicorn logs a traceback for each one that it closes at the end.
        quiet = {"log_level": "critical", "access_log": False, "ws": "none"}
        server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **quiet))
        ready(link)
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # Ctrl-C is how the page is stopped
            return
