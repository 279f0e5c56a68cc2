"""Command `vlltr review`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.options import FILE, device_option


@click.command("review")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...")
@click.option("--top", default=200, type=click.IntRange(1), help="Entries at most.")
@click.option(
    "--out",
    "outs",
    type=FILE,
    multiple=True,
    help="Write a table (.csv), which `images relabel` takes back, or a sheet with thumbnails (.html); repeatable.",
)
@device_option
@pass_context
def review_command(context: Context, folders: tuple[str, ...], top: int, outs: tuple[Path, ...]) -> None:
    """List pictures in the order in which looking at them pays.

    Without FOLDER the training pictures: one file in two classes, labels that may be wrong, near duplicates in
    two classes, in two splits and within a class. Labels are judged by models that were fitted without the picture and
    what belongs to it; these answers are kept until pictures, labels or the head change.

    With FOLDER pictures without labels (folders, images, patterns, lists, Parquet files): groups that no class stands
    for, then those whose label would teach most.

    In the table write the class of each picture that you looked at into the column class, then run the command that is
    printed: `vlltr images relabel FILE` (with FOLDER: `--add --root DIR`). `vlltr ui` shows the list one by one.
    """
    from vlltr_index.pipelines.review.files import check_targets, root_of, write_list
    from vlltr_index.pipelines.review.folder import review_folder
    from vlltr_index.pipelines.review.queue import review

    check_targets(outs)
    workspace = context.open()
    if folders:
        found = review_folder(workspace, folders, top, context.progress)
    else:
        found = review(workspace, top, context.progress)
    for path in outs:
        write_list(path, found, workspace.snapshot())
    context.show(found, always=True)
    root = root_of(found) if folders else None
    for path in outs:
        context.say(f"Wrote {path}.")
        if path.suffix.lower() == ".csv" and (root or not folders):
            command = _relabel(context.workspace, path, root)
            context.say(f"Write classes into its column class, then run: {command}")


def _relabel(workspace: str | None, path: Path, root: str | None) -> str:
    """Return the command that takes a table back; `root`: the folder of the pictures that it takes in."""
    chosen = () if workspace is None else ("-w", workspace)
    adding = () if root is None else ("--add", "--root", root)
    return shlex.join(["vlltr", *chosen, "images", "relabel", str(path), *adding])
