"""Cross-validation: a method is fitted without each part of the images, and scores that part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from vlltr_index.heads.dealing import answerable, held_out_folds

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress

_AT_ONCE = 512


class Scorer(Protocol):
    """What a method fits."""

    def terms(self, features: Tensor) -> Mapping[Hashable, Tensor]:
        """Score images by features [B, D], unnormalised; each term by its name, float [B, C]."""


S = TypeVar("S", bound=Scorer)


def held_out_parts(
    labels: Tensor, groups: Sequence[str], keys: Sequence[str], one_part: bool = False
) -> list[Tensor]:
    """Return the images that each fold holds out, bool [N]: whole groups, but never the last images of a class.

    Args:
        labels, groups, keys, one_part: As for `held_out_folds`.
    """
    return parts_of(labels, held_out_folds(labels, groups, keys, one_part))


def parts_of(labels: Tensor, fold: Tensor) -> list[Tensor]:
    """Return the images of each fold, bool [N], but for those that are not `answerable`."""
    asked = answerable(labels, fold)
    return [asked & (fold == number) for number in fold[asked].unique().tolist()]


def cross_validate(
    fit: Callable[[Tensor], S],
    features: Tensor,
    parts: Sequence[Tensor],
    scored: Tensor | None = None,
    progress: Progress | None = None,
) -> tuple[list[S], dict[Hashable, Tensor]]:
    """Fit a method without each part, and score the part.

    Args:
        fit: Fits the method without the images bool [N].
        features: Float [N, D], unnormalised.
        parts: The images that each fold holds out, bool [N].
        scored: Bool [N], the images of the parts that are scored; None: all.
        progress: Called after each fold.

    Returns:
        What was fitted without each part, and the terms, each float [M, C] on the CPU: the images of the first part in
        their order, then those of the next.
    """
    models = []
    found = defaultdict[Hashable, list[Tensor]](list)
    for number, out in enumerate(parts, 1):
        model = fit(out)
        mine = out if scored is None else out & scored
        with torch.inference_mode():
            for some in features[mine].split(_AT_ONCE):
                for name, scores in model.terms(some).items():
                    found[name].append(scores.cpu())
        models.append(model)
        if progress:
            progress("folds", number, len(parts))
    return models, {name: torch.cat(scores) for name, scores in found.items()}
