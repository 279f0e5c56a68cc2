"""`vlltr classes`: the class list as rows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from vlltr_index.cli.context import Context, device_option, dry_run_option, existing, pass_context, yes_option
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.classes import NewClass
    from vlltr_index.pipelines.classlist import ClassDetail

_PICTURES = 10
# The word in the tables to the reader's: a class that was ingested need not be trained yet.
_ORIGIN = {"trained": "ingested", "added": "added"}


@click.group("classes")
def classes_command() -> None:
    """List, show, add, remove, rename and merge classes, without retraining."""


@classes_command.command("list")
@pass_context
def list_(context: Context) -> None:
    """List the classes with their number of sentences and training images, and what each lies below."""
    from vlltr_index.pipelines.classlist import list_classes

    rows = list_classes(context.open())
    lines = (
        f"{row.class_id:>6}  {_ORIGIN[row.origin]:<8} {row.images:>6} images {row.sentences:>6} sentences  {row.name}"
        + (f"  < {row.parent}" if row.parent else "")
        for row in rows
    )
    context.show(rows, lines, always=True)


@classes_command.command("show")
@click.argument("name")
@click.option("--all", "every", is_flag=True, help="Every sentence, with its id, and every image.")
@pass_context
def show(context: Context, name: str, every: bool) -> None:
    """Show a class: its anchors with their losses, its images, its nearest rivals."""
    from vlltr_index.pipelines.classlist import show_class

    detail = show_class(context.open(), name, every_sentence=every)
    context.show(detail, _detail_lines(detail, every), always=True)


def _detail_lines(detail: ClassDetail, every: bool) -> list[str]:
    row = {
        "trained": "trained on its images",
        "images": "known by images that came later",
        "none": "whose images wait for vlltr train lgr" if detail.images else "known by text alone",
    }[detail.visual]
    lines = [
        f"{detail.name} (class {detail.class_id}, {_ORIGIN[detail.origin]}, {many(detail.images, 'training image')},"
        f" {many(detail.sentences, 'sentence')}, {row})"
    ]
    for label, names in (("also", detail.aliases), ("took in", detail.merged), ("nearest", detail.rivals)):
        if names:
            lines.append(f"{label}: {', '.join(names)}")
    for sentence in [*detail.anchors, *detail.others]:
        rank = "    -" if sentence.rank is None else f"  {sentence.rank:>3}"
        loss = "       -" if sentence.loss is None else f"{sentence.loss:8.3f}"
        key = f"  {sentence.sentence_id[:12]}" if every else ""
        lines.append(f"{rank}  loss {loss}{key}  {sentence.text}  [{sentence.source}]")
    shown = detail.pictures if every else detail.pictures[:_PICTURES]
    for picture in shown:
        problem = f"  ({picture.problem})" if picture.problem else ""
        lines.append(f"  {picture.split:<6} {picture.image_id[:12]}  {picture.uri}{problem}")
    if len(detail.pictures) > len(shown):
        lines.append(f"  and {len(detail.pictures) - len(shown)} more images (--all)")
    return lines


@classes_command.command("add")
@click.argument("name", required=False)
@click.option("--sentence", "sentences", multiple=True, help="A sentence about the class; repeatable.")
@click.option(
    "--text",
    help="A file of text about the class: .txt, or JSON, JSONL, CSV or Parquet as for `ingest text`.",
)
@click.option("--images", help="A folder of its images.")
@click.option("--alias", "aliases", multiple=True, help="Another name; repeatable.")
@click.option(
    "--from",
    "manifest",
    help='A JSON file of many: {name: [sentence, ...]} or {name: {"sentences": [...], "images": [...]}}.',
)
@dry_run_option
@device_option
@pass_context
def add(
    context: Context,
    name: str | None,
    sentences: tuple[str, ...],
    text: str | None,
    images: str | None,
    aliases: tuple[str, ...],
    manifest: str | None,
    dry_run: bool,
) -> None:
    """Add the class NAME by its sentences, its images, or both; it can be recognised at once."""
    from vlltr_index.classes import add_classes

    wanted = _wanted(name, sentences, text, images, aliases, manifest)
    context.show(add_classes(context.open(), wanted, dry_run=dry_run, progress=context.progress))


def _wanted(
    name: str | None,
    sentences: tuple[str, ...],
    text: str | None,
    images: str | None,
    aliases: tuple[str, ...],
    manifest: str | None,
) -> list[NewClass]:
    """The classes that the options of `add` describe."""
    from vlltr_index.classes import NewClass, read_manifest
    from vlltr_index.data.files import require
    from vlltr_index.errors import UsageError

    if (name is None) == (manifest is None):
        raise UsageError(
            "give either NAME or --from FILE", "For example: vlltr classes add okapi --text okapi.txt"
        )
    if manifest is None:
        assert name is not None
        text_file, folder = existing(text) if text else None, require(existing(images)) if images else None
        return [NewClass(name, tuple(sentences), text_file, folder, tuple(aliases))]
    if sentences or text or images or aliases:
        raise UsageError(
            "--from FILE says all about its classes: --sentence, --text, --images and --alias go with NAME",
            "Write them into the file, or leave --from out.",
        )
    return read_manifest(existing(manifest))


@classes_command.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@yes_option
@dry_run_option
@pass_context
def remove(context: Context, names: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    """Remove classes with their sentences and images; `vlltr rollback` brings them back."""
    from vlltr_index.classes import remove_classes
    from vlltr_index.errors import UsageError

    workspace = context.open()
    table = workspace.snapshot().class_table()
    known = [table.names[table.lookup(name)] for name in names]
    if not yes and not dry_run:
        if not sys.stdin.isatty():
            raise UsageError(
                "removing classes asks first, and there is no terminal to ask at", "Say so beforehand: --yes"
            )
        click.confirm(
            f"Remove {', '.join(map(repr, known))} with all sentences and images?", abort=True, err=True
        )
    context.show(remove_classes(workspace, known, dry_run=dry_run, progress=context.progress))


@classes_command.command("rename")
@click.argument("old")
@click.argument("new")
@dry_run_option
@pass_context
def rename(context: Context, old: str, new: str, dry_run: bool) -> None:
    """Give the class OLD the name NEW: its number and texts stay, its prompts are made anew."""
    from vlltr_index.classes import rename_class

    context.show(rename_class(context.open(), old, new, dry_run=dry_run, progress=context.progress))


@classes_command.command("merge")
@click.argument("into")
@click.argument("other")
@dry_run_option
@pass_context
def merge(context: Context, into: str, other: str, dry_run: bool) -> None:
    """Make two classes one: sentences and images of OTHER go to INTO, its name becomes an alias."""
    from vlltr_index.classes import merge_classes

    context.show(merge_classes(context.open(), into, other, dry_run=dry_run, progress=context.progress))
