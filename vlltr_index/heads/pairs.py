"""Text logits of single pairs of an image and a class, by reading the anchors of those classes alone.

Attention goes by a product with a sparse matrix (a row a pair, its anchors as columns), the attended anchors G by a
weighted sum of rows: both read ragged classes where they lie, without a copy and without padding.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.tensors import check_labels, full_precision, unit_rows

_PAIRS_AT_ONCE = 4096
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")


@torch.no_grad()
def pair_text_logits(
    head: LGRHead, image_features: Tensor, bank: AnchorBank, images: Tensor, classes: Tensor
) -> Tensor:
    """What `LGRHead.text_logits` gives image `images[p]` and class `classes[p]`, without gradient.

    Args:
        head: The head.
        image_features: Float [B, D], unnormalised.
        bank: The anchors.
        images: Int64 [P], rows of `image_features`.
        classes: Int64 [P], positions in the bank. Equal ones side by side are read once.

    Returns:
        Float [P], float32 at least.

    Raises:
        InputError: A row or a position is out of range, or widths do not fit.
    """
    check_labels("images", images, classes=len(image_features))
    check_labels("classes", classes, size=len(images), classes=bank.num_classes)
    query = head.query(image_features)
    unit, vectors = unit_rows(image_features).to(query.dtype), bank.vectors.to(query.dtype)
    parts = [query.new_empty(0)]
    with full_precision(query.device):
        for at, of in zip(images.split(_PAIRS_AT_ONCE), classes.split(_PAIRS_AT_ONCE), strict=True):
            parts.append(_cosines(head, query[at], unit[at], bank, vectors, of))
        return head.logit_scale * torch.cat(parts)


def _cosines(
    head: LGRHead, query: Tensor, image: Tensor, bank: AnchorBank, vectors: Tensor, classes: Tensor
) -> Tensor:
    """cos(I, G) [P] of q' and I, both [P, D], with one class each."""
    lengths = bank.offsets.diff()[classes]
    starts = F.pad(lengths.cumsum(0), (1, 0))
    pair = torch.repeat_interleave(lengths)
    rows = torch.arange(len(pair), device=pair.device) + (bank.offsets[classes] - starts[:-1])[pair]
    pattern = torch.sparse_csr_tensor(
        starts, rows, query.new_zeros(len(rows)), (len(classes), len(vectors)), check_invariants=False
    )
    logits = torch.sparse.sampled_addmm(pattern, query, vectors.T, beta=0.0).values()
    logits = logits / bank.sigma[rows].to(query.dtype) - head.beta * bank.losses[rows].to(query.dtype)
    most = logits.new_full((len(classes),), -torch.inf).scatter_reduce(0, pair, logits, "amax")
    weights = (logits - most[pair]).exp()
    weights = weights / torch.zeros_like(most).index_add(0, pair, weights)[pair]
    norms = bank.norms[rows].to(query.dtype)
    if head.normalise_values:
        weights = weights / norms.clamp(min=1e-12)
    attended = F.embedding_bag(rows, vectors, starts[:-1], mode="sum", per_sample_weights=weights)
    length = torch.linalg.vector_norm(attended, dim=1)
    floor = torch.finfo(query.dtype).eps * torch.zeros_like(most).index_add(0, pair, weights * norms)
    cosine = (attended * image).sum(1) / length.clamp(min=torch.finfo(query.dtype).tiny)
    return torch.where(length > floor, cosine, 0.0)
