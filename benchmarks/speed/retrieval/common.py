"""A trained classifier as the product holds it, with any index in place of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed.clock import Clock
from benchmarks.speed.harness import Arrays
from vlltr_index.anchors.index import WithDelta
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.checkpoint import RuleParameters, SavedHead
from vlltr_index.heads.fusion import PartWeights
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.plda import SharedGaussian
from vlltr_index.recognition.anchors import Anchors
from vlltr_index.recognition.lazy import Lazy
from vlltr_index.recognition.model import Model
from vlltr_index.recognition.parameters import ClassParameters, ClassStats
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.store.class_table import ClassTable

BATCH = 128
SINGLES = 16
RECALL_AT = 32
IMAGES_EACH = 5


class State:
    """The classifier, its queries, and the index under test (None: exhaustive)."""

    def __init__(self, inputs: Arrays, values: dict[str, Any]) -> None:
        vectors = torch.from_numpy(inputs["anchors"])
        classes = values["classes"]
        dim = values["dim"]
        ids = torch.arange(classes)
        rows = torch.arange(len(vectors))
        bounds = torch.arange(classes + 1) * values["anchors"]
        bank = AnchorBank(
            vectors, bounds, ids, rows, torch.zeros(len(vectors))
        )  # in order: nothing is copied
        head = LGRHead(dim, classes, logit_scale=50.0)
        with torch.no_grad():
            assert isinstance(head.visual_head, torch.nn.Linear)
            visual = torch.from_numpy(inputs["visual"])
            head.visual_head.weight.copy_(visual)
            head.visual_head.bias.zero_()
        saved = SavedHead(head.eval(), ids, "text", "image", parts(dim))
        means = F.normalize(visual.double(), dim=1)
        stats = ClassStats(ids, torch.full((classes,), IMAGES_EACH), IMAGES_EACH * means)
        anchors = Anchors(bank, rows, {}.__getitem__, "one")
        known = ClassParameters(anchors, saved, stats, merged={})
        self.model = Model(known, FusionConfig(), ClassTable({}, {}))
        self.images = torch.from_numpy(inputs["images"])
        self.keys = rows
        self.facts: dict[str, Any] = {}
        self.indexed = False
        self.way = "faiss"
        self.change: Callable[[], object] | None = None
        self.index: Any = None
        self._nearest: Tensor | None = None

    @property
    def unit(self) -> Tensor:
        """The anchors at length one; made anew each time, for memory."""
        return F.normalize(self.model.bank.vectors, dim=1)

    def use(self, index: Any, build_seconds: float) -> State:
        """Answer by way of this index."""
        self.model = replace(self.model, lazy_index=Lazy.of(index))
        self.index = index
        self.indexed = True
        self.facts = {"build_seconds": round(build_seconds, 2), "kind": index.kind}
        return self

    def measure(self) -> Arrays:
        """Score all queries in batches, then some alone; seconds are of one batch."""
        clock = Clock()
        parts = [self.score(part) for part in self.images.split(BATCH)]
        took = {key: value / len(parts) for key, value in clock.read().items()}
        clock = Clock()
        for image in self.images[:SINGLES].split(1):
            self.score(image)
        alone = clock.read()
        chances = torch.cat(parts)
        best = chances.topk(2, dim=1)
        facts = {
            **self.facts,
            **took,
            "one_image_cpu_s": alone["cpu_seconds"] / SINGLES,
            "one_image_s": alone["seconds"] / SINGLES,
            **self._recall(),
            **self._changes(),
        }
        return {
            "best": best.indices[:, 0].numpy(),
            "chance": best.values[:, 0].numpy(),
            "lead": (best.values[:, 0] - best.values[:, 1]).numpy(),
            "_extra": facts,  # type: ignore[dict-item] # taken out by the harness
        }

    def score(self, images: Tensor) -> Tensor:
        """Probabilities of all classes [B, C]."""
        if not self.indexed:
            return self.model.exhaustive(images).probabilities
        return self.model.score(images, self.way)[0].probabilities

    def _changes(self) -> dict[str, float]:
        """Processor seconds to add 64 anchors and remove 64."""
        if self.change is None:
            return {}
        clock = Clock()
        self.change()
        return {"add_and_remove_64_cpu_s": clock.read()["cpu_seconds"]}

    def _recall(self) -> dict[str, float]:
        """Share of the true nearest anchors that the index finds."""
        if not self.indexed:
            return {}
        queries = F.normalize(self.images[:BATCH], dim=1)
        if self._nearest is None:
            self._nearest = (
                (queries @ self.model.bank.vectors.T / self.model.bank.norms).topk(RECALL_AT).indices
            )
        found = self.index.search(queries, RECALL_AT)[1]
        hit = (found[:, :, None] == self._nearest[:, None, :]).any(1)
        return {f"recall_at_{RECALL_AT}": float(hit.float().mean())}


def parts(dim: int) -> RuleParameters:
    """A generative model in which each direction varies alike, and weights of the size that training fits."""
    zeros = torch.zeros(dim, dtype=torch.float64)
    eye = torch.eye(dim, dtype=torch.float64)
    shared = SharedGaussian(zeros, dim**0.5 * eye, zeros + 1.0, zeros, 0.0 * eye)
    return RuleParameters(shared, PartWeights(image=0.5, generative=0.05, text=0.2))


def built(inputs: Arrays, values: dict[str, Any], kind: str) -> State:
    """A state with one of the product's own kinds of index."""
    from vlltr_index.anchors.index import build_index

    state = State(inputs, values)
    start = time.perf_counter()
    index = build_index(state.unit, state.keys, kind)
    state.use(index, time.perf_counter() - start)
    state.way = "auto" if kind == "auto" else "faiss"
    new = F.normalize(torch.randn(64, values["dim"], generator=torch.Generator().manual_seed(0)), dim=1)
    keys = torch.arange(64)
    state.change = lambda: WithDelta(index, new, keys + len(state.keys), keys)
    return state
