"""An image tower of timm without a text tower, from `init` to an export: texts count by their words alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support import drawings
from tests.support.commands import inside, refusal, run, vlltr
from tests.support.image_towers import write_tower
from tests.support.pictures import put
from tests.support.sentence_models import write_sentence_model
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.pipelines.fit import find_sources, plan_fit
from vlltr_index.pipelines.init import init
from vlltr_index.pipelines.plan import StepMaker
from vlltr_index.pipelines.status import status
from vlltr_index.pipelines.train_baseline import possible_baselines
from vlltr_index.recognition.exported.onnx_folder import export_onnx
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import unit_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace on the small slice of Glyphs-LT, made by its commands; `train all` leaves stage 1 out."""
    folder = tmp_path_factory.mktemp("towerless")
    tower = write_tower(folder / "tower")
    data = glyph_files(fast=True)
    place = folder / "workspace"
    vlltr("init", place, "--encoder", f"timm:{tower}", "--set", "lgr.views=1")
    space = Workspace.open(place)
    inside(space, "ingest", "text", data.texts, "--no-prompts")
    for split in ("train", "test"):
        inside(space, "ingest", "images", data.images, "--split", split)
    inside(space, "train", "all")
    return place


@pytest.mark.slow
def test_texts_count_by_their_words(
    made: Path, heldout: dict[str, list[str]], pictures: Path, tmp_path: Path
) -> None:
    """In answers, their explanations, later classes and exports; no text branch, no index, nothing left to do."""
    space = Workspace.open(made)
    recognizer = Recognizer.open(made)
    model = recognizer.current()
    assert model.saved.parts is not None
    assert model.saved.parts.shared.kernel is not None
    assert model.saved.parts.weights.text == 0.0
    told = status(space)
    assert told.stale == ()
    assert (told.sentence_vectors, told.index) == (told.sentences, None)
    assert model.bank.num_classes == 60
    rows = space.snapshot().table("sentences", ["sentence_id", "class_id", "position"]).sort_by("position")
    first = [row["sentence_id"] for row in rows.to_pylist() if row["class_id"] == 7]
    there = [i for i in first if i in set(model.anchors.sentence_ids)]
    assert there == first[:64], "the first of each class, in the order of their source"

    picture = pictures / "known-0.png"
    best = recognizer.predict([picture], PredictOptions(explain=99))[0].classes[0]
    assert best.text_score is not None
    assert sum(s.share for s in best.sentences) == pytest.approx(best.text_score, abs=1e-6)
    said = best.sentences[0]
    assert said.effect == pytest.approx(said.share, abs=0.5), "what it loses without the sentence"
    assert len({round(s.share, 6) for s in best.sentences}) > 1

    name = min(heldout)
    inside(space, "classes", "add", name, "--sentence", heldout[name][0])
    later = recognizer.current()
    features = later.features(sorted((pictures / "unseen").glob("*.png")))[0]
    column = later.column(name)
    plda = later.known.plda
    unit = unit_rows(features)
    by_text = plda.log_likelihoods(unit)[:, column]
    assert not torch.allclose(by_text, plda.without_text.log_likelihoods(unit)[:, column])
    inside(space, "images", "add", name, pictures / "unseen" / "0.png")
    inside(space, "images", "add", name, pictures / "unseen" / "1.png")

    later = recognizer.current()
    recognizer.export(tmp_path / "export")
    again = Recognizer.from_pretrained(tmp_path / "export")
    assert not again.current().encoder.has_text_tower
    expected = later.exhaustive(features).probabilities
    torch.testing.assert_close(again.current().exhaustive(features).probabilities, expected)
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert "Its encoder has no text tower" in card
    assert "It attends over sentences" not in card
    export_onnx(space, tmp_path / "graph")  # which compares the graph's answers with the model's


@pytest.mark.slow
def test_the_nearest_classes_are_found_by_images(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a class with pictures of another one; of a class without pictures none is named."""
    space = Workspace.open(made)
    name = space.snapshot().class_table().names[3]
    rows = space.snapshot().table("images", ["data"], "class_id = 3 AND split = 'train'")
    for number, data in enumerate(rows["data"].to_pylist()):
        put(tmp_path / "twin" / f"{number}.png", data)
    added = ("-w", made, "classes", "add", "twin", "--images", tmp_path / "twin", "--dry-run")
    code, out, err = run(capsys, *added)
    assert (code, f" Nearest by images: {name}" in out) == (0, True), out + err
    code, out, _ = run(capsys, "-w", made, "classes", "add", "twin", "--sentence", "A sign.", "--dry-run")
    assert (code, "Nearest" in out) == (0, False), out
    assert ": 2 sentences, 2 anchors, 0 images, " in out, "its own, and its name"
    assert "nearest by images: " in run(capsys, "-w", made, "classes", "show", name)[1]


@pytest.mark.slow
def test_what_needs_a_text_tower_says_so(
    made: Path, pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With what to do instead; nothing is committed. Tables and answers have no figures of a text branch."""
    space = Workspace.open(made)
    lacking = "and this encoder has no text tower"
    for words in (
        ("train", "cvlp"),
        ("train", "baseline", "zero-shot"),
        ("search", "images", "a ring"),
        ("search", "sentences", "a ring"),
    ):
        assert lacking in refusal(space, capsys, *words, code=2), words
    name = space.snapshot().class_table().names[0]
    _, out, _ = run(capsys, "-w", space.path, "explain", pictures / "known-0.png", "--class", name)
    assert "text score" in out
    assert "cosine" not in out
    assert "attention" not in out
    few = tmp_path / "few"
    maker = StepMaker(space, "somewhere", None, None)
    for name in ("a", "b"):
        (few / "train" / name).mkdir(parents=True)
    (few / "texts.json").write_text("{}", encoding="utf-8")
    steps = [step.argv[2:] for step in plan_fit(maker, find_sources(few), True).steps]
    assert ("train", "baseline", "ncm") in steps
    assert ("train", "baseline", "zero-shot") not in steps
    assert possible_baselines(space) == ["ncm", "crt", "tau-norm", "lws", "discriminant", "logistic"]
    capsys.readouterr()
    _, out, _ = run(capsys, "-w", space.path, "--json", "evaluate")
    assert set(json.loads(out)["rows"]) == {"vl-ltr", "image branch", "vl-ltr, --prior training"}
    said = refusal(space, capsys, "evaluate", "--against", "text branch", code=2)
    assert "There are: image branch." in said
    code, out, _ = run(capsys, "-w", space.path, "--json", "index")
    assert code == 0
    assert json.loads(out)["kind"] == "none"


@pytest.mark.slow
def test_a_sentence_model_reads_beside_the_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`prior.text` is what it is beside a text tower."""
    reader = write_sentence_model(tmp_path / "reader", [text for some in drawings.texts() for text in some])
    space = init(
        tmp_path / "workspace",
        f"timm:{write_tower(tmp_path / 'tower')}",
        overrides=("lgr.views=1", f"prior.text={reader}"),
    )
    inside(space, "ingest", "text", drawings.write_texts(tmp_path), "--no-prompts")
    inside(space, "ingest", "images", drawings.write(tmp_path / "images"), "--split", "train")
    inside(space, "embed")
    inside(space, "select")
    capsys.readouterr()
    inside(space, "train", "lgr")
    assert "sentence-embedding model" in capsys.readouterr().out
    bank = Recognizer.open(space.path).current().anchors.bank
    assert bank.readings is not None
    assert bank.is_blank
