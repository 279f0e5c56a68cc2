"""`vlltr fit`: from a folder of pictures to a model, each step a command that could have been typed."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlltr_index.cli.context import Context, device_option, existing, pass_context, set_option
from vlltr_index.cli.steps import Step, run_step
from vlltr_index.errors import InputError

if TYPE_CHECKING:
    from vlltr_index.evaluation.metrics import EvaluationReport

_TEXTS = ("texts", "texts.json", "texts.jsonl", "texts.csv", "texts.parquet")
_TESTS = ("test", "val", "validation", "valid")


@click.command("fit")
@click.argument("directory", metavar="DIR")
@click.option(
    "--text",
    metavar="PATH",
    help="Sentences, as for `ingest text`; default: DIR/texts, or DIR/texts.json (.jsonl, .csv, .parquet).",
)
@click.option("--encoder", metavar="MODEL[:PRETRAINED|:FILE]", help="As for `init`.")
@click.option("--recipe", metavar="NAME", help="As for `init`.")
@set_option
@click.option("--to", metavar="DIR", help="The workspace; default: DIR-model beside DIR.")
@click.option(
    "--hold-out",
    default=0.2,
    show_default=True,
    type=click.FloatRange(0, 0.9),
    metavar="SHARE",
    help="Share of each class's pictures to measure on; not used where DIR has a folder test or val.",
)
@device_option
@pass_context
def fit_command(
    context: Context,
    directory: str,
    text: str | None,
    encoder: str | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    to: str | None,
    hold_out: float,
) -> None:
    """Make a model of the pictures in DIR: a folder of class folders, or of the folders train and test.

    A part of the pictures is held out, the model is measured on it beside simple rules, and a report is written. Then
    the head is trained once more on all pictures. Run it again when pictures or texts came: vectors are kept.
    """
    pictures = existing(directory)
    if directory.startswith("-"):
        pictures = pictures.resolve()  # no option of a step
    if not pictures.is_dir():
        raise InputError(f"{pictures} is no folder", "Give a folder of class folders: DIR/tench/1.jpg")
    folder = existing(to) if to else pictures.resolve().with_name(f"{pictures.resolve().name}-model")
    steps = plan_steps(pictures, existing(text) if text else _texts(pictures), hold_out)
    chosen = {"--encoder": encoder, "--recipe": recipe}
    options = [part for name, value in chosen.items() if value for part in (name, value)]
    options += [part for value in overrides for part in ("--set", value)]
    if options or not (folder / "vlltr.toml").exists():
        run_step(context, folder, Step("A workspace", ("init", str(folder), *options)), "[0]")
    measured: EvaluationReport | None = None
    for number, step in enumerate(steps, 1):
        if step.args[:2] == ("train", "baseline") and not _tested(folder):
            context.say("\nNo class has pictures enough to hold one out: nothing is measured.")
            break
        _, result = run_step(context, folder, step, f"[{number}/{len(steps)}]")
        measured = result if step.args[0] == "evaluate" else measured
        if step.args[:2] == ("ingest", "images"):
            look(context, folder)
    context.show({"workspace": str(folder), "evaluation": measured}, ())
    if measured is not None:
        context.say("\n" + verdict(measured))
    typed = f"vlltr -w {shlex.quote(str(folder))}"
    context.say("\nWhat to do with it:")
    context.say(f"  {typed} predict PICTURE.jpg            what is it, and why")
    context.say(f'  {typed} classes add NAME --sentence "..."   a class more, without training')
    context.say(f"  {typed} status                         what is there")
    if (folder / "reports").exists():
        context.say(f"The report lies in {folder / 'reports'}.")


def plan_steps(pictures: Path, texts: Path | None, hold_out: float) -> list[Step]:
    """The commands after `init`, in order.

    Raises:
        InputError: If the folder or the texts are not what they should be.
    """
    inside = {entry.name.lower(): entry for entry in pictures.iterdir() if entry.is_dir()}
    test = next((name for name in _TESTS if name in inside), None) if "train" in inside else None
    _check(pictures, inside, test)
    if texts is not None and not texts.exists():
        raise InputError(f"there is no {texts}", "Give the texts that there are, or leave --text out.")
    source = str(inside.get("train", pictures))
    ingest = ("ingest", "images", source, "--split", "train")
    steps = []
    if texts is not None:
        steps.append(Step("Sentences about the classes", ("ingest", "text", str(texts))))
    if test is None:
        held = (*ingest, "--hold-out", f"{hold_out:g}")
        steps.append(Step("Pictures, and a part of them to measure on", held))
    else:
        measured = ("ingest", "images", str(inside[test]), "--split", "test")
        steps += [Step("Pictures to learn from", ingest), Step("Pictures to measure on", measured)]
    steps += _trained()
    if test is None and not hold_out:
        return steps
    for rule in ("ncm", "discriminant", *(["zero-shot"] if texts is not None else [])):
        steps.append(Step("A simple rule on the same vectors", ("train", "baseline", rule)))
    steps += [
        Step("Accuracy on pictures that it has not seen", ("evaluate", "--split", "test")),
        Step("The report", ("report", "--split", "test")),
    ]
    if test is None:
        steps += [Step("All pictures for training", (*ingest, "--hold-out", "0")), *_trained()]
    return steps


def _check(pictures: Path, inside: dict[str, Path], test: str | None) -> None:
    """Refuse folders whose names say that they are no classes."""
    if (pictures / "vlltr.toml").exists():
        raise InputError(
            f"{pictures} is a workspace", "Give the folder of pictures; --to names the workspace."
        )
    if not inside:
        raise InputError(f"{pictures} has no class folder", "Give a folder of class folders: DIR/tench/1.jpg")
    parts = sorted(inside.keys() & {"train", *_TESTS})
    if parts and test is None and inside.keys() - {"texts"} != {"train"}:
        raise InputError(
            f"{pictures} has a folder {parts[0]}, which is no class, and not train and test",
            f"Put class folders into {pictures / 'train'} and {pictures / 'test'}, or give one of them.",
        )
    if test is None:
        return
    known, asked = ({e.name for e in inside[part].iterdir() if e.is_dir()} for part in ("train", test))
    if not known & asked:
        there = [", ".join(sorted(names)[:5]) or "no class" for names in (known, asked)]
        raise InputError(
            f"train and {test} of {pictures} have no class in common: {there[0]}; {there[1]}",
            f"Name the folders alike, or take {test} away: then a part of train is held out.",
        )


def look(context: Context, folder: Path) -> None:
    """Stop where no picture can be read; tell of those that are gone from their places, which count all the same."""
    from vlltr_index.store.ingestion import is_gone
    from vlltr_index.store.workspace import Workspace

    snapshot = Workspace.open(folder).snapshot()
    rows = snapshot.table("images", ["uri", "class_id"], "problem IS NULL AND data IS NULL")
    if not rows.num_rows:
        raise InputError("none of the pictures can be read", "The lines above say why.")
    names = snapshot.class_table().names
    pairs = zip(rows["uri"].to_pylist(), rows["class_id"].to_pylist(), strict=True)
    gone = Counter(names[owner] for uri, owner in pairs if owner in names and is_gone(uri))
    if gone:
        listed = ", ".join(f"{name} {count}" for name, count in gone.most_common(5))
        context.say(
            f"{gone.total()} pictures are no longer where they were, and count all the same: {listed}. Where a class"
            f" was renamed or given up: vlltr -w {shlex.quote(str(folder))} classes rename OLD NEW, or classes"
            " remove NAME."
        )


def verdict(measured: EvaluationReport) -> str:
    """How good the model is, beside the best simple rule, in a sentence or two."""
    mine, other = measured.rows["vl-ltr"].top1["overall"], measured.against
    said = (
        f"Of {mine.images:,} pictures that it had not seen, the model named {100 * mine.value:.1f} % rightly"
    )
    if other is None:
        return f"{said}."
    rule = "the best simple rule, " if other in ("ncm", "discriminant", "zero-shot") else ""
    said += f"; {rule}{other}, {100 * measured.rows[other].top1['overall'].value:.1f} %."
    less = measured.differences["overall"]
    if less.low > 0:
        return f"{said} The model is better."
    return f"{said} {'That is better.' if less.high < 0 else 'That may be chance.' if less.value else ''}".rstrip()


def _tested(folder: Path) -> bool:
    """Whether there are pictures to measure on."""
    from vlltr_index.store.workspace import Workspace

    return Workspace.open(folder).snapshot().count("images", "split = 'test' AND problem IS NULL") > 0


def _trained() -> list[Step]:
    return [
        Step("Vectors of pictures and sentences", ("embed",)),
        Step("The sentences that tell the classes apart (AnSS)", ("select",)),
        Step("The head, and how much pictures and texts count", ("train", "lgr")),
        Step("The index over the sentences", ("index",)),
    ]


def _texts(pictures: Path) -> Path | None:
    """The texts that lie among the pictures."""
    return next((path for name in _TEXTS if (path := pictures / name).exists()), None)
