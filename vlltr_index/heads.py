"""Heads as files: the LGR head, the classes its visual rows stand for, and what imprinting needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.errors import InputError, WorkspaceError
from vlltr_index.lgr import LGRHead

__all__ = ["SavedHead", "check_facts", "load_head", "save_head"]

_TIMES = ("seconds", "images_per_s")  # left out of the log: the same training gives the same digest
_TYPES: dict[str, type] = {
    "dim": int,
    "visual": str,
    "normalise_values": bool,
    "text_fp": str,
    "image_fp": str,
}


@dataclass(frozen=True)
class SavedHead:
    """A trained head and its surroundings.

    Attributes:
        head: The module, in eval mode.
        class_ids: int64 [C_v], the class of each visual row, ascending: the classes it was trained on.
        training_mean: float32 [D], mean of the training images' features (unnormalised), for imprinting.
        text_fp: Fingerprint of the text tower whose vectors it was trained on.
        image_fp: Fingerprint of the visual tower.
    """

    head: LGRHead
    class_ids: Tensor
    training_mean: Tensor
    text_fp: str
    image_fp: str


def save_head(
    saved: SavedHead,
    folder: Path,
    log: Sequence[Mapping[str, float]] = (),
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write `head.safetensors` and `head.json` into `folder`, and `train.json` where there is a `log`.

    Args:
        saved: The head.
        folder: Where to.
        log: What its training gave, an entry an epoch; times are left out.
        config: What it was trained by.
    """
    tensors = {f"head.{k}": v.detach().cpu().contiguous() for k, v in saved.head.state_dict().items()}
    tensors["class_ids"] = saved.class_ids.long().contiguous()
    tensors["training_mean"] = saved.training_mean.float().contiguous()
    save_file(tensors, folder / "head.safetensors")
    head = saved.head
    facts = {
        "format": 1,
        "dim": head.dim,
        "visual": head.visual,
        "normalise_values": head.normalise_values,
        "text_fp": saved.text_fp,
        "image_fp": saved.image_fp,
    }
    _write(folder / "head.json", facts)
    if log:
        kept = [{k: v for k, v in entry.items() if k not in _TIMES} for entry in log]
        _write(folder / "train.json", {"kind": "lgr", "config": config, "log": kept})


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_head(folder: Path) -> SavedHead:
    """Read what `save_head` wrote. Whether its weights are still those, `Workspace.whole_object` tells.

    Raises:
        WorkspaceError: If a file is missing or damaged.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        check_facts(facts)
        tensors = load_file(folder / "head.safetensors")
        class_ids = tensors.pop("class_ids")
        training_mean = tensors.pop("training_mean")
        if class_ids.dtype != torch.int64:
            raise ValueError(f"class_ids are {class_ids.dtype}, expected int64")
        head = LGRHead(
            facts["dim"], len(class_ids), visual=facts["visual"], normalise_values=facts["normalise_values"]
        )
        head.load_state_dict({k.removeprefix("head."): v for k, v in tensors.items()})
        return SavedHead(head.eval(), class_ids, training_mean, facts["text_fp"], facts["image_fp"])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, InputError) as error:
        raise WorkspaceError(
            f"the head in {folder} cannot be read: {error}", "Train it again: vlltr train lgr"
        ) from None


def check_facts(facts: Any) -> None:
    """See whether what `head.json` holds has the types that `save_head` writes.

    Raises:
        ValueError: Naming the first value that has another.
    """
    if not isinstance(facts, dict):
        raise ValueError("head.json is not a JSON object")
    for name, kind in _TYPES.items():
        if name not in facts:
            raise ValueError(f"head.json has no {name!r}")
        if type(facts[name]) is not kind:  # a bool is an int to isinstance
            raise ValueError(f"{name} in head.json must be of type {kind.__name__}, got {facts[name]!r:.80}")


def mean_feature(features: Tensor) -> Tensor:
    """Mean of features [N, D] in float64, as float32 [D]."""
    return features.double().mean(0).to(torch.float32)
