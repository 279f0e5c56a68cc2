"""Tests of `vlltr_index.encoders.openclip`."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support import small_clip
from vlltr_index.encoders import openclip, weights
from vlltr_index.encoders.openclip import BPETokenizer, WordTokenizer
from vlltr_index.errors import EncoderError

TEXTS = ["a tench", "a photo of a tench, a freshwater fish of the carp family", "", "omega"]


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("pool", ["argmax", "first"])
def test_trimmed_text_features_equal_the_full_context(custom: bool, pool: str) -> None:
    """For both of open_clip's classes, within 1e-5 of its own encoding at all 77 positions."""
    text = {**small_clip.MODEL_CFG["text_cfg"], "pool_type": pool}
    model: Any = small_clip.make(custom_text=custom, text_cfg=text)
    full = open_clip.SimpleTokenizer(context_length=77)(TEXTS)
    length = int((full != 0).sum(1).max())
    assert openclip.trims_exactly(model)
    with torch.no_grad():
        trimmed = openclip.encode_text(model, full[:, :length])
        assert torch.allclose(trimmed, model.encode_text(full), atol=1e-5)
        assert torch.allclose(openclip.encode_text(model, full), model.encode_text(full), atol=1e-5)


def test_training_gradients_equal_the_full_context() -> None:
    """In float32 within 1e-5; under autocast no further from float32 than open_clip's own full context is."""
    model: Any = small_clip.make()
    full = open_clip.SimpleTokenizer(context_length=77)(TEXTS)
    short = full[:, : int((full != 0).sum(1).max())]

    def gradient(ids: torch.Tensor, trimmed: bool, autocast: bool) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = openclip.encode_text(model, ids) if trimmed else model.encode_text(ids)
        y.float().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact = gradient(full, False, False)

    def error(found: torch.Tensor) -> float:
        return float((found - exact).norm() / exact.norm())

    assert error(gradient(short, True, False)) < 1e-5
    assert error(gradient(short, True, True)) < 1.1 * error(gradient(full, False, True))


def test_models_that_look_at_their_padding_are_not_trimmed() -> None:
    """Attention in both directions, pooling of the last position, an appended class token."""
    for changes in ({"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}):
        text = {**small_clip.MODEL_CFG["text_cfg"], **changes}
        assert not openclip.trims_exactly(small_clip.make(custom_text=True, text_cfg=text))


def test_state_of_another_model_is_refused() -> None:
    """The message begins with torch's account of the differences."""
    model = small_clip.make()
    state = dict(model.state_dict())
    state.pop("ln_final.bias")
    state["extra"] = torch.zeros(1)
    with pytest.raises(EncoderError) as caught:
        openclip.load_state(model, state, "w.pt")
    assert caught.value.message.startswith(
        "w.pt holds the weights of another model: Error(s) in loading state_dict"
    )


def test_numbers_of_positions_in_older_bert_towers_are_left_out() -> None:
    """transformers saved them until version 4.31; a tower that has them keeps its own."""
    model = small_clip.make(custom_text=True)
    state = dict(model.state_dict()) | {"text.transformer.embeddings.position_ids": torch.arange(77)[None]}
    openclip.load_state(model, state, "w.pt")
    assert "text.transformer.embeddings.position_ids" in state


def test_resnet_positions_are_interpolated() -> None:
    """CLIP's ResNets carry their positions in the attention pooling; open_clip itself leaves those alone."""
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    small: Any = small_clip.make(vision_cfg=vision)
    large: Any = small_clip.make(seed=1, vision_cfg={**vision, "image_size": 128})
    openclip.load_state(large, small.state_dict(), "w")
    name = "attnpool.positional_embedding"
    grid = small.visual.state_dict()[name][1:].T.reshape(1, -1, 2, 2)
    expected = F.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True, align_corners=False)
    found = large.visual.state_dict()[name]
    assert torch.equal(found[0], small.visual.state_dict()[name][0])
    assert torch.allclose(found[1:].T.reshape(1, -1, 4, 4), expected, atol=1e-6)


def test_unbuildable_configurations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown keys, impossible values, a text tower that cannot be fetched: one error, with the library's reason."""
    for changes in ({"nonsense": 1}, {"text_cfg": {"pool_type": "?"}}):
        with pytest.raises(EncoderError, match=r"open_clip cannot build this model: (.*)\n.*damaged"):
            openclip.build_model({**small_clip.MODEL_CFG, **changes})
    offline = OSError("We couldn't connect to the hub\nmore")
    monkeypatch.setattr(open_clip, "CustomTextCLIP", Mock(side_effect=offline))
    with pytest.raises(EncoderError, match=r"OSError: We couldn't connect to the hub\n.*needs a network"):
        openclip.build_model({**small_clip.MODEL_CFG, "text_cfg": {"hf_model_name": "some/tower"}})


@pytest.mark.parametrize("change", [{"mode": "CMYK"}, {"what": 1}])
def test_unknown_preprocessing_is_refused(change: dict[str, Any]) -> None:
    """A value that would otherwise be ignored changes every vector."""
    with pytest.raises(EncoderError, match="this preprocessing cannot be used"):
        openclip.Preprocessing({**weights.preprocessing({}), **change})


def test_hub_tokenizers_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that this tokenizer needs a network, and what to do without one."""
    monkeypatch.setattr(openclip, "HFTokenizer", Mock(side_effect=OSError("no connection\nmore")))
    text = {**small_clip.MODEL_CFG["text_cfg"], "hf_tokenizer_name": "owner/name"}
    with pytest.raises(EncoderError) as caught:
        openclip.make_tokenizer({"model_cfg": {**small_clip.MODEL_CFG, "text_cfg": text}})
    assert caught.value.message == "the tokenizer owner/name cannot be loaded: OSError: no connection"
    assert "it needs a network the first time" in str(caught.value.hint)


SENTENCES = ["A photo of a tench.", "", "it's the 2nd, naïve café — ok", "word " * 200]


@pytest.fixture(scope="module")
def simple() -> Any:
    """open_clip's own tokenizer."""
    return open_clip.SimpleTokenizer(context_length=77)


def test_bpe_gives_open_clips_ids(simple: Any) -> None:
    """Ids equal open_clip's, apart from the padding that is trimmed; cut texts end with the end token."""
    tokens = BPETokenizer(simple, "lower")(SENTENCES)
    assert torch.equal(tokens.ids, simple(SENTENCES)[:, : tokens.ids.shape[1]])
    assert tokens.lengths.tolist() == [len(simple.encode(s)) + 2 for s in SENTENCES]
    assert tokens.truncated == 1
    assert len(BPETokenizer(simple, "lower")(SENTENCES[:2]).ids[0]) < 77


def test_words_ids_are_laid_out_as_stated() -> None:
    """PAD 0, UNK 1, words from 2, start V-2 and end V-1, so that the largest id is the end; long texts are cut."""
    tokenizer = WordTokenizer(["omega", "small"], 4)
    tokens = tokenizer(["Small OMEGA small", "unknown", ""])
    assert tokenizer.vocab_size == 6
    assert tokens.ids.tolist() == [[4, 3, 2, 5], [4, 1, 5, 0], [4, 5, 0, 0]]
    assert (tokens.lengths.tolist(), tokens.truncated) == ([5, 3, 2], 1)
    assert [tokenizer.reads(text) for text in ("an Omega", "unknown", "")] == [True, False, False]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5), st.integers(2, 12))
def test_any_text_can_be_tokenised(texts: list[str], context: int) -> None:
    """Whatever the characters: start first, one end, padding after it, known words wherever they were seen."""
    tokenizer = WordTokenizer.build(texts, context)
    tokens = tokenizer(texts)
    assert tokens.ids.shape[1] <= context
    for row, length in zip(tokens.ids, tokens.lengths.clamp(max=context).tolist(), strict=True):
        assert row[0] == tokenizer.start_id
        assert int(row.argmax()) == length - 1
        assert (row[length:] == tokenizer.pad_id).all()
        assert (row != 1).all()
