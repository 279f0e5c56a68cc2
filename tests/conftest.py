"""Fixtures that several test files use."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from tests.support.browser import chromium

# What imports torch is imported in the fixtures: the process that only shares out the tests does without.
if TYPE_CHECKING:
    from tests.support.buckets import Bucket
    from tests.support.changes import World
    from tests.support.exports import Shared
    from vlltr_index.recognizer import Recognizer
    from vlltr_index.store.workspace import Workspace

__all__ = ["chromium"]  # a fixture that lives elsewhere

IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # one of several processes that share the tests
if IN_WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

# A shell that starts pytest in the background has it ignore Ctrl-C, and with it every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_device_and_log_level() -> Iterator[None]:
    """Undo what commands that run in this process choose for it: the device (`--device`) and the level of the log."""
    device, logger = os.environ.get("VLLTR_DEVICE"), logging.getLogger("vlltr_index")
    level = logger.level
    yield
    logger.setLevel(level)
    os.environ.pop("VLLTR_DEVICE", None)
    if device is not None:
        os.environ["VLLTR_DEVICE"] = device


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the default of pyproject.toml leaves out."""
    if config.option.markexpr == "not (slow or chromium)":
        terminalreporter.write_line(
            "Left out: tests marked slow or chromium, also in files given by name."
            ' To run them: pip install -e ".[test-all]" && pytest -m "slow or chromium"'
        )


@pytest.hookimpl(trylast=True)  # after what -m leaves out
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Put files that need the trained workspace last, but one first: one process makes it, the other need not wait."""
    need = {item.path for item in items if "trained_once" in item.fixturenames}
    first = min(need, default=None)
    items.sort(key=lambda item: (item.path != first, item.path in need))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.store.workspace import Workspace

    return Workspace.create(tmp_path / "workspace", Recipe(name="test"))


@pytest.fixture(scope="session")
def server() -> Iterator[Bucket]:
    """An S3 server with an empty bucket."""
    from tests.support.buckets import serve

    with serve() as bucket:
        yield bucket


@pytest.fixture
def bucket(server: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The bucket, with the environment of who uses it, and a cache of its own."""
    for name, value in {**server.environment(), "VLLTR_CACHE_DIR": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace on the small slice of Glyphs-LT with every step done, made by the first process that needs it;
    training is two short epochs. Nothing may write into it.
    """
    from vlltr_index.data.glyphs import glyph_files
    from vlltr_index.pipelines.ingest import ingest_images, ingest_text
    from vlltr_index.pipelines.train_all import train_all
    from vlltr_index.schemas.recipes import load_recipe, override
    from vlltr_index.store.workspace import Workspace

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if IN_WORKER else own) / "trained"
    with FileLock(folder.with_suffix(".lock")):
        if folder.exists():
            return folder
        data = glyph_files(fast=True)
        recipe = override(
            load_recipe("glyphs_lt/fast"), ("cvlp.epochs=2", "lgr.epochs=1", "baseline.epochs=1")
        )
        workspace = Workspace.create(tmp_path_factory.mktemp("training") / "workspace", recipe)
        ingest_text(workspace, data.texts)
        for split in ("train", "val", "test"):
            ingest_images(workspace, data.images, split)
        train_all(workspace, workspace.recipe)
        return workspace.path.rename(folder)


@pytest.fixture(scope="session")
def recognizer(trained_once: Path) -> Recognizer:
    """The trained workspace's recognizer; nothing writes through it."""
    from vlltr_index.recognizer import Recognizer

    return Recognizer.open(trained_once)


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Workspace:
    """A copy of the trained workspace that a test may change."""
    from vlltr_index.store.workspace import Workspace

    return Workspace.open(shutil.copytree(trained_once, tmp_path / "trained"))


@pytest.fixture(scope="session")
def world(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Ten classes in a trained workspace of their own, and a model of them; tests change copies."""
    from tests.support.changes import build_world
    from vlltr_index.store.workspace import Workspace

    return build_world(tmp_path_factory.mktemp("world"), Workspace.open(trained_once))


@pytest.fixture
def small(world: World, tmp_path: Path) -> Workspace:
    """A copy of its workspace that a test may change."""
    from vlltr_index.store.workspace import Workspace

    return Workspace.open(shutil.copytree(world.folder, tmp_path / "small"))


@pytest.fixture(scope="session")
def heldout() -> dict[str, list[str]]:
    """Sentences about classes that the trained workspace has never seen."""
    from vlltr_index.data.glyphs import glyph_files

    return glyph_files(fast=True).heldout_classes("dev")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, heldout: dict[str, list[str]]) -> Path:
    """PNG files: known-0.png to known-5.png of classes in the workspace, and a folder of a held-out class's images."""
    from vlltr_index.data.glyphs import glyph_files, write_sample

    folder = tmp_path_factory.mktemp("pictures")
    data = glyph_files(fast=True)
    names = sorted(json.loads(data.texts.read_text(encoding="utf-8")))
    for number, name in enumerate(names[:6]):
        write_sample(data.images, "test", name, folder / f"known-{number}.png")
    unseen = min(heldout)
    for number in range(4):
        write_sample(data.images, "dev_support", unseen, folder / "unseen" / f"{number}.png", number)
    return folder


@pytest.fixture
def shots(tmp_path: Path, pictures: Path) -> Path:
    """Three classes of 10, 4 and 1 pictures, and texts about them."""
    sources = sorted(pictures.glob("**/*.png"))
    for name, count in {"kestrel": 10, "merlin": 4, "hobby": 1}.items():
        (tmp_path / "shots" / name).mkdir(parents=True)
        for number in range(count):
            shutil.copy(sources[number % len(sources)], tmp_path / "shots" / name / f"{number}.png")
    return tmp_path / "shots"


@pytest.fixture(scope="session")
def shared(
    trained_once: Path,
    heldout: dict[str, list[str]],
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Shared:
    """An exported model, with classes added by images and by text, and merged ones; its workspace is gone. Nothing may
    write into it.
    """
    from tests.support.exports import changed, share
    from vlltr_index.store.workspace import Workspace

    place = tmp_path_factory.mktemp("shared")
    workspace = Workspace.open(shutil.copytree(trained_once, place / "workspace"))
    changed(workspace, heldout, pictures)
    return share(workspace, place / "model", pictures)


@pytest.fixture(scope="session")
def exported(shared: Shared) -> Recognizer:
    """The exported model."""
    from vlltr_index.recognizer import Recognizer

    return Recognizer.from_pretrained(shared.folder)
