"""Cross-validation of any method: each image is scored by what was fitted without it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vlltr_index.heads.cross_validation import cross_validate, held_out_parts, parts_of


@dataclass(frozen=True, eq=False)
class Means:
    """The nearest of two class means, and how many images it was fitted on."""

    means: Tensor
    images: int

    def terms(self, features: Tensor) -> Mapping[Hashable, Tensor]:
        """Negative distances, and the number of images."""
        return {"near": -torch.cdist(features, self.means), 0: torch.full((len(features), 1), self.images)}


@pytest.mark.parametrize(
    "images", [60, 1200]
)  # of the second, a part has more images than are scored at once
def test_images_are_scored_by_what_was_fitted_without_them(images: int) -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 2
    features = torch.randn(images, 3, generator=g) + 4.0 * labels[:, None]

    def fit(out: Tensor) -> Means:
        kept = [features[~out & (labels == owner)].mean(0) for owner in range(2)]
        return Means(torch.stack(kept), int((~out).sum()))

    fold = torch.arange(images) // 2 % 2
    fold[:4] = -1
    parts = parts_of(labels, fold)
    scored = torch.arange(images) != 9
    calls = list[tuple[int, int | None]]()
    models, terms = cross_validate(
        fit, features, parts, scored, lambda _, done, whole: calls.append((done, whole))
    )
    assert calls == [(1, 2), (2, 2)]
    row = 0
    for model, out in zip(models, parts, strict=True):
        assert torch.equal(model.means, fit(out).means)
        for n in (out & scored).nonzero()[:, 0].tolist():
            torch.testing.assert_close(terms["near"][row], -(model.means - features[n]).norm(dim=1))
            assert int(terms[0][row]) == images - int(out.sum())
            row += 1
    assert row == len(terms["near"]) == images - 5


def test_no_part_holds_the_last_images_of_a_class() -> None:
    """Nor is there a part without any image; every other image is in one."""
    labels = torch.tensor([0] * 6 + [1] * 6 + [2])
    groups = [*"abcdef", *"gggggg", "h"]
    parts = held_out_parts(labels, groups, [str(n) for n in range(13)])
    assert torch.stack(parts).sum(0).tolist() == [1] * 6 + [0] * 7
    assert parts_of(labels, torch.full((13,), -1)) == []
