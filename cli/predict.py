"""`vlltr predict` and `vlltr explain`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import click

from vlltr_index.cli.context import (
    Context,
    actors_option,
    at_option,
    check_engine,
    crops_option,
    device_option,
    engine_option,
    existing,
    pass_context,
)
from vlltr_index.errors import InputError


@click.command("predict")
@click.argument("images", nargs=-1, required=True, metavar="IMG...")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes an image.")
@click.option("--explain", type=click.IntRange(0), help="Sentences a class; default: 3, or with --out none.")
@click.option(
    "--neighbours", default=0, type=click.IntRange(0), help="Nearest training images of the best class."
)
@click.option(
    "--only",
    metavar="LIST|FILE",
    help="Answer among these classes alone: names with commas between, or a file with one a line.",
)
@click.option("--parent", metavar="NAME", help="Answer among the classes below this name alone.")
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="ACCURACY",
    help="Answer at the deepest rank that held this accuracy on held-out images, such as 0.95.",
)
@click.option(
    "--out",
    metavar="FILE",
    help="Write the answers to a .csv, .jsonl or .parquet file; stopped, the same command goes on.",
)
@click.option(
    "--retrieval",
    type=click.Choice(["auto", "faiss", "exhaustive"]),
    default="auto",
    show_default=True,
    help="Score the classes that the index retrieves, or all; auto: what is quicker.",
)
@engine_option
@actors_option
@click.option("--reject", is_flag=True, help='Say "none of these" where 95 % of known images are likelier.')
@crops_option
@at_option("Answer as of this commit.")
@device_option
@pass_context
def predict_command(
    context: Context,
    /,
    images: tuple[str, ...],
    explain: int | None,
    only: str | None,
    out: str | None,
    at: int | None,
    engine: str,
    actors: int | None,
    **how: Any,
) -> None:
    """Recognise images and name the sentences behind each answer.

    IMG is an image, a folder, a pattern in quotes ('shots/**/*.jpg'), a list (.txt) with a path a line, a Parquet file
    with a column image, or an address in object storage (s3://bucket/shots). An image that cannot be read is reported
    and the others are answered; the exit code is then 1.
    """
    from vlltr_index.cli.render import prediction_lines
    from vlltr_index.data.unlabelled import unlabelled_images
    from vlltr_index.pipelines.predict import OnRay, named_predictions, predict_to_file
    from vlltr_index.recognizer import Recognizer

    check_engine(engine, actors)
    if engine == "ray" and out is None:
        raise click.UsageError("--engine ray writes a file: name it with --out FILE")
    workspace = context.open()
    answers = Recognizer.open(workspace, at=at).current()
    how |= {"only": _names(only), "explain": (0 if out else 3) if explain is None else explain}
    if out is not None:
        ray = OnRay(workspace.address, actors) if engine == "ray" else None
        report = predict_to_file(answers, images, existing(out), context.progress, ray, **how)
        context.show(report)
        answered, unread = report.images, report.unreadable
    else:
        predictions = []
        for one in named_predictions(answers, unlabelled_images(images), **how):
            predictions.append(one if context.as_json else replace(one, classes=()))
            if not context.as_json:
                lines = prediction_lines(one, context.width(), how["coverage"] is not None)
                context.show(one, lines, always=True)
        if context.as_json:
            context.show(predictions)
        answered, unread = len(predictions), sum(p.problem is not None for p in predictions)
    if unread:
        from vlltr_index.data.decoding import UNREADABLE

        click.echo(f"{unread} of {answered} images cannot be read. {UNREADABLE}", err=True)
        raise click.exceptions.Exit(1)


def _names(only: str | None) -> list[str] | None:
    """The classes of `--only`."""
    if only is None:
        return None
    listed = only.split(",")
    if os.path.isfile(file := existing(only)):
        try:
            listed = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{file} is not UTF-8", "Write a class a line, in UTF-8.") from None
    return [name.strip() for name in listed if name.strip()]


@click.command("explain")
@click.argument("image", metavar="IMG")
@click.option("--class", "name", required=True, help="The class to explain.")
@click.option("--against", help="Another class: why the one and not the other.")
@crops_option
@at_option("Answer as of this commit.")
@device_option
@pass_context
def explain_command(
    context: Context, image: str, name: str, against: str | None, crops: int, at: int | None
) -> None:
    """Show every anchor sentence of a class with its share and effect for one image, and why it rather than another."""
    from vlltr_index.cli.render import explanation_lines
    from vlltr_index.recognizer import Recognizer

    recognizer = Recognizer.open(context.open(), at=at)
    names = (name,) if against is None else (name, against)
    scores = [recognizer.explain(image, one, crops) for one in names]
    if len({score.class_id for score in scores}) < len(scores):
        raise click.UsageError(f"--class and --against are the same class, {scores[0].name!r}")
    context.show(scores, explanation_lines(image, scores, context.width()), always=True)
