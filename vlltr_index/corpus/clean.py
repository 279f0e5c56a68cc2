"""Normalising text, hashing it, and cleaning class names."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from vlltr_index.errors import InputError

__all__ = ["MAX_SENTENCE", "clean_name", "normalise_text", "sentence_id", "text_hash"]

MAX_SENTENCE = 4_000
"""Characters a sentence may have: more is no sentence, and no encoder reads so far."""

_MAX_NAME = 200  # characters

# Control characters that are not white space, surrogates, and invisible marks that carry no meaning in a sentence:
# soft hyphen, zero-width space, byte order mark, directional marks. The zero-width joiners stay: words need them.
_DROPPED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)


def normalise_text(text: str) -> str:
    """`text` in NFC, without control characters, every run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", _DROPPED.sub("", text)).split())


def text_hash(text: str) -> str:
    """SHA-256 of the normalised text without regard to case: what makes two sentences the same."""
    return hashlib.sha256(normalise_text(text).casefold().encode()).hexdigest()


def sentence_id(class_id: int, hashed: str) -> str:
    """The key of the sentence with `text_hash` `hashed` in the class `class_id`."""
    return hashlib.sha256(f"{class_id}\0{hashed}".encode()).hexdigest()[:32]


def clean_name(name: str, where: str) -> str:
    """A class name, normalised as text is.

    Raises:
        InputError: If nothing is left of it or it is longer than 200 characters; `where` says where it stands.
    """
    cleaned = normalise_text(name)
    if not cleaned:
        raise InputError(f"{where}: the class name is empty", "Give every row a class name.")
    if len(cleaned) > _MAX_NAME:
        raise InputError(
            f"{where}: a class name of {len(cleaned):,} characters: {cleaned[:40]!r}...; {_MAX_NAME} are allowed",
            "Is the text where the class name should be?",
        )
    return cleaned
