"""Tests of `vlltr_index.encoders.openclip`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlltr_index.encoders.openclip import BPETokenizer, HubTokenizer, WordTokenizer

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


class _Hub:
    """What the adapter uses of open_clip's `HFTokenizer`: padded ids, and the tokenizer inside."""

    context_length = 5
    tokenizer_mode = ""

    class _Inner:
        pad_token_id = 0

        def __len__(self) -> int:
            return 30

        def __call__(self, text: str, truncation: bool) -> SimpleNamespace:
            assert not truncation
            return SimpleNamespace(input_ids=[*(len(w) for w in text.split()), 29])

        def get_vocab(self) -> dict[str, int]:
            return {"a": 1}

    tokenizer = _Inner()

    def clean_fn(self, text: str) -> str:
        return text.lower()

    def __call__(self, texts: list[str]) -> torch.Tensor:
        rows = [self.tokenizer(t, truncation=False).input_ids[:5] for t in texts]
        return torch.tensor([row + [0] * (5 - len(row)) for row in rows])


def test_hub_tokenizer_keeps_the_padding_and_counts_the_cut() -> None:
    """Models of this kind may look at the padding, so the whole context is kept."""
    tokens = HubTokenizer(_Hub())(["a bb", "a b c d e f"])
    assert tokens.ids.tolist() == [[1, 2, 29, 0, 0], [1, 1, 1, 1, 1]]
    assert tokens.lengths.tolist() == [3, 7]
    assert tokens.truncated == 1
