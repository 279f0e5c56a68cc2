"""A small world of classes, anchors and images with a head, on which retrieval is tried."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.anchors.index import AnchorIndex, build_index
from vlltr_index.anchors.retrieval import AnchorClasses, Retrieved, retrieve
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.fusion import (
    FusedScores,
    Meeting,
    PartWeights,
    class_logits,
    fuse,
    fuse_protocol,
    image_side,
    resting,
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
        weights = PartWeights(0.5, 0.5, 1.0, Meeting(1.0, 1.0), Meeting(0.5, 1.5))
        likelihoods = self.features[rows] @ self.centres.T / 20
        trained = torch.arange(self.classes) < self.rows
        pictured = torch.arange(self.classes) <= self.rows
        image = image_side(self.by_class[rows], likelihoods, trained, pictured, weights)
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
