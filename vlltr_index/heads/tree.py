"""Ranks above the classes: probabilities of a tree's nodes, and the thresholds above which a node is the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CLASS = "class"
_TOP = "top level"  # rank of a name without a parent, if it has no other
_HALF = 0.5  # of two nodes of which neither lies below the other, at most one has more than this
_NOTHING = 2.0**-24  # the least probability above zero in half precision
_ROUNDED = 2.0**-12  # largest rounding error of half precision for a probability below one
_DOUBT = 0.05  # probability with which a rank that is right less often than required may pass


@dataclass(frozen=True, eq=False)
class HeldOutAnswers:
    """Answers for N held-out images, which trained no part of the model, among C classes.

    Attributes:
        labels: Int64 [N], columns of their classes.
        probabilities: Float16 [N, C], rows sum to one.
    """

    labels: Tensor
    probabilities: Tensor

    def among(self, columns: Tensor, classes: int) -> HeldOutAnswers:
        """Return the answers among other classes, as if there were no others; rows sum to one, in float32.

        Args:
            columns: Int64 [C], the new column of each class; -1 for a class that is gone, whose images are left out.
            classes: Number of new columns.
        """
        kept = columns >= 0
        own = kept[self.labels]
        given = self.probabilities[own][:, kept].float()
        sums = given.new_zeros(len(given), classes).index_add_(1, columns[kept], given)
        return HeldOutAnswers(columns[self.labels[own]], sums / sums.sum(1, keepdim=True).clamp(min=1e-30))

    def under_prior(self, log_prior: Tensor) -> HeldOutAnswers:
        """Return the answers had the classes not been equally common, in float32.

        Args:
            log_prior: Float [C], the logarithm of each class's frequency; -inf for one that is gone.
        """
        likely = self.probabilities.float().clamp(min=_NOTHING).log()
        return HeldOutAnswers(self.labels, (likely + log_prior.float()).softmax(1))


@dataclass(frozen=True, eq=False)
class ClassTree:
    """C classes as nodes of one or more trees; M nodes, each after its parent.

    Attributes:
        names: Name of each node.
        ranks: Rank of each node.
        parents: Parent of each node; -1 for a root.
        nodes: Node of each class. One class may lie below another.
    """

    names: tuple[str, ...]
    ranks: tuple[str, ...]
    parents: tuple[int, ...]
    nodes: tuple[int, ...]

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes from its root down to itself."""
        found: list[tuple[int, ...]] = []
        for node, parent in enumerate(self.parents):
            above = found[parent] if parent >= 0 else ()
            found.append((*above, node))
        return tuple(found)

    @cached_property
    def _pairs(self) -> Tensor:
        """Pairs of a class and a node that holds it, int64 [2, P]."""
        pairs = [(column, node) for column, own in enumerate(self.nodes) for node in self.paths[own]]
        return torch.tensor(pairs, dtype=torch.int64).T

    def below(self, node: int) -> Tensor:
        """Return the columns of the classes that a node holds, int64, ascending."""
        return self._pairs[0, self._pairs[1] == node]

    @cached_property
    def sizes(self) -> Tensor:
        """Number of classes that each node holds, int64 [M]."""
        return torch.bincount(self._pairs[1], minlength=len(self.names))

    @cached_property
    def levels(self) -> dict[str, Tensor]:
        """Nodes of each rank, int64, the deepest rank first; nodes that hold every class are left out."""
        depths: dict[str, int] = {}
        telling: dict[str, list[int]] = {}
        for node, rank in enumerate(self.ranks):
            if self.sizes[node] < len(self.nodes):
                depths[rank] = max(depths.get(rank, 0), len(self.paths[node]))
                telling.setdefault(rank, []).append(node)
        return {rank: torch.tensor(telling[rank]) for rank in sorted(depths, key=lambda r: -depths[r])}

    def sums(self, probabilities: Tensor) -> Tensor:
        """Sum the probabilities [B, C] of the classes that each node holds: [B, M]."""
        column, node = self._pairs
        sums = probabilities.new_zeros(len(probabilities), len(self.names))
        return sums.index_add_(1, node, probabilities[:, column])

    def holding(self, labels: Tensor) -> Tensor:
        """Say for each image, by its class's column int64 [N], which nodes hold its class: bool [N, M]."""
        found = torch.zeros(len(labels), len(self.names), dtype=torch.bool)
        for row, column in zip(found, labels.tolist(), strict=True):
            row[list(self.paths[self.nodes[column]])] = True
        return found

    @cached_property
    def at_rank(self) -> dict[str, Tensor]:
        """For each rank of `levels`, the deepest of its nodes that holds each class, int64 [C]; -1 for none."""
        found = {}
        for rank, nodes in self.levels.items():
            telling = set(nodes.tolist())
            of = ([node for node in self.paths[own] if node in telling] for own in self.nodes)
            found[rank] = torch.tensor([some[-1] if some else -1 for some in of])
        return found

    def best_at(self, rank: str, probabilities: Tensor) -> Tensor:
        """Return the most probable node of a rank, int64 [B]; each of the probabilities [B, C] counts for one node."""
        of = self.at_rank[rank]
        sums = probabilities.new_zeros(len(probabilities), len(self.names))
        return sums.index_add_(1, of[of >= 0], probabilities[:, of >= 0]).argmax(1)

    def answers(self, sums: Tensor, least: Mapping[str, float]) -> Tensor:
        """Return the answer for each image: the node of the deepest rank that is probable enough; -1 for none.

        Args:
            sums: Float [B, M], the nodes' probabilities, from the method `sums`.
            least: For each rank that may answer, the least probability of a node that may be the answer, above a half.

        Returns:
            Int64 [B].
        """
        best = torch.full((len(sums),), -1)
        for rank, nodes in self.levels.items():
            if rank in least:
                # All nodes above a half lie on one path, and a child has a larger number than its parent.
                fits = torch.where(sums[:, nodes] >= least[rank], nodes, -1).amax(1)
                best = torch.where(best < 0, fits, best)
        return best


def grow(
    parents: Mapping[str, str | None], ranks: Mapping[str, str | None], classes: Sequence[str]
) -> ClassTree:
    """Build the tree above some classes; nodes that hold none of them are left out.

    Args:
        parents: The parent of each node by name; a name that is no key is a root. There must be no cycle.
        ranks: The rank of each node by name. The default is `class` for a class (`leaf` if `class` is among the given
            ranks), `top level` for another node without a parent, and `level 2`, `level 3` ... for those below it.
        classes: Names of the C classes, in the order of their columns.
    """
    places: dict[str, int] = {}
    depths: list[int] = []
    above: list[int] = []
    for name in classes:
        path = [name]
        parent = parents.get(name)
        while parent is not None:
            path.append(parent)
            parent = parents.get(parent)
        before = -1
        for depth, node in enumerate(reversed(path), 1):
            if node not in places:
                places[node] = len(places)
                depths.append(depth)
                above.append(before)
            before = places[node]
    lowest = "leaf" if CLASS in ranks.values() else CLASS  # in biology a class is a rank above the species
    own = set(classes)
    called = (
        ranks.get(name) or (lowest if name in own else f"level {depth}" if depth > 1 else _TOP)
        for name, depth in zip(places, depths, strict=True)
    )
    return ClassTree(tuple(places), tuple(called), tuple(above), tuple(places[name] for name in classes))


def thresholds(tree: ClassTree, held_out: HeldOutAnswers, accuracy: float) -> dict[str, float]:
    """Find the least probability at which a node of each rank may be the answer, the deepest rank first.

    A rank answers for the images that no deeper one answered. Its threshold is the lowest above a half that passes a
    test on the held-out images: a rank that is right less often than `accuracy` would do as well as this one in at most
    one of twenty draws (binomial, for this threshold alone, although several are tried). The rounding error of half
    precision is subtracted. A rank without such a threshold never answers, and is left out.

    Args:
        tree: The tree of the classes.
        held_out: Answers among the same classes.
        accuracy: The share of a rank's answers that has to be right, between 0 and 1.
    """
    sums = tree.sums(held_out.probabilities.float())
    right = tree.holding(held_out.labels)
    found: dict[str, float] = {}
    for rank, nodes in tree.levels.items():
        own = sums[:, nodes]
        wrong = ~right[:, nodes]
        best = own.amax(1)
        astray = torch.where(wrong, own, 0.0).amax(1)
        tried = own[own > _HALF].unique()  # ascending
        answered = len(best) - torch.searchsorted(best.sort().values, tried)
        missed = len(best) - torch.searchsorted(astray.sort().values, tried)
        for least, images, misses in zip(tried.tolist(), answered.tolist(), missed.tolist(), strict=True):
            if images < least_needed(accuracy):
                break
            if _chance(images, misses, 1.0 - accuracy) <= _DOUBT:
                found[rank] = max(least - _ROUNDED, _HALF + _ROUNDED)
                sums = sums[best < least]
                right = right[best < least]
                break
    return found


def least_needed(accuracy: float) -> int:
    """Return how many answers, if all are right, suffice to show that a rank has this accuracy."""
    return math.ceil(math.log(_DOUBT) / math.log(accuracy))


def _chance(images: int, misses: int, rate: float) -> float:
    """Compute the binomial probability of at most `misses` in `images`, each missed with probability `rate`."""
    if misses >= rate * images:  # the probability is about a half or more, far above any that matters
        return 1.0
    k = torch.arange(misses + 1, dtype=torch.float64)
    n = torch.tensor(float(images), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float((ways + k * math.log(rate) + (n - k) * math.log1p(-rate)).exp().sum())
