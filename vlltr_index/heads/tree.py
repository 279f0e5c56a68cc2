"""Ranks above the classes: probabilities summed along a tree, and when one of its nodes may be the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CLASS = "class"
_HALF = 0.5  # of two nodes of which neither is below the other, one at most has more than this
_ROUNDED = 2.0**-12  # what half precision may add to a probability below one
_DOUBT = 0.05  # the chance of taking a rank that is right less often for one that holds


@dataclass(frozen=True, eq=False)
class HeldOutAnswers:
    """What was answered for N images that trained none of what answered, among C classes.

    Attributes:
        labels: Int64 [N], columns of their classes.
        probabilities: Float16 [N, C], rows sum to one.
    """

    labels: Tensor
    probabilities: Tensor

    def among(self, columns: Tensor, classes: int) -> HeldOutAnswers:
        """The same among other classes, as if there were no others: rows sum to one, in float32.

        Args:
            columns: Int64 [C], the new column of each class; -1 for one that is not there. Its images are left out.
            classes: How many columns there are now.
        """
        kept = columns >= 0
        own = kept[self.labels]
        given = self.probabilities[own][:, kept].float()
        sums = given.new_zeros(len(given), classes).index_add_(1, columns[kept], given)
        return HeldOutAnswers(columns[self.labels[own]], sums / sums.sum(1, keepdim=True).clamp(min=1e-30))


@dataclass(frozen=True, eq=False)
class ClassTree:
    """C classes as nodes of one or more trees; M nodes, each after its parent.

    Attributes:
        names: What each node is called.
        ranks: The rank of each.
        parents: The parent of each; -1 for a root.
        nodes: The node of each class. One class may lie below another.
    """

    names: tuple[str, ...]
    ranks: tuple[str, ...]
    parents: tuple[int, ...]
    nodes: tuple[int, ...]

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The nodes from a root to each node, itself the last."""
        found: list[tuple[int, ...]] = []
        for node, parent in enumerate(self.parents):
            found.append((*(found[parent] if parent >= 0 else ()), node))
        return tuple(found)

    @cached_property
    def _pairs(self) -> Tensor:
        """Each class, and each node that holds it: int64 [2, P]."""
        pairs = [(column, node) for column, own in enumerate(self.nodes) for node in self.paths[own]]
        return torch.tensor(pairs, dtype=torch.int64).T

    def below(self, node: int) -> Tensor:
        """The columns of the classes that a node holds, int64, ascending."""
        return self._pairs[0, self._pairs[1] == node]

    @cached_property
    def sizes(self) -> Tensor:
        """How many classes each node holds, int64 [M]."""
        return torch.bincount(self._pairs[1], minlength=len(self.names))

    @cached_property
    def levels(self) -> dict[str, Tensor]:
        """Nodes of each rank, int64, the deepest rank first, without nodes that hold every class."""
        depths: dict[str, int] = {}
        telling: dict[str, list[int]] = {}
        for node, rank in enumerate(self.ranks):
            if self.sizes[node] < len(self.nodes):
                depths[rank] = max(depths.get(rank, 0), len(self.paths[node]))
                telling.setdefault(rank, []).append(node)
        return {rank: torch.tensor(telling[rank]) for rank in sorted(depths, key=lambda r: -depths[r])}

    def sums(self, probabilities: Tensor) -> Tensor:
        """Probabilities of the classes [B, C] to those of the nodes [B, M]: of all classes that a node holds."""
        column, node = self._pairs
        sums = probabilities.new_zeros(len(probabilities), len(self.names))
        return sums.index_add_(1, node, probabilities[:, column])

    def holding(self, labels: Tensor) -> Tensor:
        """Whether each node holds the class of each image: int64 [N] columns to bool [N, M]."""
        found = torch.zeros(len(labels), len(self.names), dtype=torch.bool)
        for row, column in zip(found, labels.tolist(), strict=True):
            row[list(self.paths[self.nodes[column]])] = True
        return found

    @cached_property
    def at_rank(self) -> dict[str, Tensor]:
        """For each of `levels` its node that holds each class, the deepest of several, int64 [C]; -1 for none."""
        found = {}
        for rank, nodes in self.levels.items():
            telling = set(nodes.tolist())
            of = ([node for node in self.paths[own] if node in telling] for own in self.nodes)
            found[rank] = torch.tensor([some[-1] if some else -1 for some in of])
        return found

    def best_at(self, rank: str, probabilities: Tensor) -> Tensor:
        """The node of a rank that has most of the probabilities [B, C], each class's at one node: int64 [B]."""
        of = self.at_rank[rank]
        sums = probabilities.new_zeros(len(probabilities), len(self.names))
        return sums.index_add_(1, of[of >= 0], probabilities[:, of >= 0]).argmax(1)

    def answers(self, sums: Tensor, least: Mapping[str, float]) -> Tensor:
        """The node that is the answer to each image: of the deepest rank that has one probable enough; -1 for none.

        Args:
            sums: Float [B, M], from `sums`.
            least: The least probability of a node of each rank that may be the answer, more than a half.

        Returns:
            Int64 [B].
        """
        best = torch.full((len(sums),), -1)
        for rank, nodes in self.levels.items():
            if rank in least:
                # Nodes above a half lie below one another, and a child comes after its parent.
                fits = torch.where(sums[:, nodes] >= least[rank], nodes, -1).amax(1)
                best = torch.where(best < 0, fits, best)
        return best


def grow(
    parents: Mapping[str, str | None], ranks: Mapping[str, str | None], classes: Sequence[str]
) -> ClassTree:
    """The tree above some classes: nodes that hold none of them are left out.

    Args:
        parents: The parent of each node by name; a name that is no key is a root. There is no circle.
        ranks: The rank of each. Without one a class has `class` (`leaf` where that is a rank given), another node
            `level 1`, `level 2` ... from the root.
        classes: Names of the C classes, in the order of their columns.
    """
    places: dict[str, int] = {}
    depths: list[int] = []
    above: list[int] = []
    for name in classes:
        path = [name]
        while (parent := parents.get(path[-1])) is not None:
            path.append(parent)
        before = -1
        for depth, node in enumerate(reversed(path), 1):
            if node not in places:
                places[node] = len(places)
                depths.append(depth)
                above.append(before)
            before = places[node]
    lowest = "leaf" if CLASS in ranks.values() else CLASS  # biologists' classes hold species
    own = set(classes)
    called = (
        ranks.get(name) or (lowest if name in own else f"level {depth}")
        for name, depth in zip(places, depths, strict=True)
    )
    return ClassTree(tuple(places), tuple(called), tuple(above), tuple(places[name] for name in classes))


def thresholds(tree: ClassTree, held_out: HeldOutAnswers, accuracy: float) -> dict[str, float]:
    """The least probability at which a node of each rank may be the answer, the deepest rank first.

    A rank answers for the images that no deeper one answered. Its threshold is the lowest above a half at which its
    answers to the held-out images were right so often that a rank that is right less often than `accuracy` would do as
    well, at this threshold, in one of twenty draws at most, less what half precision may have rounded. Several
    thresholds are tried. A rank for which there is none answers nothing, and is left out.

    Args:
        tree: Of the classes.
        held_out: Answers among the same classes.
        accuracy: Which share of a rank's answers has to be right, between 0 and 1.
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
    """How many answers, all of them right, show that a rank holds this accuracy."""
    return math.ceil(math.log(_DOUBT) / math.log(accuracy))


def _chance(images: int, misses: int, rate: float) -> float:
    """The chance of at most so many misses in so many images, each missed with the chance `rate`."""
    if misses >= rate * images:  # about a half or more
        return 1.0
    k = torch.arange(misses + 1, dtype=torch.float64)
    n = torch.tensor(float(images), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float((ways + k * math.log(rate) + (n - k) * math.log1p(-rate)).exp().sum())
