"""`vlltr ingest images`, `text` and `wikipedia`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vlltr_index.cli.context import Context, existing, pass_context
from vlltr_index.cli.wikipedia import wikipedia_command

if TYPE_CHECKING:
    from vlltr_index.stages.ingest import IngestReport


@click.group("ingest")
def ingest_command() -> None:
    """Bring in images and text; running it again adds only what is new."""


ingest_command.add_command(wikipedia_command)


@ingest_command.command("images")
@click.argument("path")
@click.option(
    "--split", help="train, val, test or a name of your own; a Parquet file may have a column for it."
)
@click.option("--root", help="Folder that the paths of a list file are relative to; default: the list's own.")
@click.option("--names", help="A text file with one class name a line, for lists with numeric labels.")
@click.option(
    "--create-classes", is_flag=True, help="Make classes for unknown names in splits other than train."
)
@pass_context
def images(
    context: Context, path: str, split: str | None, root: str | None, names: str | None, create_classes: bool
) -> None:
    """Bring in images from PATH: a folder of class folders, a `path label` list, or a Parquet file.

    An image that cannot be read is kept aside with its reason; the run goes on.
    """
    from vlltr_index.stages.ingest import ingest_images

    workspace = context.open()
    with context.progress() as progress:
        report = ingest_images(
            workspace,
            existing(path),
            split,
            list_root=existing(root) if root else None,
            label_names=existing(names) if names else None,
            create_classes=create_classes,
            progress=progress,
        )
    _show(context, report)


@ingest_command.command("text")
@click.argument("path")
@click.option(
    "--prompts/--no-prompts", default=None, help="Add the recipe's prompts for each class; default: yes."
)
@pass_context
def text(context: Context, path: str, prompts: bool | None) -> None:
    """Bring in sentences from PATH.

    PATH is a folder of .txt files (one a class), JSONL ({"class", "text", "source"}), JSON ({class: [sentence, ...]}),
    CSV or Parquet.
    """
    from vlltr_index.stages.ingest import ingest_text

    workspace = context.open()
    with context.progress() as progress:
        report = ingest_text(workspace, existing(path), prompts=prompts, progress=progress)
    _show(context, report)


def _show(context: Context, report: IngestReport) -> None:
    if context.as_json:
        context.emit(asdict(report))
        return
    for line in report.lines():
        context.say(line)
