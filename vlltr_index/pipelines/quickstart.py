"""Run the whole method on Glyphs-LT, the data set that ships with the package (`vlltr quickstart`)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlltr_index.classes import ChangeOptions, NewClass, add_classes, read_manifest
from vlltr_index.data.glyphs import GlyphFiles, glyph_files, write_part, write_sample
from vlltr_index.data.writing import write_file
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.init import init
from vlltr_index.pipelines.plan import Runner, Step, StepMaker
from vlltr_index.pipelines.predict import predict
from vlltr_index.pipelines.report import write_report
from vlltr_index.pipelines.train_all import plan_training
from vlltr_index.pipelines.train_baseline import train_baseline_stage
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
_EXPLAINED = 3  # sentences a class, as in the command


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
                runner.skip(step)
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
    device = maker.on_device
    steps: list[Step[Any]] = [
        maker.step(
            "Sentences about every class", ("ingest", "text", str(data.texts)), ingest_text, data.texts
        )
    ]
    alike = ", drawn by the fonts of train; a few fonts share a glyph to the byte"
    for split, note in (("train", ""), ("val", alike), ("test", ", drawn by other fonts")):
        steps.append(_images(maker, f"Images: {split}{note}", data, split))
    steps += plan_training(maker).values()
    if size != "fast":
        fc = ("train", "baseline", "fc", *device)
        config = maker.workspace.recipe.baseline
        steps.append(maker.step("The image-only baseline", fc, train_baseline_stage, config))
    steps.append(_accuracy(maker, "Accuracy by class size", "test"))
    steps += _samples(maker, data, size)
    if size == "full":
        steps += _development_classes(maker, data)
    steps.append(maker.step("One file about all of it, for a browser", ("report", *device), write_report))
    return steps


def _images(maker: StepMaker, title: str, data: GlyphFiles, split: str) -> Step[Any]:
    """Return the step that brings in the images of a split."""
    words = ("ingest", "images", str(data.images), "--split", split)
    return maker.step(title, words, ingest_images, data.images, split=split)


def _accuracy(maker: StepMaker, title: str, split: str) -> Step[Any]:
    """Return the step that measures accuracy on a split."""
    words = ("evaluate", "--split", split, *maker.on_device)
    return replace(maker.step(title, words, evaluate, split=split), shows=True)


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
    after = "; after seconds of training the new class need not win yet" if size == "fast" else ""
    return [
        replace(_answer(maker, f"A rare character, explained ({known})", known_png), shows=True),
        _answer(maker, f"A character that no class stands for ({_UNSEEN})", unseen_png, explain=1),
        Step(
            "Add its class by its description alone",
            maker.argv("classes", "add", _UNSEEN, "--text", str(unseen_txt), *maker.on_device),
            _addition(maker, [NewClass(_UNSEEN, text=unseen_txt)]),
        ),
        replace(_answer(maker, f"The same picture again{after}", unseen_png), shows=True),
    ]


def _development_classes(maker: StepMaker, data: GlyphFiles) -> list[Step[Any]]:
    """Return the steps that add the other held-out classes of `dev`, and measure them among all."""
    held = data.heldout_classes()
    del held[_UNSEEN]
    manifest = _file(maker, "dev-classes.json")
    write_file(manifest, (json.dumps(held, ensure_ascii=False, indent=1) + "\n").encode())
    device = maker.on_device
    return [
        Step(
            "Add the other development classes, from text alone",
            maker.argv("classes", "add", "--from", str(manifest), *device),
            _addition(maker, read_manifest(manifest)),
        ),
        _images(maker, "Their images", data, "dev_test"),
        maker.step("Embed them", ("embed", *device), embed),
        _accuracy(maker, "Accuracy on added classes", "dev_test"),
        _accuracy(maker, "Accuracy on existing classes", "test"),
    ]


def _answer(maker: StepMaker, title: str, image: Path, explain: int | None = None) -> Step[list[Prediction]]:
    """Return the step that predicts one image, with `explain` sentences a class, or as many as the command shows."""
    words = ("predict", str(image), "--top", "2", *(() if explain is None else ("--explain", str(explain))))
    options = PredictOptions(top=2, explain=_EXPLAINED if explain is None else explain)
    call = partial(_predictions, maker.workspace, str(image), options)
    return Step(title, maker.argv(*words, *maker.on_device), call)


def _predictions(workspace: Workspace, image: str, options: PredictOptions) -> list[Prediction]:
    """Predict one image."""
    return list(predict(workspace, [image], options))


def _addition(maker: StepMaker, wanted: list[NewClass]) -> Callable[[], ChangeReport]:
    """Return the call that adds classes."""
    return partial(add_classes, maker.workspace, wanted, ChangeOptions(progress=maker.progress))


def _file(maker: StepMaker, name: str) -> Path:
    """Return the place of a sample file."""
    return Path(maker.name) / "samples" / name
