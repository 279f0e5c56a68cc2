"""What each kind of index costs, reckoned from measured curves (`python -m benchmarks.scaling curves`, then `fit`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from vlltr_index.anchors.index import plan
from vlltr_index.errors import UsageError


@dataclass(frozen=True)
class KindCost:
    """One kind of index at one size; seconds are a processor's.

    Attributes:
        kind: `none`: every class is scored, without an index.
        memory_mib: The anchors and the index, in a process that answers.
        disk_mib: The index's files.
        build_seconds: To build it.
        one_image_seconds: To answer for one image whose feature is there.
        batch_seconds: For 128 of them.
        beyond: Whether it is larger than what was measured.
    """

    kind: str
    memory_mib: float
    disk_mib: float
    build_seconds: float
    one_image_seconds: float
    batch_seconds: float
    beyond: bool


@dataclass(frozen=True)
class IndexPlan:
    """Which kind `vlltr index` would build, why, and what all kinds cost; `measured_on` is the curves' machine."""

    kind: str
    reason: str
    anchors: int
    dim: int
    costs: tuple[KindCost, ...]
    measured_on: str


def plan_index(anchors: int, dim: int) -> IndexPlan:
    """The plan for a number of anchors of width `dim`.

    Raises:
        UsageError: If there is to be no anchor, or no width.
    """
    if anchors < 1 or dim < 1:
        raise UsageError(f"there is nothing to plan for {anchors:,} anchors of width {dim:,}")
    kind, reason = plan(anchors)
    curves = _curves()
    costs = tuple(_cost(kind, curve, anchors, dim) for kind, curve in curves["kinds"].items())
    return IndexPlan(kind, reason, anchors, dim, costs, curves["machine"])


def features_of(what: str, kind: str, anchors: int, dim: int) -> tuple[float, ...]:
    """What a cost is a weighted sum of: answers look at all classes; cells and graphs are built in more than that.

    Args:
        what: `build`, `one` or `batch`.
        kind: As in `KindCost`.
        anchors: How many.
        dim: Their width.
    """
    if what != "build":
        return 1.0, anchors, anchors * dim
    more = anchors**1.5
    return {"ivf": (anchors * dim, more * dim), "hnsw": (more, more * dim)}.get(
        kind, (anchors, anchors * dim)
    )


def _cost(kind: str, curve: dict[str, Any], anchors: int, dim: int) -> KindCost:
    def seconds(what: str) -> float:
        pairs = zip(curve[what], features_of(what, kind, anchors, dim), strict=True)
        return float(sum(weight * value for weight, value in pairs))

    vectors = 4 * anchors * dim
    disk = vectors + curve["bytes_an_anchor"] * anchors if kind != "none" else 0.0
    return KindCost(
        kind,
        (vectors + disk) / 2**20,
        disk / 2**20,
        seconds("build"),
        seconds("one"),
        seconds("batch"),
        anchors * dim > curve["largest"],
    )


@cache
def _curves() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(__package__).joinpath("curves.json").read_text(encoding="utf-8"))
    return found
