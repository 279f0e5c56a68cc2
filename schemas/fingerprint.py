"""Digests, of which the fingerprints of towers are made: architecture, weights, preprocessing or tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest_bytes(data: bytes) -> str:
    """Compute the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """Compute the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(value: Mapping[str, Any] | list[Any]) -> str:
    """Compute the SHA-256 of the canonical JSON of `value` (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return digest_bytes(text.encode())


def short(digest: str) -> str:
    """Return the first 16 hexadecimal digits, which suffice for a name in a workspace."""
    return digest[:16]
