"""Costs of each kind of index, estimated from measured curves (`python -m benchmarks scaling curves`, then `fit`)."""

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
    """Estimated costs of one kind of index at one size, on a CPU.

    Attributes:
        kind: The kind of index; `none`: every class is scored, without an index.
        memory_mib: Memory of the anchors and the index in a process that answers, in MiB.
        disk_mib: Size of the index's files, in MiB.
        build_seconds: Seconds to build it.
        one_image_seconds: Seconds to answer for one image whose vector is known.
        batch_seconds: Seconds to answer for 128 such images.
        beyond: Whether the size is above the largest measured one.
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
    """The kind that `vlltr index` would build, the reason, and the costs of all kinds, `measured_on` some machine."""

    kind: str
    reason: str
    anchors: int
    dim: int
    costs: tuple[KindCost, ...]
    measured_on: str


def plan_index(anchors: int, dim: int) -> IndexPlan:
    """Plan the index for a number of anchors of width `dim`.

    Raises:
        UsageError: The number of anchors, or the width, is below 1.
    """
    if anchors < 1 or dim < 1:
        raise UsageError(f"there is nothing to plan for {anchors:,} anchors of width {dim:,}")
    kind, reason = plan(anchors)
    curves = _curves()
    costs = tuple(_cost(kind, curve, anchors, dim) for kind, curve in curves["kinds"].items())
    return IndexPlan(
        kind=kind, reason=reason, anchors=anchors, dim=dim, costs=costs, measured_on=curves["machine"]
    )


def features_of(what: str, kind: str, anchors: int, dim: int) -> tuple[float, ...]:
    """Return the terms of which a cost is a weighted sum.

    An answer is linear in the number of anchors, for all classes are scored; building cells or a graph takes more.

    Args:
        what: The cost: `build`, `one` or `batch`.
        kind: As in `KindCost`.
        anchors: Number of anchors.
        dim: Width of the anchors.
    """
    if what != "build":
        return 1.0, anchors, anchors * dim
    more = anchors**1.5
    if kind == "ivf":
        return anchors * dim, more * dim
    if kind == "hnsw":
        return more, more * dim
    return anchors, anchors * dim


def number_bytes(kind: str) -> int:
    """Return the bytes of a number of a vector in an index of a kind."""
    return 2 if kind == "ivf" else 4


def _cost(kind: str, curve: dict[str, Any], anchors: int, dim: int) -> KindCost:
    """Estimate the costs of one kind from its curve."""

    def seconds(what: str) -> float:
        pairs = zip(curve[what], features_of(what, kind, anchors, dim), strict=True)
        return float(sum(weight * value for weight, value in pairs))

    vectors = 4 * anchors * dim
    held = number_bytes(kind) * anchors * dim
    disk = held + curve["bytes_an_anchor"] * anchors if kind != "none" else 0.0
    return KindCost(
        kind=kind,
        memory_mib=(vectors + disk) / 2**20,
        disk_mib=disk / 2**20,
        build_seconds=seconds("build"),
        one_image_seconds=seconds("one"),
        batch_seconds=seconds("batch"),
        beyond=anchors * dim > curve["largest"],
    )


@cache
def _curves() -> dict[str, Any]:
    """Read the fitted curves."""
    found: dict[str, Any] = json.loads(files(__package__).joinpath("curves.json").read_text(encoding="utf-8"))
    return found
