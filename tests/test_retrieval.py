"""Retrieval against naive twins, and against scoring every class."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from worlds import DIM, World

from vlltr_index.anchors.index import KINDS, build_index
from vlltr_index.anchors.retrieval import (
    AnchorClasses,
    candidates,
    estimated_text_logits,
    retrieve_text_logits,
)
from vlltr_index.errors import InputError

every_kind = pytest.mark.parametrize("kind", KINDS)


def naive_candidates(world: World, image: int, want: int, prototypes: int, visual_top: int) -> set[int]:
    """The three sets by Python loops."""
    cosines = F.normalize(world.bank.vectors, dim=1) @ F.normalize(world.features[image], dim=0)
    nearest: list[int] = []
    for row in cosines.argsort(descending=True).tolist():
        if (owner := int(world.bank.class_of_row[row])) not in nearest:
            nearest.append(owner)
    visual = world.by_class[image]
    by_visual = [c for c in visual.argsort(descending=True).tolist() if visual[c] > float("-inf")]
    by_prototype = world.prototypes[image].argsort(descending=True).tolist()
    return {*nearest[:want], *by_prototype[:prototypes], *by_visual[:visual_top]}


# ---- candidates


@every_kind
@pytest.mark.parametrize(("want", "prototypes", "visual_top"), [(8, 0, 0), (0, 5, 0), (0, 0, 7), (8, 5, 7)])
def test_candidates_are_the_naive_ones(kind: str, want: int, prototypes: int, visual_top: int) -> None:
    """Each image's set is that of a loop over anchors, prototypes and visual rows."""
    world = World(200)
    mask = candidates(
        world.features, world.index(kind), world.prototypes, world.by_class, world.anchor_classes,
        want=want, prototypes=prototypes, visual_top=visual_top,
    )  # fmt: skip
    assert mask.shape == (12, 200)
    assert mask.dtype == torch.bool
    same = 0
    for image in range(12):
        found = set(mask[image].nonzero()[:, 0].tolist())
        expected = naive_candidates(world, image, want, prototypes, visual_top)
        assert len(found & expected) >= 0.8 * len(expected)
        same += found == expected
    assert same == 12 or (kind in ("ivf", "hnsw") and same >= 9)


def test_neighbours_are_doubled_until_there_are_enough_classes() -> None:
    """900 anchors of class 0 that lie nearer to every image than those of 99 other classes do not use up the search."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(999, DIM, generator=generator) * torch.cat(
        [torch.full((900, 1), 0.01), torch.ones(99, 1)]
    )
    owner = torch.cat([torch.zeros(900, dtype=torch.int64), torch.arange(1, 100)])
    index = build_index(F.normalize(1.0 + noise, dim=1), torch.arange(999))
    anchor_classes = AnchorClasses(torch.arange(999), owner, 100)
    features = torch.ones(2, DIM)
    empty = torch.full((2, 100), float("-inf"))
    mask = candidates(features, index, empty, empty, anchor_classes, want=10, prototypes=0, visual_top=0)
    assert mask.sum(1).tolist() == [10, 10]


# ---- estimates


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 4), classes=st.integers(1, 9), seed=st.integers(0, 999), spread=st.floats(0.1, 50.0)
)
def test_estimates_are_the_naive_ones(batch: int, classes: int, seed: int, spread: float) -> None:
    """Candidates keep their logits; others get prototype + mean lift, held below the best candidate."""
    generator = torch.Generator().manual_seed(seed)
    prototypes, exact = spread * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, classes, generator=generator) < 0.5
    mask[torch.arange(batch), torch.randint(0, classes, (batch,), generator=generator)] = True
    found = estimated_text_logits(prototypes, exact.masked_fill(~mask, torch.nan), mask)
    for i in range(batch):
        chosen = [c for c in range(classes) if mask[i, c]]
        lift = sum(float(exact[i, c] - prototypes[i, c]) for c in chosen) / len(chosen)
        best = max(float(exact[i, c]) for c in chosen)
        for c in range(classes):
            if c in chosen:
                assert float(found[i, c]) == float(exact[i, c])
            else:
                assert float(found[i, c]) < best
                assert float(found[i, c]) == pytest.approx(
                    min(float(prototypes[i, c]) + lift, best), rel=2e-6, abs=2e-6
                )


# ---- the whole


@pytest.mark.parametrize("alpha", [0.5, None])
@every_kind
def test_agrees_with_scoring_every_class(kind: str, alpha: float | None) -> None:
    """Winners are the same, probabilities differ by no more than what rests on estimates, in a sum and in a product."""
    world = World(200, alpha=alpha)
    found = world.retrieve(world.index(kind))
    ours, full = world.probabilities(found.text_logits), world.probabilities(world.exact)
    assert found.candidates.float().mean() < 0.6
    assert bool((found.residual <= 0.05).all())
    assert torch.equal(ours.argmax(1), full.argmax(1))
    assert float((ours - full).abs().sum(1).max()) / 2 <= 0.05
    kept = found.candidates
    torch.testing.assert_close(found.text_logits[kept], world.exact[kept], atol=1e-4, rtol=1e-5)


def test_classes_join_until_the_residual_is_small() -> None:
    """A flat distribution starts with a large residual; classes join until it is below the limit."""
    limit = 0.05
    world = World(200, scale=6.0)
    first, found = world.retrieve(max_residual=1.0), world.retrieve(max_residual=limit)
    assert float(first.residual.min()) > limit
    assert bool((found.residual <= limit).all())
    assert bool((found.candidates | ~first.candidates).all())
    assert bool((found.candidates.sum(1) > first.candidates.sum(1)).all())
    ours, full = world.probabilities(found.text_logits), world.probabilities(world.exact)
    assert torch.equal(ours.argmax(1), full.argmax(1))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, None])
def test_an_estimated_class_never_wins(alpha: float | None) -> None:
    """Whatever the visual side prefers, in a sum or in a product: a class that would win is scored exactly first."""
    world = World(200, alpha=alpha, scale=15.0)
    found = world.retrieve(want=1, prototypes=1, visual_top=0, max_residual=1.0)
    winners = world.probabilities(found.text_logits).argmax(1)
    assert bool(found.candidates[torch.arange(12), winners].all())


def test_an_image_alone_and_among_others() -> None:
    """The answer does not depend on the images beside it, nor on the way many images are scored."""
    world = World(400, images=24)
    together = world.retrieve()
    for image in range(0, 24, 5):
        row = slice(image, image + 1)
        alone = retrieve_text_logits(
            world.features[row], world.index(), world.anchor_classes, world.prototypes[row], world.by_class[row],
            lambda rows, classes, at=image: world.score(rows + at, classes),
            lambda rows, logits, at=image: world.fuse(rows + at, logits),
            want=6, prototypes=6, visual_top=3,
        )  # fmt: skip
        assert torch.equal(alone.candidates[0], together.candidates[image])
        torch.testing.assert_close(alone.text_logits[0], together.text_logits[image], atol=1e-4, rtol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    """Shapes and numbers are checked before anything is searched; an empty batch gives an empty answer."""
    found = World(200, images=0).retrieve()
    assert found.text_logits.shape == found.candidates.shape == (0, 200)
    world = World(200)
    index, keys = world.index(), world.anchor_classes
    with pytest.raises(InputError, match=r"prototype_logits must have shape \[12, 200\], got \[12, 199\]"):
        candidates(world.features, index, world.prototypes[:, 1:], world.by_class, keys)
    with pytest.raises(InputError, match="numbers of candidates cannot be negative: 6, -1, 3"):
        world.retrieve(prototypes=-1)


def test_no_class() -> None:
    """Without a class there is nothing to answer, and the message says what to run."""
    empty, none = torch.empty(1, 0), torch.empty(0, dtype=torch.int64)
    index = World(3).index()
    with pytest.raises(InputError) as caught:
        retrieve_text_logits(
            torch.ones(1, DIM), index, AnchorClasses(none, none, 0), empty, empty,
            lambda rows, classes: empty, lambda rows, logits: (empty, empty),
        )  # fmt: skip
    assert str(caught.value) == "there is no class to score\nRun: vlltr select"
