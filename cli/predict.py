"""Commands `vlltr predict` and `vlltr explain`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlltr_index.cli.answers import explanation_lines, prediction_lines
from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.options import (
    FILE,
    actors_option,
    at_option,
    crops_option,
    device_option,
    engine_option,
    prior_option,
    read_prior_and_frequencies,
)
from vlltr_index.cli.terminal import echo, terminal_width
from vlltr_index.schemas.options import RETRIEVALS

if TYPE_CHECKING:
    from vlltr_index.schemas.options import PredictOptions
    from vlltr_index.schemas.records import Prediction


@click.command("predict")
@click.argument("images", nargs=-1, required=True, metavar="IMG...")
@click.option("--top", default=5, type=click.IntRange(1), help="Classes an image.")
@click.option("--explain", type=click.IntRange(0), help="Sentences a class; default: 3, or with --out none.")
@click.option("--neighbours", default=0, type=click.IntRange(0), help="Nearest images of the best class.")
@click.option(
    "--only",
    metavar="LIST|FILE",
    help="Answer among these classes alone: names with commas between, or a file with one a line.",
)
@click.option("--parent", metavar="NAME", help="Answer among the classes below this name alone.")
@click.option(
    "--min-probability",
    default=0.0,
    type=click.FloatRange(0, 1),
    metavar="PROBABILITY",
    help="Leave classes out that are less probable, such as 0.8; an answer may then have none.",
)
@click.option(
    "--min-accuracy",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="ACCURACY",
    help="Answer at the deepest rank that held this accuracy on held-out images, such as 0.95.",
)
@prior_option
@click.option(
    "--taken",
    type=FILE,
    help="Where and when pictures were taken, for a --prior with a column place or month: a file with the columns"
    " image, and place, month or both; a month that it does not say is read from the picture.",
)
@click.option(
    "--group",
    metavar="folder|name:REGEX|seconds:N",
    help="Give pictures that show one thing one answer together: those of a folder, those in whose names REGEX finds"
    " the same, or those taken within N seconds of one another, in a row; all within a folder.",
)
@click.option(
    "--out", type=FILE, help="Write to a .csv, .jsonl or .parquet file. An interrupted run resumes."
)
@click.option(
    "--retrieval",
    type=click.Choice(RETRIEVALS),
    default="auto",
    help="Score the classes that the index retrieves, or all; auto: what is quicker.",
)
@engine_option
@actors_option
@click.option("--reject", is_flag=True, help='Say "none of these" where 95 % of known images fit better.')
@crops_option
@at_option
@device_option
@pass_context
def predict_command(
    context: Context,
    /,
    images: tuple[str, ...],
    explain: int | None,
    only: str | None,
    out: Path | None,
    at: int | None,
    engine: str,
    actors: int | None,
    prior: str,
    taken: Path | None,
    group: str | None,
    **how: Any,
) -> None:
    """Recognise images and name the sentences behind each answer.

    IMG is an image, a folder, a pattern in quotes ('shots/**/*.jpg'), a list (.txt) with a path a line, a Parquet file
    with a column image, or an address in object storage (s3://bucket/shots). An image that cannot be read is reported
    and the others are answered; the exit code is then 1.
    """
    from vlltr_index.data.decoding import UNREADABLE
    from vlltr_index.pipelines.answer_table import check_target
    from vlltr_index.pipelines.asked import find_situations
    from vlltr_index.pipelines.predict import OnRay, predict, predict_to_file
    from vlltr_index.recognizer import Recognizer
    from vlltr_index.schemas.options import PredictOptions

    if engine == "ray" and out is None:
        raise click.UsageError("--engine ray writes a file: name it with --out FILE")
    if out is not None:
        check_target(out)  # before the model is loaded
    workspace = context.open()
    if explain is None:
        explain = 0 if out else 3
    known, frequencies = read_prior_and_frequencies(prior)
    options = PredictOptions(only=_names(only), explain=explain, prior=known, **how)
    by_situation = None
    if frequencies is not None and frequencies.situated:
        by_situation = find_situations(images, frequencies, taken, context.progress)
    elif taken is not None:
        raise click.UsageError("--taken is for a --prior FILE with a column place or month")
    if out is not None:
        model = Recognizer.open(workspace, at=at).current()
        ray = OnRay(workspace.address, actors) if engine == "ray" else None
        report = predict_to_file(
            model, images, out, options,
            progress=context.progress, ray=ray, group=group, situated=by_situation,
        )  # fmt: skip
        context.show(report)
        answered = report.images
        unread = report.unreadable
    else:
        answered, unread = _show(
            context, predict(workspace, images, options, at, group, by_situation), options
        )
    if unread:
        files = {image for image in images if "://" not in image and not has_magic(image)}
        missing = [image for image in files if not os.path.exists(image)]
        hint = UNREADABLE if len(missing) < unread else "Check the path: there is no such file."
        echo(f"{unread} of {answered} images cannot be read. {hint}", err=True)
        raise click.exceptions.Exit(1)


def _show(context: Context, answers: Iterable[Prediction], options: PredictOptions) -> tuple[int, int]:
    """Print answers as they come, or all as JSON; return their number and that of pictures that cannot be read."""
    predictions = []
    said = None  # the group whose answer was printed
    for one in answers:
        predictions.append(one if context.as_json else replace(one, classes=()))
        if not context.as_json:
            lines = prediction_lines(one, terminal_width(), options.min_accuracy is not None)
            if one.problem is None:
                lines = [f"{one.image}: the same answer"] if one.group and one.group == said else lines
                said = one.group
            context.show(one, lines, always=True)
    if context.as_json:
        context.show(predictions)
    return len(predictions), sum(one.problem is not None for one in predictions)


def _names(only: str | None) -> list[str] | None:
    """Return the class names of `--only`."""
    from vlltr_index.data.files import read_lines

    if only is None:
        return None
    listed: Iterable[str] = only.split(",")
    # Not Path.is_file, which raises if the list is too long for a file name.
    file = os.path.expanduser(only)
    if os.path.isfile(file):
        listed = (line for _, line in read_lines(Path(file)))
    return [name.strip() for name in listed if name.strip()]


@click.command("explain")
@click.argument("image", metavar="IMG")
@click.option("--class", "name", required=True, help="The class to explain.")
@click.option("--against", help="Another class: why the one and not the other.")
@crops_option
@at_option
@device_option
@pass_context
def explain_command(
    context: Context, image: str, name: str, against: str | None, crops: int, at: int | None
) -> None:
    """Show every anchor sentence of a class with its share and effect for one image, and why it rather than another."""
    from vlltr_index.recognizer import Recognizer

    recognizer = Recognizer.open(context.open(), at=at)
    names = (name,) if against is None else (name, against)
    scores = [recognizer.explain(image, one, crops) for one in names]
    if len({score.class_id for score in scores}) < len(scores):
        raise click.UsageError(f"--class and --against are the same class, {scores[0].name!r}")
    context.show(scores, explanation_lines(image, scores, terminal_width()), always=True)
