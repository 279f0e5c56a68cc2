"""Answers above the classes: where the best class stands in the tree, and the rank that may answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.embedding.loading import class_positions
from vlltr_index.errors import MissingStepError, UsageError
from vlltr_index.heads.tree import ClassTree, grow, least_needed, thresholds
from vlltr_index.recognition.scorer import OTHER_RULE, Scorer
from vlltr_index.schemas.records import RankScore, SentenceShare
from vlltr_index.store.snapshot import ClassTable
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.store.taxonomy import Taxonomy

__all__ = ["NO_TREE", "Ranks", "classes_below", "tree_above"]

_log = logging.getLogger(__name__)

NO_TREE = "no class has a parent", "Say what lies below what: vlltr ingest classes FILE"
_SPOKESMEN = 5  # classes whose sentences explain an answer above them


def tree_above(taxonomy: Taxonomy, names: list[str]) -> ClassTree:
    """The tree above classes, by their names in the order of the columns."""
    parents, ranks = ({n: getattr(taxon, key) for n, taxon in taxonomy.items()} for key in ("parent", "rank"))
    return grow(parents, ranks, names)


def classes_below(tree: ClassTree, classes: ClassTable, name: str) -> set[int]:
    """The columns of the classes that a node holds; it goes by its name, or an alias of its class.

    Raises:
        UnknownClassError: If there is no such node, naming close ones.
    """
    nodes, known = ClassTable(dict(enumerate(tree.names)), {}), None
    if name not in tree.names:
        known = classes.find(name)
    node = nodes.lookup(name if known is None else classes.names[known])
    return {column for column, own in enumerate(tree.nodes) if node in tree.paths[own]}


@dataclass(frozen=True, eq=False)
class Ranks:
    """The tree above the classes that are answered among.

    Attributes:
        tree: Their tree.
        least: The least probability of an answer of each rank, with `coverage`; None without.
    """

    tree: ClassTree
    least: dict[str, float] | None = None

    def holding(self, scorer: Scorer, columns: Tensor, coverage: float) -> Ranks:
        """The same with the ranks that held an accuracy on the images held out when the head was trained.

        Args:
            scorer: What answers.
            columns: Int64 [C], its columns that are answered among.
            coverage: The accuracy.

        Raises:
            UsageError: If it does not lie between 0 and 1.
            MissingStepError: If no image was held out.
        """
        if not 0.0 < coverage < 1.0:
            raise UsageError(
                f"coverage lies between 0 and 1, got {coverage:g}", "For example: --coverage 0.95"
            )
        lacking, parts = "this head cannot say which rank held: ", scorer.saved.parts
        if parts is None:
            raise MissingStepError(f"{lacking}it was trained for the protocols paper or release", OTHER_RULE)
        if parts.held_out is None:
            raise MissingStepError(
                f"{lacking}no image could be held out when it was trained",
                "Bring in more images, then run: vlltr train lgr",
            )
        held = parts.held_out.among(
            class_positions(scorer.class_ids[columns], scorer.row_owners), len(columns)
        )
        least = thresholds(self.tree, held, coverage)
        later = int((class_positions(scorer.row_owners, scorer.class_ids[columns]) < 0).sum())
        told = ", ".join(f"{rank} from {100 * value:.0f} %" for rank, value in least.items()) or "none"
        if len(held.labels) < (needed := least_needed(coverage)):
            told += f" (it takes {needed} at least)"
        _log.info(
            "%d images were held out; ranks that held %g %% on them: %s%s",
            len(held.labels), 100 * coverage, told,
            f"; {many(later, 'class', 'classes')} that came later had no part in it" if later else "",
        )  # fmt: skip
        return replace(self, least=least)

    def answers(self, probabilities: Tensor) -> list[tuple[tuple[RankScore, ...], int]]:
        """For each image what its best class lies below, itself the last, and the node that is the answer; -1: none.

        Args:
            probabilities: Float [B, C].
        """
        sums = self.tree.sums(probabilities)
        chosen = [-1] * len(sums) if self.least is None else self.tree.answers(sums, self.least).tolist()
        paths = [self.tree.paths[self.tree.nodes[best]] for best in probabilities.argmax(1).tolist()]
        return [
            (tuple(map(self._score, path, row[list(path)].tolist())), node)
            for row, path, node in zip(sums, paths, chosen, strict=True)
        ]

    def _score(self, node: int, probability: float) -> RankScore:
        return RankScore(self.tree.names[node], self.tree.ranks[node], probability)

    @cached_property
    def _below(self) -> dict[int, list[int]]:
        """The columns of the classes that each node holds."""
        found: dict[int, list[int]] = {}
        for column, own in enumerate(self.tree.nodes):
            for node in self.tree.paths[own]:
                found.setdefault(node, []).append(column)
        return found

    def explained(
        self,
        node: int,
        probabilities: Tensor,
        shares: Callable[[int], tuple[SentenceShare, ...]],
        explain: int,
    ) -> RankScore:
        """A node as an answer, with the sentences of its most probable classes, each as much as its class.

        Args:
            node: Which.
            probabilities: Float [C], of the image.
            shares: Gives the sentences of the class in a column.
            explain: Groups of sentences.
        """
        columns = torch.tensor(self._below[node])
        total = float(probabilities[columns].sum())
        best = columns[probabilities[columns].topk(min(_SPOKESMEN, len(columns))).indices].tolist()
        found: dict[tuple[int, int], list[SentenceShare]] = {}
        for column in best if explain else ():
            part = float(probabilities[column]) / total
            for share in shares(column):
                weighed = replace(share, percent=part * share.percent)
                found.setdefault((column, share.group), []).append(weighed)
        groups = sorted(found.values(), key=lambda group: -sum(share.percent for share in group))[:explain]
        said = tuple(replace(share, group=n) for n, group in enumerate(groups) for share in group)
        return RankScore(self.tree.names[node], self.tree.ranks[node], total, said)
