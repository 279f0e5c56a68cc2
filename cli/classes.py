"""`vlltr classes`: the class list as rows."""

from __future__ import annotations

from dataclasses import asdict

import click

from vlltr_index.cli.context import Context, existing, pass_context


@click.group("classes")
def classes_command() -> None:
    """List, show and add classes, without retraining."""


@classes_command.command("list")
@pass_context
def list_(context: Context) -> None:
    """List the classes with their number of sentences and training images."""
    from vlltr_index.stages.classlist import list_classes

    rows = list_classes(context.open())
    if context.as_json:
        context.emit([asdict(row) for row in rows])
        return
    for row in rows:
        click.echo(
            f"{row.class_id:>6}  {row.origin:<8} {row.images:>6} images {row.sentences:>6} sentences  {row.name}"
        )


@classes_command.command("show")
@click.argument("name")
@pass_context
def show(context: Context, name: str) -> None:
    """Show a class: its anchors with their losses, and its aliases."""
    from vlltr_index.stages.classlist import show_class

    detail = show_class(context.open(), name)
    if context.as_json:
        context.emit(asdict(detail))
        return
    click.echo(f"{detail.name} (class {detail.class_id}, {detail.origin}, {detail.images} training images)")
    if detail.aliases:
        click.echo(f"also: {', '.join(detail.aliases)}")
    for anchor in detail.anchors:
        click.echo(f"  {anchor.rank:>3}  loss {anchor.loss:8.3f}  {anchor.text}  [{anchor.source}]")


@classes_command.command("add")
@click.argument("name", required=False)
@click.option("--sentence", "sentences", multiple=True, help="A sentence about the class; repeatable.")
@click.option("--text", help="A file of text about the class (.txt, JSON, JSONL).")
@click.option("--images", help="A folder of its images.")
@click.option("--alias", "aliases", multiple=True, help="Another name; repeatable.")
@click.option("--from", "manifest", help="A JSON file of many classes: {name: [sentence, ...]}.")
@click.option("--dry-run", is_flag=True, help="Show what would happen; write nothing.")
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
    from vlltr_index.classes import NewClass, add_classes, read_manifest
    from vlltr_index.errors import UsageError

    if (name is None) == (manifest is None):
        raise UsageError(
            "give either NAME or --from FILE", "For example: vlltr classes add okapi --text okapi.txt"
        )
    if manifest is not None:
        wanted = read_manifest(existing(manifest))
    else:
        assert name is not None
        wanted = [
            NewClass(
                name,
                tuple(sentences),
                existing(text) if text else None,
                existing(images) if images else None,
                tuple(aliases),
            )
        ]
    workspace = context.open()
    with context.progress() as progress:
        report = add_classes(workspace, wanted, dry_run=dry_run, progress=progress)
    if context.as_json:
        context.emit(asdict(report))
        return
    for line in report.lines():
        context.say(line)
