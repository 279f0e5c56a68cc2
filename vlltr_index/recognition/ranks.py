"""The tree above a model's classes: what lies below a name, and which rank an answer may be of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vlltr_index.heads.tree import ClassTree, HeldOutAnswers, grow, least_needed, thresholds
from vlltr_index.schemas.records import RankScore, SentenceShare
from vlltr_index.store.class_table import ClassTable
from vlltr_index.tensors import class_positions
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.store.taxonomy import Taxonomy

_log = logging.getLogger(__name__)

NO_TREE = "no class has a parent", "Say what lies below what: vlltr ingest classes FILE"


def tree_above(taxonomy: Taxonomy, names: Sequence[str]) -> ClassTree:
    """Build the tree above classes, given by name in the order of the columns."""
    parents = {name: taxon.parent for name, taxon in taxonomy.items()}
    ranks = {name: taxon.rank for name, taxon in taxonomy.items()}
    return grow(parents, ranks, list(names))


def classes_below(tree: ClassTree, classes: ClassTable, name: str) -> set[int]:
    """Return the columns of the classes below a node, given by its name or an alias of its class.

    Raises:
        UnknownClassError: If there is no such node, naming close ones.
    """
    nodes = ClassTable(dict(enumerate(tree.names)), {})
    known = None
    if name not in tree.names:
        known = classes.find(name)
    return set(tree.below(nodes.lookup(name if known is None else classes.names[known])).tolist())


@dataclass(frozen=True, eq=False)
class Ranks:
    """The tree above the classes that may be an answer, and which of its ranks may answer.

    Attributes:
        tree: The tree.
        least: The least probability of an answer by rank; None if no rank is to answer.
    """

    tree: ClassTree
    least: dict[str, float] | None

    def above(
        self, probabilities: Tensor, spoken: Callable[[Tensor], tuple[SentenceShare, ...]]
    ) -> tuple[tuple[RankScore, ...], RankScore | None]:
        """Return what an image's best class lies below, itself the last, and the answer at a rank, if one may answer.

        Args:
            probabilities: Float [C], of the classes below the tree.
            spoken: Returns the sentences of an answer by its classes, int64.
        """
        tree = self.tree
        sums = tree.sums(probabilities[None])
        path = tree.paths[tree.nodes[int(probabilities.argmax())]]
        scores = tuple(RankScore(tree.names[n], tree.ranks[n], float(sums[0, n])) for n in path)
        node = -1 if self.least is None else int(tree.answers(sums, self.least))
        if node < 0:
            return scores, None
        said = spoken(tree.below(node))
        return scores, RankScore(tree.names[node], tree.ranks[node], float(sums[0, node]), said)


def ranks_holding(
    tree: ClassTree, answers: HeldOutAnswers, classes: Tensor, owners: Tensor, min_accuracy: float
) -> dict[str, float]:
    """Find the ranks that held an accuracy on the images held out from training.

    Returns:
        The least probability of an answer of each. How many of the held-out images they answer, their coverage, is
        logged.

    Args:
        tree: The tree above the classes that may be the answer.
        answers: Answers for the held-out images, in the order of the visual rows.
        classes: Int64 [C], ids of the classes that may be the answer.
        owners: Int64 [C_v], the class of each visual row.
        min_accuracy: The accuracy, between 0 and 1.
    """
    answers = answers.among(class_positions(classes, owners), len(classes))
    images = len(answers.labels)
    least = thresholds(tree, answers, min_accuracy)
    found = ", ".join(f"{rank} from {100 * value:.0f} %" for rank, value in least.items()) or "none"
    if images < (needed := least_needed(min_accuracy)):
        found += f" (it takes {needed} at least)"
    later = int((class_positions(owners, classes) < 0).sum())
    if later:
        found += f"; {plural(later, 'class', 'classes')} that came later had no part in it"
    answered = tree.answers(tree.sums(answers.probabilities.float()), least) >= 0
    _log.info(
        "%d images were held out; ranks that held %g %% on them: %s; they answer %.0f %% of these images",
        images,
        100 * min_accuracy,
        found,
        100 * float(answered.double().mean()) if images else 0.0,
    )
    return least
