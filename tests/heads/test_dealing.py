"""Folds and orders that follow from the images' contents: groups stay whole, and every class is tested."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlltr_index.heads.dealing import (
    answerable,
    class_order,
    deal_groups,
    group_folds,
    held_out_folds,
    row_keys,
)

quick = settings(max_examples=60, deadline=None)
images = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=60)
counts_of = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def keys_of(number: int, seed: int = 0) -> list[str]:
    """Contents of images."""
    return [f"{seed} image {place}" for place in range(number)]


def separate(counts: list[int]) -> tuple[torch.Tensor, list[str]]:
    """Labels of classes with so many images, each of which is a group."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels, [str(n) for n in range(len(labels))]


@quick
@given(
    images=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 19)), min_size=1, max_size=60),
    folds=st.integers(2, 6),
    seed=st.integers(0, 3),
)
def test_folds_keep_groups_whole_and_know_no_order(
    images: list[tuple[int, int]], folds: int, seed: int
) -> None:
    """Neither the order of the images nor the numbers of the classes matter; groups may have several classes.

    A content may have several labels, and then be the smallest of two classes.
    """
    labels = torch.tensor([owner for owner, _ in images])
    groups = [str(content % 10) for _, content in images]
    keys = [f"{seed} image {content}" for _, content in images]
    fold = deal_groups(labels, groups, keys, folds)
    assert 0 <= int(fold.min()) <= int(fold.max()) < folds
    dealt: dict[str, int] = {}
    for group, place in zip(groups, fold.tolist(), strict=True):
        assert dealt.setdefault(group, place) == place
    asked = answerable(labels, fold)
    for n, (owner, place) in enumerate(zip(labels.tolist(), fold.tolist(), strict=True)):
        assert bool(asked[n]) == bool((fold[labels == owner] != place).any())
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(groups), generator=generator)
    renumbered = torch.randperm(5, generator=generator)[labels]
    moved = [groups[n] for n in order.tolist()], [keys[n] for n in order.tolist()]
    assert torch.equal(deal_groups(renumbered[order], *moved, folds), fold[order])


@quick
@given(images=images, owner=st.integers(0, 4), group=st.integers(0, 12), seed=st.integers(0, 3))
def test_another_image_moves_only_groups_of_its_own_class(
    images: list[tuple[int, int]], owner: int, group: int, seed: int
) -> None:
    """And, if it joins a group that has other classes, too, groups of those."""
    labels = torch.tensor([one for one, _ in images])
    groups = [str(one) for _, one in images]
    keys = keys_of(len(images), seed)
    before = deal_groups(labels, groups, keys, 5)
    after = deal_groups(torch.cat([labels, torch.tensor([owner])]), [*groups, str(group)], [*keys, "new"], 5)
    own = {owner} | {one for one, other in images if other == group}
    may_move = {other for one, other in images if one in own}
    for n, (_, other) in enumerate(images):
        if other not in may_move:
            assert int(before[n]) == int(after[n])


@quick
@given(counts=counts_of, folds=st.integers(2, 6), seed=st.integers(0, 3))
def test_each_class_is_spread_over_the_folds_evenly(counts: list[int], folds: int, seed: int) -> None:
    """So one with two groups or more is in two folds or more, and each of its images is held out once."""
    labels, groups = separate(counts)
    fold = deal_groups(labels, groups, keys_of(len(labels), seed), folds)
    for owner, count in enumerate(counts):
        number = torch.bincount(fold[labels == owner], minlength=folds)
        assert int(number.max() - number.min()) <= 1
        assert bool(answerable(labels, fold)[labels == owner].all()) is (count > 1)


def test_small_classes_start_in_all_folds() -> None:
    """Of 200 classes with two images about a fifth is in each fold."""
    labels, groups = separate([2] * 200)
    number = torch.bincount(deal_groups(labels, groups, keys_of(400), 5), minlength=5)
    assert 55 <= int(number.min()) <= int(number.max()) <= 105


def test_a_class_seen_at_one_site_does_not_keep_the_site_from_being_held_out() -> None:
    """Every site is in a fold, with its common classes; the class that is nowhere else is not asked for."""
    owners = [common for common in range(4) for _ in range(12)] + [4 + site for site in range(12)]
    groups = [str(site) for _ in range(5) for site in range(12)]
    labels = torch.tensor(owners)
    fold = deal_groups(labels, groups, keys_of(60), 5)
    assert bool((fold >= 0).all())
    assert not bool(answerable(labels, fold)[labels >= 4].any())
    assert bool(answerable(labels, fold)[labels < 4].all())


def test_images_of_no_fold_are_not_asked_for() -> None:
    """But their class is known from them."""
    asked = answerable(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([-1, 0, 3, 3, -1]))
    assert asked.tolist() == [False, True, False, False, False]
    none = torch.zeros(0, dtype=torch.int64)
    assert answerable(none, none).tolist() == []


@quick
@given(images=images, seed=st.integers(0, 3))
def test_the_order_of_classes_follows_from_contents(images: list[tuple[int, int]], seed: int) -> None:
    """It is the same in any order of the images, and for other numbers of the classes."""
    labels = torch.tensor([owner for owner, _ in images])
    keys = keys_of(len(images), seed)
    owners = class_order(labels, keys)
    assert sorted(owners) == sorted(set(labels.tolist()))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    moved = [keys[n] for n in order.tolist()]
    assert class_order(labels[order], moved) == owners
    assert class_order(4 - labels, keys) == [4 - owner for owner in owners]


def test_a_single_held_out_part_is_a_share_of_each_class() -> None:
    """About a tenth, and less of more images; another image moves only groups of its own class."""
    for images, least, most in ((6000, 500, 700), (12_000, 500, 700), (30_000, 650, 850)):
        labels = torch.arange(images) % 20
        groups = [str(n // 40) for n in range(images)]
        keys = keys_of(images)
        part = held_out_folds(labels, groups, keys)
        assert least <= int((part == 0).sum()) <= most
        assert set(part.tolist()) == {-1, 0}
    assert set(labels[part == 0].tolist()) == set(range(20))
    more = held_out_folds(torch.cat([labels, torch.tensor([3])]), [*groups, "another"], [*keys, "another"])
    moved = labels[more[:-1] != part]
    assert set(moved.tolist()) <= {3}


@quick
@given(images=images, folds=st.integers(2, 6), seed=st.integers(0, 3))
def test_a_group_of_the_held_out_part_has_the_fold_of_its_own_hash(
    images: list[tuple[int, int]], folds: int, seed: int
) -> None:
    """Groups stay whole in any order of the images, and another group moves none."""
    groups = [str(group) for _, group in images]
    keys = keys_of(len(images), seed)
    fold = group_folds(groups, keys, folds)
    assert 0 <= int(fold.min()) <= int(fold.max()) < folds
    assert len(set(zip(groups, fold.tolist(), strict=True))) == len(set(groups))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    again = group_folds([groups[n] for n in order], [keys[n] for n in order], folds)
    assert torch.equal(again, fold[order])
    assert torch.equal(group_folds([*groups, "another"], [*keys, "new"], folds)[:-1], fold)


def test_groups_of_the_held_out_part_are_spread_over_the_folds() -> None:
    number = torch.bincount(group_folds([str(n) for n in range(500)], keys_of(500), 5), minlength=5)
    assert 70 <= int(number.min()) <= int(number.max()) <= 130


def test_keys_of_rows_are_those_of_their_numbers() -> None:
    """Equal rows have equal keys, in any precision that holds them."""
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).half()
    rows[4] = rows[1]
    keys = row_keys(rows)
    assert keys[4] == keys[1]
    assert len(set(keys)) == 5
    assert row_keys(rows.double()) == keys
