"""Inputs and answers of the two questions about the LGR head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.clusters import around, centres
from benchmarks.speed.harness import Arrays, Case, Disagreement

__all__ = [
    "DEVICE",
    "ReleaseHead",
    "agree",
    "anchors_mib",
    "anchors_of",
    "bank_of",
    "images_of",
    "inputs",
    "wait",
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOGIT_TOLERANCE = 2e-3  # of logits of up to 50: float32 on both sides
GRADIENT_TOLERANCE = 2e-3  # relative to the largest entry


def inputs(values: dict[str, Any]) -> Arrays:
    """Anchors [C * M, D] in class order, images [B, D] and their classes."""
    rng = np.random.default_rng(0)
    classes = values["classes"]
    width = values["anchors"]
    dim = values["dim"]
    centre = centres(rng, classes, dim)
    labels = rng.integers(0, max(1, classes // 16), values["batch"])  # within every competitor's part
    return {
        "anchors": around(rng, centre, np.repeat(np.arange(classes), width), spread=1.5),
        "images": around(rng, centre, labels),
        "labels": labels.astype(np.int64),
        "projections": (np.eye(dim) + 0.02 * rng.standard_normal((2, dim, dim))).astype(np.float32),
    }


def anchors_of(inputs: Arrays, values: dict[str, Any]) -> Tensor:
    """Anchors [C', M, D] of the classes this competitor works on."""
    kept = max(1, round(values["classes"] * values["portion"]))
    rows = torch.from_numpy(inputs["anchors"][: kept * values["anchors"]])
    return rows.view(kept, values["anchors"], values["dim"]).to(DEVICE)


def anchors_mib(values: dict[str, Any]) -> float:
    """MiB of all anchors in float32."""
    return float(values["classes"] * values["anchors"] * values["dim"]) * 4 / 2**20


def bank_of(inputs: Arrays, values: dict[str, Any]) -> Any:
    """The same anchors as the product holds them."""
    from vlltr_index.heads.anchor_bank import AnchorBank

    rows = anchors_of(inputs, values)
    owner = torch.arange(len(rows), device=DEVICE).repeat_interleave(values["anchors"])
    return AnchorBank.build(rows.flatten(0, 1), owner, list(range(len(rows))))


def images_of(inputs: Arrays) -> tuple[Tensor, Tensor]:
    """Images [B, D] and labels [B]."""
    return torch.from_numpy(inputs["images"]).to(DEVICE), torch.from_numpy(inputs["labels"]).to(DEVICE)


def wait() -> None:
    """Let queued GPU work end, so that it is in the time."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class ReleaseHead(nn.Module):
    """The release's formulation of Eqs. 4-7, written anew: every anchor is projected in every step, and the attended
    sentence of every image and class is built."""

    def __init__(self, inputs: Arrays, values: dict[str, Any]) -> None:
        super().__init__()
        dim = values["dim"]
        self.register_buffer("anchors", anchors_of(inputs, values))
        self.query_norm = nn.LayerNorm(dim)
        self.key_norm = nn.LayerNorm(dim)
        self.query_proj = nn.Linear(dim, dim, bias=False)
        self.key_proj = nn.Linear(dim, dim, bias=False)
        self.visual = nn.Linear(dim, len(self.anchors))
        with torch.no_grad():
            self.query_proj.weight.copy_(torch.from_numpy(inputs["projections"][0]))
            self.key_proj.weight.copy_(torch.from_numpy(inputs["projections"][1]))
        self.scale = 100.0
        self.to(DEVICE)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Visual logits and text logits, [B, C] each."""
        query = self.query_proj(self.query_norm(images))
        keys = self.key_proj(self.key_norm(self.anchors))
        attention = torch.einsum("bd,cmd->bcm", query, keys) / query.shape[1] ** 0.5
        attended = torch.einsum("bcm,cmd->bcd", attention.softmax(2), self.anchors)
        cosine = torch.einsum("bd,bcd->bc", F.normalize(images, dim=1), F.normalize(attended, dim=2))
        return self.visual(images), self.scale * cosine


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """Largest difference of text logits over the classes all worked on, and of gradients where all worked on all.

    Raises:
        Disagreement: Above the tolerance.
    """
    first = answers["release"]
    second = answers["ours"]
    classes = min(first["logits"].shape[1], second["logits"].shape[1])
    worst = float(np.abs(first["logits"][:, :classes] - second["logits"][:, :classes]).max())
    if worst > LOGIT_TOLERANCE:
        raise Disagreement(f"a text logit differs by {worst:.2g}, more than {LOGIT_TOLERANCE}")
    result = {"text logits": worst}
    if "gradient" in first and not case.portion:
        difference = np.abs(first["gradient"] - second["gradient"]).max() / np.abs(first["gradient"]).max()
        if difference > GRADIENT_TOLERANCE:
            raise Disagreement(f"a gradient differs by {difference:.2g} of the largest")
        result["gradient of the query projection, relative"] = float(difference)
    return result
