"""Words as numbers."""

from __future__ import annotations

import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlltr_index.data.words import number_words
from vlltr_index.heads.text_prior import NUMBERS

quick = settings(max_examples=40, deadline=None)
LETTERS = st.text("abcdeéßЖ漢0 .,'-()", max_size=30)


def numbers(text: str) -> set[int]:
    """The numbers of one text."""
    return {n for n in number_words([text]).flatten().tolist() if n}


@quick
@given(st.lists(LETTERS, max_size=6))
def test_texts_are_numbered_alike_alone_and_together(texts: list[str]) -> None:
    """In a list or an Arrow column; each number lies in its range and stands once, before the padding."""
    found = number_words(texts)
    assert found.dtype == torch.int16
    assert len(found) == len(texts)
    assert torch.equal(found, number_words(pa.chunked_array([texts[:2], texts[2:]], pa.string())))
    for row, text in zip(found.tolist(), texts, strict=True):
        there = [n for n in row if n]
        assert row == there + [0] * (len(row) - len(there))
        assert len(set(there)) == len(there)
        assert set(there) == numbers(text)
        assert all(1 <= abs(n) <= NUMBERS for n in there)


def test_words_count_once_in_any_order_and_case() -> None:
    """Punctuation separates them; half of all words have a negative number."""
    assert numbers("A red, red fox!") == numbers("fox a (RED)")
    assert numbers("red") != numbers("fox")
    assert numbers("") == numbers(" .,") == set()
    assert numbers("Été") == numbers("été") == numbers("e\u0301te\u0301")
    signs = [n > 0 for word in range(1000) for n in numbers(f"w{word}")]
    assert 400 < sum(signs) < 600


def test_of_a_long_text_some_words_are_kept() -> None:
    """Sixty-four, however long it is."""
    assert number_words([" ".join(f"w{n}" for n in range(5000)), "short"]).shape == (2, 64)
