"""Retrieval against naive twins, and against scoring every class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.anchors.index import KINDS, AnchorIndex, build_index
from vlltr_index.anchors.retrieval import (
    AnchorClasses,
    Retrieved,
    estimated_text_logits,
    nearest_classes,
    retrieve,
)
from vlltr_index.errors import InputError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.fusion import (
    FusedScores,
    PartWeights,
    class_logits,
    fuse,
    fuse_protocol,
    resting,
    visual_scores,
)
from vlltr_index.heads.lgr import LGRHead

DIM = 24


@dataclass(frozen=True, eq=False)
class World:
    """Images, ragged anchors and a head over `classes` classes; the last fifth of them has no visual row.

    Fused by the rule `paper` with `alpha`, or where that is None by the rule `ours`.
    """

    classes: int
    images: int = 12
    scale: float = 40.0
    alpha: float | None = 0.5
    seed: int = 0

    @cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    @cached_property
    def centres(self) -> Tensor:
        groups = self.randn(max(self.classes // 10, 1), DIM)
        return groups[torch.arange(self.classes) % len(groups)] + 0.8 * self.randn(self.classes, DIM)

    @cached_property
    def bank(self) -> AnchorBank:
        counts = torch.randint(1, 9, (self.classes,), generator=self.generator)
        owner = torch.arange(self.classes).repeat_interleave(counts)
        return AnchorBank.build(self.centres[owner] + self.randn(len(owner), DIM), owner, range(self.classes))

    @cached_property
    def features(self) -> Tensor:
        labels = torch.randint(0, self.classes, (self.images,), generator=self.generator)
        return 3 * (self.centres[labels] + 0.5 * self.randn(self.images, DIM))

    @cached_property
    def head(self) -> LGRHead:
        head = LGRHead(DIM, self.rows, logit_scale=self.scale)
        head.query_proj.weight.data.mul_(3)
        return head

    @cached_property
    def keys(self) -> Tensor:
        return torch.randperm(5 * len(self.bank.vectors), generator=self.generator)[: len(self.bank.vectors)]

    def index(self, kind: str = "torch") -> AnchorIndex:
        return build_index(F.normalize(self.bank.vectors, dim=1), self.keys, kind)

    @property
    def rows(self) -> int:
        return self.classes - self.classes // 5

    @cached_property
    def visual(self) -> Tensor:
        return self.features @ self.centres[: self.rows].T / 20

    @cached_property
    def by_class(self) -> Tensor:
        return class_logits(self.visual, torch.arange(self.rows), self.classes)

    @cached_property
    def anchor_classes(self) -> AnchorClasses:
        return AnchorClasses(self.keys, self.bank.class_of_row, self.classes)

    @cached_property
    def prototypes(self) -> Tensor:
        return self.head.prototype_logits(self.features, self.bank).detach()

    @cached_property
    def exact(self) -> Tensor:
        return self.head.text_logits(self.features, self.bank).detach()

    def fuse(self, rows: Tensor, text_logits: Tensor) -> tuple[FusedScores, Tensor]:
        """Fused scores, and how much of each answer rests on the text: all of it in a product."""
        if self.alpha is not None:
            fused = fuse_protocol(self.by_class[rows], text_logits, "paper", self.alpha)
            return fused, fused.text_part
        weights = PartWeights(image=0.5, generative=0.5, text=1.0)
        generative = weights.generative * self.features[rows] @ self.centres.T / 20
        base = torch.arange(self.rows)
        linear = weights.image * self.by_class[rows][:, base] if self.rows else None
        offsets = torch.where(torch.arange(self.classes) < self.rows, 0.0, -0.5)
        image = visual_scores(generative, generative, linear, base, offsets)
        fused = fuse(image, text_logits, weights)
        return fused, resting(image, text_logits, fused.probabilities, weights)

    def probabilities(self, text_logits: Tensor) -> Tensor:
        return self.fuse(torch.arange(self.images), text_logits)[0].probabilities

    def retrieve(
        self, index: AnchorIndex | None = None, only: slice = slice(None), **options: float
    ) -> Retrieved:
        """By way of an index; of some of the images."""
        numbers: dict[str, float] = {"neighbours": 12, "best": 3} | options
        start = only.start or 0
        return retrieve(
            self.features[only],
            self.head,
            self.bank,
            index or self.index(),
            self.anchor_classes,
            self.by_class[only],
            lambda rows, text: self.fuse(rows + start, text),
            **numbers,  # type: ignore[arg-type]  # one dict holds whole numbers and max_residual
        )


every_kind = pytest.mark.parametrize("kind", KINDS)


# ---- candidates


@every_kind
@pytest.mark.parametrize("neighbours", [0, 1, 8, 5000])
def test_nearest_classes_are_the_naive_ones(kind: str, neighbours: int) -> None:
    """Each image's set is that of a loop over its nearest anchors, also where there are no more of them."""
    world = World(200)
    mask = nearest_classes(world.features, world.index(kind), world.anchor_classes, neighbours)
    assert mask.shape == (12, 200)
    same = 0
    for image in range(12):
        cosines = F.normalize(world.bank.vectors, dim=1) @ F.normalize(world.features[image], dim=0)
        rows = cosines.argsort(descending=True)[:neighbours].tolist()
        same += set(mask[image].nonzero()[:, 0].tolist()) == {int(world.bank.class_of_row[r]) for r in rows}
    assert same == 12 or (kind in ("ivf", "hnsw") and same >= 9)


def test_candidates_are_the_best_of_each_side() -> None:
    """The best prototypes and image scores, and what the answer by prototypes rests on, are scored exactly."""
    world = World(400, alpha=None)
    found = world.retrieve(neighbours=0)
    _, rests = world.fuse(torch.arange(12), world.prototypes)
    for image in range(12):
        for side in (world.prototypes, world.by_class, rests):
            assert bool(found.candidates[image, side[image].topk(3).indices].all())
        left = rests[image][~found.candidates[image]].sum()
        assert float(left) <= 0.025 + 1e-6


def test_an_image_that_wants_many_classes_has_all_scored() -> None:
    """A flat answer is exact, and its residual is zero; an empty batch gives an empty answer."""
    assert World(200, images=0).retrieve().candidates.shape == (0, 200)
    world = World(200, scale=1.0, alpha=None)
    found = world.retrieve()
    assert bool(found.candidates.all())
    assert float(found.residual.abs().max()) == 0.0
    torch.testing.assert_close(found.fused.text_logits, world.exact, atol=1e-4, rtol=1e-5)


# ---- pairs of an image and a class


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("normalise", "loss_bias"), [(False, True), (True, True), (True, False)])
def test_pairs_are_what_the_head_gives(dtype: torch.dtype, normalise: bool, loss_bias: bool) -> None:
    """Pairs in any order, also repeated ones, of ragged classes."""
    world = World(40)
    generator = torch.Generator().manual_seed(1)
    losses = 3 * torch.rand(len(world.bank.vectors), generator=generator)
    bank = AnchorBank.build(world.bank.vectors.to(dtype), world.bank.class_of_row, range(40), losses)
    head = LGRHead(DIM, 0, normalise_values=normalise, loss_bias=loss_bias).to(dtype)
    images = torch.randint(0, 12, (9000,), generator=generator)
    classes = torch.randint(0, 40, (9000,), generator=generator)
    features = world.features.to(dtype)
    found = head.pair_text_logits(features, bank, images, classes)
    expected = head.text_logits(features, bank).detach()[images, classes]
    torch.testing.assert_close(found, expected, atol=2e-4 if dtype == torch.float32 else 1e-10, rtol=1e-5)
    assert head.pair_text_logits(features, bank, images[:0], classes[:0]).shape == (0,)


def test_pairs_of_anchors_that_cancel() -> None:
    """Where attended anchors cancel to nothing the cosine is zero, as the head has it."""
    bank = AnchorBank.build(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), torch.zeros(2, dtype=torch.int64), [0])
    head, none = LGRHead(2, 0), torch.zeros(1, dtype=torch.int64)
    head.query_proj.weight.data.zero_()
    assert head.pair_text_logits(torch.ones(1, 2), bank, none, none).tolist() == [0.0]


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
        below = best - 1e-6 * (1.0 + abs(best))
        for c in range(classes):
            if c in chosen:
                assert float(found[i, c]) == float(exact[i, c])
            else:
                assert float(found[i, c]) < best
                expected = min(float(prototypes[i, c]) + lift, below)
                assert float(found[i, c]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


# ---- the whole


@pytest.mark.parametrize("alpha", [0.5, None])
@every_kind
def test_agrees_with_scoring_every_class(kind: str, alpha: float | None) -> None:
    """Winners are the same, probabilities differ by no more than what rests on estimates, in a sum and in a product."""
    world = World(200, alpha=alpha)
    found = world.retrieve(world.index(kind))
    ours, full = found.fused.probabilities, world.probabilities(world.exact)
    assert found.candidates.float().mean() < 0.6
    assert bool((found.residual <= 0.05).all())
    assert torch.equal(ours.argmax(1), full.argmax(1))
    assert float((ours - full).abs().sum(1).max()) / 2 <= 0.05
    kept = found.candidates
    torch.testing.assert_close(found.fused.text_logits[kept], world.exact[kept], atol=1e-4, rtol=1e-5)


def test_classes_join_until_the_residual_is_small() -> None:
    """A flat distribution starts with a large residual; classes join until it is below the limit."""
    limit = 0.05
    world = World(200, scale=6.0)
    first, found = world.retrieve(max_residual=1.0), world.retrieve(max_residual=limit)
    assert float(first.residual.min()) > limit
    assert bool((found.residual <= limit).all())
    assert bool((found.candidates | ~first.candidates).all())
    assert bool((found.candidates.sum(1) > first.candidates.sum(1)).all())
    ours, full = found.fused.probabilities, world.probabilities(world.exact)
    assert torch.equal(ours.argmax(1), full.argmax(1))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, None])
def test_an_estimated_class_never_wins(alpha: float | None) -> None:
    """Whatever the visual side prefers, in a sum or in a product: a class that would win is scored exactly first."""
    world = World(400, alpha=alpha, scale=15.0)
    found = world.retrieve(neighbours=0, best=1, max_residual=1.0)
    winners = found.fused.probabilities.argmax(1)
    assert bool(found.candidates[torch.arange(12), winners].all())


@pytest.mark.parametrize(("alpha", "scale"), [(0.5, 15.0), (None, 10.0), (None, 6.0)])
def test_an_image_alone_and_among_others(alpha: float | None, scale: float) -> None:
    """The answer does not depend on the images beside it, nor on how many of them have all classes scored."""
    world = World(400, images=24, alpha=alpha, scale=scale)
    together = world.retrieve()
    assert 0 < int(together.candidates.all(1).sum()) < 24
    for image in range(24):
        alone = world.retrieve(only=slice(image, image + 1))
        assert torch.equal(alone.candidates[0], together.candidates[image])
        for mine, theirs in zip(alone.fused.tensors, together.fused.tensors, strict=True):
            torch.testing.assert_close(mine[0], theirs[image], atol=1e-4, rtol=1e-4)


def test_no_class() -> None:
    """Without a class there is nothing to answer, and the message says what to run."""
    world, none = World(3), torch.empty(0, dtype=torch.int64)
    bank = AnchorBank(torch.empty(0, DIM), torch.zeros(1, dtype=torch.int64), none, none, torch.empty(0))
    with pytest.raises(InputError) as caught:
        retrieve(
            world.features, world.head, bank, world.index(), world.anchor_classes, world.by_class, world.fuse
        )
    assert str(caught.value) == "there is no class to score\nRun: vlltr select"
