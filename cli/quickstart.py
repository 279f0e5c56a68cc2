"""`vlltr quickstart`: the whole method on Glyphs-LT, each step a command that could have been typed."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from vlltr_index.cli.context import Context, device_option, existing, pass_context
from vlltr_index.cli.steps import Step, run_step
from vlltr_index.errors import UsageError

_FOLDER = {"fast": "vlltr-quickstart-fast", "short": "vlltr-quickstart", "full": "vlltr-quickstart-full"}
_ACCURACY = "Accuracy by class size"
_UNSEEN = "latin small letter k with caron"
_RECIPE = {"fast": "glyphs_lt/fast", "short": "glyphs_lt/quick", "full": "glyphs_lt/ours"}


@dataclass
class Journal:
    """Which steps are done, with their wall time and the peak memory of the process so far."""

    path: Path
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Read the journal of an earlier start, if there is one."""
        path = folder / "quickstart.json"
        steps = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return cls(path, steps)

    def check_seed(self, seed: int) -> None:
        """Refuse to go on with a run of another seed: half of its steps would be the other's."""
        stage_one = next((key for key in self.steps if "train cvlp --seed " in key), None)
        if stage_one is not None and not stage_one.endswith(f" --seed {seed}"):
            raise UsageError(
                f"{self.path.parent} holds a quickstart with seed {stage_one.rsplit(' ', 1)[1]}",
                "Choose another folder: vlltr quickstart --dir DIR",
            )

    def record(self, key: str, seconds: float) -> None:
        """Note a finished step; the file is replaced as a whole."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self.steps[key] = {"seconds": round(seconds, 1), "peak_mib": peak}
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.steps, indent=2) + "\n", encoding="utf-8")
        fresh.replace(self.path)


@click.command("quickstart")
@click.option("--fast", "size", flag_value="fast", help="A small slice in about a minute: does it work here?")
@click.option(
    "--full", "size", flag_value="full", help="All classes, trained in full (half an hour or more)."
)
@click.option(
    "--dir", "directory", metavar="DIR", help="Where to; default: ./vlltr-quickstart (-fast, -full)."
)
@click.option("--seed", default=0, show_default=True, help="The seed of the runs.")
@device_option
@pass_context
def quickstart_command(context: Context, size: str | None, directory: str | None, seed: int) -> None:
    """Run the whole method on Glyphs-LT, the long-tailed data set that ships with the package.

    Ingests text and images of a third of its classes, trains, selects anchor sentences, indexes, evaluates, explains a
    prediction, adds a class by its description alone, and writes a report. Every step is printed as the command that
    does it. Stopped, it goes on where it was.
    """
    size = size or "short"
    folder = existing(directory or _FOLDER[size])
    started = time.monotonic()
    first = Step("A workspace", ("init", str(folder), "--recipe", _RECIPE[size]))
    journal = Journal.open(folder)
    journal.check_seed(seed)
    _run(context, journal, folder, first, "")
    steps = plan_steps(folder, size, seed)
    for number, step in enumerate(steps, 1):
        _run(context, journal, folder, step, f"[{number}/{len(steps)}]")
    minutes = (time.monotonic() - started) / 60
    context.show({"workspace": str(folder), "steps": journal.steps, "minutes": round(minutes, 2)}, ())
    context.say(
        f"\nDone in {minutes:.1f} minutes. The workspace is {folder}; the report lies in {folder / 'reports'}."
    )
    context.say("For a folder of your own, with a folder of pictures for each class:")
    context.say("  vlltr fit PICTURES --encoder ViT-B-32-quickgelu:openai")
    context.say("  vlltr -w PICTURES-model predict NEW.jpg")
    context.say('  vlltr -w PICTURES-model classes add NAME --sentence "What it looks like."')


def plan_steps(folder: Path, size: str, seed: int) -> list[Step]:
    """The commands of a quickstart, in order; writes the sample files that they name."""
    from vlltr_index.data.glyphs import glyph_files, write_part

    data = glyph_files(fast=size == "fast")
    if size == "short":
        data = write_part(data, 3, folder / "data")
    steps = [Step("Sentences about every class", ("ingest", "text", str(data.texts)))]
    alike = ", drawn by the fonts of train; a few fonts share a glyph to the byte"
    for split, note in (("train", ""), ("val", alike), ("test", ", drawn by other fonts")):
        steps.append(Step(f"Images: {split}{note}", ("ingest", "images", str(data.images), "--split", split)))
    steps += [
        Step("Stage 1: train both towers together (CVLP)", ("train", "cvlp", "--seed", str(seed))),
        Step("Embed sentences and images into LanceDB", ("embed",)),
        Step("Keep the sentences that tell the classes apart (AnSS)", ("select",)),
        Step("Stage 2: the language-guided head (LGR)", ("train", "lgr", "--seed", str(seed))),
        Step("The index over the anchor sentences", ("index",)),
    ]
    if size != "fast":
        steps.append(Step("The image-only baseline", ("train", "baseline", "fc", "--seed", str(seed))))
    steps.append(Step(_ACCURACY, ("evaluate", "--split", "test"), shows=True))
    return steps + _showing(folder, size, data)


def _showing(folder: Path, size: str, data: Any) -> list[Step]:
    """A prediction explained, and a class added by its description alone."""
    from vlltr_index.data.glyphs import write_sample, write_text

    known, unseen = _sample_classes(data)
    samples = folder / "samples"
    known_png = str(write_sample(data.images, "test", known, samples / "known.png"))
    unseen_png = str(write_sample(data.images, "dev_test", unseen, samples / "unseen.png"))
    unseen_txt = str(write_text(data.heldout_classes("dev")[unseen], samples / "unseen.txt"))
    after = "; after seconds of training the new class need not win yet" if size == "fast" else ""
    steps = [
        Step(f"A rare character, explained ({known})", ("predict", known_png, "--top", "2"), shows=True),
        Step(
            f"A character that no class stands for ({unseen})",
            ("predict", unseen_png, "--top", "2", "--explain", "1"),
        ),
        Step("Add its class by its description alone", ("classes", "add", unseen, "--text", unseen_txt)),
        Step(f"The same picture again{after}", ("predict", unseen_png, "--top", "2"), shows=True),
    ]
    if size == "full":
        dev = {k: v for k, v in data.heldout_classes("dev").items() if k != unseen}
        manifest = samples / "dev-classes.json"
        manifest.write_text(json.dumps(dev, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        steps += [
            Step(
                "Add the other development classes, from text alone",
                ("classes", "add", "--from", str(manifest)),
            ),
            Step("Their images", ("ingest", "images", str(data.images), "--split", "dev_test")),
            Step("Embed them", ("embed",), again=True),
            Step("New classes among all", ("evaluate", "--split", "dev_test"), shows=True),
            Step("Old classes beside them", ("evaluate", "--split", "test"), shows=True, again=True),
        ]
    return [*steps, Step("One file about all of it, for a browser", ("report",))]


def _sample_classes(data: Any) -> tuple[str, str]:
    """A few-shot class, and the held-out development class, that the quickstart shows.

    The latter is one that the method knows well; how it does on all of them is measured beside it.
    """
    classes = json.loads((data.folder / "classes.json").read_text(encoding="utf-8"))
    texts = json.loads(data.texts.read_text(encoding="utf-8"))
    few = sorted(n for n in texts if classes[n]["bin"] == "few" and classes[n]["train"] <= 5)
    return few[len(few) // 2], _UNSEEN


def _run(context: Context, journal: Journal, folder: Path, step: Step, place: str) -> None:
    if step.key in journal.steps and not step.shows:
        context.say(f"{place} {step.title}: done before")
        return
    now = " (shown before; now with all classes that were added since)" if step.key in journal.steps else ""
    journal.record(step.key, run_step(context, folder, step, place, now)[0])
