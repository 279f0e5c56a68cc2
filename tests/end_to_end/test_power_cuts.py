"""The power goes at every moment of a few commands: the reduced form of `python -m benchmarks.trust.power_cuts`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.trust.disk import VARIANTS, Disk, Operation, State
from benchmarks.trust.power_cuts import Cuts, Recording, replay


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The commands of `cut_program`."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace: apt-get install strace")
    folder = tmp_path_factory.mktemp("recording")
    (folder / "acknowledged").mkdir()
    made = Recording(folder, "tests.support.cut_program")
    made.make()
    return made


def cut(recording: Recording, scratch: Path, steps: list[Operation]) -> Cuts:
    """Every case of some steps."""
    cuts = Cuts(recording, scratch)
    cuts.run(lambda _: None, steps)
    return cuts


@pytest.mark.slow
def test_nothing_that_was_acknowledged_is_lost(recording: Recording, tmp_path: Path) -> None:
    """At no moment, whatever becomes of what was not synced."""
    steps = recording.operations()
    cuts = cut(recording, tmp_path, steps)
    assert cuts.failures == {}
    assert cuts.cases == len(steps) * len(VARIANTS) > 1000
    assert cuts.written > 20


@pytest.mark.slow
def test_without_syncs_it_is(recording: Recording, tmp_path: Path) -> None:
    """The same commands on a disk that is not asked to sync the tables: the cuts are seen, and can be made again."""
    steps = [
        step
        for step in recording.operations()
        if step.kind != "sync" or not step.path.startswith("workspace/lance")
    ]
    ends = [at for at, step in enumerate(steps) if step.path.startswith("acknowledged/")]
    failures = cut(recording, tmp_path, steps[: ends[2]]).failures
    assert len(failures) > 20
    assert any("cannot be opened" in why for why in failures.values())


@pytest.mark.slow
def test_a_case_is_made_again(recording: Recording, tmp_path: Path) -> None:
    """By its number; the last one of orderly writes is what lies in the folder."""
    last = (len(recording.operations()) - 1) * len(VARIANTS) + VARIANTS.index("dropped")
    replay(recording, last, tmp_path / "case")
    newest = recording.folder / "workspace" / "history" / "newest"
    assert (tmp_path / "case" / "workspace" / "history" / "newest").read_bytes() == newest.read_bytes()


def after(steps: list[Operation], variant: str) -> dict[str, bytes | None]:
    """What is there when the power goes after some steps."""
    disk = Disk()
    for step in steps:
        disk.apply(step)
    state: State = disk.after_a_cut(variant, 0)  # type: ignore[arg-type]  # one of them
    return {name: token and disk.content(token) for name, token in state.items()}


def test_what_a_cut_leaves() -> None:
    """Bytes are safe once the file was synced, names once the folder was."""
    made = [Operation("mkdir", "a"), Operation("create", "a/x"), Operation("write", "a/x", data=b"12")]
    assert after(made, "undone") == {}
    assert after(made, "dropped") == {"a": None, "a/x": b""}
    assert after(made, "zeroed") == {"a": None, "a/x": b"\0\0"}
    synced = [*made, Operation("sync", "a/x")]
    assert after(synced, "undone") == {}
    assert after(synced, "dropped") == after(synced, "zeroed") == {"a": None, "a/x": b"12"}
    named = [*synced, Operation("sync", "a"), Operation("sync", ".")]
    assert after(named, "undone") == {"a": None, "a/x": b"12"}
    more = [*named, Operation("write", "a/x", at=2, data=b"34"), Operation("rename", "a/x", "a/y")]
    assert after(more, "undone") == {"a": None, "a/x": b"12"}
    assert after(more, "dropped") == {"a": None, "a/y": b"12"}
    assert after(more, "zeroed") == {"a": None, "a/y": b"12\0\0"}
    assert after([*more, Operation("unlink", "a/y")], "undone") == {"a": None, "a/x": b"12"}
    assert after([*more, Operation("unlink", "a/y"), Operation("sync", "a")], "undone") == {"a": None}
