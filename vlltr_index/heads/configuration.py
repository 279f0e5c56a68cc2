"""The choice of configuration and scalars by the out-of-fold table, and the accuracy that it gives.

A configuration says how much covariances are shrunk and what texts are used for. All that is chosen for a fold's rows
comes from the rows of the other folds, except where one model scored all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vlltr_index.heads.fusion import PartWeights
from vlltr_index.heads.weighing import fit_factors, paired_mean, robust_nll

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress

SHRINKAGES = (1.0, 2.0, math.inf)
"""The roots of the covariances' shrinkage intensity (OAS) that are compared, see `shrunk`; the weakest first."""
FEWEST_GROUPS = 30
"""Held-out groups below which nothing is chosen."""
TEMPERED = 1 / 12
"""beta where it is not fitted: log-likelihoods are overconfident."""


class TextLevel(IntEnum):
    """What the texts of classes with images are used for: nothing, the PLDA's prior, or prior and attention."""

    NONE = 0
    PRIOR = 1
    ATTENTION = 2


class Configuration(NamedTuple):
    """What is chosen before the scalars.

    Attributes:
        shrinkage: k: the covariances' shrinkage intensity is the k-th root of that of OAS.
        level: What texts are used for.
    """

    shrinkage: float
    level: TextLevel


USUAL = Configuration(SHRINKAGES[0], TextLevel.PRIOR)
"""The configuration where too few groups are held out to choose one."""


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """The out-of-fold table: scores of N held-out images by models that were fitted without their fold.

    Attributes:
        labels: Int64 [N], positions among the C base classes.
        folds: Int64 [N], the fold of each image.
        groups: Int64 [N], the group of each image; a group is in one fold.
        weights: Float64 [N], the weight of each image.
        likelihoods: Float [N, C], log-likelihoods of the PLDA by shrinkage, and by whether its prior knows the texts.
        text: Float [N, C], text logits; None: there are none.
        linear: Float [N, C], logits of the linear classifier; None: there is none.
    """

    labels: Tensor
    folds: Tensor
    groups: Tensor
    weights: Tensor
    likelihoods: Mapping[tuple[float, bool], Tensor]
    text: Tensor | None
    linear: Tensor | None

    @property
    def configurations(self) -> list[Configuration]:
        """Those that can be compared; the plainer first."""
        levels = [TextLevel.NONE]
        if any(by_text for _, by_text in self.likelihoods):
            levels.append(TextLevel.PRIOR)
        if self.text is not None:
            levels.append(TextLevel.ATTENTION)
        return [Configuration(k, level) for level, k in product(levels, SHRINKAGES)]

    def _parts(self, configuration: Configuration, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the log-likelihoods of some rows, [n, C], and the text logits if they count."""
        known = (configuration.shrinkage, configuration.level > TextLevel.NONE)
        counts = self.text is not None and configuration.level == TextLevel.ATTENTION
        return self.likelihoods[known][rows], self.text[rows] if counts and self.text is not None else None

    def fit(
        self, configuration: Configuration, out: Iterable[int] = (), start: PartWeights | None = None
    ) -> PartWeights:
        """Fit the scalars by all rows but those of the folds `out`; the search may start from those by more rows.

        beta and gamma are fitted without the linear classifier, which says nothing of added classes.
        """
        rows = ~torch.isin(self.folds, torch.tensor(sorted(out), dtype=torch.int64))
        labels, weights = self.labels[rows], self.weights[rows]
        likelihoods, text = self._parts(configuration, rows)
        before = None
        if start is not None:
            before = [start.generative] if text is None else [start.generative, start.text]
        factors = fit_factors([likelihoods], text, labels, weights, before)
        found = PartWeights(image=0.0, generative=factors[0], text=0.0 if text is None else factors[1])
        if self.linear is None:
            return found
        before = None if start is None else [start.combined, start.image]
        together = [self.scores(configuration, found, rows), self.linear[rows]]
        combined, image = fit_factors(together, None, labels, weights, before)
        return replace(found, image=image, combined=combined) if image else found

    def scores(self, configuration: Configuration, weights: PartWeights, rows: Tensor) -> Tensor:
        """Return the log-probabilities, float64 [n, C], of the rows bool [N]."""
        likelihoods, text = self._parts(configuration, rows)
        fused = weights.generative * likelihoods.double()
        if text is not None:
            fused = fused + weights.text * text.double()
        if self.linear is not None:
            fused = weights.combined * fused + weights.image * self.linear[rows].double()
        return fused.log_softmax(1)


@dataclass(frozen=True, eq=False)
class Chosen:
    """What the table gives.

    Attributes:
        configuration: By all rows.
        weights: The scalars, by all rows.
        of_folds: Configuration and scalars by the rows of all folds but each one, see `choose`.
        log_probabilities: Float64 [N, C], of each fold's rows by these.
    """

    configuration: Configuration
    weights: PartWeights
    of_folds: Mapping[int, tuple[Configuration, PartWeights]]
    log_probabilities: Tensor


def choose(table: OutOfFold, one_model: bool = False, progress: Progress | None = None) -> Chosen:
    """Choose configuration and scalars; below 30 groups they are `USUAL` and `TEMPERED`.

    Args:
        table: The table.
        one_model: Whether one model scored all folds. All rows choose its configuration, and those of the other folds
            the scalars of each.
        progress: Called after the choice for each fold.
    """
    everything = torch.ones_like(table.labels, dtype=torch.bool)
    folds = table.folds.unique().tolist()
    if len(table.groups.unique()) < FEWEST_GROUPS or len(folds) < 3:
        usual = Configuration(SHRINKAGES[0], min(USUAL.level, table.configurations[-1].level))
        weights = PartWeights(image=0.0, generative=TEMPERED, text=0.0)
        of_folds = dict.fromkeys(folds, (usual, weights))
        return Chosen(usual, weights, of_folds, table.scores(usual, weights, everything))
    configurations = table.configurations
    whole = [table.fit(one) for one in configurations]
    fit = cache(lambda number, out: table.fit(configurations[number], out, whole[number]))

    def likeliest(others: Sequence[int], out: frozenset[int]) -> Configuration:
        """Choose by the rows of the folds `others`, each by scalars that know neither it nor the folds `out`."""
        losses = torch.zeros(len(configurations), len(table.labels), dtype=torch.float64)
        for fold in others:
            rows = table.folds == fold
            for number, one in enumerate(configurations):
                scores = table.scores(one, fit(number, out | {fold}), rows)
                losses[number, rows] = robust_nll(scores, table.labels[rows])
        rows = torch.isin(table.folds, torch.tensor(others))
        return configurations[_least(configurations, losses[:, rows], table, rows)]

    chosen = likeliest(folds, frozenset())
    answers = torch.zeros(len(table.labels), table.likelihoods[SHRINKAGES[0], False].shape[1]).double()
    of_folds = {}
    for done, fold in enumerate(folds):
        if progress:
            progress("choose configuration", done + 1, len(folds) + 1)
        rows = table.folds == fold
        out = frozenset([fold])
        best = chosen if one_model else likeliest([one for one in folds if one != fold], out)
        of_folds[fold] = best, fit(configurations.index(best), out)
        answers[rows] = table.scores(*of_folds[fold], rows)
    if progress:
        progress("choose configuration", len(folds) + 1, len(folds) + 1)
    return Chosen(chosen, whole[configurations.index(chosen)], of_folds, answers)


def _least(configurations: Sequence[Configuration], losses: Tensor, table: OutOfFold, rows: Tensor) -> int:
    """Choose by losses [K, n] of the rows bool [N]: within a level the weakest shrinkage unless a stronger one is
    better by a standard error, then the level of the least loss."""
    weights = table.weights[rows]
    groups = table.groups[rows]
    kept = list[int]()
    for level in dict.fromkeys(one.level for one in configurations):
        first, *others = (n for n, one in enumerate(configurations) if one.level == level)
        for other in others:
            worse, error = paired_mean((losses[first] - losses[other])[None], weights, groups)
            first = other if float(worse) > float(error) else first
        kept.append(first)
    return min(kept, key=lambda number: float(losses[number] @ weights))
