"""Make a model of a folder of pictures (`vlltr fit`): ingest, train, measure, report, and train on all pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

from vlltr_index.data.grouping import Grouping
from vlltr_index.errors import InputError, UsageError
from vlltr_index.evaluation.metrics import CROSS_VALIDATION
from vlltr_index.pipelines.init import check_encoder, encoder_note, require_encoder
from vlltr_index.pipelines.plan import (
    INGEST_IMAGES,
    INGEST_TEXT,
    REPORT,
    TRAIN_BASELINE,
    Runner,
    Step,
    StepMaker,
)
from vlltr_index.pipelines.train_all import plan_training
from vlltr_index.pipelines.train_baseline import absent_baselines, can_fit
from vlltr_index.schemas.config import CONFIG_NAME
from vlltr_index.schemas.options import Measurable
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.store.origins import gave, places
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import choose_device, computing_on
from vlltr_index.wording import option_words, plural

if TYPE_CHECKING:
    from vlltr_index.pipelines.plan import OnStep
    from vlltr_index.pipelines.report import ReportFile
    from vlltr_index.pipelines.train_baseline import BaselineRow
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.schemas.records import Progress

_TEXTS = ("texts", "texts.json", "texts.jsonl", "texts.csv", "texts.parquet")
_TESTS = ("test", "val", "validation", "valid")
_RULES = {
    "ncm": "nearest class mean",
    "discriminant": "linear discriminant",
    "logistic": "logistic regression",
    "zero-shot": "prompts alone, without training",
}
_TEST = "split = 'test' AND class_id IS NOT NULL AND problem IS NULL"
_ENOUGH = 30  # test pictures that came another way, from which on the model is measured on them

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FitResult:
    """What `fit` made.

    Attributes:
        workspace: The workspace with the model; after a dry run where nothing was committed yet it is gone.
        report: The report that was written, with the accuracy on pictures that the models had not seen, if it was
            measured; None after a dry run.
        unmeasured: Why nothing was measured.
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
class FitPlan:
    """The steps of `fit` on a workspace.

    Attributes:
        make: Bring in sentences and pictures, remove what came from a part of the folder that is no more, and train.
        baselines: Make the baselines that the model is compared with, by name; none for a dry run.
        report: Measures the model; None for a dry run.
        remarks: What is not done that one might expect.
    """

    make: tuple[Step[Any], ...]
    baselines: dict[str, Step[BaselineRow]]
    report: Step[ReportFile] | None
    remarks: tuple[str, ...] = ()

    @property
    def steps(self) -> list[Step[Any]]:
        """All steps, in the order in which `fit` runs them."""
        return [*self.make, *self.baselines.values(), *([] if self.report is None else [self.report])]


def fit(
    folder: str | os.PathLike[str],
    text: str | os.PathLike[str] | None = None,
    encoder: str | None = None,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    to: str | os.PathLike[str] | None = None,
    prior: Measurable = "balanced",
    group: str | None = None,
    dry_run: bool = False,
    device: str | None = None,
    agree: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> FitResult:
    """Make a model of the pictures in a folder of class folders, or of the folders train and test.

    The model is trained on all pictures. It is measured against baselines by cross-validation, or in the folder test
    (or on thirty or more pictures of split test that came another way), and a report is written. Run it again when
    pictures or texts came, moved or went: the model is of what the folder is then, and vectors are kept.

    Args:
        folder: The folder of class folders, or of the folders train and test (or val).
        text: Sentences about the classes, see `data.text_readers.read_text`; default: `texts` in the folder, or
            `texts.json`, `.jsonl`, `.csv` or `.parquet`.
        encoder: `MODEL`, `MODEL:TAG` or `MODEL:FILE`; default: the recipe's.
        recipe: Name of a recipe that ships with the package, or path of a TOML file; default: `ours`.
        overrides: `section.key=value` strings that change values of the recipe.
        to: The workspace; default: `FOLDER-model` beside the folder.
        prior: By what it is measured and compared: `balanced`, each class counting alike, or `training`, each picture
            counting alike and classes being as common as in training. The report has both.
        group: Which pictures belong together, and are held out together, see `ingest_images`.
        dry_run: Say what is new, moved or gone; nothing is committed, trained or measured, no workspace is made, and
            `vlltr.toml` stays as it is.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; default: the value of VLLTR_DEVICE, else the recipe's.
        agree: Called with a question where more than a third of the folder's pictures or texts is gone; it raises if
            the answer is no. None: that is an error.
        progress: Called with the step's name, what is done, and the total.
        on_step: Called when a step begins and when it has ended.

    Raises:
        InputError: If the folder is not of that kind, there are no such texts, or none of the pictures can be read.
        UsageError: If there is no such recipe, encoder, device or prior, or much is gone from the folder and nobody
            agreed.
        EncoderError: If the encoder's weights are not there, and cannot be downloaded.
        ConfigError: If a value does not fit the recipe.
        WorkspaceError: If the workspace is there with another recipe, or cannot be written.
    """
    choose_device(device)
    _check_prior(prior)
    if group is not None:
        Grouping.parse(group)
    sources = find_sources(Path(folder), None if text is None else Path(text))
    at = Path(to) if to is not None else _beside(Path(folder))
    options = option_words(encoder=encoder, recipe=recipe)
    options += [word for value in overrides for word in ("--set", value)]
    named = bool(options) or not (at / CONFIG_NAME).exists()
    wanted = load_recipe(recipe, tuple(overrides), encoder) if named else Workspace.open(at).recipe
    if prior != "balanced":
        _check_rule(wanted)
    with ExitStack() as held:
        if dry_run:
            workspace = _open_or_pretend(at, wanted, held)
        elif named:
            made = Step("A workspace", ("init", str(at), *options), partial(_make, at, wanted))
            workspace = Runner(on_step, 0, number=0).run(made)
        else:
            workspace = _make(at, wanted)
        held.enter_context(computing_on(device, workspace.recipe.device))
        maker = StepMaker(workspace, str(at), device, progress)
        plan = plan_fit(maker, sources, agree, prior=prior, group=group, dry_run=dry_run)
        if dry_run:
            held.enter_context(workspace.trial())
        for remark in plan.remarks:
            _log.warning(remark)
        runner = Runner(on_step, len(plan.steps))
        for step in plan.make:
            runner.run(step)
        if plan.report is None:
            return FitResult(workspace)
        absent = absent_baselines(workspace.snapshot())
        for name, baseline in plan.baselines.items():
            if name in absent:
                _log.warning("the baseline %s is absent: %s", name, absent[name])
                runner.pass_over(baseline, "left out")
            else:
                runner.run(baseline)
        report = runner.run(plan.report)
    reasons = " ".join(f"{one.why}. {one.mend}" for one in report.missing)
    return FitResult(
        workspace, report, f"Nothing is measured: {reasons}" if report.evaluation is None else None
    )


def _check_prior(prior: str) -> None:
    """Refuse a prior that a model cannot be measured by before it is asked about any picture."""
    if prior not in get_args(Measurable):
        raise UsageError(
            f"fit measures by the prior 'balanced' or 'training', got {prior!r}",
            "By what the pictures asked about or a file tell, ask: vlltr predict --prior estimated, or --prior FILE",
        )


def _check_rule(recipe: Recipe) -> None:
    """Refuse a recipe whose answers know no prior before a workspace is made of it."""
    rule = recipe.fusion.rule
    if rule != "ours":
        raise UsageError(
            f"the rule {rule!r}, which this recipe combines by, knows no prior",
            'Leave out --prior, or take a recipe with rule = "ours" under [recipe.fusion].',
        )


def _make(at: Path, recipe: Recipe) -> Workspace:
    """Make the workspace, or open the one that is there, once the encoder's weights are on this machine."""
    there = Workspace.check(at, recipe)
    if there is None or not there.history.last().checkpoint:
        require_encoder(recipe.encoder)
    return Workspace.create(at, recipe)


def _open_or_pretend(at: Path, recipe: Recipe, held: ExitStack) -> Workspace:
    """Return a workspace to try things out in; if nothing was committed, one in a folder that `held` removes."""
    there = Workspace.check(at, recipe)
    if there is not None and there.history.last().id:
        return there
    check_encoder(recipe.encoder)
    _log.info("would make the workspace %s (recipe %s)", at, recipe.name)
    workspace = Workspace.create(held.enter_context(TemporaryDirectory()), recipe)
    note = encoder_note(workspace)
    if note is not None:
        _log.warning(note)
    return workspace


def plan_fit(
    maker: StepMaker,
    sources: Sources,
    agree: Callable[[str], None] | None = None,
    *,
    prior: Measurable = "balanced",
    group: str | None = None,
    dry_run: bool = False,
) -> FitPlan:
    """Return the steps of `fit` on a workspace; `agree`, `group` and `dry_run` are those of `ingest_images`."""
    snapshot = maker.workspace.snapshot()
    gone_texts = [path for path in _missing(sources.folder, _TEXTS) if gave(snapshot, "sentences", path)]
    gone_tests = [path for path in _missing(sources.folder, _TESTS) if gave(snapshot, "images", path, "test")]
    held_out = 0 if gone_tests else snapshot.count("images", _TEST)
    has_test = sources.test is not None or held_out >= _ENOUGH
    remarks = []
    if sources.texts is None:
        unread = filter(os.path.exists, places(snapshot, "sentences"))
        remarks += [
            f"texts are not read again: {place}; if they have changed: --text {place}" for place in unread
        ]
    if held_out and not has_test:
        few = plural(held_out, "picture of split test is", "pictures of split test are")
        remarks.append(f"{few} too few to measure on, and left aside: vlltr evaluate --split test")

    how: dict[str, Any] = {"untyped": {"agree": agree}, "sync": True, "dry_run": dry_run}
    learn = "Pictures" if sources.test is None else "Pictures to learn from"
    make: list[Step[Any]] = []
    if sources.texts is not None:
        make.append(maker.step("Sentences about the classes", INGEST_TEXT, sources.texts, **how))
    make.append(maker.step(learn, INGEST_IMAGES, sources.train, split="train", group=group, **how))
    if sources.test is not None:
        measure = "Pictures to measure on"
        make.append(maker.step(measure, INGEST_IMAGES, sources.test, split="test", group=group, **how))
    make += [maker.step("Sentences about the classes", INGEST_TEXT, path, **how) for path in gone_texts]
    make += [
        maker.step("Pictures that are no more", INGEST_IMAGES, path, split="test", **how)
        for path in gone_tests
    ]
    if dry_run:
        return FitPlan(tuple(make), {}, None, tuple(remarks))
    make += plan_training(maker, stage_one=False).values()
    report = maker.step(
        "Accuracy on pictures that it has not seen, and the report",
        REPORT,
        split="test" if has_test else CROSS_VALIDATION,
        prior=None if prior == "balanced" else prior,
    )
    return FitPlan(tuple(make), _plan_baselines(maker, sources.texts is not None), report, tuple(remarks))


def _missing(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return where parts of a folder would be that it does not have."""
    return [folder / name for name in names if not (folder / name).exists()]


def _plan_baselines(maker: StepMaker, has_texts: bool) -> dict[str, Step[BaselineRow]]:
    """Return the steps that make the baselines which the model is compared with, by name."""
    recipe = maker.workspace.recipe
    made = maker.workspace.snapshot().commit.info.baselines
    names = [name for name in _RULES if can_fit(name, recipe.encoder.family)]
    if not has_texts and "zero-shot" in names and "zero-shot" not in made:
        names.remove("zero-shot")
    untyped = {"config": recipe.baselines}
    return {
        name: maker.step(
            f"A baseline on the same vectors: {_RULES[name]}", TRAIN_BASELINE, name, untyped=untyped
        )
        for name in names
    }


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
    texts = texts or (found[0] if found else None)
    train = inside.get("train", folder)
    if texts is None:
        _check_several(train)
    return Sources(folder=folder, train=train, test=None if test is None else inside[test], texts=texts)


def _check_several(train: Path) -> None:
    """Refuse a folder that has one class folder: nothing can be told from it."""
    classes = [entry for entry in train.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if len(classes) == 1:
        (only,) = classes
        instead = f" For example {only}." if any(entry.is_dir() for entry in only.iterdir()) else ""
        raise InputError(
            f"{train} has one class folder alone, {only.name!r}: there is nothing to tell it from",
            f"Give the folder that holds all class folders.{instead}",
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
    return from_here(whole.with_name(f"{whole.name}-model"))


def from_here(place: Path) -> Path:
    """Return a path as it is typed in the current folder."""
    here = Path.cwd()
    return place.relative_to(here) if place.is_relative_to(here) else place
