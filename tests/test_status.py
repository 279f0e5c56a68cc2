"""What a workspace holds, what is stale, and the next command, at every stage of its life."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from tablerows import anchor_rows, class_rows, image_rows, score_rows, sentence_rows, vector_rows

from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.config import EncoderConfig, Recipe, WorkspaceConfig
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.schemas.tables import (
    image_vectors,
    image_vectors_name,
    sentence_vectors,
    sentence_vectors_name,
)
from vlltr_index.stages.status import status
from vlltr_index.transaction import Transaction
from vlltr_index.workspace import Workspace

SCORED = short(
    digest_json(["train0", "train1"])
)  # what a selection over the images of `ingest` names them by


def image_vector_rows(ids: list[str]) -> pa.Table:
    """Plain views of images."""
    rows = [{"vector_key": f"{i}:0", "image_id": i, "view": 0, "vector": [1.0, 2, 3]} for i in ids]
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
    return workspace.put_object(kind, lambda folder: (folder / name).write_text(text))  # type: ignore[arg-type]  # any


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
    tx.set(index={"digest": files(workspace, "index", "index.json", "{}"), "text_fp": "t"})


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
    assert report.stale == (
        "there are no training images",
        "there is no text",
        "the encoder has not been trained",
    )
    assert report.next == "vlltr ingest images PATH --split train"


@pytest.mark.parametrize("done", range(1, len(STEPS) + 1))
def test_each_step_leads_to_the_next(workspace: Workspace, done: int) -> None:
    """After each command, status names the one after it."""
    commit(workspace, *(step for step, _, _ in STEPS[:done]))
    report = status(workspace)
    assert STEPS[done - 1][1] in report.stale
    assert report.next == STEPS[done - 1][2]


def test_a_finished_workspace(finished: Workspace) -> None:
    """All counts are there, nothing is stale, and the report is JSON."""
    report = status(finished)
    assert (report.stale, report.next) == ((), "vlltr evaluate --split test")
    assert report.images == {"train": 2, "test": 1}
    assert (report.quarantined, report.classes, report.sentences) == (1, 2, 3)
    assert (report.sentence_vectors, report.image_vectors, report.anchors) == (3, 3, 2)
    lines = dict(report.lines())
    assert lines["images"] == "train 2, test 1 (1 quarantined)"
    assert lines["last commit"] == "6 (index)"
    assert lines["encoder"].startswith("ViT-B-16, trained here (")
    assert "now" not in lines
    assert lines["next"] == report.next


def test_pretrained_weights_need_no_training(tmp_path: Path) -> None:
    """With weights in the recipe, stage 1 is not asked for."""
    recipe = Recipe(name="x", encoder=EncoderConfig(model="RN50", pretrained="openai"))
    workspace = Workspace.create(tmp_path / "w", recipe)
    commit(workspace, ingest)
    report = status(workspace)
    assert (report.encoder, report.next) == ("RN50, openai", "vlltr embed")


def more_text(workspace: Workspace, tx: Transaction) -> None:
    """A sentence that nothing knows yet, and a class without any."""
    tx.upsert("sentences", sentence_rows([7]))
    tx.upsert("classes", class_rows([2]))


def more_images(workspace: Workspace, tx: Transaction) -> None:
    """An image that has a vector, and that no sentence was scored against."""
    tx.upsert("images", image_rows([7]))
    tx.store.append(image_vectors_name("i"), image_vector_rows(["train7"]))


def fewer_images(workspace: Workspace, tx: Transaction) -> None:
    """An image that sentences were scored against goes."""
    tx.delete("images", "image_id = 'train1'")


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
        (
            more_text,
            (
                "1 class has no text",
                "without a vector: 1 sentence",
                "the selection is from before 1 sentence came or went",
            ),
            "vlltr ingest text PATH",
        ),
        (
            more_images,
            ("the selection is from before images that it scores against came or went",),
            "vlltr select",
        ),
        (
            fewer_images,
            ("the selection is from before images that it scores against came or went",),
            "vlltr select",
        ),
        (
            other_anchors,
            ("1 anchor came or went since the index was built; those are searched beside it",),
            "vlltr index",
        ),
        (
            other_encoder,
            (
                "the head was trained on another encoder's vectors",
                "the index is over another encoder's vectors",
            ),
            "vlltr train lgr",
        ),
    ],
)
def test_what_goes_stale(finished: Workspace, change: Step, stale: tuple[str, ...], command: str) -> None:
    """Each change to a finished workspace names what no longer fits."""
    commit(finished, change)
    report = status(finished)
    assert (report.stale, report.next) == (stale, command)


def test_retired_classes_need_nothing(finished: Workspace) -> None:
    """The sentences of a retired class are not missed in the selection."""

    def retire(workspace: Workspace, tx: Transaction) -> None:
        tx.upsert("classes", class_rows([1], retired=[1]))
        tx.replace("sentence_scores", score_rows(range(2), image_set=SCORED))

    commit(finished, retire)
    assert (status(finished).stale, status(finished).classes) == ((), 1)


@pytest.mark.parametrize(
    ("kind", "command"),
    [("checkpoints", "vlltr train cvlp"), ("heads", "vlltr train lgr"), ("index", "vlltr index")],
)
def test_files_that_are_gone(finished: Workspace, kind: str, command: str) -> None:
    """A folder that somebody deleted is named with the command that makes it again."""
    shutil.rmtree(finished.path / kind)
    report = status(finished)
    assert "files are gone" in report.stale[0]
    assert report.next == command


def test_a_damaged_head(finished: Workspace) -> None:
    """A head that cannot be read is to be trained again."""
    for file in finished.path.glob("heads/*/head.json"):
        file.write_text("{")
    assert status(finished).stale[0].startswith("the head's files are damaged: ")


def test_who_is_writing(finished: Workspace) -> None:
    """A running command is named, and status does not wait for it."""
    with finished.transaction("train cvlp"):
        report = status(finished)
    assert report.writing is not None
    assert report.writing.startswith("`vlltr train cvlp` (process ")
    assert dict(report.lines())["now"] == f"{report.writing} is writing"


def recommended(
    workspace: Workspace, model: str, image_size: int | None, resize: int | None = None
) -> Workspace:
    """The workspace after its vlltr.toml was edited to another encoder."""
    encoder = EncoderConfig(model=model, image_size=image_size, resize=resize)
    recipe = workspace.recipe.model_copy(update={"encoder": encoder})
    workspace.write_config(WorkspaceConfig(recipe=recipe))
    return Workspace.open(workspace.path)


@pytest.mark.parametrize(
    ("model", "size", "resize", "wanted"),
    [
        ("ViT-B-16", None, None, None),
        ("ViT-B-16-quickgelu", 224, 248, None),
        ("some/folder", None, None, None),
        ("RN50", None, None, "RN50"),
        ("ViT-B-16", 384, None, "ViT-B-16 at 384 px"),
        ("ViT-B-16", None, 256, "ViT-B-16 out of 256 px"),
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
    report = status(recommended(finished, model, size, resize))
    trained = "the trained one ViT-B-16 at 224 px out of 248 px"
    assert report.stale == ((f"the recipe's encoder is {wanted}, {trained}",) if wanted else ())
    if wanted:
        assert report.next == "vlltr train cvlp"


def test_tables_that_were_deleted(finished: Workspace) -> None:
    """Without its tables a workspace names one of them, and what brings them back."""
    shutil.rmtree(finished.path / "lance")
    with pytest.raises(WorkspaceError) as error:
        status(finished)
    assert (
        error.value.message == f"commit 6 names the table 'images', which is gone from {finished.store.uri}"
    )
    assert error.value.hint == (
        "Bring that folder back from a backup, or make a new workspace (vlltr init DIR) and run there again what "
        "`vlltr history` lists."
    )


def test_newest_vectors_may_be_gone(finished: Workspace) -> None:
    """Vectors are caches: without them the step is to embed."""
    finished.store.drop(sentence_vectors_name("t"))
    assert status(finished).next == "vlltr embed"
