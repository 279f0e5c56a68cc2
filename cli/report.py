"""`vlltr report`."""

from __future__ import annotations

import click

from vlltr_index.cli.context import Context, device_option, existing, pass_context


@click.command("report")
@click.option("--out", metavar="FILE.html", help="Where to; default: reports/ in the workspace.")
@click.option("--split", default="test", show_default=True, help="Which images to evaluate.")
@click.option(
    "--against",
    metavar="ROW",
    help="Compare with this row of `vlltr evaluate`; default: image-only + logit adjustment, or the best baseline.",
)
@device_option
@pass_context
def report_command(context: Context, out: str | None, split: str, against: str | None) -> None:
    """Write the report of the newest commit as one HTML file, to be opened in any browser, without network.

    Accuracy by class size, gain over the baseline, loss curves, reliability, confusions and explained predictions with
    their nearest sentences, worst classes, anchors and quarantined images. A part that is not there names the command
    that brings it.
    """
    from vlltr_index.cli.render import percent
    from vlltr_index.pipelines.report import write_report

    target = existing(out) if out else None
    done = write_report(context.open(), target, split, against, context.progress)
    if done.top1:
        said = ", ".join(f"{shot} {percent(value.value)}" for shot, value in done.top1.items())
        context.say(f"{done.images:,} images of split {split}, top-1 accuracy in %: {said}")
    for part in done.missing:
        context.say(f"Not in it: {part.why}. {part.mend}")
    context.show(done, [f"Wrote {done.path} ({done.bytes / 2**20:.1f} MiB)."], always=True)
