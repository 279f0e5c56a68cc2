"""What a workspace holds, what is stale, and the next command, at every stage of its life."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pyarrow as pa
import pytest

from tests.support.commands import forbid
from tests.support.objects import put
from tests.support.tablerows import (
    anchor_rows,
    class_rows,
    image_rows,
    score_rows,
    sentence_rows,
    vector_rows,
)
from vlltr_index.cli.render import status_rows
from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.pipelines.status import status
from vlltr_index.schemas.config import EncoderConfig, WorkspaceConfig
from vlltr_index.schemas.tables import (
    image_vectors,
    image_vectors_name,
    sentence_vectors,
    sentence_vectors_name,
)
from vlltr_index.store.holdout import digest_images
from vlltr_index.store.snapshot import SentenceReader
from vlltr_index.store.transaction import Transaction
from vlltr_index.store.workspace import Workspace

SCORED = digest_images([0, 0], ["train0", "train1"])  # what a selection names the images of `ingest` by


@pytest.fixture(autouse=True)
def without_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no parts: no answer could rest on rows that are made up like these."""
    monkeypatch.setattr("vlltr_index.store.parts.next_parts", lambda *_: ())


def image_vector_rows(ids: list[str]) -> pa.Table:
    """Plain views of images."""
    rows = [{"vector_key": f"{i}:0", "content_id": i, "view": 0, "vector": [1.0, 2, 3]} for i in ids]
    return pa.Table.from_pylist(rows, schema=image_vectors(3))


def ingest(workspace: Workspace, tx: Transaction) -> None:
    """Two classes; three training images, one of them quarantined, one for testing; three sentences."""
    tx.upsert("classes", class_rows([0, 1]))
    tx.upsert("images", image_rows([0, 1]))
    tx.upsert("images", image_rows([2], problem="truncated"))
    tx.upsert("images", image_rows([0], split="test"))
    tx.upsert("images", image_rows([5], split="pool", class_id=None))
    tx.upsert("sentences", pa.concat_tables([sentence_rows([0, 1]), sentence_rows([2], class_id=1)]))


def files(workspace: Workspace, kind: str, name: str, text: str) -> str:
    """An object with one file."""
    return put(workspace, kind, lambda folder: (folder / name).write_text(text))  # type: ignore[arg-type]  # any


def train(workspace: Workspace, tx: Transaction) -> None:
    """A checkpoint."""
    tx.set(checkpoint=files(workspace, "checkpoints", "encoder.json", "{}"))


def embed(workspace: Workspace, tx: Transaction) -> None:
    """All vectors."""
    texts, images = sentence_vectors_name("t"), image_vectors_name("i")
    tx.store.create(texts, sentence_vectors(3), "text_hash")
    tx.store.append(texts, vector_rows(["h0", "h1", "h2"], [[1, 2, 3]] * 3))
    tx.store.create(images, image_vectors(3), "vector_key")
    tx.store.append(images, image_vector_rows(["train0", "train1", "test0"]))
    tx.set(text_fp="t", image_fp="i")


def select(workspace: Workspace, tx: Transaction) -> None:
    """Scores for all sentences, and two anchors."""
    tx.replace("sentence_scores", score_rows(range(3), image_set=SCORED))
    tx.replace("anchors", anchor_rows([0, 2]))
    tx.set(selection_id="s")


def head(workspace: Workspace, tx: Transaction) -> None:
    """A head for these vectors."""
    facts = {"text_fp": "t", "image_fp": "i"}
    tx.set(head=files(workspace, "heads", "head.json", json.dumps(facts)))


def index(workspace: Workspace, tx: Transaction) -> None:
    """An index over these anchors."""
    digest = files(workspace, "index", "index.json", "{}")
    tx.set(index={"digest": digest, "kind": "flat", "text_fp": "t"})


Step = Callable[[Workspace, Transaction], None]
STEPS: list[tuple[Step, str, str]] = [
    (ingest, "the encoder has not been trained", "vlltr train cvlp"),
    (train, "nothing has been embedded with this encoder", "vlltr embed"),
    (embed, "no anchor sentences have been selected", "vlltr select"),
    (select, "the head has not been trained", "vlltr train lgr"),
    (head, "there is no index over the anchors", "vlltr index"),
]


def commit(workspace: Workspace, *steps: Step) -> None:
    """One commit a step."""
    for step in steps:
        with workspace.transaction(step.__name__) as tx:
            step(workspace, tx)


@pytest.fixture
def finished(workspace: Workspace) -> Workspace:
    """A workspace that nothing is missing in."""
    commit(workspace, *(step for step, _, _ in STEPS), index)
    return workspace


def test_an_empty_workspace(workspace: Workspace) -> None:
    """Nothing is there, and the first command is to bring images."""
    report = status(workspace)
    assert (report.commit, report.classes, report.images, report.sentences) == (None, 0, {}, 0)
    assert "there are no training images" in report.stale
    assert report.next == "vlltr ingest images PATH --split train"


def test_each_step_leads_to_the_next(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each command, status names the one after it."""
    monkeypatch.setattr("vlltr_index.pipelines.status.MANY_ANCHORS", 1)
    for step, missing, following in STEPS:
        commit(workspace, step)
        report = status(workspace)
        assert missing in report.stale
        assert report.next == following


def test_a_finished_workspace(finished: Workspace) -> None:
    """All counts are there, nothing is stale, and the report is JSON."""
    report = status(finished)
    assert (report.stale, report.next) == ((), "vlltr evaluate")
    assert report.images == {"train": 2, "test": 1}
    assert (report.quarantined, report.classes, report.sentences) == (1, 2, 3)
    assert (report.sentence_vectors, report.image_vectors, report.anchors) == (3, 3, 2)
    lines = dict(status_rows(report))
    assert lines["images"] == "train 2, test 1 (1 quarantined)"
    assert lines["last commit"] == "6 (index)"
    assert lines["encoder"].startswith("ViT-B-16, trained here (")
    assert "now" not in lines
    assert lines["next"] == report.next


def test_what_was_evaluated_is_asked_next(finished: Workspace) -> None:
    """Whatever evaluation of this model is kept; not one of another head, nor after more images came."""
    for name, following in (
        ("evaluate-test-4.json", "vlltr evaluate"),
        ("evaluate-test-16.json", "vlltr evaluate"),
        ("evaluate-cross-validation-6-prior-training.json", "vlltr predict IMAGE --explain 3"),
        ("evaluate-val-4-7-crops-5-paper.json", "vlltr predict IMAGE --explain 3"),
        ("evaluate-test-6-prior-given-1a2b3c4d.json", "vlltr predict IMAGE --explain 3"),
    ):
        finished.storage.write(f"reports/{name}", b"{}")
        assert status(finished).next == following
    assert status(finished).measured == "at commit 6"
    commit(finished, more_images)
    assert status(finished).next != "vlltr predict IMAGE --explain 3"


def test_sentences_that_another_model_read_are_read_again(finished: Workspace) -> None:
    """Where the recipe names another sentence-embedding model than the one that read them, or none."""
    with finished.transaction("embed") as tx:
        tx.note(reading=SentenceReader(model="some/model", fp="r", dim=2))
    report = status(finished)
    assert report.stale == ("prior.text is none, and the sentences were read by some/model",)
    assert report.next == "vlltr embed"


def test_what_the_last_figures_do_not_know_is_said(finished: Workspace) -> None:
    """Classes, images and sentences that came since, another head; and why there are no figures."""
    assert status(finished, 4).measured is None
    assert status(finished).measured == "not yet: vlltr evaluate"
    finished.storage.write("reports/evaluate-test-6.json", b"{}")
    commit(finished, more_images, more_text, other_anchors)
    changed = "at commit 6; 1 class, 1 image, 1 sentence came, went or changed since: vlltr evaluate"
    assert status(finished).measured == changed
    with finished.transaction("relabelled") as tx:
        rows = tx.table("images", where="image_id = 'train7'")
        tx.upsert("images", rows.set_column(rows.column_names.index("class_id"), "class_id", [[1]]))
    finished.storage.write("reports/evaluate-val-9.json", b"{}")
    assert status(finished).measured == "at commit 9; 1 image came, went or changed since: vlltr evaluate"
    with finished.transaction("train lgr") as tx:
        tx.set(
            head=files(finished, "heads", "head.json", json.dumps({"text_fp": "t", "image_fp": "i", "n": 2}))
        )
    assert status(finished).measured == "at commit 9; the head was trained since: vlltr evaluate"
    with finished.transaction("no test") as tx:
        tx.delete("images", "split = 'test'")
    report = status(finished)
    none = "no image is in split test, and train lgr held out no image"
    assert dict(status_rows(report))["measured"] == none
    assert report.next != "vlltr evaluate"
    with finished.transaction("folds") as tx:
        tx.note(folds="f")
    assert status(finished).measured is not None
    assert status(finished).measured != none


def more_text(workspace: Workspace, tx: Transaction) -> None:
    """A sentence that nothing knows yet, and a class without any."""
    tx.upsert("sentences", sentence_rows([7]))
    tx.upsert("classes", class_rows([2]))


def more_images(workspace: Workspace, tx: Transaction) -> None:
    """An image that has a vector, and that no sentence was scored against."""
    tx.upsert("images", image_rows([7]))
    tx.store.append(image_vectors_name("i"), image_vector_rows(["train7"]))


def other_anchors(workspace: Workspace, tx: Transaction) -> None:
    """A selection after the index."""
    tx.upsert("anchors", anchor_rows([9]))


def other_encoder(workspace: Workspace, tx: Transaction) -> None:
    """Another encoder that has embedded and selected all."""
    for fp, name in (("t", sentence_vectors_name), ("i", image_vectors_name)):
        tx.store.create(name(f"{fp}2"), tx.store.schema(name(fp)))
        tx.store.append(name(f"{fp}2"), tx.store.read(name(fp)))
    tx.replace("sentence_scores", score_rows(range(3), text_fp="t2", image_set=SCORED))
    tx.set(text_fp="t2", image_fp="i2")


@pytest.mark.parametrize(
    ("change", "stale", "command"),
    [
        (more_text, ("1 class has no text", "without a vector: 1 sentence"), "vlltr ingest text PATH"),
        (
            more_images,
            ("the selection is from before images that it scores against came or went",),
            "vlltr select",
        ),
        (
            other_anchors,
            ("1 anchor came or went since the index was built; those are searched beside it",),
            "vlltr index",
        ),
        (other_encoder, ("the head was trained on another encoder's vectors",), "vlltr train lgr"),
    ],
)
def test_what_goes_stale(
    finished: Workspace,
    change: Step,
    stale: tuple[str, ...],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each change to a finished workspace names what no longer fits."""
    monkeypatch.setattr("vlltr_index.pipelines.status.MANY_ANCHORS", 1)
    commit(finished, change)
    report = status(finished)
    assert set(stale) <= set(report.stale)
    assert report.next == command


def test_an_index_is_asked_for_where_it_helps(workspace: Workspace, finished: Workspace) -> None:
    """With few anchors all classes are scored, whether there is an index or not."""
    commit(finished, other_anchors)
    assert status(finished).stale == ()
    with finished.transaction("no index") as tx:
        tx.set(index=None)
    assert status(finished).stale == ()


def test_files_that_are_gone(finished: Workspace) -> None:
    """A folder that somebody deleted is named with the command that makes it again."""
    shutil.rmtree(finished.path / "heads")
    report = status(finished)
    assert "files are gone" in report.stale[0]
    assert report.next == "vlltr train lgr"


def test_files_that_cannot_be_read(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not gone: nothing is to be made again."""
    folder = finished.objects.path("heads", str(finished.history.last().head))
    forbid(monkeypatch, folder)
    with pytest.raises(WorkspaceError, match="cannot be listed: Permission denied"):
        status(finished)


def test_a_commit_that_names_files_elsewhere(finished: Workspace) -> None:
    """What lies outside the workspace is not read."""
    with pytest.raises(MissingStepError, match="is gone"):
        finished.objects.file("checkpoints", "../../secret", "encoder.json")


def test_who_is_writing(finished: Workspace) -> None:
    """A running command is named, and status does not wait for it."""
    with finished.transaction("train cvlp"):
        report = status(finished)
    assert report.writing is not None
    assert report.writing.startswith("`vlltr train cvlp` (process ")
    assert dict(status_rows(report))["now"] == f"{report.writing} is writing"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, None),
        ({"precision": "tf32"}, None),
        ({"precision": "bf16"}, "RN50:openai in bf16"),
        ({"pretrained": "yfcc15m"}, "RN50:yfcc15m"),
        ({"model": "timm", "pretrained": "tower", "image_size": 256}, "timm:tower at 256 px"),
    ],
)
def test_another_encoder_than_that_of_the_vectors(
    finished: Workspace, changes: dict[str, object], wanted: str | None
) -> None:
    """One that was edited after `embed` is named beside it, before a command computes with it."""
    made = EncoderConfig(model="RN50", pretrained="openai")
    with finished.transaction("embed") as tx:
        tx.set(checkpoint=None)
        tx.note(encoder=made)
    edited = finished.recipe.model_copy(update={"encoder": made.model_copy(update=changes)})
    finished.write_config(WorkspaceConfig(recipe=edited))
    report = status(finished)
    told = f"the recipe's encoder is {wanted}, that of the vectors RN50:openai"
    assert report.stale == ((told,) if wanted else ())
    if wanted:
        assert report.next == "vlltr embed --force"


@pytest.mark.parametrize(
    ("model", "size", "resize", "wanted"),
    [
        ("ViT-B-16-quickgelu", 224, 248, None),
        ("RN50", None, None, "RN50"),
        ("ViT-B-16", None, 256, "ViT-B-16 out of 256 px"),
        ("local-dir", None, None, None),
        ("timm", None, None, None),
    ],
)
def test_another_encoder_in_the_recipe(
    finished: Workspace, model: str, size: int | None, resize: int | None, wanted: str | None
) -> None:
    """An encoder that was edited after training is named beside the trained one."""
    config = {"model_cfg": {"vision_cfg": {"image_size": 224}}, "preprocess_cfg": {"resize": 248}}
    facts = {"name": "ViT-B-16", "config": config}
    with finished.transaction("train cvlp") as tx:
        tx.set(checkpoint=files(finished, "checkpoints", "encoder.json", json.dumps(facts)))
    encoder = EncoderConfig(model=model, pretrained="named", image_size=size, resize=resize)
    finished.write_config(WorkspaceConfig(recipe=finished.recipe.model_copy(update={"encoder": encoder})))
    report = status(finished)
    trained = "the trained one ViT-B-16 at 224 px out of 248 px"
    assert report.stale == ((f"the recipe's encoder is {wanted}, {trained}",) if wanted else ())
    if wanted:
        assert report.next == "vlltr train cvlp"
