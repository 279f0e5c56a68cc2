"""`vlltr export`."""

from __future__ import annotations

from dataclasses import asdict

import click

from vlltr_index.cli.context import Context, existing, pass_context


@click.command("export")
@click.argument("folder", metavar="DIR")
@click.option("--at", type=click.IntRange(1), metavar="ID", help="Export this commit; default: the newest.")
@click.option("--force", is_flag=True, help="Replace an export that is there; anything else is left alone.")
@click.option("--index", "with_index", is_flag=True, help="Put the FAISS index in, where there is one.")
@click.option(
    "--tables", is_flag=True, help="Write the tables for `datasets`, pandas and others, not a model."
)
@click.option("--embed-images", is_flag=True, help="With --tables: put the bytes of image files in.")
@click.option("--push", metavar="USER/NAME", help="Make it this model on the Hugging Face hub, too.")
@click.option("--private", is_flag=True, help="With --push: let a new repository be private.")
@click.option("--message", help="With --push: of the hub's commit.")
@pass_context
def export_command(
    context: Context,
    folder: str,
    at: int | None,
    force: bool,
    with_index: bool,
    tables: bool,
    embed_images: bool,
    push: str | None,
    private: bool,
    message: str | None,
) -> None:
    """Write DIR, which `Recognizer.from_pretrained` reads without the workspace: encoder, head, anchors, model card.

    With --tables: classes, sentences, images and anchors as Parquet files. DIR appears whole or not at all.
    """
    from vlltr_index.pipelines.export import Request, export

    request = Request(existing(folder), at, force, with_index, tables, embed_images, push, private, message)
    with context.progress() as progress:
        report, url = export(context.open(), request, progress)
    pushed = [f"Pushed: {url}"] if url else []
    context.show({**asdict(report), "url": url}, [*report.lines(), *pushed])
