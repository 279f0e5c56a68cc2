"""The words of sentences as numbers: what a text says beside what an encoder read in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vlltr_index.heads.text_prior import NUMBERS

_BETWEEN = r"[^\p{L}\p{M}\p{N}]+"
_MOST = 64  # distinct words that are kept of a sentence


def number_words(texts: pa.ChunkedArray | pa.Array | Sequence[str]) -> Tensor:
    """Number the distinct words of each text by a hash, in lower case: int16 [N, K], padded with 0.

    A number lies between 1 and `NUMBERS`, and half of the words have a negative one, so that words that share a number
    cancel on the average (feature hashing; Weinberger et al., "Feature Hashing for Large Scale Multitask Learning",
    ICML 2009). Nothing is learned, so texts that come later are numbered alike. Of a text with more than 64 distinct
    numbers those smallest in size are kept. Texts whose script puts no space between words have few.

    Args:
        texts: N texts.
    """
    strings = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(texts, pa.string())
    lower = pc.utf8_lower(pc.utf8_normalize(strings, form="NFC"))
    if isinstance(lower, pa.ChunkedArray):
        lower = lower.combine_chunks()
    split = pc.split_pattern_regex(lower, _BETWEEN)
    row = pc.list_parent_indices(split).to_numpy()
    word = pc.list_flatten(split).dictionary_encode()
    numbers = np.array([_number(one) for one in word.dictionary.to_pylist()], dtype=np.int64)
    found = numbers[word.indices.to_numpy()]
    keys = ((row * (NUMBERS + 1) + abs(found)) * 2 + (found > 0))[found != 0]
    distinct = np.unique(keys)
    row, size = np.divmod(distinct // 2, NUMBERS + 1)
    found = np.where(distinct % 2, size, -size)
    first = np.searchsorted(row, row)
    place = np.arange(len(row)) - first
    kept = place < _MOST
    codes = np.zeros((len(lower), int(place[kept].max(initial=-1)) + 1), dtype=np.int16)
    codes[row[kept], place[kept]] = found[kept]
    return torch.from_numpy(codes)


def _number(word: str) -> int:
    """Return the number of a word, 0 for none."""
    if not word:
        return 0
    digest = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
    size = digest // 2 % NUMBERS + 1
    return size if digest % 2 else -size
