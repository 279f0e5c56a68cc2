"""Answers above the classes: where the best class stands in the tree, and the rank that may answer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import Tensor

from vlltr_index.embedding.loading import class_positions
from vlltr_index.errors import UsageError
from vlltr_index.heads.tree import ClassTree, grow, least_needed, thresholds
from vlltr_index.recognition.scorer import Scorer
from vlltr_index.store.snapshot import ClassTable
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.store.taxonomy import Taxonomy

_log = logging.getLogger(__name__)

NO_TREE = "no class has a parent", "Say what lies below what: vlltr ingest classes FILE"


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


def ranks_holding(tree: ClassTree, scorer: Scorer, columns: Tensor, coverage: float) -> dict[str, float]:
    """The least probability of an answer of each rank that held an accuracy on the images held out from training.

    Args:
        tree: Of the classes that are answered among.
        scorer: What answers.
        columns: Int64 [C], its columns of these classes.
        coverage: The accuracy.

    Raises:
        UsageError: If it does not lie between 0 and 1.
        MissingStepError: If no image was held out.
    """
    if not 0.0 < coverage < 1.0:
        raise UsageError(f"coverage lies between 0 and 1, got {coverage:g}", "For example: --coverage 0.95")
    classes, owners = scorer.class_ids[columns], scorer.row_owners
    _, held = scorer.held_out("which rank held")
    held = held.among(class_positions(classes, owners), len(columns))
    least = thresholds(tree, held, coverage)
    told = ", ".join(f"{rank} from {100 * value:.0f} %" for rank, value in least.items()) or "none"
    if len(held.labels) < (needed := least_needed(coverage)):
        told += f" (it takes {needed} at least)"
    if later := int((class_positions(owners, classes) < 0).sum()):
        told += f"; {many(later, 'class', 'classes')} that came later had no part in it"
    held_out = len(held.labels)
    _log.info("%d images were held out; ranks that held %g %% on them: %s", held_out, 100 * coverage, told)
    return least
