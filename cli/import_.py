"""`vlltr import release`."""

from __future__ import annotations

import click

from vlltr_index.cli.context import Context, existing, pass_context


@click.group("import")
def import_command() -> None:
    """Bring in what other programs have trained."""


@import_command.command("release")
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.option(
    "--names",
    metavar="FILE",
    help="Stage 2: class names in the order of the benchmark's labels, such as labels.txt or categories.json.",
)
@click.option(
    "--anchors",
    is_flag=True,
    help="Stage 2: keep the checkpoint's anchor vectors, whose sentences are not in it.",
)
@pass_context
def release(context: Context, checkpoint: str, names: str | None, anchors: bool) -> None:
    """Make CHECKPOINT of the VL-LTR release the workspace's encoder (stage 1) or image tower and head (stage 2).

    Nothing in the file is executed. Stage 2 takes the text tower of the workspace's encoder, so stage 1 comes first.
    The release keeps its sentences in pickled files, which are not read: `vlltr embed` and `vlltr select` choose the
    anchors anew, unless --anchors keeps the checkpoint's vectors.
    """
    from vlltr_index.pipelines.import_release import import_release

    report = import_release(
        context.open(),
        existing(checkpoint),
        label_names=existing(names) if names else None,
        anchors=anchors,
    )
    context.show(report)
