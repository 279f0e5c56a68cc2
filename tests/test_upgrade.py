"""Workspaces of an older format: refused with the way out, brought up to date, and readable as before."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from tablerows import class_rows, sentence_rows
from test_rollback import killed, run

from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.config import FORMAT
from vlltr_index.stages.history import rollback
from vlltr_index.stages.prune import prune
from vlltr_index.stages.upgrade import upgrade
from vlltr_index.workspace import Workspace

ORDER = {0: ["s9", "s2", "s5"], 1: ["s7", "s1"]}  # the order in which each class's sentences came in


def age(workspace: Workspace, commit: int) -> None:
    """Make the newest commit one of format 1: its sentences have no positions, its file no new fields."""
    store, path = workspace.store, workspace.path / "history" / f"{commit}.json"
    store.rewrite("sentences", store.read("sentences").drop_columns(["position"]), "sentence_id")
    store.tag("sentences", store.version("sentences"), f"c{commit}")
    values = json.loads(path.read_text())
    values["tables"]["sentences"] = store.version("sentences")
    values["format"] = 1
    del values["state_of"]
    path.write_text(json.dumps(values))


@pytest.fixture
def old(workspace: Workspace) -> Path:
    """A workspace of format 1 with two commits, and a remark in its vlltr.toml."""
    with workspace.transaction("ingest text a") as tx:
        tx.upsert("classes", class_rows([0, 1]))
        tx.upsert("sentences", sentence_rows([9, 2]))
        tx.upsert("sentences", sentence_rows([7], class_id=1))
    age(workspace, 1)
    with workspace.transaction("ingest text b") as tx:
        tx.upsert("sentences", pa.concat_tables([sentence_rows([5]), sentence_rows([1], class_id=1)]))
    age(workspace, 2)
    file = workspace.path / "vlltr.toml"
    text = file.read_text().replace(f"format = {FORMAT}", "format = 1  # as it was")
    file.write_text(text + "\n# format = 1 is mine\n")
    return workspace.path


def positions(workspace: Workspace, at: int | None = None) -> dict[int, list[str]]:
    """Sentences by class, in order of position."""
    rows = workspace.snapshot(at).table("sentences", ["class_id", "position", "sentence_id"])
    triples = sorted(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    assert all(p == [c for c, _, _ in triples[:n]].count(o) for n, (o, p, _) in enumerate(triples))
    return {owner: [i for o, _, i in triples if o == owner] for owner in ORDER}


def test_an_old_workspace_is_refused_with_the_way_out(old: Path) -> None:
    """Both formats and the command are named, wherever it is opened."""
    for use in (Workspace.open, Workspace.find):
        with pytest.raises(WorkspaceError) as error:
            use(old)
        assert str(error.value) == (
            f"{old / 'vlltr.toml'} has format 1, this program works with format {FORMAT}\n"
            f"Bring the workspace up to date: vlltr -w {old} upgrade"
        )


def test_upgrading_numbers_the_sentences(old: Path) -> None:
    """Positions follow the order in which sentences came; the file keeps its remarks; old commits are readable."""
    before = (old / "vlltr.toml").read_text()
    workspace = Workspace.open(old, any_format=True)
    report = upgrade(workspace)
    assert (report.before, report.after, report.commit) == (1, FORMAT, 3)
    assert workspace.config.format == FORMAT
    opened = Workspace.open(old)
    assert positions(opened) == ORDER
    assert (old / "vlltr.toml").read_text() == before.replace("format = 1  #", f"format = {FORMAT}  #")
    for number, count in ((1, 3), (2, 5)):
        rows = opened.snapshot(number).table("sentences")
        assert (rows.num_rows, rows["position"].null_count) == (count, count)
        assert opened.snapshot(number).table("sentences", ["position"]).num_rows == count
    assert opened.history.read(3).format == FORMAT


def test_upgrading_twice_changes_nothing(old: Path) -> None:
    """The second time there is nothing to do, and no commit is made."""
    upgrade(Workspace.open(old, any_format=True))
    again = upgrade(Workspace.open(old, any_format=True))
    assert again.lines() == [f"The workspace has format {FORMAT} already."]
    assert list(Workspace.open(old).history.ids()) == [1, 2, 3]


def test_later_sentences_follow(old: Path) -> None:
    """Positions go on after those that are there; a sentence that comes again keeps its own."""
    workspace = Workspace.open(old, any_format=True)
    upgrade(workspace)
    with workspace.transaction("ingest text c") as tx:
        assert tx.upsert("sentences", sentence_rows([4, 9, 0])) == 2
        assert tx.upsert("sentences", sentence_rows([3])) == 1
    assert positions(workspace)[0] == [*ORDER[0], "s4", "s0", "s3"]
    with workspace.transaction("sentences remove") as tx:
        tx.delete("sentences", "sentence_id = 's9'")
        tx.upsert("sentences", sentence_rows([9]))
    rows = workspace.snapshot().table("sentences", ["position"], "sentence_id = 's9'")
    assert rows["position"].to_pylist() == [6]


def test_going_back_to_a_commit_of_the_old_format(old: Path) -> None:
    """Its sentences come back with positions, later writes work, and pruning takes the old versions away."""
    workspace = Workspace.open(old, any_format=True)
    upgrade(workspace)
    rollback(workspace, 1)
    assert positions(workspace) == {0: ["s9", "s2"], 1: ["s7"]}
    with workspace.transaction("ingest text c") as tx:
        tx.upsert("sentences", sentence_rows([30]))
    assert positions(workspace)[0] == ["s9", "s2", "s30"]
    prune(workspace, 1)
    assert positions(workspace)[0] == ["s9", "s2", "s30"]


def test_killed_in_the_middle(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the commit, or between it and the file, it is still an old workspace; running it again helps."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for place in ("vlltr_index.history.History.append", "vlltr_index.workspace.Workspace.write_format"):
        with monkeypatch.context() as patch:
            killed(patch)
            patch.setattr(place, stop)
            with pytest.raises(KeyboardInterrupt):
                upgrade(Workspace.open(old, any_format=True))
        with pytest.raises(WorkspaceError, match="has format 1"):
            Workspace.open(old)
        assert Workspace.open(old, any_format=True).snapshot(2).count("sentences") == 5
    assert upgrade(Workspace.open(old, any_format=True)).commit is None
    workspace = Workspace.open(old)
    assert positions(workspace) == ORDER
    assert list(workspace.history.ids()) == [1, 2, 3]


def test_an_empty_old_workspace(workspace: Workspace) -> None:
    """Without tables only the file changes."""
    file = workspace.path / "vlltr.toml"
    file.write_text(file.read_text().replace(f"format = {FORMAT}", "format = 1"))
    report = upgrade(Workspace.open(workspace.path, any_format=True))
    assert (report.commit, report.steps) == (None, ())
    assert Workspace.open(workspace.path).config == workspace.config


def test_the_command(old: Path) -> None:
    """It is run in a workspace that no other command opens."""
    workspace = Workspace.open(old, any_format=True)
    said = run(workspace, "upgrade").splitlines()
    assert said[0] == f"The workspace has format {FORMAT} now; it had 1, in commit 3."
    assert run(workspace, "upgrade") == f"The workspace has format {FORMAT} already.\n"
    assert '"before": 2' in run(workspace, "--json", "upgrade")


def test_values_that_a_command_fitted_once_are_passed_over(workspace: Workspace) -> None:
    """A vlltr.toml and a commit from before training decided how much each part counts are read."""
    with workspace.transaction("ingest text a") as tx:
        tx.upsert("classes", class_rows([0]))
    file = workspace.path / "vlltr.toml"
    text = file.read_text()
    assert "[recipe.fusion]" in text
    file.write_text(text.replace("[recipe.fusion]", "[recipe.fusion]\ntau_text = 2.0\nimprint_lift = 1.0"))
    path = workspace.path / "history" / "1.json"
    values = json.loads(path.read_text())
    values["fusion"] = {"rule": "ours", "margin": 0.5, "reject_threshold": 0.1, "run_id": "x"}
    path.write_text(json.dumps(values))
    read = Workspace.open(workspace.path)
    commit = read.history.last()
    assert commit is not None
    assert commit.fusion == read.recipe.fusion
