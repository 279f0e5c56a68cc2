"""Sentence-embedding models: pooled as they say, read from safe files of a known commit alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.sentence_models import write_sentence_model
from vlltr_index.encoders import sentence_model
from vlltr_index.encoders.sentence_model import SentenceModel
from vlltr_index.errors import EncoderError, MissingPackageError

TEXTS = ["a red disc", "a disc", "three rings in a row, one of them large", "disc"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that pools by the mean."""
    return write_sentence_model(tmp_path / "model", TEXTS)


def _twin(folder: Path, text: str) -> torch.Tensor:
    """The last layer of one text by transformers, without padding."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_texts_are_pooled_as_the_model_says(tmp_path: Path, pooling: str) -> None:
    """In any order, whatever is padded beside them; long texts are cut."""
    folder = write_sentence_model(tmp_path, TEXTS, pooling)
    model = SentenceModel(str(folder))
    found = model.encode([*TEXTS, " ".join(["disc"] * 99)])
    assert found.shape == (5, model.dim)
    for text, vector in zip(TEXTS, found, strict=False):
        last = _twin(folder, text)
        expected = last.mean(0) if pooling == "mean_tokens" else last[0]
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_fingerprint_is_that_of_the_files(folder: Path) -> None:
    """Another name is none of it, another pooling or other weights are."""
    first = SentenceModel(str(folder)).fingerprint
    assert SentenceModel(str(folder.rename(folder.with_name("moved")))).fingerprint == first
    folder = folder.with_name("moved")
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    assert SentenceModel(str(folder)).fingerprint != first


@pytest.mark.slow
def test_what_is_not_safe_or_not_followed_is_refused(folder: Path) -> None:
    """Weights that need pickle, code of its own, other modules, other poolings."""
    modules = folder / "modules.json"
    modules.write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]), encoding="utf-8")
    with pytest.raises(EncoderError, match="has a module 'Dense'"):
        SentenceModel(str(folder))
    modules.write_text(json.dumps([{"type": "sentence_transformers.models.Transformer"}]), encoding="utf-8")
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_max_tokens": true}', encoding="utf-8")
    with pytest.raises(EncoderError, match="asks for pooling_mode_max_tokens"):
        SentenceModel(str(folder))
    pooling.unlink()
    config = folder / "config.json"
    facts = json.loads(config.read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "own.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    config.write_text(json.dumps(facts | own), encoding="utf-8")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        SentenceModel(str(folder))
    config.write_text(json.dumps(facts), encoding="utf-8")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        SentenceModel(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nowhere", "owner/name", "owner/name@main", "a/b/c@" + "0" * 40])
def test_a_repository_needs_its_commit(name: str) -> None:
    """Before anything is fetched."""
    with pytest.raises(EncoderError) as caught:
        SentenceModel(name)
    assert str(caught.value) == (
        f"{name} is neither a folder here nor a repository with its commit\n"
        "prior.text takes a folder, or OWNER/NAME@COMMIT with all 40 digits of the commit."
    )


def test_without_transformers_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that brings it."""
    monkeypatch.setattr(sentence_model, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'pip install "vlltr-index\[hf\]"'):
        SentenceModel("model")
