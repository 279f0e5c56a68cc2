"""`vlltr images`: the training images of a class."""

from __future__ import annotations

import click

from vlltr_index.cli.context import Context, device_option, dry_run_option, existing, pass_context


@click.group("images")
def images_command() -> None:
    """Give a class more training images, or take some away, without retraining."""


@images_command.command("add")
@click.argument("name", metavar="CLASS")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@dry_run_option
@device_option
@pass_context
def add(context: Context, name: str, paths: tuple[str, ...], dry_run: bool) -> None:
    """Add images to CLASS: files, or folders of them; all anchors are selected again."""
    from vlltr_index.classes import add_images

    context.show(
        add_images(
            context.open(), name, [existing(p) for p in paths], dry_run=dry_run, progress=context.progress
        )
    )


@images_command.command("remove")
@click.argument("ids", nargs=-1, required=True, metavar="IMAGE_ID...")
@dry_run_option
@pass_context
def remove(context: Context, ids: tuple[str, ...], dry_run: bool) -> None:
    """Take images away, by their ids (`vlltr classes show CLASS`)."""
    from vlltr_index.classes import remove_images

    context.show(remove_images(context.open(), ids, dry_run=dry_run, progress=context.progress))
