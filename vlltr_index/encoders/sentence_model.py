"""A sentence-embedding model of transformers, which reads texts for the generative model's prior."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlltr_index.encoders.hub import model_folder
from vlltr_index.errors import EncoderError, MissingPackageError, reason
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.tensors import choose_device, full_precision

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
# Of sentence-transformers; vectors are normalised where they count.
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
_HINT = "prior.text takes a folder, or OWNER/NAME@COMMIT with all 40 digits of the commit."
_LONGEST = 512  # tokens of a text
_BATCH = 64


class SentenceModel:
    """A transformer whose last layer is pooled to one vector for each text. Code that comes with it is never run.

    Args:
        name: A folder in the layout of transformers, as sentence-transformers writes it too; or `OWNER/NAME@COMMIT` of
            the Hugging Face hub.

    Attributes:
        name: See above.
        dim: Width P of the vectors.
        fingerprint: Of the files that it was read from.

    Raises:
        EncoderError: There is none, its weights are not safetensors, or it does not pool by the mean of all tokens or
            by the first one alone.
        MissingPackageError: transformers is not installed.
    """

    def __init__(self, name: str) -> None:
        if find_spec("transformers") is None:
            raise MissingPackageError(
                f"the sentence-embedding model {name} needs transformers; it is not installed",
                'Run: pip install "vlltr-index[hf]"',
            )
        folder = model_folder(name, "prior.text", _FILES)
        self.name = name
        self._pooling, longest = _settings(folder)
        try:
            self._model, self._tokenizer = _loaded(folder)
            self.dim = int(self._model.config.hidden_size)
            most = min(int(self._model.config.max_position_embeddings), self._tokenizer.model_max_length)
            self._longest = min(longest, most)
        except Exception as error:  # transformers raises many kinds of errors
            raise EncoderError(
                f"the sentence-embedding model {name} cannot be loaded: {reason(error)}", _HINT
            ) from None
        self._device = choose_device()
        self._model.to(self._device)
        self.fingerprint = _fingerprint(folder)

    @classmethod
    @lru_cache(maxsize=1)
    def open(cls, name: str) -> SentenceModel:
        """Return the model of that name; the last one is kept."""
        return cls(name)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode texts to float32 [N, P] on the CPU, unnormalised."""
        found = torch.empty(len(texts), self.dim)
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))  # so that little is padded
        for start in range(0, len(order), _BATCH):
            at = order[start : start + _BATCH]
            found[at] = self._pooled([texts[n] for n in at]).cpu()
        return found

    @torch.inference_mode()
    def _pooled(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self._device)
        with full_precision(self._device):
            last: Tensor = self._model(**tokens).last_hidden_state
        if self._pooling == "first":
            return last[:, 0]
        mask: Tensor = tokens["attention_mask"][..., None].to(last)
        return (last * mask).sum(1) / mask.sum(1)


def _settings(folder: Path) -> tuple[str, int]:
    """Read by what a model pools, `mean` or `first`, and how many tokens of a text it reads.

    Raises:
        EncoderError: A file is malformed, or asks for what is not done here.
    """
    try:
        for module in _read(folder / "modules.json", []):
            if (kind := str(module["type"]).rpartition(".")[2]) not in _MODULES:
                raise ValueError(f"modules.json has a module {kind!r}")
        facts = _read(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
        wanted = [key for key, value in facts.items() if key.startswith("pooling_mode_") and value is True]
        if len(wanted) != 1 or wanted[0] not in _POOLING:
            raise ValueError(f"1_Pooling/config.json asks for {' and '.join(wanted) or 'nothing'}")
        longest = _read(folder / "sentence_bert_config.json", {}).get("max_seq_length")
        return _POOLING[wanted[0]], int(longest or _LONGEST)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(
            f"the sentence-embedding model in {folder} cannot be used: {reason(error)}", _HINT
        ) from None


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def _loaded(folder: Path) -> tuple[Any, Any]:
    """Load weights and tokenizer from the files of a folder alone."""
    from transformers import AutoModel, AutoTokenizer

    options = {"trust_remote_code": False, "local_files_only": True}
    model, found = AutoModel.from_pretrained(
        folder,
        use_safetensors=True,
        attn_implementation="eager",  # a config may name another one, on the hub
        dtype=torch.float32,
        output_loading_info=True,
        **options,
    )
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(f"its weights lack {missing[0]}")
    if model.config.is_encoder_decoder:
        raise ValueError("it has a decoder")
    return model.eval(), AutoTokenizer.from_pretrained(folder, **options)


def _fingerprint(folder: Path) -> str:
    """Compute a digest of all files that a model may be read from."""
    paths = [path for pattern in _FILES for path in folder.glob(pattern)]
    paths += folder.glob("1_Pooling/config.json")
    digests = {}
    for path in paths:
        with path.open("rb") as file:
            digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return short(digest_json(digests))
