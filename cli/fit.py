"""Commands `vlltr fit` and `vlltr quickstart`: from pictures to a model, each step printed as a command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.options import (
    DIR,
    FILE,
    dry_run_option,
    group_option,
    plan_device_option,
    set_option,
    yes_option,
)

if TYPE_CHECKING:
    from vlltr_index.pipelines.quickstart import Size
    from vlltr_index.schemas.options import Measurable

_BY_CLASSES = "Measured and compared with each class counted alike. Where classes will be as common as in"
_BY_PICTURES = (
    "Measured and compared with each picture counted alike, classes being as common as in training. Ask with --prior"
    " training, too: without it rare classes count as much as common ones."
)


@click.command("fit")
@click.argument("pictures", metavar="DIR", type=DIR)
@click.option(
    "--text", type=FILE, help="Sentences, as for `ingest text`; default: DIR/texts (.json, .csv, ...)."
)
@click.option("--encoder", metavar="MODEL[:PRETRAINED|:FILE]", help="As for `init`.")
@click.option("--recipe", metavar="NAME", help="As for `init`.")
@set_option
@click.option("--to", type=DIR, help="The workspace, as by -w; default: DIR-model beside DIR.")
@click.option(
    "--prior",
    default="balanced",
    metavar="balanced|training",
    help="Weigh each class equally in the accuracy, or each picture, with training frequencies as the class prior."
    " The report has both.",
)
@group_option
@dry_run_option
@yes_option
@plan_device_option
@pass_context
def fit_command(
    context: Context,
    pictures: Path,
    text: Path | None,
    encoder: str | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    to: Path | None,
    prior: Measurable,
    group: str | None,
    dry_run: bool,
    yes: bool,
    device: str | None,
) -> None:
    """Make a model of the pictures in DIR: a folder of class folders, or of the folders train and test.

    The model is trained on all pictures. It is compared with simple baselines by five-fold cross-validation (from 5,000
    pictures on, by a held-out tenth), or on the folder test, and a report is written. Run it again when pictures or
    texts were added, moved or removed: the workspace is synced with DIR, and stored vectors are reused.
    """
    from vlltr_index.pipelines.fit import fit, from_here

    if to is None and context.workspace is not None:
        to = Path(context.workspace)
    made = fit(
        pictures,
        text,
        encoder,
        recipe=recipe,
        overrides=overrides,
        to=to,
        prior=prior,
        group=group,
        dry_run=dry_run,
        device=device,
        agree=context.agreement(yes),
        progress=context.progress,
        on_step=context.step,
    )
    if dry_run:
        return
    if made.unmeasured is not None:
        context.say("", made.unmeasured)
    folder = from_here(made.workspace.path) if to is None else to
    evaluation = None if made.report is None else made.report.evaluation
    shown = {"workspace": str(folder), "evaluation": evaluation, "unmeasured": made.unmeasured}
    context.show(shown, ())
    typed = f"vlltr -w {shlex.quote(str(folder))}"
    context.say("", "What to do with it:")
    under = "" if prior == "balanced" else f"--prior {prior} "
    context.say(f"  {typed} predict {under}PICTURE.jpg            what is it, and why")
    known_by = '--sentence "..."' if evaluation is None or evaluation.texts_count else "--images DIR  "
    context.say(f"  {typed} classes add NAME {known_by}   a class more, without training")
    context.say(f"  {typed} review                         labels that may be wrong, and near duplicates")
    context.say(f"  {typed} status                         what is there")
    if made.report is not None:
        context.say(f"The report: {made.report.path}")
    if evaluation is not None and prior == "training":
        context.say(_BY_PICTURES)
    elif evaluation is not None and not evaluation.rows["vl-ltr"].balanced.few:  # of few pictures are counted
        context.say(f"{_BY_CLASSES} the folder {pictures}: {typed} report --prior training")


@click.command("quickstart")
@click.option("--fast", "size", flag_value="fast", help="A small slice in about a minute: does it work here?")
@click.option("--full", "size", flag_value="full", help="All classes, in full (half an hour or more).")
@click.option("--dir", "folder", type=DIR, help="Where to; default: ./vlltr-quickstart (-fast, -full).")
@plan_device_option
@pass_context
def quickstart_command(context: Context, size: Size | None, folder: Path | None, device: str | None) -> None:
    """Run the whole method on Glyphs-LT, the long-tailed data set that ships with the package.

    Ingests text and images of a third of its classes, trains, selects anchor sentences, indexes, evaluates, explains a
    prediction, adds a class by its description alone, and writes a report. Every step is printed as the command that
    does it. Stopped, it goes on where it was.
    """
    from vlltr_index.pipelines.quickstart import quickstart

    done = quickstart(size or "short", folder, device=device, progress=context.progress, on_step=context.step)
    context.show(done, ())
    reports = Path(done.workspace) / "reports"
    context.say(
        "",
        f"Done in {done.minutes:.1f} minutes. The workspace is {done.workspace}; the report lies in {reports}.",
    )
    context.say("For a folder of your own, with a folder of pictures for each class:")
    context.say("  vlltr fit PICTURES --encoder ViT-B-32-quickgelu:openai")
    context.say("  vlltr -w PICTURES-model predict NEW.jpg")
    context.say('  vlltr -w PICTURES-model classes add NAME --sentence "What it looks like."')
