"""Commands `vlltr predict` and `vlltr explain`, and the text form of their answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from vlltr_index.cli.main import (
    FILE,
    Context,
    actors_option,
    at_option,
    broken,
    crops_option,
    device_option,
    echo,
    engine_option,
    pass_context,
    percent,
)
from vlltr_index.schemas.options import RETRIEVALS
from vlltr_index.schemas.records import ClassScore, Prediction, SentenceShare, by_group

_INDENT = " " * 11
_SILENT = "the text has no weight in this head (vlltr train lgr says why): no sentence decided anything"


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
    "--min-accuracy",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="ACCURACY",
    help="Answer at the deepest rank that held this accuracy on held-out images, such as 0.95.",
)
@click.option("--out", type=FILE, help="Write to .csv, .jsonl or .parquet; stopped, the command goes on.")
@click.option(
    "--retrieval",
    type=click.Choice(RETRIEVALS),
    default="auto",
    help="Score the classes that the index retrieves, or all; auto: what is quicker.",
)
@engine_option
@actors_option
@click.option("--reject", is_flag=True, help='Say "none of these" where 95 % of known images are likelier.')
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
    **how: Any,
) -> None:
    """Recognise images and name the sentences behind each answer.

    IMG is an image, a folder, a pattern in quotes ('shots/**/*.jpg'), a list (.txt) with a path a line, a Parquet file
    with a column image, or an address in object storage (s3://bucket/shots). An image that cannot be read is reported
    and the others are answered; the exit code is then 1.
    """
    from vlltr_index.data.decoding import UNREADABLE
    from vlltr_index.data.unlabelled import unlabelled_images
    from vlltr_index.pipelines.predict import OnRay, check_target, predict_to_file
    from vlltr_index.recognizer import Recognizer
    from vlltr_index.schemas.options import PredictOptions

    if engine == "ray" and out is None:
        raise click.UsageError("--engine ray writes a file: name it with --out FILE")
    if out is not None:
        check_target(out)  # before the model is loaded
    workspace = context.open()
    model = Recognizer.open(workspace, at=at).current()
    if explain is None:
        explain = 0 if out else 3
    options = PredictOptions(only=_names(only), explain=explain, **how)
    if out is not None:
        ray = OnRay(workspace.address, actors) if engine == "ray" else None
        report = predict_to_file(model, images, out, options, progress=context.progress, ray=ray)
        context.show(report)
        answered = report.images
        unread = report.unreadable
    else:
        predictions = []
        for one in model.stream(unlabelled_images(images), options):
            predictions.append(one if context.as_json else replace(one, classes=()))
            if not context.as_json:
                lines = prediction_lines(one, context.width(), options.min_accuracy is not None)
                context.show(one, lines, always=True)
        if context.as_json:
            context.show(predictions)
        answered = len(predictions)
        unread = sum(p.problem is not None for p in predictions)
    if unread:
        echo(f"{unread} of {answered} images cannot be read. {UNREADABLE}", err=True)
        raise click.exceptions.Exit(1)


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
    context.show(scores, explanation_lines(image, scores, context.width()), always=True)


def prediction_lines(prediction: Prediction, width: int | None = None, covered: bool = False) -> list[str]:
    """Return a prediction as lines: classes with image part and text part, and below each its sentences, by share.

    Args:
        prediction: What the recognizer says of one image.
        width: Columns to break lines at; none: a sentence a line, however long.
        covered: Whether the answer is that of a rank (`--min-accuracy`).
    """
    if prediction.problem is not None:
        return [f"{prediction.image}: not read: {prediction.problem}"]
    lines = [prediction.image]
    silent = _silent(prediction.classes)
    answer = prediction.answer
    best = ", ".join(f"{s.name} {percent(s.probability)} %" for s in prediction.classes[:3])
    if prediction.known is False:
        return [*lines, f"  none of these (closest: {best})"]
    if covered and answer is None:
        return [*lines, f"  no answer at any rank (closest: {best})"]
    if answer is not None:
        lines.append(
            f"  {percent(answer.probability):>5} %  {answer.node} ({answer.rank})   (closest: {best})"
        )
        lines += [] if silent else _said(by_group(answer.sentences), width)
    for score in prediction.classes if answer is None else ():
        lines += _head(score, width)
        lines += [] if silent else _said(score.folded, width)
        lines += [f"{_INDENT}near {near.cosine:.3f}  {near.uri}" for near in score.neighbours]
    return lines + _notes(prediction.classes, silent, width)


def _said(groups: Sequence[Sequence[SentenceShare]], width: int | None) -> list[str]:
    """Return groups of sentences with their per cent, without those that speak against the answer."""
    lines: list[str] = []
    for group in groups:
        share = sum(sentence.percent for sentence in group)
        if round(share) > 0:
            more = f" (and {len(group) - 1} like it)" if len(group) > 1 else ""
            said = f"{group[0].text}{more}  [{group[0].source}]"
            lines += broken(f"{_INDENT}{round(share):3d} %  ", said, width)
    return lines


def _head(score: ClassScore, width: int | None) -> list[str]:
    """Return a class with a bar of image part and text part beside it, or below it in a narrow terminal."""
    head = f"  {percent(score.probability):>5} %  {score.name}"
    sides = {"image": score.image_part, "text": score.text_part}
    against = " and ".join(name for name, part in sides.items() if part < 0)
    bar = against and f"{against} against it"
    share = round(100 * score.image_share)
    drawn = "█" * round(share / 10) + "░" * (10 - round(share / 10))
    if min(sides.values()) > 0:
        bar = f"image {share} % {drawn} text {100 - share} %"
    elif max(sides.values()) > 0:
        bar = f"{drawn} {'image' if share else 'text'} alone" + (bar and f", {bar}")
    if bar and width is not None and len(head) + len(bar) + 3 > width:
        return [head, _INDENT + bar]
    return [f"{head}   {bar}".rstrip()]


def _notes(scores: Sequence[ClassScore], silent: bool, width: int | None) -> list[str]:
    """Return notes on what the numbers mean and what a prompt is, or that no sentence decided."""
    sentences = [s for score in scores for s in score.sentences]
    if not sentences:
        notes = []
    elif silent:
        notes = [_SILENT]
    else:
        notes = ["%: how much of the class's text score the sentence gave"]
        if any(s.source == "prompt" for s in sentences):
            notes.append("[prompt]: a sentence made of the class's name alone")
    if any(score.neighbours for score in scores):
        notes.append("near: a training picture of the class, and its cosine")
    return broken("  ", "; ".join(notes), width) if notes else []


def _silent(scores: Sequence[ClassScore]) -> bool:
    """Say whether the text has no weight, so that no sentence decided."""
    return not any(score.text_part or score.unit != "log-odds" for score in scores)


def explanation_lines(image: str, scores: Sequence[ClassScore], width: int | None = None) -> list[str]:
    """Return one class, or two to compare, as lines with all anchor sentences, wrapped at `width` columns."""
    from vlltr_index.recognition.in_words import contrast

    lines = [image]
    if len(scores) == 2:
        lines += broken("  ", contrast(*scores), width)
    for score in scores:
        image_part = score.image_part
        text_part = score.text_part
        parts = f"image branch {percent(image_part)} + text branch {percent(text_part)}"
        if score.unit == "log-odds":
            total = image_part + text_part
            parts = f"log-odds {total:+.2f} = image side {image_part:+.2f}, text {text_part:+.2f}"
        lines += _head(score, width)
        lines += broken(_INDENT, f"{parts}; cosine {score.cosine:.3f}", width)
        lines.append(f"{_INDENT}    %   share  effect  attention")
        for s in score.sentences:
            numbers = f"{s.percent:5.1f}  {s.share:+.3f}  {s.effect:+.3f}  {s.attention:.3f}  "
            lines += broken(_INDENT + numbers, f"{s.text}  [{s.source}]", width)
    said = (
        "share: points of the cosine, which all shares add up to; effect: what it loses without the sentence"
    )
    return lines + broken("  ", said, width) + (broken("  ", _SILENT, width) if _silent(scores) else [])
