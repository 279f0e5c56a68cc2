"""The anchors of stage 2's training: which are left out, and which distractors come among them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vlltr_index.anchors.anss import score_sentences
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.train.lgr import TrainingAnchors, with_distractors
from vlltr_index.train.sampling import stream


def bank_of(lengths: list[int], dim: int = 4, seed: int = 0) -> AnchorBank:
    g = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    vectors, losses = torch.randn(len(owner), dim, generator=g), torch.rand(len(owner), generator=g)
    return AnchorBank.build(vectors, 10 + owner, range(10, 10 + len(lengths)), losses)


@pytest.mark.parametrize("chance", [0.3, 0.9])
def test_anchors_are_left_out_as_often_as_asked_but_never_a_whole_class(chance: float) -> None:
    """Shares are within five standard errors; a class that would lose all keeps each of its own equally often."""
    bank = bank_of([1, 2, 3, 30])
    anchors, draws = TrainingAnchors(bank, 36, chance), stream("anchors", chance)
    kept = torch.stack([k for _ in range(4000) if (k := anchors.kept(draws)) is not None]).double()
    assert bool((kept @ F.one_hot(bank.class_of_row).double() > 0).all())
    sizes = bank.offsets.diff()[bank.class_of_row].double()
    # One anchor of a class in which all are dropped comes back: chance^n of the times, one of n.
    expected = 1 - chance + chance**sizes / sizes
    error = (expected * (1 - expected) / len(kept)).sqrt()
    assert bool(((kept.mean(0) - expected).abs() <= 5 * error).all())


def test_a_stray_never_stands_for_a_class_alone() -> None:
    """Some of a class's own anchors are kept in every step; without dropout all are, and nothing is drawn."""
    bank = bank_of([1, 2, 1])
    noisy = with_distractors(bank, torch.randn(3, 4), 5.0, 2.0, stream(0))
    anchors, draws = TrainingAnchors(noisy, 4, 0.8), stream(1)
    own = noisy.rows < 4
    for _ in range(200):
        kept = anchors.kept(draws)
        assert kept is not None
        assert torch.unique(noisy.class_of_row[kept & own]).tolist() == [0, 1, 2]
    assert TrainingAnchors(noisy, 4, 0.0).kept(draws) is None


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    share=st.sampled_from([0.0, 0.25, 1.0, 1.5]),
    seed=st.integers(0, 2**31),
)
def test_distractors_are_of_other_classes_and_as_many_as_asked(
    lengths: list[int], share: float, seed: int
) -> None:
    """The classes' own anchors stay as they are; each class gets the share, rounded up, with vectors of others."""
    bank = bank_of(lengths, seed=seed)
    noisy = with_distractors(bank, torch.zeros(len(lengths), 4), 5.0, share, stream(seed))
    own = noisy.rows < len(bank.vectors)
    assert torch.equal(noisy.vectors[own], bank.vectors)
    assert torch.equal(noisy.losses[own], bank.losses)
    assert torch.equal(noisy.class_ids, bank.class_ids)
    wanted = [math.ceil(n * share) for n in lengths] if len(lengths) > 1 else [0]
    assert torch.bincount(noisy.class_of_row[~own], minlength=len(lengths)).tolist() == wanted
    for host, vector in zip(noisy.class_of_row[~own].tolist(), noisy.vectors[~own], strict=True):
        place = int((bank.vectors == vector).all(1).nonzero()[0, 0])
        assert bank.class_of_row[place] != host


def test_a_stray_has_the_loss_that_selection_would_give_it() -> None:
    """Scored as a sentence of its new class against the images, it has the same loss."""
    torch.manual_seed(0)
    labels = torch.arange(3).repeat_interleave(4)
    images, texts, owner = torch.randn(12, 5), torch.randn(6, 5), torch.arange(3).repeat_interleave(2)
    losses = score_sentences(texts, owner, images, labels, 8.0).loss
    bank = AnchorBank.build(texts, owner, range(3), losses)
    centres = torch.stack([F.normalize(images[labels == c], dim=1).mean(0) for c in range(3)])
    noisy = with_distractors(bank, centres, 8.0, 1.0, stream(0))
    scored = score_sentences(noisy.vectors, noisy.class_of_row, images, labels, 8.0).loss
    torch.testing.assert_close(noisy.losses, scored.float())
