"""Tests of the places where sentences are parted, and where they are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlltr_index.data.text import split_sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["It eats vitamin C.", "It is big!", "Is it?", "Yes."],
        ["Vitamin C.", "A lack of it harms."],
        ["The plant needs vitamin K.", "It also needs vitamin D."],
        ["It was plan B.", "Then they left."],
        ["It grows to 3 m.", "It is large."],
        ["It weighs 70 kg.", "The record is 6m.", "They swim."],
        ["Mr. Smith went.", "He came."],
        ["He lives in the U.S.", "It is big."],
        ["J. K. Rowling wrote it.", "She did."],
        ["It was found by C. Darwin in 1831."],
        ["Described by A. R. Wallace.", "It swims."],
        ["The name is by J. A. Gray."],
        ["See fig. 3.", "It is A. Smith's idea."],
        ["S. The list of J. R. In is short."],
        ["Tinca tinca subsp. aurea is golden.", "Others, e.g. the carp, are not."],
    ],
)
def test_sentences_end_where_a_reader_ends_them(sentences: list[str]) -> None:
    """A single letter ends a sentence before a word that only begins one; initials and abbreviations do not."""
    assert split_sentences(" ".join(sentences)) == sentences


_WORDS = ["vitamin C.", "It", "is", "J.", "K.", "Gray", "3 m.", "The", "fish.", "A."]


@given(st.lists(st.sampled_from(_WORDS), max_size=12))
def test_no_word_is_lost_or_made(words: list[str]) -> None:
    """Whatever the order, the sentences together are the text."""
    text = " ".join(words)
    assert " ".join(split_sentences(text)) == text


@pytest.mark.parametrize(
    "word", ["disc", "hand", "sun", "leg", "fin", "cap", "vase", "fish", "wave", "black"]
)
def test_plain_words_end_sentences(word: str) -> None:
    """Whatever the next sentence begins with; abbreviations do not."""
    assert split_sentences(f"It is like a {word}. White poplars grow here.") == [
        f"It is like a {word}.",
        "White poplars grow here.",
    ]
    whole = f"Prof. Smith drew the {word} in vol. Three of his work."
    assert split_sentences(whole) == [whole]
