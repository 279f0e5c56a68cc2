"""`deal_units`: units stay whole, and every class with two of its own is tested."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vlltr_index.heads.dealing import answerable, deal_units

images = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=60)


@given(images=images, folds=st.integers(2, 6), seed=st.integers(0, 3))
def test_units_stay_whole(images: list[tuple[int, int]], folds: int, seed: int) -> None:
    """Whatever the images' order; units of several classes too."""
    labels = torch.tensor([owner for owner, _ in images])
    units = [str(unit) for _, unit in images]
    fold = deal_units(labels, units, folds)
    assert -1 <= int(fold.min()) <= int(fold.max()) < folds
    dealt: dict[str, int] = {}
    for unit, place in zip(units, fold.tolist(), strict=True):
        assert dealt.setdefault(unit, place) == place
    asked = answerable(labels, fold)
    for n, (owner, place) in enumerate(zip(labels.tolist(), fold.tolist(), strict=True)):
        assert bool(asked[n]) == (place >= 0 and bool((fold[labels == owner] != place).any()))
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


def test_a_class_seen_at_one_site_does_not_keep_the_site_from_being_held_out() -> None:
    """Every site is, with its common classes; the class that is nowhere else is not asked for."""
    owners = [common for common in range(4) for _ in range(12)] + [4 + site for site in range(12)]
    units = [str(site) for _ in range(5) for site in range(12)]
    labels = torch.tensor(owners)
    fold = deal_units(labels, units, 5)
    assert bool((fold >= 0).all())
    assert torch.equal(answerable(labels, fold), labels < 4)


@given(seed=st.integers(0, 200))
def test_both_sites_of_a_rare_class_are_not_in_one_fold(seed: int) -> None:
    """So that it is tested."""
    generator = torch.Generator().manual_seed(seed)
    images = [(0, site) for site in range(20)]
    for rare in range(1, 15):
        images += [(rare, site) for site in torch.randperm(20, generator=generator)[:2].tolist()]
    labels = torch.tensor([owner for owner, _ in images])
    fold = deal_units(labels, [str(site) for _, site in images], 5)
    assert len(labels[answerable(labels, fold)].unique()) == 15
