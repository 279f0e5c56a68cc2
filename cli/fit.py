"""Commands `vlltr fit` and `vlltr quickstart`: from pictures to a model, each step a command that could be typed."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlltr_index.cli.main import DIR, FILE, Context, device_option, pass_context, set_option, vlltr
from vlltr_index.errors import InputError

if TYPE_CHECKING:
    from vlltr_index.evaluation.metrics import EvaluationReport

Step = tuple[str, tuple[str, ...]]
"""Title of a step, and the words of its command."""

_TEXTS = ("texts", "texts.json", "texts.jsonl", "texts.csv", "texts.parquet")
_TESTS = ("test", "val", "validation", "valid")
_TO_MEASURE = "split = 'test' AND problem IS NULL"
_TRAINED: list[Step] = [
    ("Vectors of pictures and sentences", ("embed",)),
    ("The sentences that tell the classes apart (AnSS)", ("select",)),
    ("The head, and how much pictures and texts count", ("train", "lgr")),
    ("The index over the sentences", ("index",)),
]
_FOLDER = {"fast": "vlltr-quickstart-fast", "short": "vlltr-quickstart", "full": "vlltr-quickstart-full"}
_RECIPE = {"fast": "glyphs_lt/fast", "short": "glyphs_lt/quick", "full": "glyphs_lt/ours"}
_UNSEEN = "latin small letter k with caron"  # a held-out class that the method recognises well from text


def run_step(context: Context, folder: Path, step: Step, place: str) -> Any:
    """Print a step, run it on the workspace `folder`, and return its result; with --json it prints to stderr."""
    title, words = step
    args = words if words[0] == "init" else ("-w", str(folder), *words)
    context.say(f"\n{place} {title}\n$ {shlex.join(('vlltr', *args))}")
    options = ["--quiet"] if context.quiet or context.as_json else []
    started = time.monotonic()
    with redirect_stdout(sys.stderr if context.as_json else sys.stdout):
        result = vlltr.main(args=[*options, *args], prog_name="vlltr", standalone_mode=False, obj=True)
    context.say(f"({time.monotonic() - started:.1f} s)")
    return result


@click.command("fit")
@click.argument("pictures", metavar="DIR", type=DIR)
@click.option(
    "--text", type=FILE, help="Sentences, as for `ingest text`; default: DIR/texts (.json, .csv, ...)."
)
@click.option("--encoder", metavar="MODEL[:PRETRAINED|:FILE]", help="As for `init`.")
@click.option("--recipe", metavar="NAME", help="As for `init`.")
@set_option
@click.option("--to", type=DIR, help="The workspace; default: DIR-model beside DIR.")
@click.option(
    "--hold-out",
    default=0.2,
    type=click.FloatRange(0, 0.9),
    metavar="SHARE",
    help="Share of each class's pictures to measure on; not used where DIR has a folder test or val.",
)
@device_option
@pass_context
def fit_command(
    context: Context,
    pictures: Path,
    text: Path | None,
    encoder: str | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    to: Path | None,
    hold_out: float,
) -> None:
    """Make a model of the pictures in DIR: a folder of class folders, or of the folders train and test.

    A part of the pictures is held out, the model is measured on it beside simple rules, and a report is written. Then
    the head is trained once more on all pictures. Run it again when pictures or texts came: vectors are kept.
    """
    if not pictures.is_dir():
        raise InputError(f"{pictures} is no folder", "Give a folder of class folders: DIR/tench/1.jpg")
    if str(pictures).startswith("-"):
        pictures = pictures.resolve()  # so that a step does not take it for an option
    folder = to or pictures.resolve().with_name(f"{pictures.resolve().name}-model")
    found = [pictures / name for name in _TEXTS if (pictures / name).exists()]
    texts = text or (found[0] if found else None)
    steps = plan_fit(pictures, texts, hold_out)
    chosen = [("--encoder", encoder), ("--recipe", recipe), *(("--set", value) for value in overrides)]
    options = [part for name, value in chosen if value for part in (name, value)]
    if options or not (folder / "vlltr.toml").exists():
        run_step(context, folder, ("A workspace", ("init", str(folder), *options)), "[0]")
    measured: EvaluationReport | None = None
    for number, step in enumerate(steps, 1):
        if step[1][:2] == ("train", "baseline") and not _count(folder, _TO_MEASURE):
            context.say("\nNo class has pictures enough to hold one out: nothing is measured.")
            break
        result = run_step(context, folder, step, f"[{number}/{len(steps)}]")
        measured = result if step[1][0] == "evaluate" else measured
        if step[1][:2] == ("ingest", "images") and not _count(folder, "problem IS NULL"):
            raise InputError("none of the pictures can be read", "The lines above say why.")
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


def plan_fit(pictures: Path, texts: Path | None, hold_out: float) -> list[Step]:
    """Return the commands of `vlltr fit` after `init`, in order.

    Raises:
        InputError: If the folder or the texts are not what they should be.
    """
    inside = {entry.name.lower(): entry for entry in pictures.iterdir() if entry.is_dir()}
    test = next((name for name in _TESTS if name in inside), None) if "train" in inside else None
    _check(pictures, inside, test)
    if texts is not None and not texts.exists():
        raise InputError(f"there is no {texts}", "Give the texts that there are, or leave --text out.")
    ingest = ("ingest", "images", str(inside.get("train", pictures)), "--split", "train")
    steps: list[Step] = []
    if texts is not None:
        steps.append(("Sentences about the classes", ("ingest", "text", str(texts))))
    if test is None:
        steps.append(("Pictures, and a part of them to measure on", (*ingest, "--hold-out", f"{hold_out:g}")))
    else:
        measured = ("ingest", "images", str(inside[test]), "--split", "test")
        steps += [("Pictures to learn from", ingest), ("Pictures to measure on", measured)]
    steps += _TRAINED
    if test is None and not hold_out:
        return steps
    for rule in ("ncm", "discriminant", *(["zero-shot"] if texts is not None else [])):
        steps.append(("A simple rule on the same vectors", ("train", "baseline", rule)))
    steps.append(("Accuracy on pictures that it has not seen", ("evaluate", "--split", "test")))
    steps.append(("The report", ("report", "--split", "test")))
    if test is None:
        steps += [("All pictures for training", (*ingest, "--hold-out", "0")), *_TRAINED]
    return steps


def _check(pictures: Path, inside: dict[str, Path], test: str | None) -> None:
    """Refuse folders whose names show that they are not class folders."""
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


def verdict(measured: EvaluationReport) -> str:
    """Say in a sentence or two how accurate the model is, compared with the best simple rule."""
    mine = measured.rows["vl-ltr"].top1["overall"]
    other = measured.against
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


def _count(folder: Path, where: str) -> int:
    """Count the workspace's images for which the SQL condition `where` holds."""
    from vlltr_index.store.workspace import Workspace

    return Workspace.open(folder).snapshot().count("images", where)


@click.command("quickstart")
@click.option("--fast", "size", flag_value="fast", help="A small slice in about a minute: does it work here?")
@click.option("--full", "size", flag_value="full", help="All classes, in full (half an hour or more).")
@click.option("--dir", "folder", type=DIR, help="Where to; default: ./vlltr-quickstart (-fast, -full).")
@device_option
@pass_context
def quickstart_command(context: Context, size: str | None, folder: Path | None) -> None:
    """Run the whole method on Glyphs-LT, the long-tailed data set that ships with the package.

    Ingests text and images of a third of its classes, trains, selects anchor sentences, indexes, evaluates, explains a
    prediction, adds a class by its description alone, and writes a report. Every step is printed as the command that
    does it. Stopped, it goes on where it was.
    """
    from vlltr_index.data.writing import write_file

    size = size or "short"
    folder = folder or Path(_FOLDER[size])
    started = time.monotonic()
    journal = folder / "quickstart.json"
    done: dict[str, float] = json.loads(journal.read_text(encoding="utf-8")) if journal.is_file() else {}
    init = ("A workspace", ("init", str(folder), "--recipe", _RECIPE[size]))
    run_step(context, folder, init, "[0]")
    steps = list(plan_quickstart(folder, size))
    for number, step in enumerate(steps, 1):
        place = f"[{number}/{len(steps)}]"
        began = time.monotonic()
        key = f"{place} {shlex.join(step[1])}"
        shows = step[1][0] in ("evaluate", "predict") and "--explain" not in step[1]
        if key in done and not shows:
            context.say(f"{place} {step[0]}: done before")
            continue
        run_step(context, folder, step, place)
        done[key] = round(time.monotonic() - began, 1)
        write_file(journal, (json.dumps(done, indent=2) + "\n").encode())
    minutes = (time.monotonic() - started) / 60
    context.show({"workspace": str(folder), "steps": done, "minutes": round(minutes, 2)}, ())
    context.say(
        f"\nDone in {minutes:.1f} minutes. The workspace is {folder}; the report lies in {folder / 'reports'}."
    )
    context.say("For a folder of your own, with a folder of pictures for each class:")
    context.say("  vlltr fit PICTURES --encoder ViT-B-32-quickgelu:openai")
    context.say("  vlltr -w PICTURES-model predict NEW.jpg")
    context.say('  vlltr -w PICTURES-model classes add NAME --sentence "What it looks like."')


def plan_quickstart(folder: Path, size: str) -> Iterator[Step]:
    """Yield the commands of a quickstart, in order, writing the sample files that they name."""
    from vlltr_index.data.glyphs import glyph_files, write_part, write_sample
    from vlltr_index.data.writing import write_file

    data = glyph_files(fast=size == "fast")
    short = size == "short"
    data = write_part(data, 3, folder / "data") if short else data
    yield "Sentences about every class", ("ingest", "text", str(data.texts))
    alike = ", drawn by the fonts of train; a few fonts share a glyph to the byte"
    for split, note in (("train", ""), ("val", alike), ("test", ", drawn by other fonts")):
        yield f"Images: {split}{note}", ("ingest", "images", str(data.images), "--split", split)
    yield "Stage 1: train both towers together (CVLP)", ("train", "cvlp")
    yield "Embed sentences and images into LanceDB", ("embed",)
    yield "Keep the sentences that tell the classes apart (AnSS)", ("select",)
    yield "Stage 2: the language-guided head (LGR)", ("train", "lgr")
    yield "The index over the anchor sentences", ("index",)
    if size != "fast":
        yield "The image-only baseline", ("train", "baseline", "fc")
    yield "Accuracy by class size", ("evaluate", "--split", "test")
    classes = json.loads((data.folder / "classes.json").read_text(encoding="utf-8"))
    names = json.loads(data.texts.read_text(encoding="utf-8"))
    few = sorted(n for n in names if classes[n]["bin"] == "few" and classes[n]["train"] <= 5)
    known = few[len(few) // 2]
    samples = folder / "samples"
    held = data.heldout_classes("dev")
    known_png = str(write_sample(data.images, "test", known, samples / "known.png"))
    unseen_png = str(write_sample(data.images, "dev_test", _UNSEEN, samples / "unseen.png"))
    unseen_txt = samples / "unseen.txt"
    write_file(unseen_txt, ("\n".join(held.pop(_UNSEEN)) + "\n").encode())
    after = "; after seconds of training the new class need not win yet" if size == "fast" else ""
    yield f"A rare character, explained ({known})", ("predict", known_png, "--top", "2")
    yield (
        f"A character that no class stands for ({_UNSEEN})",
        ("predict", unseen_png, "--top", "2", "--explain", "1"),
    )
    yield "Add its class by its description alone", ("classes", "add", _UNSEEN, "--text", str(unseen_txt))
    yield f"The same picture again{after}", ("predict", unseen_png, "--top", "2")
    if size == "full":
        manifest = samples / "dev-classes.json"
        write_file(manifest, (json.dumps(held, ensure_ascii=False, indent=1) + "\n").encode())
        added = ("classes", "add", "--from", str(manifest))
        yield "Add the other development classes, from text alone", added
        yield "Their images", ("ingest", "images", str(data.images), "--split", "dev_test")
        yield "Embed them", ("embed",)
        yield "New classes among all", ("evaluate", "--split", "dev_test")
        yield "Old classes beside them", ("evaluate", "--split", "test")
    yield "One file about all of it, for a browser", ("report",)
