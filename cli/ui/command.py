"""`vlltr ui`."""

from __future__ import annotations

import click

from vlltr_index.cli.context import Context, device_option, pass_context


@click.command("ui")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port", default=7860, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option("--open/--no-browser", "open_browser", default=False, help="Open the page in the browser.")
@click.option("--read-only", is_flag=True, help="Nothing can be added or undone on the page.")
@device_option
@pass_context
def ui_command(context: Context, host: str, port: int, open_browser: bool, read_only: bool) -> None:
    """Serve a page: drop a picture, strike sentences out, compare classes, add a class, undo.

    Ctrl-C ends it. Needs the extra `ui`.
    """
    from vlltr_index.cli.ui.server import bind, is_local, need_gradio, serve

    need_gradio()
    workspace = context.open()

    def ready(address: str) -> None:
        context.show({"address": address}, [address], always=True)
        if open_browser:
            click.launch(address)

    listening = bind(host, port)
    if not is_local(listening.getsockname()[0]):
        can = "see this workspace's classes and sentences" if read_only else "change this workspace"
        click.echo(
            f"Warning: everyone who reaches port {listening.getsockname()[1]} of this machine can {can}.",
            err=True,
        )
        if not read_only:
            click.echo("With --read-only nothing can be added or undone.", err=True)
    serve(workspace, listening, read_only, ready)
