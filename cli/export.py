"""`vlltr export`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from vlltr_index.cli.context import Context, at_option, existing, pass_context


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
@click.option("--message", help="With --push: of the hub's commit.")
@pass_context
def export_command(context: Context, /, folder: str, **how: Any) -> None:
    """Write DIR, which `Recognizer.from_pretrained` reads without the workspace: encoder, head, anchors, model card.

    With --tables: classes, sentences, images and anchors as Parquet files. DIR appears whole or not at all.
    """
    from vlltr_index.pipelines.export import export

    report, url = export(context.open(), existing(folder), progress=context.progress, **how)
    pushed = [f"Pushed: {url}"] if url else []
    context.show({**asdict(report), "url": url}, [*report.lines(), *pushed])
