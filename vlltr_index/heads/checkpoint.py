"""Heads as files: the LGR head, the classes of its visual rows, the generative model's shared parameters, weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.errors import InputError, WorkspaceError
from vlltr_index.heads.fusion import Meeting, PartWeights
from vlltr_index.heads.generative import SharedGaussian
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.tree import HeldOutAnswers

__all__ = ["HELD_OUT", "SHARED", "Parts", "SavedHead", "check_facts", "load_head", "save_head"]

_PARTS = {"weights", "noise", "text_r2", "accept_above"}
_MEETINGS = ("pictured", "told")
_EXAMPLE = PartWeights(0.0, 0.0, 0.0, Meeting(0.0, 0.0), Meeting(0.0, 0.0))
_WIDEST = 1e3
_TIMES = ("seconds", "images_per_s")  # left out of the log: the same training gives the same digest
_TYPES: dict[str, type] = {
    "dim": int,
    "visual": str,
    "normalise_values": bool,
    "loss_bias": bool,
    "text_fp": str,
    "image_fp": str,
}
SHARED = ("centre", "basis", "spread", "blank", "text_centre", "text_map")
"""The tensors of the generative model in a head's file, below `generative.`."""
HELD_OUT = ("labels", "probabilities")
"""The tensors of the answers to held-out images there, below `held_out.`; none where there were no such images."""


@dataclass(frozen=True)
class Parts:
    """What the rule `ours` needs beside the head, as `vlltr train lgr` decided it.

    Attributes:
        shared: The generative model's shared parameters.
        weights: How much each part counts.
        accept_above: The best log-likelihood of 95 % of images that trained nothing is at least this; None where there
            were none.
        held_out: What was answered for these images, the classes in the order of the visual rows; None likewise.
    """

    shared: SharedGaussian
    weights: PartWeights
    accept_above: float | None = None
    held_out: HeldOutAnswers | None = None


@dataclass(frozen=True)
class SavedHead:
    """A trained head and its surroundings.

    Attributes:
        head: The module, in eval mode.
        class_ids: int64 [C_v], the class of each visual row, ascending: the classes it was trained on.
        text_fp: Fingerprint of the text tower whose vectors it was trained on.
        image_fp: Fingerprint of the visual tower.
        parts: None for a head of the protocols `paper` and `release`.
    """

    head: LGRHead
    class_ids: Tensor
    text_fp: str
    image_fp: str
    parts: Parts | None = None


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
    parts = saved.parts
    if parts is not None:
        tensors |= {f"generative.{n}": getattr(parts.shared, n).float().contiguous() for n in SHARED}
        if parts.held_out is not None:
            tensors |= {f"held_out.{n}": getattr(parts.held_out, n).contiguous() for n in HELD_OUT}
    save_file(tensors, folder / "head.safetensors")
    head = saved.head
    facts = {
        "format": 1,
        "dim": head.dim,
        "visual": head.visual,
        "normalise_values": head.normalise_values,
        "loss_bias": head.log_beta is not None,
        "text_fp": saved.text_fp,
        "image_fp": saved.image_fp,
        "parts": None if parts is None else _facts_of(parts),
    }
    _write(folder / "head.json", facts)
    if log:
        kept = [{k: v for k, v in entry.items() if k not in _TIMES} for entry in log]
        _write(folder / "train.json", {"kind": "lgr", "config": config, "log": kept})


def _facts_of(parts: Parts) -> dict[str, Any]:
    return {
        "weights": asdict(parts.weights),
        "noise": parts.shared.noise,
        "text_r2": parts.shared.text_r2,
        "accept_above": parts.accept_above,
    }


def _parts(facts: Mapping[str, Any], tensors: dict[str, Tensor]) -> Parts:
    """What `_facts_of` and the tensors of the file say; these are taken out of `tensors`."""
    shared = {name: tensors.pop(f"generative.{name}").double() for name in SHARED}
    if not all(bool((shared[name] > 0.0).all()) for name in ("spread", "blank")):
        raise ValueError("a variance in head.safetensors is not above 0")
    held = None
    if "held_out.labels" in tensors:
        held = HeldOutAnswers(*(tensors.pop(f"held_out.{name}") for name in HELD_OUT))
    return Parts(
        SharedGaussian(**shared, noise=facts["noise"], text_r2=facts["text_r2"]),
        _weights(facts["weights"]),
        facts["accept_above"],
        held,
    )


def _weights(facts: Mapping[str, Any]) -> PartWeights:
    meetings = {name: Meeting(**facts[name]) for name in _MEETINGS}
    return PartWeights(**(dict(facts) | meetings))


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
        if class_ids.dtype != torch.int64:
            raise ValueError(f"class_ids are {class_ids.dtype}, expected int64")
        parts = None if facts["parts"] is None else _parts(facts["parts"], tensors)
        names = ("visual", "normalise_values", "loss_bias")
        head = LGRHead(facts["dim"], len(class_ids), **{name: facts[name] for name in names})
        head.load_state_dict({k.removeprefix("head."): v for k, v in tensors.items()})
        return SavedHead(head.eval(), class_ids, facts["text_fp"], facts["image_fp"], parts)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, InputError) as error:
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
    if "parts" not in facts:
        raise ValueError("head.json has no 'parts'")
    if facts["parts"] is not None:
        _check_parts(facts["parts"])


def _check_parts(facts: Any) -> None:
    weights = facts.get("weights") if isinstance(facts, dict) else None
    numbers = _flat(weights) if isinstance(weights, dict) else {}
    names = _flat(asdict(_EXAMPLE))
    if numbers.keys() != names.keys() or facts.keys() != _PARTS:
        raise ValueError(f"parts in head.json must hold {', '.join(sorted(_PARTS))}; weights {sorted(names)}")
    numbers |= {"noise": facts["noise"], "text_r2": facts["text_r2"]}
    if facts["accept_above"] is not None:
        numbers["accept_above"] = facts["accept_above"]
    for name, value in numbers.items():
        if type(value) is not float or not abs(value) < float("inf"):
            raise ValueError(f"{name} in head.json must be a finite float, got {value!r:.80}")
    if not 0.0 < facts["noise"] <= _WIDEST:
        raise ValueError(f"noise in head.json must lie between 0 and {_WIDEST:g}, got {facts['noise']}")


def _flat(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of `PartWeights` as a dictionary, those of a meeting below its name: `told.offset`."""
    found: dict[str, Any] = {}
    for name, value in weights.items():
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return found
