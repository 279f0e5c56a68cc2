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
@click.option(
    "--root", metavar="DIR", help="Folder that the paths of a list or JSON are relative to; default: its own."
)
@click.option(
    "--names",
    metavar="FILE",
    help="Names of numeric labels: one a line, `n01440764 tench`, `airfield 0`, or categories.json.",
)
@click.option(
    "--create-classes", is_flag=True, help="Make classes for unknown names in splits other than train."
)
@pass_context
def images(
    context: Context, path: str, split: str | None, root: str | None, names: str | None, create_classes: bool
) -> None:
    """Bring in images from PATH.

    PATH is a folder of class folders, a `path label` list (ImageNet-LT, Places-LT), a JSON file of images and
    annotations (iNaturalist), or a Parquet file. An image that cannot be read is kept aside with its reason; the run
    goes on. A class without any sentence gets the recipe's prompts.
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
    "--names",
    metavar="FILE",
    help="Names of the class numbers of desc_N.txt; default: labels.txt or categories.json beside them.",
)
@click.option(
    "--prompts/--no-prompts", default=None, help="Add the recipe's prompts for each class; default: yes."
)
@pass_context
def text(context: Context, path: str, names: str | None, prompts: bool | None) -> None:
    """Bring in sentences from PATH.

    PATH is a folder of .txt files (one a class), JSONL ({"class", "text", "source"}), JSON ({class: [sentence, ...]}),
    CSV, Parquet, or a folder of the VL-LTR release's text corpus (wiki/desc_N.txt beside labels.txt or
    categories.json).
    """
    from vlltr_index.stages.ingest import ingest_text

    workspace = context.open()
    with context.progress() as progress:
        report = ingest_text(
            workspace,
            existing(path),
            label_names=existing(names) if names else None,
            prompts=prompts,
            progress=progress,
        )
    _show(context, report)


def _show(context: Context, report: IngestReport) -> None:
    if context.as_json:
        context.emit(asdict(report))
        return
    for line in report.lines():
        context.say(line)
