"""A sentence-embedding model reads texts for the prior: from `embed` to answers, changes of classes and exports."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.sentence_models import write_sentence_model
from vlltr_index.classes import add_class
from vlltr_index.encoders.sentence_model import SentenceModel
from vlltr_index.errors import FingerprintMismatch, MissingStepError
from vlltr_index.heads.plda import prior_means
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.counterfactual import Examination
from vlltr_index.recognition.exported.onnx_folder import export_onnx
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import WorkspaceConfig
from vlltr_index.schemas.recipes import override
from vlltr_index.store.workspace import Workspace
from vlltr_index.train import training_set


@pytest.fixture(scope="module")
def read_once(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained workspace whose head reads texts by a small model, too, and that model."""
    place = tmp_path_factory.mktemp("read")
    trained = Workspace.open(shutil.copytree(trained_once, place / "workspace"))
    texts = trained.snapshot().table("sentences", ["text"])["text"].to_pylist()
    reader = write_sentence_model(place / "reader", texts)
    recipe = override(trained.recipe, (f"prior.text={reader}",))
    trained.write_config(WorkspaceConfig(recipe=recipe))
    with pytest.raises(MissingStepError, match="the sentences were read by none"):
        train_lgr_stage(trained, recipe.lgr)
    embed(trained)
    assert trained.snapshot().commit.head is None, "a head does not know what it was not trained with"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_set, "better_kernel", lambda moments, one, other: one[0])
        train_lgr_stage(trained, recipe.lgr)
    index_anchors(trained)
    return place


@pytest.fixture
def read(read_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A copy of the workspace that a test may change; the model, whose place the workspace knows, is put back."""
    monkeypatch.setattr(training_set, "better_kernel", lambda moments, one, other: one[0])
    kept = shutil.copytree(read_once / "reader", tmp_path / "kept")
    yield Workspace.open(shutil.copytree(read_once / "workspace", tmp_path / "read"))
    shutil.copytree(kept, read_once / "reader", dirs_exist_ok=True)
    SentenceModel.open.cache_clear()


@pytest.mark.slow
def test_readings_count_from_training_to_export(read: Workspace, pictures: Path, tmp_path: Path) -> None:
    """Shares of sentences add up, a later class's text and a struck sentence count, and an export has all of it."""
    recognizer = Recognizer.open(read.path)
    model = recognizer.current()
    bank = model.anchors.bank
    parts = model.saved.parts
    assert parts is not None
    assert parts.shared.kernel is not None
    assert parts.shared.kernel.knows_readings(bank.dim)
    assert bank.readings is not None
    assert bank.readings.shape == (len(bank.vectors), 16)
    reader = SentenceModel.open(read.recipe.prior.text or "")
    torch.testing.assert_close(bank.readings[:9], reader.encode(model.anchors.read("text")[:9].to_pylist()))

    picture = pictures / "known-0.png"
    place = 7
    add_class(read, "first", ["the first of all letters, with a ring above."])
    later = recognizer.current()
    there = int((later.class_ids == later.anchors.bank.class_ids[-1]).nonzero()[0])
    means = prior_means(later.anchors.with_words, parts.shared)
    torch.testing.assert_close(later.known.plda.predicted[there], means[-1], rtol=1e-4, atol=1e-5)

    struck = later.anchors.sentence_ids[later.anchors.bank.bounds[place]]
    left = Examination.of(later, picture)._left([struck]).model
    assert left.anchors.bank.readings is not None
    expected = reader.encode(left.anchors.read("text").to_pylist())
    torch.testing.assert_close(left.anchors.bank.readings, expected, rtol=1e-4, atol=1e-5)

    recognizer.export(tmp_path / "export")
    again = Recognizer.from_pretrained(tmp_path / "export")
    names = ["first", later.names[int(later.class_ids[0])]]
    for name in names:
        one = again.current().explain(picture, name)
        other = later.explain(picture, name)
        assert [s.share for s in one.sentences] == pytest.approx([s.share for s in other.sentences], abs=1e-4)
        assert sum(s.share for s in one.sentences) == pytest.approx(one.text_score, abs=1e-3)
    assert "pictures" in export_onnx(read, tmp_path / "graph").notes[0]


@pytest.mark.slow
def test_another_model_is_refused_until_it_has_read(read: Workspace) -> None:
    """A later sentence would be read by another model than the others; after `embed` and `train lgr` by one again."""
    folder = Path(read.recipe.prior.text or "")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    SentenceModel.open.cache_clear()  # as in another process
    with pytest.raises(FingerprintMismatch, match="were read by"):
        add_class(read, "later", ["a later one."])
    before = read.snapshot().commit.info.reading
    embed(read)
    report = train_lgr_stage(read, read.recipe.lgr)
    assert "The prior uses the sentence-embedding model." in " ".join(report.notes)
    index_anchors(read)
    assert read.snapshot().commit.info.reading != before
    add_class(read, "later", ["a later one."])
    read.write_config(WorkspaceConfig(recipe=override(read.recipe, ("prior.text=null",))))
    embed(read)
    train_lgr_stage(read, read.recipe.lgr)
    assert Recognizer.open(read.path).current().anchors.bank.readings is None
