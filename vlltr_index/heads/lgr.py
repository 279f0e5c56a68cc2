"""The language-guided recognition head (LGR): a visual classifier beside attention over anchor sentences.

The release projects every anchor in every step. Anchors are frozen here, so the key side is folded into the query:
with q' = g_k * (W_k^T W_q LayerNorm(I)) less its mean, q . k_m equals q' . E_m / sigma_m up to a constant over m, which
the softmax drops. The key LayerNorm's bias is part of that constant: it has no effect and no gradient. A term that does
not depend on the image is added to the attention logits: -beta L_lin, with the sentence's loss in anchor selection.
Without the image, and with beta = 1, it gives a sentence more attention the better it identified its class among the
images that anchors were selected by.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from vlltr_index.errors import InputError
from vlltr_index.heads.anchor_bank import LAYER_NORM_EPS, AnchorBank
from vlltr_index.heads.lgr_autograd import attended_cosine, pair_cosines, plain_cosine
from vlltr_index.tensors import full_precision, unit_rows

warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")  # a head may have no row
_ROWS_AT_ONCE = 512
_PRODUCTS_AT_ONCE = 2**26  # of images and anchors on a GPU: a few tensors of 256 MiB


class KeyNorm(nn.Module):
    """Affine part of the keys' LayerNorm: `weight` [D] is learned, `bias` [D] is a buffer of zeros."""

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))


class CosineClassifier(nn.Module):
    """Classifier by cosines with one row for each class: [B, D] to [B, C]."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dim) * dim**-0.5)

    def forward(self, image_features: Tensor) -> Tensor:
        """Compute the cosine of each image [B, D] with each row [R, D]: [B, R]; inputs need not be normalised."""
        return unit_rows(image_features) @ unit_rows(self.weight).T


class LGRHead(nn.Module):
    """Head that gives visual logits and text logits of images (VL-LTR, Eqs. 4-7; the bias by anchor losses is ours).

    Parameters: `query_norm` (LayerNorm), `key_norm.weight`, `query_proj.weight` and `key_proj.weight` [D, D] (identity
    at first, no bias), `visual_head`, `log_logit_scale` (the logarithm; frozen unless `learn_scale`), `log_beta`.

    Args:
        dim: Embedding width D.
        num_visual_classes: Rows C_v of the visual classifier; may be 0.
        visual: `linear`; `mlp`: linear to 4 D, ReLU, linear; `cosine`: scale times cosine with a row.
        logit_scale: The multiplier of the cosine to start from, not its logarithm.
        learn_scale: Whether the scale is learned.
        normalise_values: Average sentence vectors normalised to length one; by default longer vectors count more.
        detach_value_norm: Let no gradient flow through the length of the attended anchors, as the release does on
            iNaturalist; values are the same.
        loss_bias: Subtract beta times an anchor's loss from its attention logits; beta is learned, above 0, and 1 at
            first. Without it beta is 0.

    Raises:
        InputError: The kind of visual head is unknown.
    """

    def __init__(
        self,
        dim: int,
        num_visual_classes: int,
        visual: Literal["linear", "mlp", "cosine"] = "linear",
        logit_scale: float = 1 / 0.07,
        learn_scale: bool = False,
        normalise_values: bool = False,
        detach_value_norm: bool = False,
        loss_bias: bool = True,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.num_visual_classes = num_visual_classes
        self.visual = visual
        self.normalise_values = normalise_values
        self.detach_value_norm = detach_value_norm
        self.query_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.key_norm = KeyNorm(dim)
        self.query_proj = nn.Linear(dim, dim, bias=False)
        self.key_proj = nn.Linear(dim, dim, bias=False)
        for projection in (self.query_proj, self.key_proj):
            nn.init.zeros_(projection.weight)  # `eye_` on the device meta imports torch._dynamo, a second
            projection.weight.detach().fill_diagonal_(1.0)
        self.visual_head = _visual_head(visual, dim, num_visual_classes)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)), requires_grad=learn_scale)
        self.log_beta = nn.Parameter(torch.zeros(())) if loss_bias else None

    @property
    def logit_scale(self) -> Tensor:
        """The multiplier of the cosine, a scalar."""
        return self.log_logit_scale.exp()

    @property
    def beta(self) -> float:
        """Factor of an anchor's loss, which is subtracted from its attention logit."""
        return 0.0 if self.log_beta is None else float(self.log_beta.detach().exp())

    def visual_logits(self, image_features: Tensor) -> Tensor:
        """Compute the visual classifier's logits [B, C_v], float32 at least, of features float [B, D], unnormalised."""
        features = self._features(image_features)
        with full_precision(features.device):
            logits: Tensor = self.visual_head(features)
            return logits * self.logit_scale if self.visual == "cosine" else logits

    def text_logits(self, image_features: Tensor, bank: AnchorBank, kept: Tensor | None = None) -> Tensor:
        """Compute scale * cos(I, G_c), where G_c are the attended anchors of class c: [B, C], float32 at least.

        Args:
            image_features: Float [B, D], unnormalised as the encoder gives them.
            bank: The anchors of C classes.
            kept: Bool [A], the anchors that take part, at least one of each class; None: all.

        Returns:
            The logits; zeros, without gradient, for a blank bank.
        """
        features = self._features(image_features)
        if bank.is_blank:
            return features.new_zeros(features.shape[0], bank.num_classes)
        with full_precision(features.device):
            query = self.query(features)
            image = unit_rows(features)
            bias = self._bias(bank, kept)
            rows = _ROWS_AT_ONCE
            if features.device.type == "cuda":
                rows = min(rows, max(1, _PRODUCTS_AT_ONCE // (bank.num_classes * bank.whole.width)))
            parts = list[Tensor]()
            for q, i in zip(torch.split(query, rows), torch.split(image, rows), strict=True):
                part = attended_cosine(
                    q, i, bank, self.normalise_values, detach_norm=self.detach_value_norm, bias=bias
                )
                parts.append(part)
            return self.logit_scale * (parts[0] if len(parts) == 1 else torch.cat(parts))

    def whole_text_logits(self, image_features: Tensor, bank: AnchorBank) -> Tensor:
        """Compute `text_logits` [B, C] of features [B, D] without a branch on values, so that it can be traced.

        Where attended anchors cancel, which they cannot unless `bank.opposed`, digits are lost.
        """
        features = self._features(image_features)
        if bank.is_blank:
            return features.new_zeros(features.shape[0], bank.num_classes)
        query = self.query(features)
        image = unit_rows(features)
        bias = self._bias(bank)
        cosines, _ = plain_cosine(query, image, bank, normalise_values=self.normalise_values, bias=bias)
        return self.logit_scale * cosines

    def query(self, image_features: Tensor) -> Tensor:
        """Compute q' [B, D]: an attention logit is q' . E_m / sigma_m - beta L_m, up to a constant over the class."""
        features = self._features(image_features)
        with full_precision(features.device):
            asked: Tensor = self.query_proj(self.query_norm(features))
            query = self.key_norm.weight * (asked @ self.key_proj.weight)
            return (query - query.mean(1, keepdim=True)) / math.sqrt(self.dim)

    @torch.no_grad()
    def pair_text_logits(
        self, image_features: Tensor, bank: AnchorBank, images: Tensor, classes: Tensor
    ) -> Tensor:
        """Compute `text_logits` for P pairs of image `images[p]` and class `classes[p]`: float [P], without gradient.

        Args:
            image_features: Float [B, D], unnormalised.
            bank: The anchors; only those of the pairs' classes are read.
            images: Int64 [P], rows of `image_features`.
            classes: Int64 [P], positions in the bank.
        """
        features = self._features(image_features)
        query = self.query(features)
        image = unit_rows(features)
        bias = self._bias(bank)
        cosines = pair_cosines(
            query,
            image,
            bank,
            images=images,
            classes=classes,
            normalise_values=self.normalise_values,
            bias=bias,
        )
        return self.logit_scale * cosines

    def prototype_logits(self, image_features: Tensor, bank: AnchorBank) -> Tensor:
        """Compute scale * cos(I, prototype of the class), [B, C], for features float [B, D], unnormalised.

        The anchors in a prototype are weighed by the softmax of -beta L_m, the attention of a query of zeros.
        """
        features = self._features(image_features)
        with full_precision(features.device):
            prototypes = bank.prototypes(self.normalise_values, self.beta, unit=True).to(features.dtype)
            return (self.logit_scale * unit_rows(features)) @ prototypes.T

    def _bias(self, bank: AnchorBank, kept: Tensor | None = None) -> Tensor | None:
        """Compute the bias of the attention logits, [A]: -beta L_m, and -inf where not `kept`; None for no bias."""
        bias = None
        if self.log_beta is not None:
            bias = -self.log_beta.exp() * bank.losses.to(self.log_beta.dtype)
        if kept is None:
            return bias
        out = self.log_logit_scale.new_full((), -math.inf)
        return torch.where(kept, torch.zeros_like(out) if bias is None else bias, out)

    def _features(self, image_features: Tensor) -> Tensor:
        """Convert features to the head's dtype."""
        return image_features.to(self.query_proj.weight.dtype)


def _visual_head(visual: str, dim: int, classes: int) -> nn.Module:
    """Make a visual classifier of the given kind: [B, dim] to [B, classes]."""
    if visual == "linear":
        return nn.Linear(dim, classes)
    if visual == "mlp":
        return nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, classes))
    if visual == "cosine":
        return CosineClassifier(dim, classes)
    raise InputError(f"visual must be 'linear', 'mlp' or 'cosine', got {visual!r}")
