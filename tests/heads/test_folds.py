"""`deal_units`: units stay whole, every class with two is tested, and no class is held out as a whole."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vlltr_index.heads.folds import deal_units

images = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=60)


@given(images=images, folds=st.integers(2, 6), seed=st.integers(0, 3))
def test_units_stay_whole_and_classes_stay_in_training(
    images: list[tuple[int, int]], folds: int, seed: int
) -> None:
    """Whatever the images' order; units of several classes too."""
    labels = torch.tensor([owner for owner, _ in images])
    units = [str(unit) for _, unit in images]
    fold = deal_units(labels, units, folds)
    assert -1 <= int(fold.min()) <= int(fold.max()) < folds
    dealt: dict[str, int] = {}
    for unit, place in zip(units, fold.tolist(), strict=True):
        assert dealt.setdefault(unit, place) == place
    for owner in labels.unique().tolist():
        for place in set(fold[labels == owner].tolist()) - {-1}:
            assert bool((fold[labels == owner] != place).any())
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))
    again = deal_units(labels[order], [units[n] for n in order.tolist()], folds)
    assert torch.equal(again, fold[order])


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=8), folds=st.integers(2, 6))
def test_each_class_with_two_units_is_tested_evenly(counts: list[int], folds: int) -> None:
    """A class's units are dealt to the folds in turn; one with a single unit is left out."""
    labels = torch.cat([torch.full((count,), owner) for owner, count in enumerate(counts)])
    fold = deal_units(labels, [str(n) for n in range(len(labels))], folds)
    for owner, count in enumerate(counts):
        own = fold[labels == owner]
        if count == 1:
            assert own.tolist() == [-1]
        else:
            number = torch.bincount(own, minlength=folds)
            assert int(number.max() - number.min()) <= 1
