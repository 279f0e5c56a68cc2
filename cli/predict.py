"""`vlltr predict` and `vlltr explain`."""

from __future__ import annotations

import click

from vlltr_index.cli.context import Context, at_option, crops_option, pass_context


@click.command("predict")
@click.argument("images", nargs=-1, required=True, metavar="IMG...")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes an image.")
@click.option("--explain", default=3, show_default=True, type=click.IntRange(0), help="Sentences a class.")
@click.option(
    "--neighbours", default=0, type=click.IntRange(0), help="Nearest training images of the best class."
)
@click.option("--retrieval", type=click.Choice(["faiss", "exhaustive"]), default="faiss", show_default=True)
@click.option("--reject", is_flag=True, help='Say "none of these" where 95 % of known images are likelier.')
@crops_option
@at_option("Answer as of this commit.")
@pass_context
def predict_command(
    context: Context,
    images: tuple[str, ...],
    top: int,
    explain: int,
    neighbours: int,
    retrieval: str,
    reject: bool,
    crops: int,
    at: int | None,
) -> None:
    """Recognise images and name the sentences behind each answer.

    An image that cannot be read is reported and the others are answered; the exit code is then 1.
    """
    from vlltr_index.cli.render import prediction_lines
    from vlltr_index.recognizer import Recognizer

    recognizer = Recognizer.open(context.open(), at=at)
    predictions = recognizer.predict(
        list(images),
        top=top,
        explain=explain,
        retrieval=retrieval,
        reject=reject,
        crops=crops,
        neighbours=neighbours,
    )
    lines = (line for prediction in predictions for line in prediction_lines(prediction, context.width()))
    context.show(predictions, lines, always=True)
    unread = [p for p in predictions if p.problem is not None]
    if unread:
        from vlltr_index.data.decoding import UNREADABLE

        click.echo(f"{len(unread)} of {len(predictions)} images cannot be read. {UNREADABLE}", err=True)
        raise click.exceptions.Exit(1)


@click.command("explain")
@click.argument("image", metavar="IMG")
@click.option("--class", "name", required=True, help="The class to explain.")
@click.option("--against", help="Another class: why the one and not the other.")
@crops_option
@at_option("Answer as of this commit.")
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
