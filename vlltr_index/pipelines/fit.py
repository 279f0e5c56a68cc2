"""Make a model of a folder of pictures (`vlltr fit`): ingest, train, measure, report, and train on all pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlltr_index.data.grouping import Grouping
from vlltr_index.errors import InputError, MissingStepError
from vlltr_index.evaluation.metrics import CROSS_VALIDATION
from vlltr_index.pipelines.cross_validate import cross_validate
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.init import init, require_encoder
from vlltr_index.pipelines.plan import Runner, Step, StepMaker
from vlltr_index.pipelines.report import write_report
from vlltr_index.pipelines.train_all import plan_training
from vlltr_index.pipelines.train_baseline import train_baseline
from vlltr_index.schemas.config import CONFIG_NAME
from vlltr_index.store.origins import gave
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import choose_device, computing_on

if TYPE_CHECKING:
    from vlltr_index.pipelines.cross_validate import CrossValidation
    from vlltr_index.pipelines.ingest import IngestReport
    from vlltr_index.pipelines.plan import OnStep
    from vlltr_index.pipelines.report import ReportFile
    from vlltr_index.pipelines.train_baseline import BaselineRow
    from vlltr_index.schemas.records import Progress

_TEXTS = ("texts", "texts.json", "texts.jsonl", "texts.csv", "texts.parquet")
_TESTS = ("test", "val", "validation", "valid")
_READABLE = "problem IS NULL"
_TEST = "split = 'test' AND class_id IS NOT NULL AND problem IS NULL"


@dataclass(frozen=True, eq=False)
class FitResult:
    """What `fit` made.

    Attributes:
        workspace: The workspace with the model.
        report: The report that was written, with the accuracy on pictures that the models had not seen; None if nothing
            was measured.
        unmeasured: Why nothing was measured, where that was asked for.
    """

    workspace: Workspace
    report: ReportFile | None = None
    unmeasured: str | None = None


@dataclass(frozen=True)
class Sources:
    """Where pictures and texts are.

    Attributes:
        folder: The folder that was given.
        train: The folder of class folders to learn from.
        test: That to measure on; None if the model is cross-validated.
        texts: Sentences about the classes; None: there are none.
    """

    folder: Path
    train: Path
    test: Path | None
    texts: Path | None


@dataclass(frozen=True)
class Measurement:
    """Steps that measure a model: simple rules to compare with, and the report.

    Before them, without pictures of their own to measure on, the cross-validation.
    """

    cross_validate: Step[CrossValidation] | None
    rules: tuple[Step[BaselineRow], ...]
    report: Step[ReportFile]


@dataclass(frozen=True)
class FitPlan:
    """The steps of `fit` on a workspace, in order.

    Attributes:
        texts: Brings in the sentences; None if there are none.
        pictures: Bring in the pictures.
        gone: Remove what came from a part of the folder that is no more.
        train: Train on them.
        measure: Measure the model; None if that is not asked for.
    """

    texts: Step[IngestReport] | None
    pictures: tuple[Step[IngestReport], ...]
    gone: tuple[Step[IngestReport], ...]
    train: tuple[Step[Any], ...]
    measure: Measurement | None

    @property
    def steps(self) -> list[Step[Any]]:
        """All steps, in the order in which `fit` runs them."""
        steps: list[Step[Any]] = [] if self.texts is None else [self.texts]
        steps += [*self.pictures, *self.gone, *self.train]
        if self.measure is not None:
            if self.measure.cross_validate is not None:
                steps.append(self.measure.cross_validate)
            steps += [*self.measure.rules, self.measure.report]
        return steps


def fit(
    folder: str | os.PathLike[str],
    text: str | os.PathLike[str] | None = None,
    encoder: str | None = None,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    to: str | os.PathLike[str] | None = None,
    measure: bool = True,
    group: str | None = None,
    device: str | None = None,
    agree: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> FitResult:
    """Make a model of the pictures in a folder of class folders, or of the folders train and test.

    The model is trained on all pictures. Beside simple rules it is measured by cross-validation, or in the folder test,
    and a report is written. Run it again when pictures or texts came, moved or went: the model is of what the folder
    is then, and vectors are kept.

    Args:
        folder: The folder of class folders, or of the folders train and test (or val).
        text: Sentences about the classes, see `data.text_readers.read_text`; default: `texts` in the folder, or
            `texts.json`, `.jsonl`, `.csv` or `.parquet`.
        encoder: `MODEL`, `MODEL:TAG` or `MODEL:FILE`; default: the recipe's.
        recipe: Name of a recipe that ships with the package, or path of a TOML file; default: `ours`.
        overrides: `section.key=value` strings that change values of the recipe.
        to: The workspace; default: `FOLDER-model` beside the folder.
        measure: Whether it is measured.
        group: Which pictures belong together, and are held out together, see `ingest_images`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; default: the value of VLLTR_DEVICE, else the recipe's.
        agree: Called with a question where more than a third of the folder's pictures or texts is gone; it raises if
            the answer is no. None: that is an error.
        progress: Called with the step's name, what is done, and the total.
        on_step: Called when a step begins and when it has ended.

    Raises:
        InputError: If the folder is not of that kind, there are no such texts, or none of the pictures can be read.
        UsageError: If there is no such recipe, encoder or device, or much is gone from the folder and nobody agreed.
        EncoderError: If the encoder's weights are not there, and cannot be downloaded.
        ConfigError: If a value does not fit the recipe.
        WorkspaceError: If the workspace is there with another recipe, or cannot be written.
    """
    choose_device(device)
    if group is not None:
        Grouping.parse(group)
    sources = find_sources(Path(folder), None if text is None else Path(text))
    at = Path(to) if to is not None else _beside(Path(folder))
    chosen = [("--encoder", encoder), ("--recipe", recipe), *(("--set", value) for value in overrides)]
    options = [part for name, value in chosen if value for part in (name, value)]
    if options or not (at / CONFIG_NAME).exists():
        call = partial(init, at, encoder, recipe, overrides=tuple(overrides))
        made = Step("A workspace", ("init", str(at), *options), call)
        workspace = Runner(on_step, 0, number=0).run(made)
    else:
        workspace = Workspace.open(at)
    require_encoder(workspace)  # before anything is brought in
    with computing_on(device, workspace.recipe.device):
        plan = plan_fit(StepMaker(workspace, str(at), device, progress), sources, measure, agree, group=group)
        return _run(plan, workspace, Runner(on_step, len(plan.steps)))


def _run(plan: FitPlan, workspace: Workspace, runner: Runner) -> FitResult:
    """Run a plan, and return what it made."""
    if plan.texts is not None:
        runner.run(plan.texts)
    for ingest in plan.pictures:
        runner.run(ingest)
        if not workspace.snapshot().count("images", _READABLE):
            raise InputError("none of the pictures can be read", "The lines above say why.")
    for step in (*plan.gone, *plan.train):
        runner.run(step)
    if plan.measure is None:
        return FitResult(workspace)
    if plan.measure.cross_validate is not None:
        try:
            runner.run(plan.measure.cross_validate)
        except MissingStepError as error:
            return FitResult(workspace, unmeasured=f"Nothing is measured: {error.message}. {error.hint}")
    for rule in plan.measure.rules:
        runner.run(rule)
    return FitResult(workspace, runner.run(plan.measure.report))


def plan_fit(
    maker: StepMaker,
    sources: Sources,
    measure: bool,
    agree: Callable[[str], None] | None = None,
    *,
    group: str | None = None,
) -> FitPlan:
    """Return the steps of `fit` on a workspace; `agree` and `group` are those of `ingest_images`."""
    grouped = () if group is None else ("--group", group)
    asked = [("Pictures", "train", sources.train)]
    if sources.test is not None:
        asked = [
            ("Pictures to learn from", "train", sources.train),
            ("Pictures to measure on", "test", sources.test),
        ]
    pictures = tuple(
        maker.step(
            title,
            ("ingest", "images", str(path), "--sync", "--split", split, *grouped),
            ingest_images,
            path=path,
            split=split,
            sync=True,
            agree=agree,
            group=group,
        )
        for title, split, path in asked
    )
    gone = _gone(maker, sources, agree)
    held_out = maker.workspace.snapshot().count("images", _TEST) > 0
    has_test = sources.test is not None or (held_out and not any("test" in step.argv for step in gone))
    return FitPlan(
        texts=None if sources.texts is None else _texts(maker, sources.texts, agree),
        pictures=pictures,
        gone=gone,
        train=tuple(plan_training(maker, stage_one=False).values()),
        measure=_measurement(maker, has_test, bool(sources.texts)) if measure else None,
    )


def _texts(maker: StepMaker, texts: Path, agree: Callable[[str], None] | None) -> Step[IngestReport]:
    """Return the step that makes the sentences those of a source."""
    words = ("ingest", "text", str(texts), "--sync")
    return maker.step("Sentences about the classes", words, ingest_text, path=texts, sync=True, agree=agree)


def _gone(
    maker: StepMaker, sources: Sources, agree: Callable[[str], None] | None
) -> tuple[Step[IngestReport], ...]:
    """Return the steps that remove what came from texts or test pictures in the folder that are no more."""
    snapshot = maker.workspace.snapshot()
    places = [sources.folder / name for name in _TEXTS]
    steps = [
        _texts(maker, path, agree)
        for path in places
        if not path.exists() and gave(snapshot, "sentences", path)
    ]
    for path in (sources.folder / name for name in _TESTS):
        if not path.exists() and gave(snapshot, "images", path, "test"):
            words = ("ingest", "images", str(path), "--sync", "--split", "test")
            how = {"path": path, "split": "test", "sync": True, "agree": agree}
            steps.append(maker.step("Pictures that are no more", words, ingest_images, **how))
    return tuple(steps)


def _measurement(maker: StepMaker, has_test: bool, has_texts: bool) -> Measurement:
    """Return the steps that measure the model on split `test` or by cross-validation, beside simple rules."""
    device = maker.on_device
    split = "test" if has_test else CROSS_VALIDATION
    cross = None
    if not has_test:
        cross = maker.step(
            "Models that have not seen a part of the pictures each",
            ("cross-validate", *device),
            cross_validate,
        )
    return Measurement(
        cross_validate=cross,
        rules=tuple(
            maker.step(
                "A simple rule on the same vectors",
                ("train", "baseline", name, *device),
                train_baseline,
                name=name,
                config=maker.workspace.recipe.baselines,
            )
            for name in ("ncm", "discriminant", *(["zero-shot"] if has_texts else []))
        ),
        report=maker.step(
            "Accuracy on pictures that it has not seen, and the report",
            ("report", "--split", split, *device),
            write_report,
            split=split,
        ),
    )


def find_sources(folder: Path, texts: Path | None = None) -> Sources:
    """Find pictures and texts in a folder.

    Args:
        folder: The folder of class folders, or of train and test.
        texts: Where the texts are; default: `texts` in the folder, with or without an ending.

    Raises:
        InputError: If the folder or the texts are not what they should be.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", "Give a folder of class folders: DIR/tench/1.jpg")
    if str(folder).startswith("-"):
        folder = folder.resolve()  # so that a step's command does not take it for an option
    inside = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_dir()}
    test = next((name for name in _TESTS if name in inside), None) if "train" in inside else None
    _check(folder, inside, test)
    if texts is not None and not texts.exists():
        raise InputError(f"there is no {texts}", "Give the texts that there are, or leave --text out.")
    found = [folder / name for name in _TEXTS if (folder / name).exists()]
    return Sources(
        folder=folder,
        train=inside.get("train", folder),
        test=None if test is None else inside[test],
        texts=texts or (found[0] if found else None),
    )


def _check(pictures: Path, inside: dict[str, Path], test: str | None) -> None:
    """Refuse folders whose names show that they are not class folders."""
    if (pictures / CONFIG_NAME).exists():
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


def _beside(folder: Path) -> Path:
    """Return the usual place of the workspace of a folder of pictures."""
    whole = folder.resolve()
    return whole.with_name(f"{whole.name}-model")
