"""Tests of `vlltr_index.anchors.anss` against the released code's numbers and against whole matrices."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import twins
from vlltr_index.anchors import anss
from vlltr_index.anchors.anss import (
    anchor_limits,
    score_sentences,
    select_anchors,
    shift_images,
)
from vlltr_index.anchors.selection import choose_anchors
from vlltr_index.errors import InputError
from vlltr_index.schemas.config import SelectConfig

quick = settings(max_examples=25, deadline=None)


def _draw(seed: int, texts: int, images: int, classes: int, dim: int = 6) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(texts, dim, generator=g, dtype=torch.float64) * 3,
        torch.randint(classes, (texts,), generator=g),
        torch.randn(images, dim, generator=g, dtype=torch.float64) * 2,
        torch.randint(classes, (images,), generator=g),
    )


def test_losses_equal_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """L_lin agrees with the released code within 1e-6, in chunks that do not divide the sizes."""
    monkeypatch.setattr(anss, "_COLUMNS", 11)
    monkeypatch.setattr(anss, "_MEMORY_BYTES", 7 * 3 * 11 * 8)
    data = twins.parity("anss")
    names = ("text_features", "text_labels", "image_features", "image_labels", "logit_scale")
    losses = score_sentences(*(data[name] for name in names)).loss
    torch.testing.assert_close(losses, data["losses"], atol=1e-6, rtol=0)


@quick
@given(
    texts=st.integers(1, 9),
    images=st.integers(1, 9),
    classes=st.integers(1, 5),
    rows=st.sampled_from([1, 4, 100]),
    columns=st.sampled_from([1, 3, 100]),
    scale=st.sampled_from([1.0, 33.3, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_losses_equal_their_twin(
    texts: int, images: int, classes: int, rows: int, columns: int, scale: float, seed: int
) -> None:
    """Chunked scores agree with the whole matrix, classes without an image included; float32 within 1e-3."""
    t, tl, x, xl = _draw(seed, texts, images, classes)
    expected = twins.sentence_losses(t, tl, x, xl, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anss, "_COLUMNS", columns)
        patch.setattr(anss, "_MEMORY_BYTES", rows * 3 * columns * 8)
        wide = score_sentences(t, tl, x, xl, scale).loss
        narrow = score_sentences(t.float(), tl, x.float(), xl, scale).loss
    torch.testing.assert_close(wide, expected, rtol=1e-9, atol=1e-9)
    assert narrow.dtype == torch.float64
    torch.testing.assert_close(narrow, expected, rtol=0, atol=1e-3 * max(1.0, scale / 100))


@quick
@given(
    images=st.integers(2, 12),
    classes=st.integers(1, 6),
    cut=st.integers(1, 11),
    scale=st.sampled_from([5.0, 100.0]),
    seed=st.integers(0, 2**31),
)
def test_images_added_and_removed_equal_scoring_anew(
    images: int, classes: int, cut: int, scale: float, seed: int
) -> None:
    """Adding then removing gives what scoring from scratch gives, for classes that gain or lose all images too."""
    t, tl, x, xl = _draw(seed, 10, images, classes)
    t, x, cut = t.float(), x.float(), min(cut, images - 1)
    old, everything = (score_sentences(t, tl, x[:n], xl[:n], scale) for n in (cut, images))
    grown, lost = shift_images(old, t, x[cut:], x[:0], scale)
    assert not bool(lost.any())
    torch.testing.assert_close(grown.lse, everything.lse, rtol=0, atol=1e-4)
    shrunk, lost = shift_images(grown, t, x[:0], x[cut:], scale)
    torch.testing.assert_close(shrunk.lse[~lost], old.lse[~lost], rtol=0, atol=1e-3)


def test_rows_that_lost_their_digits_are_named() -> None:
    """A sentence whose best image goes has to be scored again; one that hardly changes has not."""
    t = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[1.0, 0.0], [0.1, 1.0], [0.0, 1.0]])
    tl, xl = torch.tensor([0, 1]), torch.tensor([0, 1, 1])
    _, lost = shift_images(score_sentences(t, tl, x, xl, 100.0), t, x[:0], x[:1], 100.0)
    assert lost.tolist() == [True, False]


def test_without_any_image_the_mean_sentences_stand_in() -> None:
    """One a class: losses equal the twin's, a sentence alone has none, and no sentence at all is no error."""
    t, labels = torch.randn(7, 5), torch.tensor([3, 0, 3, 0, 0, 8, 3])
    nothing = torch.randn(0, 5), torch.zeros(0).long()
    found = score_sentences(t, labels, *nothing, 12.0).loss
    torch.testing.assert_close(found, twins.sentence_losses(t, labels, *nothing, 12.0), atol=1e-5, rtol=0)
    assert float(score_sentences(t[:1], labels[:1], *nothing, 12.0).loss) == pytest.approx(0.0, abs=1e-5)
    assert score_sentences(t[:0], labels[:0], *nothing, 12.0).loss.shape == (0,)
    assert select_anchors(torch.empty(0), labels[:0], [], 3).positions.tolist() == []


@quick
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40),
    pictured=st.sets(st.integers(0, 3)),
    most=st.integers(1, 6),
    share=st.sampled_from([None, 0.1, 1 / 3, 0.5, 1.0]),
)
def test_limits_equal_their_twin(
    rows: list[tuple[int, bool]], pictured: set[int], most: int, share: float | None
) -> None:
    """At most M, at most a share of a class's own sentences (its prompts where it has no others), but 2 of a kind.

    A class without images has all of its own sentences, and as many prompts.
    """
    labels = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    prompts = torch.tensor([prompt for _, prompt in rows], dtype=torch.bool)
    expected = []
    for label, _ in rows:
        kinds = [prompt for other, prompt in rows if other == label]
        counted = kinds.count(False) or kinds.count(True)
        limit = (
            most
            if share is None
            else min(
                most,
                max(
                    2, math.floor(counted * Fraction(share if label in pictured else 1).limit_denominator(10))
                ),
            )
        )
        expected.append(limit)
    ranked = torch.tensor([label in pictured for label, _ in rows], dtype=torch.bool)
    limits = anchor_limits(labels, prompts, ranked, most, share)
    assert limits.tolist() == expected
    config, ids = SelectConfig(max_anchors=most, max_share=share), [f"{n:02d}" for n in range(len(rows))]
    losses = torch.rand(len(rows), generator=torch.Generator().manual_seed(len(rows)))
    kept = choose_anchors(losses, labels, ids, prompts, ranked, config)
    wanted = []
    for label in sorted({label for label, _ in rows}):
        of = [n for n, (other, _) in enumerate(rows) if other == label]
        kinds = [of] if share is None else [[n for n in of if rows[n][1] is kind] for kind in (False, True)]
        wanted += [
            n for kind in kinds for n in sorted(kind, key=losses.tolist().__getitem__)[: expected[of[0]]]
        ]
    assert kept.positions.tolist() == wanted


@pytest.mark.parametrize(("sentences", "share", "limit"), [(750, 0.036, 27), (9_999, 1 / 3, 3_333)])
def test_limits_of_large_classes_are_exact(sentences: int, share: float, limit: int) -> None:
    """A share that comes to a whole number is not rounded to the one below."""
    labels, every = torch.zeros(sentences).long(), torch.ones(sentences, dtype=torch.bool)
    assert anchor_limits(labels, ~every, every, 10_000, share).unique().tolist() == [limit]


@quick
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    most=st.integers(1, 4),
    data=st.data(),
)
def test_selection_equals_its_twin(labels: list[int], most: int, data: st.DataObject) -> None:
    """Per class: the smallest (loss, id) pairs, in that order, whatever the order of the input."""
    losses = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=len(labels), max_size=len(labels)))
    ids = [f"s{k:02d}" for k in data.draw(st.permutations(range(len(labels))))]
    expected: list[tuple[int, int]] = []
    for label in sorted(set(labels)):
        mine = sorted((losses[k], ids[k], k) for k in range(len(labels)) if labels[k] == label)
        expected += [(k, rank) for rank, (_, _, k) in enumerate(mine[:most])]
    positions, ranks = select_anchors(torch.tensor(losses), torch.tensor(labels), ids, most)
    assert list(zip(positions.tolist(), ranks.tolist(), strict=True)) == expected
    numbers = torch.tensor([int(i[1:]) for i in ids])
    same = select_anchors(torch.tensor(losses), torch.tensor(labels), numbers, most)
    assert same.positions.tolist() == positions.tolist()


def test_cutoff_keeps_the_first_sentences() -> None:
    """`cutoff` ignores the losses and keeps the input's order."""
    labels = torch.tensor([1, 0, 1, 1, 0])
    positions, ranks = select_anchors(torch.full((5,), math.nan), labels, list("edcba"), 2, mode="cutoff")
    assert positions.tolist() == [1, 4, 0, 2]
    assert ranks.tolist() == [0, 1, 0, 1]


def test_selection_refuses_what_it_cannot_rank() -> None:
    """A loss that is not a number is named."""
    with pytest.raises(InputError, match="the loss of sentence b is not a number"):
        select_anchors(torch.tensor([0.0, math.nan]), torch.tensor([0, 0]), ["a", "b"], 1)
