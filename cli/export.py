"""`vlltr export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from vlltr_index.cli.context import Context, at_option, existing, pass_context
from vlltr_index.errors import UsageError


@click.command("export")
@click.argument("folder", metavar="DIR")
@at_option("Export this commit; default: the newest.")
@click.option("--force", is_flag=True, help="Replace an export that is there; anything else is left alone.")
@click.option("--index", "with_index", is_flag=True, help="Put the FAISS index in, where there is one.")
@click.option(
    "--tables", is_flag=True, help="Write the tables for `datasets`, pandas and others, not a model."
)
@click.option("--embed-images", is_flag=True, help="With --tables: put the bytes of image files in.")
@click.option("--push", metavar="USER/NAME", help="Make it this model on the Hugging Face hub, too.")
@click.option("--private", is_flag=True, help="With --push: let a new repository be private.")
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
) -> None:
    """Write DIR, which `Recognizer.from_pretrained` reads without the workspace: encoder, head, anchors, model card.

    With --tables: classes, sentences, images and anchors as Parquet files. DIR appears whole or not at all.
    """
    from vlltr_index.recognition.exported.reading import check_repository
    from vlltr_index.recognition.exported.writing import export_model, export_tables, push_model

    if embed_images and not tables:
        raise UsageError("--embed-images is for --tables: a model has no images", "Leave it out.")
    if tables and (with_index or push):
        raise UsageError(
            f"{'--index' if with_index else '--push'} is for a model, not for --tables",
            "To put tables on the hub: hf upload user/name DIR --repo-type dataset",
        )
    if private and push is None:
        raise UsageError("--private is for --push", "Add: --push user/name")
    workspace, target, url = context.open(), existing(folder), None
    if tables:
        report = export_tables(
            workspace, target, at, force=force, embed_images=embed_images, progress=context.progress
        )
    else:
        if push is not None:
            check_repository(push)
        report = export_model(workspace, target, at, force=force, with_index=with_index)
        if push is not None:
            url = push_model(Path(report.folder), push, private=private or None)
    pushed = [f"Pushed: {url}"] if url else []
    context.show({**asdict(report), "url": url}, [*report.lines(), *pushed])
