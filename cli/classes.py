"""Commands `vlltr classes`, `sentences` and `images`: edit the class list and what each class has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.options import DIR, FILE, PATH, device_option, dry_run_option, yes_option
from vlltr_index.cli.terminal import confirm
from vlltr_index.errors import UsageError
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.classes import ChangeReport
    from vlltr_index.pipelines.classlist import ClassDetail

_PICTURES = 10
# Words shown for the tables' values: an ingested class has the origin "trained" before it is trained.
_ORIGIN = {"trained": "ingested", "added": "added"}
_sentence_option = click.option("--sentence", "sentences", multiple=True, help="A sentence; repeatable.")
_text_option = click.option("--text", type=FILE, help="A file of text: .txt, or as for `ingest text`.")


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
    """Show a class: its anchors with their losses, its images, the nearest classes."""
    from vlltr_index.pipelines.classlist import show_class

    detail = show_class(context.open(), name, every_sentence=every)
    context.show(detail, _detail_lines(detail, every), always=True)


def _detail_lines(detail: ClassDetail, every: bool) -> list[str]:
    alone = "known by text alone"
    if detail.mute:
        alone = "not recognised yet: texts do not predict class means, see vlltr status"
    if detail.pictures:
        alone += ", and none of its pictures is to train on"
    row = {
        "trained": "trained on its images",
        "images": "known by images that came later",
        "none": "whose images wait for vlltr train lgr" if detail.images else alone,
    }[detail.visual]
    lines = [
        f"{detail.name} (class {detail.class_id}, {_ORIGIN[detail.origin]}, {plural(detail.images, 'training image')},"
        f" {plural(detail.sentences, 'sentence')}, {row})"
    ]
    near = f"nearest by {detail.rivals_by}"
    for label, names in (("also", detail.aliases), ("took in", detail.merged), (near, detail.rivals)):
        if names:
            lines.append(f"{label}: {', '.join(names)}")
    for sentence in [*detail.anchors, *detail.others]:
        rank = "-" if sentence.rank is None else sentence.rank
        loss = "-" if sentence.loss is None else f"{sentence.loss:.3f}"
        key = f"  {sentence.sentence_id[:12]}" if every else ""
        lines.append(f"{rank:>5}  loss {loss:>8}{key}  {sentence.text}  [{sentence.source}]")
    shown = detail.pictures if every else detail.pictures[:_PICTURES]
    for picture in shown:
        problem = f"  ({picture.problem})" if picture.problem else ""
        lines.append(f"  {picture.split:<6} {picture.image_id[:12]}  {picture.uri}{problem}")
    if len(detail.pictures) > len(shown):
        lines.append(f"  and {len(detail.pictures) - len(shown)} more images (--all)")
    return lines


def _change(
    context: Context, work: Callable[..., ChangeReport], *args: Any, dry_run: bool, **how: Any
) -> None:
    """Make a change of the workspace's classes, and show its report."""
    from vlltr_index.classes import ChangeOptions

    options = ChangeOptions(dry_run=dry_run, progress=context.progress)
    context.show(work(context.open(), *args, options=options, **how))


@classes_command.command("add")
@click.argument("name", required=False)
@_sentence_option
@_text_option
@click.option("--images", type=PATH, multiple=True, help="A folder of its images, or an image; repeatable.")
@click.option("--alias", "aliases", multiple=True, help="Another name; repeatable.")
@click.option(
    "--from",
    "manifest",
    type=PATH,
    help='Many: a folder of class folders, or a JSON file {name: [sentence, ...]} or {name: {"sentences": [...],'
    ' "images": [...]}}.',
)
@dry_run_option
@device_option
@pass_context
def add(
    context: Context,
    name: str | None,
    sentences: tuple[str, ...],
    text: Path | None,
    images: tuple[Path, ...],
    aliases: tuple[str, ...],
    manifest: Path | None,
    dry_run: bool,
) -> None:
    """Add the class NAME by its sentences, its images, or both; it can be recognised at once."""
    from vlltr_index.classes import NewClass, add_classes, read_manifest
    from vlltr_index.data.files import require

    if manifest is not None and (sentences or text or images or aliases):
        raise UsageError(
            "--from PATH says all about its classes: --sentence, --text, --images and --alias go with NAME",
            "Write them into a file, or leave --from out.",
        )
    if name is not None and manifest is None:
        pictures = tuple(map(require, images))
        wanted = [NewClass(name, sentences, text, images=pictures, aliases=aliases)]
    elif manifest is not None and name is None:
        wanted = read_manifest(manifest)
    else:
        raise UsageError(
            "give either NAME or --from PATH", "For example: vlltr classes add okapi --text okapi.txt"
        )
    _change(context, add_classes, wanted, dry_run=dry_run)


@classes_command.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@yes_option
@dry_run_option
@pass_context
def remove(context: Context, names: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    """Remove classes with their sentences and images; `vlltr rollback` brings them back."""
    from vlltr_index.classes import remove_classes

    table = context.open().snapshot().class_table()
    known = [table.names[table.lookup(name)] for name in names]
    if not yes and not dry_run:
        asked = ", ".join(map(repr, known))
        _ask("removing", f"Remove {asked} with all sentences and images?")
    _change(context, remove_classes, known, dry_run=dry_run)


def _ask(what: str, question: str) -> None:
    """Ask before classes go; the command ends unless the answer is yes."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"{what} classes asks first, and there is no terminal to ask at", "Say so beforehand: --yes"
        )
    confirm(question)


@classes_command.command("rename")
@click.argument("old")
@click.argument("new")
@dry_run_option
@pass_context
def rename(context: Context, /, **how: Any) -> None:
    """Give the class OLD the name NEW: its number and texts stay, its prompts are made anew."""
    from vlltr_index.classes import rename_class

    _change(context, rename_class, **how)


@classes_command.command("merge")
@click.argument("into")
@click.argument("other")
@yes_option
@dry_run_option
@pass_context
def merge(context: Context, into: str, other: str, yes: bool, dry_run: bool) -> None:
    """Make two classes one: sentences and images of OTHER go to INTO, its prompts do not, its name becomes an alias."""
    from vlltr_index.classes import merge_classes

    table = context.open().snapshot().class_table()
    known = [table.names[table.lookup(name)] for name in (into, other)]
    if not yes and not dry_run:
        _ask("merging", f"Let {known[1]!r} be {known[0]!r} from now on, with its sentences and images?")
    _change(context, merge_classes, *known, dry_run=dry_run)


@click.group("sentences")
def sentences_command() -> None:
    """Give a class more sentences, or take some away, without retraining."""


@sentences_command.command("add")
@click.argument("name", metavar="CLASS")
@_sentence_option
@_text_option
@dry_run_option
@device_option
@pass_context
def add_sentences(context: Context, /, **how: Any) -> None:
    """Add sentences to CLASS; its anchors are selected again."""
    from vlltr_index.classes import add_sentences

    _change(context, add_sentences, **how)


@sentences_command.command("remove")
@click.argument("name", metavar="CLASS")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--matching", metavar="TEXT", help="All sentences of the class that hold this text.")
@dry_run_option
@pass_context
def remove_sentences(context: Context, /, **how: Any) -> None:
    """Remove sentences of CLASS by id or by what they say.

    `vlltr classes show CLASS --all` lists the ids.
    """
    from vlltr_index.classes import remove_sentences

    _change(context, remove_sentences, **how)


@click.group("images")
def images_command() -> None:
    """Give a class more training images, take some away, or take corrections back, without retraining."""


@images_command.command("add")
@click.argument("name", metavar="CLASS")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=PATH)
@dry_run_option
@device_option
@pass_context
def add_images(context: Context, /, **how: Any) -> None:
    """Add images to CLASS: files, or folders of them; all anchors are selected again."""
    from vlltr_index.classes import add_images

    _change(context, add_images, **how)


@images_command.command("remove")
@click.argument("ids", nargs=-1, required=True, metavar="IMAGE_ID...")
@dry_run_option
@pass_context
def remove_images(context: Context, /, **how: Any) -> None:
    """Take images away, by their ids (`vlltr classes show CLASS`)."""
    from vlltr_index.classes import remove_images

    _change(context, remove_images, **how)


@images_command.command("relabel")
@click.argument("path", metavar="FILE", type=FILE)
@click.option("--root", "list_root", type=DIR, help="Base of the file's paths; default: its own folder.")
@click.option("--names", "label_names", type=FILE, help="Names of numeric labels, as for `ingest images`.")
@click.option("--create-classes", is_flag=True, help="Make classes for unknown names, known by their images.")
@click.option("--add", is_flag=True, help="Take in pictures in --root that the workspace does not have.")
@dry_run_option
@device_option
@pass_context
def relabel(context: Context, /, **how: Any) -> None:
    """Give pictures that the workspace has the classes that FILE says.

    FILE is as for `ingest images`: a list, CSV, TSV, Parquet or JSONL with paths and classes, or an export of Label
    Studio or FiftyOne. Pictures are found by their path, or by their content where they lie elsewhere now. What cannot
    be used is named with its line. A correction stays until the folder that the picture came from moves it. A row that
    gives a picture the class it has confirms it, so that `vlltr review` does not ask again; a row without a class says
    nothing.
    """
    from vlltr_index.classes import relabel_images

    _change(context, relabel_images, **how)
