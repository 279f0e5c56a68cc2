"""Stored vectors: view 0 is the plain preprocessing for every split, other views are augmented and stable."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.support import drawings
from tests.support.commands import run
from tests.support.engines import Halved
from tests.support.pictures import encoded, put
from tests.support.sentence_models import write_sentence_model
from vlltr_index.data.decoding import open_image
from vlltr_index.embedding.loading import content_ids, image_set, open_encoder, text_vectors_of
from vlltr_index.embedding.pixels import Reader
from vlltr_index.embedding.vectors import LocalEngine, load_sources
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import FingerprintMismatch
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.init import init
from vlltr_index.recognition.anchors import read_anchors
from vlltr_index.schemas.config import AugmentConfig, WorkspaceConfig
from vlltr_index.schemas.fingerprint import digest_bytes
from vlltr_index.schemas.recipes import override
from vlltr_index.schemas.tables import IMAGES
from vlltr_index.store.tables import quote
from vlltr_index.store.workspace import Workspace
from vlltr_index.train.augment import ViewAugment


def test_stored_vectors_are_what_the_encoder_gives(trained: Workspace) -> None:
    """View 0 of train and test, and the anchors, equal encoding each image and sentence alone, within 1e-4."""
    snapshot = trained.snapshot()
    encoder = open_encoder(snapshot)
    encoder.eval()
    for split in ("train", "test"):
        stored = image_set(snapshot, split)
        for position in range(0, len(stored.image_ids), 97):
            ((_, source),) = load_sources(snapshot, [stored.image_ids[position]])
            with torch.no_grad():
                single = encoder.encode_pixels(encoder.preprocess(open_image(source))[None])[0]
            assert torch.allclose(single, stored.features[position], atol=1e-4, rtol=1e-4)
    loaded = read_anchors(snapshot)
    rows = snapshot.table("sentences", columns=["sentence_id", "text"]).to_pylist()
    text = {r["sentence_id"]: r["text"] for r in rows}
    for position in range(0, len(loaded.sentence_ids), 41):
        single = encoder.encode_texts([text[loaded.sentence_ids[position]]])[0]
        assert torch.allclose(single, loaded.bank.vectors[position], atol=1e-4, rtol=1e-4)


def test_an_engine_of_ones_own_computes_the_vectors(tmp_path: Path) -> None:
    """Those of sentences and images come from it, by way of the same caches."""
    found = []
    for name in ("plain", "halved"):
        workspace = drawings.workspace(
            tmp_path / name, "encoder.model=vlltr-tiny", "encoder.pretrained=glyphs", "lgr.views=1"
        )
        engine = Halved(open_encoder(workspace.snapshot()).eval()) if name == "halved" else "local"
        embed(workspace, engine=engine)
        snapshot = workspace.snapshot()
        hashes = sorted(snapshot.table("sentences", ["text_hash"])["text_hash"].to_pylist())
        found.append((image_set(snapshot, "train").features, text_vectors_of(snapshot, hashes)))
    for whole, half in zip(*found, strict=True):
        torch.testing.assert_close(half, whole / 2)


@pytest.mark.slow
def test_it_is_said_what_a_sentence_model_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it reads and at the end, beside what the text tower embeds, which may be done already."""
    texts = [f"It has {number} spots." for number in range(600)]
    reader = write_sentence_model(tmp_path / "reader", texts)
    space = init(tmp_path / "workspace", "vlltr-tiny:glyphs", overrides=("prompts=[]",))
    put(tmp_path / "texts.json", json.dumps({"ladybird": texts}).encode())
    ingest_text(space, tmp_path / "texts.json")
    embed(space)
    recipe = override(space.recipe, (f"prior.text={reader}",))
    space.write_config(WorkspaceConfig(recipe=recipe))
    done: list[tuple[str, int, int | None]] = []
    report = embed(space, progress=lambda *facts: done.append(facts))
    assert (report.sentences, report.read, report.read_before) == (0, 600, 0)
    assert done == [("sentence model", 256, 600), ("sentence model", 512, 600), ("sentence model", 600, 600)]
    code, out, err = run(capsys, "-w", space.path, "embed")
    assert code == 0
    assert f"The sentence model {reader} read 0 sentences (600 read before)." in out
    assert f"reading the sentences with the sentence model {reader}" in err


@pytest.mark.slow
def test_other_views_are_augmented(trained: Workspace) -> None:
    """View 1 differs from view 0, is of the same class as a rule, and belongs to its augmentation alone."""
    snapshot = trained.snapshot()
    augment = trained.recipe.lgr.augment
    plain, other = image_set(snapshot, "train"), image_set(snapshot, "train", 1, augment)
    assert not torch.allclose(plain.features, other.features, atol=1e-2)
    cosine = torch.cosine_similarity(plain.features, other.features).mean()
    shuffled = torch.cosine_similarity(plain.features, other.features.roll(1, 0)).mean()
    assert cosine > shuffled
    trained.write_config(WorkspaceConfig(recipe=override(trained.recipe, ("lgr.augment.kind=photo",))))
    report = embed(trained)
    assert (report.images, report.sentences) == (len(set(content_ids(snapshot, plain.image_ids))), 0)


def test_an_image_that_went_missing_is_kept_aside(
    trained: Workspace, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file deleted after it came in, alone in its batch, stops nothing: it is quarantined, and the split loads."""
    monkeypatch.setattr("vlltr_index.embedding.pixels.IMAGE_BATCH", 1)
    name = trained.snapshot().class_table().names[0]
    folder = tmp_path / "more" / name
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.png").write_bytes((pictures / "unseen" / f"{number}.png").read_bytes())
    before = len(image_set(trained.snapshot(), "test").image_ids)
    ingest_images(trained, tmp_path / "more", "test")
    (folder / "0.png").unlink()
    report = embed(trained)
    assert (report.images, report.unreadable) == (1, 1)
    assert len(image_set(trained.snapshot(), "test").image_ids) == before + 1
    assert trained.snapshot().count("images", "problem IS NOT NULL") == 1


def test_a_file_that_was_overwritten_is_not_stored_as_what_it_was(
    trained: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """It is kept aside with that reason, until it is brought in again; others in the batch are embedded."""
    name = trained.snapshot().class_table().names[0]
    folder = tmp_path / "more" / name
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.png").write_bytes((pictures / "unseen" / f"{number}.png").read_bytes())
    ingest_images(trained, tmp_path / "more", "test")
    changed = (pictures / "unseen" / "0.png").read_bytes() + b"more"
    (folder / "0.png").write_bytes(changed)
    report = embed(trained, batch_size=1)
    assert (report.images, report.unreadable) == (1, 1)
    problem = trained.snapshot().table("images", where="problem IS NOT NULL")["problem"].to_pylist()
    assert problem == [
        f"{folder / '0.png'} has changed since it came in. Bring it in again: vlltr ingest images"
    ]
    ingest_images(trained, tmp_path / "more", "test")
    report = embed(trained)
    assert (report.images, report.unreadable) == (1, 0)
    assert not trained.snapshot().count("images", "problem IS NOT NULL")


def test_images_of_one_content_share_their_vectors(
    trained: Workspace, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy under another name, class, split or in a Parquet file costs no call of the encoder."""
    owner, other = list(trained.snapshot().class_table().names.values())[:2]
    data = (pictures / "unseen" / "0.png").read_bytes()
    put(tmp_path / "one" / owner / "0.png", data)
    ingest_images(trained, tmp_path / "one", "test")
    assert embed(trained).images == 1
    put(tmp_path / "two" / other / "copy.png", data)
    ingest_images(trained, tmp_path / "two", "test")
    pq.write_table(pa.table({"image": [data], "label": [owner]}), tmp_path / "three.parquet")
    ingest_images(trained, tmp_path / "three.parquet", "more")
    monkeypatch.setattr(Encoder, "encode_pixels", None)
    report = embed(trained)
    assert (report.images, report.unreadable) == (0, 0)
    features = image_set(trained.snapshot(), "test").features
    (same,) = image_set(trained.snapshot(), "more").features
    assert int((features == same).all(1).sum()) == 2


def test_a_copy_is_read_where_the_other_file_went_missing(
    trained: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """Only the image whose file is gone is kept aside."""
    owner = trained.snapshot().class_table().names[0]
    data = (pictures / "unseen" / "0.png").read_bytes()
    copies = [put(tmp_path / "more" / owner / f"{number}.png", data) for number in range(3)]
    before = len(image_set(trained.snapshot(), "test").image_ids)
    ingest_images(trained, tmp_path / "more", "test")
    rows = trained.snapshot().table("images", ["image_id", "uri"]).sort_by("image_id").to_pylist()
    first, kept, last = (row["uri"] for row in rows if row["uri"] in map(str, copies))
    Path(first).unlink()
    Path(last).unlink()
    report = embed(trained)
    assert report.images == 1
    assert len(image_set(trained.snapshot(), "test").image_ids) == before + 2
    kept_aside = trained.snapshot().table("images", ["uri"], "problem IS NOT NULL")["uri"].to_pylist()
    assert kept not in kept_aside
    assert last in kept_aside


def test_a_thin_image_that_came_in_is_kept_aside(
    trained: Workspace, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named, and the others are embedded."""
    name = trained.snapshot().class_table().names[0]
    folder = tmp_path / "more" / name
    for number in range(2):
        put(folder / f"{number}.png", (pictures / "unseen" / f"{number}.png").read_bytes())
    ingest_images(trained, tmp_path / "more", "test")
    thin = encoded(Image.new("1", (1, 200_000)))
    put(folder / "0.png", thin)
    with trained.transaction("as if it had come in so") as tx:
        rows = tx.table("images", where=f"uri = {quote(str(folder / '0.png'))}").to_pylist()
        rows[0]["content_hash"] = digest_bytes(thin)
        tx.upsert("images", pa.Table.from_pylist(rows, schema=IMAGES))
    report = embed(trained)
    assert (report.images, report.unreadable) == (1, 1)
    why = "1 x 200,000 pixels: one side is more than 1,000 times the other"
    path = folder / "0.png"
    assert f"kept aside: {path}: cannot read the image {path}: {why}" in caplog.messages


def test_other_weights_are_refused_unless_forced(trained: Workspace) -> None:
    """The message names a command that works; what belonged to the other encoder is given up."""
    with trained.transaction("test") as tx:
        tx.set(image_fp="f" * 16)
    with pytest.raises(FingerprintMismatch) as caught:
        embed(trained)
    assert caught.value.hint.startswith("Put the old weights back, or run: vlltr embed --force")
    embed(trained, force=True)
    commit = trained.history.last()
    assert commit.image_fp != "f" * 16
    assert (commit.head, commit.index, commit.selection_id) == (None, None, None)
    assert len(image_set(trained.snapshot(), "test").image_ids) == 360


def test_views_do_not_depend_on_the_images_beside_them(pictures: Path) -> None:
    """Decoded once for all views, read by threads; each image's vectors are those it has alone, within 1e-5."""
    encoder = drawings.encoder()
    files = sorted(pictures.glob("known-*.png"))
    batch = [(digest_bytes(path.read_bytes()), str(path)) for path in files]
    for config in (drawings.AUGMENT, AugmentConfig(kind="photo")):
        engine = LocalEngine(encoder, ViewAugment(config, encoder))
        (together,) = engine.images([batch], (0, 1, 2))
        alone = list(engine.images([[one] for one in reversed(batch)], (2, 0)))[::-1]
        for number, one in enumerate(alone):
            expected = together.vectors[[2, 0], number]
            torch.testing.assert_close(one.vectors[:, 0], expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together.vectors[1], together.vectors[2], atol=1e-3)


@pytest.mark.slow
def test_processes_read_what_threads_read(pictures: Path) -> None:
    """Workers get no weights and give the same vectors, in the same order; what cannot be read is named."""
    encoder = drawings.encoder()
    augment = ViewAugment(AugmentConfig(kind="photo"), encoder)
    assert len(pickle.dumps(Reader(encoder, augment=augment, views=(0, 1)))) < 100_000
    sources = [(path.name, str(path)) for path in sorted(pictures.glob("known-*.png"))]
    batches = [[one] for one in sources] + [[("gone", "gone.png")]]
    found = list(LocalEngine(encoder, augment, workers=2).images(iter(batches), (0, 1)))
    expected = list(LocalEngine(encoder, augment).images(batches, (0, 1)))
    assert [(f.ids, f.problems) for f in found] == [(e.ids, e.problems) for e in expected]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.vectors, theirs.vectors, atol=1e-5, rtol=1e-5)


def test_sentences_longer_than_the_context_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many were cut, and where."""
    workspace = drawings.workspace(tmp_path, "encoder.model=vlltr-tiny", "encoder.pretrained=glyphs")
    (tmp_path / "long.json").write_text(json.dumps({"ring": ["a ring and " * 40]}), encoding="utf-8")
    ingest_text(workspace, tmp_path / "long.json")
    code, out, _ = run(capsys, "-w", workspace.address, "embed", "--views", "1")
    assert code == 0
    assert "1 sentence was longer than the encoder's context of 32 tokens, and cut there." in out


def test_sentences_of_which_no_word_is_known_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At each run, whether they were embedded before or not."""
    workspace = drawings.workspace(tmp_path, "encoder.model=vlltr-tiny", "encoder.pretrained=glyphs")
    (tmp_path / "ring.json").write_text(json.dumps({"ring": ["一个圆圈", "a small 圆圈"]}), encoding="utf-8")
    ingest_text(workspace, tmp_path / "ring.json")
    for _ in range(2):
        _, out, _ = run(capsys, "-w", workspace.address, "embed", "--views", "1")
        assert "1 sentence has no word that the encoder knows: to it they say nothing." in out
