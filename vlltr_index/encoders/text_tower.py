"""Text towers that transformers builds: their configuration, which belongs to the encoder, and padding."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from open_clip.hf_configs import arch_dict
from open_clip.hf_model import HFTextEncoder
from torch import nn

_TEXTS = ("model_type", "hidden_act", "feed_forward_proj", "activation_function")
"""Settings of transformers that are texts and decide what is computed; the others could name a file or an address."""


def tower_config(model: nn.Module) -> dict[str, Any] | None:
    """Return the configuration of a model's text tower, as transformers names it; None if it has no such tower."""
    text = getattr(model, "text", None)
    if not isinstance(text, HFTextEncoder):
        return None
    return plain_config(text.config.to_diff_dict())


def plain_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that decide what is computed, without names and addresses."""
    return {key: value for key, value in facts.items() if _is_plain(key, value)}


def masks_padding(model: nn.Module) -> bool:
    """Say whether a model's text tower leaves padding out, in attention and pooling; those of transformers do."""
    return isinstance(getattr(model, "text", None), HFTextEncoder)


def check_config(facts: Any) -> None:
    """Check that a configuration is of a text tower that open_clip knows, and names nothing that would be fetched.

    Raises:
        ValueError: It is not, or does.
    """
    if not isinstance(facts, dict) or facts.get("model_type") not in arch_dict:
        raise ValueError(f"hf_config is of none of the text towers {', '.join(arch_dict)}")
    if strange := [key for key, value in facts.items() if not _is_plain(key, value)]:
        raise ValueError(f"{strange[0]!r} is no setting of a text tower: {facts[strange[0]]!r:.80}")


@contextmanager
def described_here(text_cfg: dict[str, Any]) -> Iterator[None]:
    """Let open_clip read the configuration of a text tower from `hf_config`, where that is there, and not from the hub.

    Args:
        text_cfg: Of a model that is built within the block; changed in place.

    Raises:
        ValueError: As for `check_config`.
    """
    facts = text_cfg.pop("hf_config", None)
    if facts is None:
        yield
        return
    check_config(facts)
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(facts), encoding="utf-8")
        text_cfg["hf_model_name"] = folder
        yield


def _is_plain(key: str, value: Any) -> bool:
    """Say whether a setting is a finite number, or one of the texts that decide what is computed."""
    if isinstance(value, str):
        return key in _TEXTS
    return isinstance(value, int | float) and math.isfinite(value)
