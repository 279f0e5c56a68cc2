"""Tokenizers: texts to trimmed token ids, with a count of what did not fit."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlltr_index.encoders.weights import read_json
from vlltr_index.schemas.fingerprint import digest_json

__all__ = [
    "GENERIC",
    "SAVED_KEYS",
    "BPETokenizer",
    "HubTokenizer",
    "Tokenizer",
    "Tokens",
    "WordTokenizer",
]

_WORD = re.compile(r"[^\W_]+")
_MAX_WORDS = 1 << 17
_SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
GENERIC = "PreTrainedTokenizerFast"
"""transformers' class of any tokenizer that a tokenizer.json holds whole."""
SAVED_KEYS = frozenset({"tokenizer_class", "padding_side", "truncation_side", *_SPECIAL})
"""What a tokenizer_config.json of ours may hold."""


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts.

    Attributes:
        ids: int64 [N, L], L the longest text after the cut; shorter ones are padded on the right.
        lengths: int64 [N], with the start and end tokens, before the cut.
        truncated: How many texts were longer than the context.
    """

    ids: Tensor
    lengths: Tensor
    truncated: int

    def __len__(self) -> int:
        return int(self.ids.shape[0])


class Tokenizer(ABC):
    """Texts to ids."""

    def __init__(self, context_length: int, vocab_size: int, pad_id: int = 0) -> None:
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.pad_id = pad_id

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """All ids of one text, with start and end, however long."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What makes two tokenizers equal, as JSON."""

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokens of `texts`, in their order; what is cut keeps its end token."""
        rows = [self.encode(text) for text in texts]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        longest = self.context_length
        rows = [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in rows]
        width = max((len(row) for row in rows), default=0)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return Tokens(ids, lengths, int((lengths > longest).sum()))


class WordTokenizer(Tokenizer):
    """Lower-cased words and numbers; PAD 0, unknown 1, words from 2, start V-2, end V-1 (the largest, as in CLIP)."""

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        super().__init__(context_length, len(words) + 4)
        self.words = tuple(words)
        self.start_id, self.end_id = self.vocab_size - 2, self.vocab_size - 1
        self._ids = {word: at for at, word in enumerate(self.words, start=2)}

    @staticmethod
    def split(text: str) -> list[str]:
        """The words of one text."""
        return _WORD.findall(text.casefold())

    @classmethod
    def build(cls, texts: Iterable[str], context_length: int) -> WordTokenizer:
        """A vocabulary of the words of `texts`, the most frequent first and ties by spelling."""
        counts = Counter(word for text in texts for word in cls.split(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[:_MAX_WORDS], context_length)

    def extended(self, texts: Iterable[str]) -> WordTokenizer:
        """With the words of `texts` that are not in it yet behind its own, in the order of `build`."""
        new = [word for word in self.build(texts, self.context_length).words if word not in self._ids]
        return WordTokenizer([*self.words, *new][: max(_MAX_WORDS, len(self.words))], self.context_length)

    def encode(self, text: str) -> list[int]:
        return [self.start_id, *(self._ids.get(word, 1) for word in self.split(text)), self.end_id]

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "words",
            "context_length": self.context_length,
            "words": digest_json(list(self.words)),
        }

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON."""
        path.write_text(json.dumps(self.words, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, path: Path, context_length: int) -> WordTokenizer:
        """Read what `save` wrote.

        Raises:
            EncoderError: If the file is missing or is not a JSON array.
        """
        return cls(read_json(path, list), context_length)


class BPETokenizer(Tokenizer):
    """CLIP's byte-pair encoding, by open_clip's `SimpleTokenizer`, without the padding to the whole context."""

    def __init__(self, simple: Any, clean: str) -> None:
        super().__init__(simple.context_length, simple.vocab_size)
        self._simple = simple
        self._clean = clean

    def encode(self, text: str) -> list[int]:
        return [self._simple.sot_token_id, *self._simple.encode(text), self._simple.eot_token_id]

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "bpe",
            "context_length": self.context_length,
            "clean": self._clean,
            "vocabulary": digest_json(self._simple.encoder),
        }


class HubTokenizer(Tokenizer):
    """A Hugging Face tokenizer, by open_clip's `HFTokenizer`, which cuts and pads."""

    def __init__(self, hub: Any) -> None:
        inner = hub.tokenizer
        super().__init__(hub.context_length, len(inner), inner.pad_token_id or 0)
        self._hub = hub

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, and what surrounds it in tokenizer_config.json: `HFTokenizer` opens such a folder.

        The class that is named there is the generic one. It takes tokenizer.json as it is, where the tokenizer's own
        class may build it anew, and differently in another version of transformers.
        """
        inner = self._hub.tokenizer
        inner.backend_tokenizer.no_truncation()  # transformers sets both again with every call
        inner.backend_tokenizer.no_padding()
        inner.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        sides = {name: getattr(inner, name) for name in ("padding_side", "truncation_side")}
        special = {name: token for name in _SPECIAL if (token := getattr(inner, name)) is not None}
        facts = {"tokenizer_class": GENERIC} | sides | special
        (folder / "tokenizer_config.json").write_text(
            json.dumps(facts, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )

    def encode(self, text: str) -> list[int]:
        return list(self._hub.tokenizer(self._hub.clean_fn(text), truncation=False).input_ids)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokens of `texts`, padded to the whole context: these models may look at the padding."""
        if not texts:
            return super().__call__(texts)
        lengths = torch.tensor([len(self.encode(text)) for text in texts], dtype=torch.int64)
        return Tokens(self._hub(list(texts)).long(), lengths, int((lengths > self.context_length).sum()))

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "hub",
            "context_length": self.context_length,
            "mode": str(self._hub.tokenizer_mode),
            "vocabulary": digest_json(self._hub.tokenizer.get_vocab()),
        }
