"""Run the whole method on Glyphs-LT, the data set that ships with the package (`vlltr quickstart`)."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlltr_index.classes import ChangeOptions, NewClass, add_classes, read_manifest
from vlltr_index.data.glyphs import GlyphFiles, glyph_files, write_part, write_sample
from vlltr_index.data.writing import write_file
from vlltr_index.pipelines.init import init
from vlltr_index.pipelines.plan import (
    EMBED,
    EVALUATE,
    INGEST_IMAGES,
    INGEST_TEXT,
    REPORT,
    TRAIN_FC,
    Command,
    Runner,
    Step,
    StepMaker,
)
from vlltr_index.pipelines.predict import predict
from vlltr_index.pipelines.train_all import plan_training
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.tensors import choose_device, computing_on

if TYPE_CHECKING:
    from vlltr_index.classes import ChangeReport
    from vlltr_index.pipelines.plan import OnStep
    from vlltr_index.schemas.records import Prediction, Progress
    from vlltr_index.store.workspace import Workspace

Size = Literal["fast", "short", "full"]
"""A small slice, a third of the classes, or all of them."""

_FOLDER = {"fast": "vlltr-quickstart-fast", "short": "vlltr-quickstart", "full": "vlltr-quickstart-full"}
_RECIPE = {"fast": "glyphs_lt/fast", "short": "glyphs_lt/quick", "full": "glyphs_lt/ours"}
_UNSEEN = "latin small letter k with caron"  # a held-out class that the method recognises well from text


@dataclass(frozen=True)
class QuickstartReport:
    """The workspace, the seconds that each step took when it was run, and the minutes of this run."""

    workspace: str
    steps: dict[str, float]
    minutes: float


def quickstart(
    size: Size = "short",
    folder: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> QuickstartReport:
    """Ingest, train, evaluate, explain a prediction, add a class by its description alone, and write a report.

    Stopped, it goes on where it was: `quickstart.json` in the workspace says which steps were done.

    Args:
        size: How much of the data set.
        folder: The workspace; default: `vlltr-quickstart`, or with `-fast` or `-full` behind it.
        device: As for `fit`.
        progress: Called with the step's name, what is done, and the total.
        on_step: Called when a step begins, when it has ended, and when it was done before.

    Raises:
        WorkspaceError: If the folder holds other things.
    """
    started = time.monotonic()
    choose_device(device)
    place = Path(folder or _FOLDER[size])
    journal = place / "quickstart.json"
    done: dict[str, float] = json.loads(journal.read_text(encoding="utf-8")) if journal.is_file() else {}
    recipe = _RECIPE[size]
    make = Step("A workspace", ("init", str(place), "--recipe", recipe), partial(init, place, recipe=recipe))
    workspace = Runner(on_step, 0, number=0).run(make)
    with computing_on(device, workspace.recipe.device):
        steps = plan_quickstart(StepMaker(workspace, str(place), device, progress), size)
        runner = Runner(on_step, len(steps))
        for number, step in enumerate(steps, 1):
            key = f"[{number}/{len(steps)}] {step.title}"
            if key in done and not step.shows:
                runner.pass_over(step, "done before")
                continue
            began = time.monotonic()
            runner.run(step)
            done[key] = round(time.monotonic() - began, 1)
            write_file(journal, (json.dumps(done, indent=2) + "\n").encode())
    minutes = (time.monotonic() - started) / 60
    return QuickstartReport(str(place), done, round(minutes, 2))


def plan_quickstart(maker: StepMaker, size: Size) -> list[Step[Any]]:
    """Return the steps of a quickstart, in order, and write the files that they name into the workspace's folder."""
    data = glyph_files(fast=size == "fast")
    if size == "short":
        data = write_part(data, 3, Path(maker.name) / "data")
    steps: list[Step[Any]] = [maker.step("Sentences about every class", INGEST_TEXT, data.texts)]
    alike = ", drawn by the fonts of train; a few fonts share a glyph to the byte"
    for split, note in (("train", ""), ("val", alike), ("test", ", drawn by other fonts")):
        steps.append(maker.step(f"Images: {split}{note}", INGEST_IMAGES, data.images, split=split))
    steps += plan_training(maker).values()
    if size != "fast":
        config = maker.workspace.recipe.baseline
        steps.append(maker.step("The image-only baseline", TRAIN_FC, untyped={"config": config}))
    steps.append(maker.step("Accuracy by class size", EVALUATE, split="test", shows=True))
    steps += _samples(maker, data, size)
    if size == "full":
        steps += _development_classes(maker, data)
    steps.append(maker.step("One file about all of it, for a browser", REPORT))
    return steps


def _samples(maker: StepMaker, data: GlyphFiles, size: Size) -> list[Step[Any]]:
    """Return the steps that explain a prediction, and add a class by its description alone."""
    classes = json.loads((data.folder / "classes.json").read_text(encoding="utf-8"))
    names = json.loads(data.texts.read_text(encoding="utf-8"))
    few = sorted(n for n in names if classes[n]["bin"] == "few" and classes[n]["train"] <= 5)
    known = few[len(few) // 2]
    known_png = write_sample(data.images, "test", known, _file(maker, "known.png"))
    unseen_png = write_sample(data.images, "dev_test", _UNSEEN, _file(maker, "unseen.png"))
    unseen_txt = _file(maker, "unseen.txt")
    write_file(unseen_txt, ("\n".join(data.heldout_classes()[_UNSEEN]) + "\n").encode())
    explained = f"A rare character, explained ({known})"
    unseen = f"A character that no class stands for ({_UNSEEN})"
    after = "; after seconds of training the new class need not win yet" if size == "fast" else ""
    again = f"The same picture again{after}"
    return [
        maker.step(explained, _PREDICT, known_png, top=2, shows=True),
        maker.step(unseen, _PREDICT, unseen_png, top=2, explain=1),
        maker.step("Add its class by its description alone", _ADD_CLASS, _UNSEEN, text=unseen_txt),
        maker.step(again, _PREDICT, unseen_png, top=2, shows=True),
    ]


def _development_classes(maker: StepMaker, data: GlyphFiles) -> list[Step[Any]]:
    """Return the steps that add the other held-out classes of `dev`, and measure them among all."""
    held = data.heldout_classes()
    del held[_UNSEEN]
    manifest = _file(maker, "dev-classes.json")
    write_file(manifest, (json.dumps(held, ensure_ascii=False, indent=1) + "\n").encode())
    return [
        maker.step("Add the other development classes, from text alone", _ADD_CLASSES, from_=manifest),
        maker.step("Their images", INGEST_IMAGES, data.images, split="dev_test"),
        maker.step("Embed them", EMBED),
        maker.step("Accuracy on added classes", EVALUATE, split="dev_test", shows=True),
        maker.step("Accuracy on existing classes", EVALUATE, split="test", shows=True),
    ]


def _file(maker: StepMaker, name: str) -> Path:
    """Return the place of a sample file."""
    return Path(maker.name) / "samples" / name


def _predict_one(
    workspace: Workspace, image: Path, *, top: int, explain: int = 3, progress: Progress | None = None
) -> list[Prediction]:
    """Predict one image, explained as by the command."""
    return list(predict(workspace, [str(image)], PredictOptions(top=top, explain=explain)))


def _add_class(
    workspace: Workspace, name: str, *, text: Path, progress: Progress | None = None
) -> ChangeReport:
    """Add a class by a file of sentences."""
    return add_classes(workspace, [NewClass(name, text=text)], ChangeOptions(progress=progress))


def _add_listed(workspace: Workspace, *, from_: Path, progress: Progress | None = None) -> ChangeReport:
    """Add the classes that a file lists."""
    return add_classes(workspace, read_manifest(from_), ChangeOptions(progress=progress))


_PREDICT = Command("predict", _predict_one)
_ADD_CLASS = Command("classes add", _add_class)
_ADD_CLASSES = Command("classes add", _add_listed)
