"""Training beside others: the workspace stays open, and what changed meanwhile is not committed over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import drawings
from vlltr_index.classes import add_class
from vlltr_index.errors import LockedError, WorkspaceError
from vlltr_index.pipelines.classlist import list_classes
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.pipelines.train_baseline import train_baseline_stage
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognizer import Recognizer
from vlltr_index.store.storage import write_lock
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow
SETTINGS = ("cvlp.epochs=1", "cvlp.batch_size=28", "lgr.epochs=1", "lgr.views=1", "lgr.batch_size=28")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawings with every step done."""
    workspace = drawings.workspace(
        tmp_path_factory.mktemp("drawn"), *SETTINGS, "baseline.epochs=1", "baseline.batch_size=28"
    )
    train_all(workspace, workspace.recipe)
    return workspace.path


@pytest.fixture
def drawn(once: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may change; its images are beside it, in `images`."""
    shutil.copytree(once.parent / "images", tmp_path / "images")
    return Workspace.open(shutil.copytree(once, tmp_path / "workspace"))


@contextmanager
def at_first_step(do: Callable[[], object]) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress callback that does something once, in the middle of training; at the end it must have done it."""
    done: list[object] = []

    def progress(step: str, count: int, total: int | None) -> None:
        if step.startswith("train ") and not done:
            done.append(True)
            do()

    yield progress
    assert done


def commits(workspace: Workspace) -> list[str]:
    """The commands of all commits."""
    return [commit.command for commit in workspace.history.list()]


def test_others_read_and_write_while_it_trains(drawn: Workspace, tmp_path: Path) -> None:
    """A class is listed, an image recognised and a class added in mid-training; both commits stand."""
    image = tmp_path / "images" / "ring" / "0.png"

    def meanwhile() -> None:
        other = Workspace.open(drawn.path)
        assert len(list_classes(other)) == len(drawings.WORDS)
        assert Recognizer.open(other).predict([image])[0].problem is None
        add_class(other, "knot", ["a knot tied of two lines"])

    before = commits(drawn)
    with at_first_step(meanwhile) as progress:
        train_cvlp_stage(drawn, drawn.recipe.cvlp, progress)
    assert commits(drawn) == [*before, "classes add 'knot'", "train cvlp"]
    assert drawn.snapshot().class_table().find("knot") is not None
    assert not list((drawn.path / "runs").iterdir())


def test_new_training_images_are_not_committed_over(drawn: Workspace, tmp_path: Path) -> None:
    """The error says what changed and keeps the run; with the change undone the same command commits it untrained."""
    (tmp_path / "more" / "ring").mkdir(parents=True)
    shutil.copy(tmp_path / "images" / "wave" / "55.png", tmp_path / "more" / "ring" / "new.png")

    def meanwhile() -> None:
        ingest_images(Workspace.open(drawn.path), tmp_path / "more", "train")

    before = commits(drawn)
    with at_first_step(meanwhile) as progress, pytest.raises(WorkspaceError) as caught:
        train_cvlp_stage(drawn, drawn.recipe.cvlp, progress)
    assert caught.value.message == (
        "train cvlp: what it was trained on changed meanwhile: the training images. Nothing was committed"
    )
    (folder,) = (drawn.path / "runs").iterdir()
    assert caught.value.hint == (
        "Run the same command again to train on what is there now. What was trained is kept in"
        f" {folder}: once the change is undone, the same command goes on from there."
    )
    assert len(commits(drawn)) == len(before) + 1
    with drawn.transaction("undo") as tx:
        rows = tx.table("images", ["image_id", "uri"]).to_pylist()
        (new,) = [row["image_id"] for row in rows if row["uri"].endswith("new.png")]
        tx.delete("images", f"image_id = '{new}'")
    steps: list[str] = []
    report = train_cvlp_stage(drawn, drawn.recipe.cvlp, lambda step, done, total: steps.append(step))
    assert report.resumed
    assert "train cvlp" not in steps
    assert commits(drawn)[-1] == "train cvlp"


def test_changed_texts_and_anchors_are_named(drawn: Workspace) -> None:
    """A training class's sentence stops stage 1's commit, its anchors the head's; a baseline does not mind texts."""

    def retell(name: str) -> None:
        with Workspace.open(drawn.path).transaction("retell") as tx:
            owner = tx.class_table().lookup(name)
            tx.delete("sentences", f"class_id = {owner} AND text LIKE 'the {name}%'")
            tx.delete("anchors", f"class_id = {owner}")  # none may be of a sentence that is gone

    def unanchor() -> None:
        with Workspace.open(drawn.path).transaction("unanchor") as tx:
            tx.delete("anchors", "rank = 1")

    changed = r"the anchors of the training classes\. Nothing"
    with at_first_step(unanchor) as progress, pytest.raises(WorkspaceError, match=changed):
        train_lgr_stage(drawn, drawn.recipe.lgr, progress)
    changed = r"meanwhile: the sentences of the training classes\. Nothing"
    with at_first_step(lambda: retell("dot")) as progress, pytest.raises(WorkspaceError, match=changed):
        train_cvlp_stage(drawn, drawn.recipe.cvlp, progress)
    with at_first_step(lambda: retell("wave")) as progress:
        train_baseline_stage(drawn, drawn.recipe.baseline, progress)
    assert commits(drawn)[-1] == "train baseline fc"


def test_one_run_is_trained_once_at_a_time(drawn: Workspace) -> None:
    """A second process with the same settings does not write into the first one's folder."""

    def take() -> None:
        (folder,) = (drawn.path / "runs").iterdir()
        with write_lock(folder / "lock", "train cvlp", timeout=0):
            pass

    def meanwhile() -> None:
        with ThreadPoolExecutor(1) as pool, pytest.raises(LockedError, match="`vlltr train cvlp`"):
            pool.submit(take).result()

    with at_first_step(meanwhile) as progress:
        train_cvlp_stage(drawn, drawn.recipe.cvlp, progress)
