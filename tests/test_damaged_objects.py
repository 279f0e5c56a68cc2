"""Heads, checkpoints and logs that were changed on the disk: noticed before anything is answered from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlltr_index.errors import WorkspaceError
from vlltr_index.heads import load_head
from vlltr_index.recognizer import Recognizer
from vlltr_index.report.records import Missing
from vlltr_index.stages.baselines import baseline_labels
from vlltr_index.stages.report import gather_report
from vlltr_index.stages.status import status
from vlltr_index.stages.train_lgr import train_lgr_stage
from vlltr_index.workspace import Workspace

DEEP = "[" * 100_000


def head_of(workspace: Workspace) -> Path:
    """The folder of the newest commit's head."""
    commit = workspace.history.last()
    assert commit is not None
    assert commit.head is not None
    return workspace.object_path("heads", commit.head)


def flip(path: Path, at: int = -100) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(bytes(data))


@pytest.mark.slow
def test_flipped_bytes_in_a_head_are_noticed(trained: Workspace, pictures: Path) -> None:
    """One byte of the weights is enough; training it again puts the files right, and the answers are as before."""
    asked = [str(pictures / "known-0.png")]
    before = Recognizer.open(trained).predict(asked)
    folder = head_of(trained)
    flip(folder / "head.safetensors")
    with pytest.raises(WorkspaceError) as error:
        Recognizer.open(Workspace.open(trained.path)).predict(asked)
    assert (
        error.value.message
        == f"{folder} is damaged: its files are not those that were written: the digest differs"
    )
    assert error.value.hint == (
        "Bring it back from a backup, or make it again: vlltr train lgr. "
        "To go back to a commit that does without it: vlltr history, then vlltr rollback ID"
    )
    (folder / ".DS_Store").write_text("of a file manager")
    train_lgr_stage(trained, trained.recipe.lgr)
    assert head_of(trained) == folder
    (folder / ".DS_Store").write_text("of a file manager")
    assert Recognizer.open(Workspace.open(trained.path)).predict(asked) == before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"normalise_values": "../x"}, r"normalise_values in head\.json must be of type bool, got '\.\./x'"),
        ({"visual": "magic"}, "visual must be 'linear', 'mlp' or 'cosine', got 'magic'"),
        (None, r"head\.json has no 'dim'"),
    ],
)
def test_facts_of_a_head_have_their_types(
    trained: Workspace, change: dict[str, object] | None, why: str
) -> None:
    """Another type than was written is named, and never taken for true."""
    path = head_of(trained) / "head.json"
    values = {} if change is None else json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(WorkspaceError, match=rf"the head in .* cannot be read: {why}"):
        load_head(path.parent)


@pytest.mark.parametrize("content", [DEEP, '{"name": "a", "config": {"model_cfg": 1}}'])
def test_status_and_report_outlast_damaged_json(trained: Workspace, content: str) -> None:
    """Deeply nested JSON, or JSON of another shape, in a head or a checkpoint is damage like any other."""
    commit = trained.history.last()
    assert commit is not None
    head = head_of(trained)
    checkpoint = trained.object_path("checkpoints", str(commit.checkpoint))
    for path in (head / "head.json", head / "train.json", checkpoint / "encoder.json"):
        path.write_text(content, encoding="utf-8")
    report = status(trained)
    assert report.stale[0].startswith("the head's files are damaged: ")
    assert report.next == "vlltr train lgr"
    assert report.encoder.startswith("vlltr-tiny, trained here (")
    damaged = Missing("Stage 2 (LGR): its log cannot be read", "Train it again: vlltr train lgr")
    assert damaged in gather_report(trained, commit.id).curves
    with pytest.raises(WorkspaceError, match=r"the head in .* cannot be read: "):
        load_head(head)


def test_a_damaged_baseline_names_its_command(workspace: Workspace) -> None:
    """The image-only baseline's settings."""
    content = '{"config": {"logit_adjustment": null}}'
    with workspace.transaction("train baseline fc") as tx:
        digest = workspace.put_object(
            "checkpoints", lambda folder: (folder / "train.json").write_text(content, encoding="utf-8")
        )
        tx.note(baseline_fc=digest)
    path = workspace.object_path("checkpoints", digest) / "train.json"
    with pytest.raises(WorkspaceError) as error:
        baseline_labels(workspace, workspace.snapshot())
    assert error.value.message.startswith(f"{path} is damaged: ")
    assert error.value.hint == "Make it again: vlltr train baseline fc"
