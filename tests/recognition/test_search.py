"""Tests of search by concept: images by a text, sentences by an image or a text."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.support import drawings
from tests.support.commands import run
from tests.support.pictures import encoded
from vlltr_index.embedding.loading import image_set, open_encoder
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import InputError, MissingStepError, UnknownClassError, UsageError
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_text
from vlltr_index.recognition.search import ImageSearch, is_image_path, search_images, search_sentences
from vlltr_index.recognition.sheet import Panel, Picture, check_target, contact_sheet, write_sheet
from vlltr_index.schemas.config import WorkspaceConfig
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.store.tables import Store
from vlltr_index.store.workspace import Workspace


@pytest.mark.parametrize("words", ['"', "a:b AND (", "*", "text:'x' OR 1=1", "é\u200d", "the of"])
def test_full_text_takes_any_words(words: str) -> None:
    """What a user types is words, never a query language; rows that came after the index are found too."""
    store = Store("memory://")
    rows = pa.table({"key": ["1", "2"], "text": ["a round fish", "a long bird"]})
    store.create("texts", rows.schema)
    store.append("texts", rows)
    store.index_text("texts", "text")
    store.append("texts", pa.table({"key": ["0"], "text": ["a round fish"]}))
    assert store.full_text("texts", "text", words, "key", 5).num_rows == 0
    found = store.full_text("texts", "text", f"{words} FISH", "key", 5)
    assert set(found["key"].to_pylist()) == {"0", "1"}


def test_images_nearest_to_a_text(trained_once: Path) -> None:
    """The stored vectors, all compared: the same as by one matrix product."""
    workspace = Workspace.open(trained_once)
    snapshot = workspace.snapshot()
    found = search_images(workspace, "a round shape", split="test", top=7)
    stored = image_set(snapshot, "test")
    query = open_encoder(snapshot).encode_texts(["a round shape"])[0]
    cosines = F.normalize(stored.features, dim=1) @ F.normalize(query, dim=0)
    assert [h.similarity for h in found.hits] == pytest.approx(
        cosines.sort(descending=True).values[:7].tolist(), abs=1e-5
    )
    assert found.searched == len(stored.image_ids)
    assert found.without_vector == 0
    assert found.base is None
    classes = dict(zip(stored.image_ids, stored.class_ids.tolist(), strict=True))
    assert all(classes[h.image_id] == h.class_id and h.split == "test" for h in found.hits)
    everywhere = search_images(workspace, "a round shape", top=3)
    assert everywhere.searched > found.searched


def test_searches_that_cannot_be(tmp_path: Path, trained_once: Path, workspace: Workspace) -> None:
    """Each says what to do instead."""
    trained = Workspace.open(trained_once)
    with pytest.raises(UsageError, match="the text is empty"):
        search_images(trained, "  ")
    with pytest.raises(MissingStepError, match="there are no images of split 'dev'"):
        search_images(trained, "x", split="dev")
    with pytest.raises(UsageError, match="vlltr-tiny starts from random weights"):
        search_images(trained, "x", compare=True)
    with pytest.raises(MissingStepError, match="there are no images"):
        search_images(workspace, "x")
    with pytest.raises(MissingStepError, match="there are no sentences"):
        search_sentences(workspace, "x")
    with pytest.raises(UnknownClassError, match="no class 'nothing'"):
        search_sentences(trained, "x", class_name="nothing")
    with pytest.raises(UsageError, match="an image has no words"):
        search_sentences(trained, "x.png", hybrid=True, is_image=True)
    with pytest.raises(InputError, match=r"no such file: none\.PNG"):
        is_image_path("none.PNG")
    assert not is_image_path("a spotted texture")


def test_comparing_with_the_encoder_before_training(tmp_path: Path, trained: Workspace) -> None:
    """The starting encoder's own vectors are made once, without a commit, and are another ranking."""
    base = Encoder.scratch("vlltr-tiny", ["a round shape with a stroke"], seed=5)
    base.save(tmp_path / "base")
    encoder = trained.recipe.encoder.model_copy(update={"pretrained": str(tmp_path / "base")})
    trained.write_config(WorkspaceConfig(recipe=trained.recipe.model_copy(update={"encoder": encoder})))
    commits = trained.history.ids()
    steps: list[str] = []

    def look(compare: bool = True) -> ImageSearch:
        def progress(step: str, done: int, total: int | None) -> None:
            steps.append(step)

        return search_images(trained, "a round shape", split="val", top=5, compare=compare, progress=progress)

    found = look()
    assert set(steps) == {"embed val images"}
    assert found.base is not None
    assert len(found.base) == 5
    assert [h.similarity for h in found.base] != [h.similarity for h in found.hits]
    assert found.hits == look(compare=False).hits
    steps.clear()
    with trained.transaction("another writer"):  # it is read without waiting
        assert (look(), steps) == (found, [])
    assert trained.history.ids() == commits


def test_comparing_before_training(tmp_path: Path) -> None:
    """With weights and no training both would be the same."""
    workspace = drawings.workspace(tmp_path, "encoder.pretrained=glyphs")
    with pytest.raises(UsageError, match="vlltr-tiny has not been trained here"):
        search_images(workspace, "x", compare=True)
    with pytest.raises(MissingStepError, match="no image has been embedded"):
        search_images(workspace, "x")


def test_sentences_nearest_to_an_image(trained_once: Path, pictures: Path) -> None:
    """All stored sentence vectors are compared with the image's."""
    workspace = Workspace.open(trained_once)
    snapshot = workspace.snapshot()
    found = search_sentences(workspace, str(pictures / "known-0.png"), top=6, is_image=True)
    encoder = open_encoder(snapshot).eval()
    with Image.open(pictures / "known-0.png") as image, torch.no_grad():
        query = encoder.encode_pixels(encoder.preprocess(image.convert("RGB")).unsqueeze(0))[0]
    rows = snapshot.table("sentences").to_pylist()
    hashes = sorted({r["text_hash"] for r in rows})
    vectors = workspace.store.vectors(sentence_vectors_name(encoder.text_fp), "text_hash", hashes)
    cosines = F.normalize(vectors, dim=1) @ F.normalize(query, dim=0)
    by_hash = dict(zip(hashes, cosines.tolist(), strict=True))
    naive = sorted((by_hash[r["text_hash"]] for r in rows), reverse=True)[:6]
    assert [h.similarity for h in found.hits] == pytest.approx(naive, abs=1e-5)
    assert (found.kind, found.hybrid, found.searched) == ("image", False, len(rows))


def test_hybrid_search_knows_words_that_the_encoder_does_not(trained: Workspace) -> None:
    """A sentence with a rare word is found by it; alone by vectors it is not, and by class only that class's."""
    names = trained.snapshot().class_table().names
    file = trained.path.parent / "more.json"
    file.write_text(json.dumps({names[0]: ["Zyxomma is what the catalogue calls it."]}), encoding="utf-8")
    ingest_text(trained, file, prompts=False)
    embed(trained)
    found = search_sentences(trained, "zyxomma", top=3)
    assert found.hybrid
    top = next(h for h in found.hits if h.by_words == 1)
    assert (top.class_name, top.source) == (names[0], "more.json")
    alone = search_sentences(trained, "zyxomma", top=3, hybrid=False).hits[0]
    assert alone.by_words is None
    assert alone.sentence_id != top.sentence_id
    only = search_sentences(trained, "the catalogue", class_name=names[0], top=500)
    assert {h.class_name for h in only.hits} == {names[0]}
    fused = [round(sum(1 / (60 + r) for r in (h.by_vector, h.by_words) if r), 6) for h in only.hits]
    assert fused == sorted(fused, reverse=True)
    assert len({h.sentence_id for h in only.hits}) == len(only.hits)


def test_the_commands(
    capsys: pytest.CaptureFixture[str], trained_once: Path, pictures: Path, tmp_path: Path
) -> None:
    """Lines for people, JSON for programs, a sheet for looking at; wrong endings are refused before any work."""
    args = ("-w", trained_once, "search", "images", "a round shape", "--split", "test", "--top", "4")
    code, out, _ = run(capsys, *args, "--out", tmp_path / "sheet.png")
    assert (code, len(out.splitlines())) == (0, 5)
    assert out.splitlines()[-1] == f"Wrote {tmp_path / 'sheet.png'}."
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    code, out, _ = run(capsys, "-w", trained_once, "--json", *args[2:])
    report = json.loads(out)
    assert (code, len(report["hits"]), report["sheet"], report["base"]) == (0, 4, None, None)
    code, out, err = run(capsys, *args, "--out", "sheet.gif")
    assert (code, out) == (2, "")
    assert "a sheet is written as .png, .jpg, .jpeg, .webp; 'sheet.gif' ends otherwise" in err
    code, out, err = run(capsys, *args, "--compare")
    assert (code, out) == (2, "")
    assert "--compare has nothing to compare with" in err
    code, out, _ = run(capsys, "-w", trained_once, "search", "sentences", "round", "--top", "2")
    assert (code, len(out.splitlines())) == (0, 2)
    assert "words" in out.splitlines()[0]
    code, out, _ = run(capsys, "-w", trained_once, "--json", "search", "sentences", "round", "--no-hybrid")
    assert (code, json.loads(out)["hybrid"]) == (0, False)


def picture(colour: str, size: tuple[int, int] = (8, 8)) -> Picture:
    """A picture of one colour with two lines under it."""
    return Picture(encoded(Image.new("RGB", size, colour)), (colour, "+0.5"))


def colours(image: Image.Image) -> set[tuple[int, int, int]]:
    """The colours that cover more than a thousand pixels."""
    found = image.getcolors(2**24)
    assert found is not None
    return {colour for count, colour in found if count > 1000}  # type: ignore[misc]  # RGB pixels are tuples


def test_pictures_stand_in_rows_and_panels_side_by_side() -> None:
    """Seven pictures in rows of three, and a second panel as wide to the right."""
    pictures = tuple(picture("red") for _ in range(7))
    one = contact_sheet("title", [Panel("", pictures)], columns=3)
    two = contact_sheet("title", [Panel("left", pictures), Panel("right", (picture("blue"),))], columns=3)
    assert two.width == 2 * one.width
    assert two.height > one.height
    assert colours(one) == {(255, 255, 255), (255, 0, 0)}
    assert (0, 0, 255) not in colours(two.crop((0, 0, one.width, two.height)))
    assert (0, 0, 255) in colours(two.crop((one.width, 0, two.width, two.height)))


def test_a_picture_that_cannot_be_read_leaves_a_frame() -> None:
    """The others are there all the same."""
    sheet = contact_sheet("t", [Panel("", (Picture(b"no image", ("gone",)), picture("red")))])
    assert (255, 0, 0) in colours(sheet)


def test_where_a_sheet_goes(tmp_path: Path) -> None:
    """The ending names the format, the folder is there, the place can be written."""
    panels = [Panel("", (picture("red"),))]
    write_sheet(tmp_path / "a.JPG", "t", panels)
    with Image.open(tmp_path / "a.JPG") as image:
        assert image.format == "JPEG"
    with pytest.raises(UsageError, match=r"a sheet is written as .* 'a\.svg' ends otherwise"):
        check_target(tmp_path / "a.svg")
    with pytest.raises(InputError, match="no such folder"):
        check_target(tmp_path / "none" / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_sheet(tmp_path / "b.png", "t", panels)
