"""Offsets of added classes against the rule in plain Python, and what they lose on drawn margins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlltr_index.heads.offsets import BUDGET, class_offsets

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**31)


def plain(margins: list[float], shares: list[float], groups: list[int]) -> float:
    """The rule for one class, written from its definition."""
    rows = sorted(zip(margins, shares, groups, strict=True))
    if not rows:
        return 0.0
    whole = sum(share for _, share, _ in rows)
    tail = 0
    while tail < len(rows) and sum(share for _, share, _ in rows[: tail + 1]) <= whole / 10 + 1e-12:
        tail += 1
    while tail < len(rows) and len({group for _, _, group in rows[:tail]}) < 2:
        tail += 1
    if tail == len(rows):
        return min(0.0, rows[0][0])
    following = rows[tail][0]
    taken = sum(share for _, share, _ in rows[:tail])
    if taken <= 0.01:
        return min(0.0, following)
    length = sum(share * (following - margin) for margin, share, _ in rows[:tail]) / taken
    return min(0.0, following + length * math.log(0.01 / taken))


def together(margins: Tensor, shares: Tensor, groups: Tensor) -> list[float]:
    """The rule for several classes."""
    own = [plain(column.tolist(), shares.tolist(), groups.tolist()) for column in margins.T]
    if len(own) < 2:
        return own
    least = [min(m - d for m, d in zip(row, own, strict=True)) for row in margins.tolist()]
    more = plain(least, shares.tolist(), groups.tolist())
    return [delta + min(0.0, more) for delta in own]


def drawn(seed: int, images: int, classes: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Margins about 3, shares that sum to less than one, as some rows are wrong, and groups."""
    g = torch.Generator().manual_seed(seed)
    margins = 3.0 + 2.0 * torch.randn(images, classes, generator=g, dtype=torch.float64)
    shares = torch.rand(images, generator=g, dtype=torch.float64) + 0.1
    return margins, 0.9 * shares / shares.sum(), torch.randint(0, groups, (images,), generator=g)


@quick
@given(
    images=st.integers(0, 80),
    classes=st.integers(0, 4),
    groups=st.sampled_from([1, 3, 100]),
    seed=seeds,
)
def test_offsets_equal_their_twin(images: int, classes: int, groups: int, seed: int) -> None:
    """No image, one, few groups, many; one class and several; the order of classes and images is irrelevant."""
    margins, shares, owner = drawn(seed, images, classes, groups)
    found = class_offsets(margins, shares, owner)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(together(margins, shares, owner), rel=1e-9, abs=1e-12)
    assert bool((found <= 0.0).all())
    g = torch.Generator().manual_seed(seed)
    order, moved = torch.randperm(classes, generator=g), torch.randperm(images, generator=g)
    again = class_offsets(margins[moved][:, order], shares[moved], owner[moved])
    torch.testing.assert_close(again, found[order], rtol=1e-9, atol=1e-12)


def test_without_a_right_image_nothing_is_measured() -> None:
    none = torch.zeros(0, dtype=torch.float64)
    for classes in (1, 3):
        found = class_offsets(torch.zeros(0, classes).double(), none, torch.zeros(0, dtype=torch.int64))
        assert found.tolist() == [0.0] * classes


def test_the_tail_has_two_groups() -> None:
    """A burst of fifty near images is one observation: the tail goes on to the next group."""
    margins = torch.cat([torch.full((50,), -4.0), torch.tensor([-3.0, -1.0]), torch.full((48,), 5.0)])
    margins = margins.double()[:, None]
    shares = torch.full((100,), 0.01).double()
    groups = torch.cat([torch.zeros(50), torch.arange(1, 51)]).long()
    length = (50 * 3.0 + 2.0) / 51
    expected = -1.0 + length * math.log(0.01 / 0.51)
    assert float(class_offsets(margins, shares, groups)) == pytest.approx(expected)


def test_where_all_images_are_in_the_tail_the_least_margin_is_the_offset() -> None:
    """One group, or two images: nothing follows."""
    shares = torch.full((2,), 0.5).double()
    for groups in ([0, 0], [0, 1]):
        for margins, expected in (([-2.0, 1.0], -2.0), ([0.5, 1.0], 0.0)):
            found = class_offsets(torch.tensor(margins).double()[:, None], shares, torch.tensor(groups))
            assert found.tolist() == [expected]


def test_a_tail_within_the_budget_is_lost() -> None:
    """Of 1,000 right images in 200 the two nearest ones are not protected, but the third is."""
    margins = torch.tensor([-9.0, -8.0, -1.0, *[3.0] * 197]).double()[:, None]
    shares = torch.tensor([0.004, 0.004, 0.098, *[0.004] * 197]).double()
    shares = shares / shares.sum()
    assert float(class_offsets(margins, shares, torch.arange(200))) == -1.0


def test_an_offset_is_never_a_bonus() -> None:
    """Where all margins are large it is 0."""
    margins = torch.linspace(5.0, 9.0, 200).double()[:, None]
    shares = torch.full((200,), 1 / 200).double()
    assert class_offsets(margins.expand(-1, 3), shares, torch.arange(200)).tolist() == [0.0] * 3


@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_classes_lose_the_budget_together(classes: int) -> None:
    """Of new images that are drawn alike about one hundredth is lost, to one class or to 1,000; less than three.

    With its own offset alone, each of ten or more classes would take that much.
    """
    lost, alone = list[float](), list[float]()
    for seed in range(20 if classes < 1000 else 3):
        g = torch.Generator().manual_seed(seed)
        margins = 2.0 + 2.0 * torch.randn(2000, classes, generator=g, dtype=torch.float64)
        old, new = margins[:400], margins[400:]
        offsets = class_offsets(old, torch.full((400,), 1 / 400).double(), torch.arange(400))
        lost.append(float((new < offsets).any(1).double().mean()))
        own = [
            float(class_offsets(column[:, None], torch.full((400,), 1 / 400).double(), torch.arange(400)))
            for column in old.T[:10]
        ]
        alone.append(float((new[:, :10] < torch.tensor(own)).any(1).double().mean()))
    assert 0.2 * BUDGET < sum(lost) / len(lost) < 3.0 * BUDGET
    assert (sum(alone) / len(alone) > 5.0 * BUDGET) is (classes > 1)


def test_several_classes_are_all_lowered_by_the_same() -> None:
    """Each has its own offset first; one class alone is not lowered again."""
    margins, shares, groups = drawn(0, 200, 5, 200)
    margins = margins - 3.0
    own = torch.cat([class_offsets(column[:, None], shares, groups) for column in margins.T])
    found = class_offsets(margins, shares, groups)
    lowered = found - own
    assert float(lowered.max()) < 0.0
    torch.testing.assert_close(lowered, lowered[:1].expand(5))
