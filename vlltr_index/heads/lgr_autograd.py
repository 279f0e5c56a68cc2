"""Cosine between images and attended anchors, computed without projecting anchors and without storing G.

With one query q' for each image, attention a_m over the anchors E_m of a class is softmax_m(q' . E_m / sigma_m + b_m).
With p_m = a_m w_m (w_m = 1, or 1 / |E_m| where values are normalised), s_m = E_m . I and R the class's Gram matrix

    cos(I, G) = p . s / sqrt(p^T R p),    G = sum_m p_m E_m,    |I| = 1.

One product of the stacked [q'; I] with E gives both attention and s. G itself (images x classes x width) is computed
only where p^T R p has lost its digits to cancellation. Anchors are the first dimension and images the last, so that a
block of classes is a contiguous view.

On a GPU all classes are computed at once and differentiated by torch: about thirty kernels for any number of classes.
The host waits for the GPU only where the anchors of a class are so opposed that they could cancel. The handwritten
autograd function works in blocks: it saves memory on CPUs, and it handles anchors that did cancel.

Single pairs of an image and a class, and all pairs of a few images, use a product with a sparse matrix (one row for
each pair, with its anchors as columns), and G is a weighted sum of rows: both read ragged classes in place, without a
copy and without padding.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vlltr_index.heads.anchor_bank import CANCELLED, AnchorBank, Block
from vlltr_index.tensors import full_precision


class _Terms(NamedTuple):
    """Intermediate values of a block: [classes, images], and `mixed` [classes, width, images]."""

    dot: Tensor  # G . I
    inverse: Tensor  # 1 / |G|, zero where G has cancelled to zero
    mixed: Tensor  # E_m . G


GRAM_FLOATS = 2**28
"""Most numbers in the Gram matrices of all classes together, where they are kept at once."""
_FEW = 4  # images
_PAIRS_AT_ONCE = 4096
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")


def attended_cosine(
    query: Tensor,
    image: Tensor,
    bank: AnchorBank,
    normalise_values: bool = False,
    detach_norm: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute the cosine between each image and its attended anchors of each class (VL-LTR, Eqs. 4-6).

    Args:
        query: Float [B, D], q' such that the attention logit of anchor m is q' . E_m / sigma_m.
        image: Float [B, D], rows of length one, same dtype as `query`.
        bank: The anchors, frozen.
        normalise_values: Average sentence vectors normalised to length one.
        detach_norm: Treat |G| as a constant in the gradient.
        bias: Float [A], added to the attention logits of each anchor, same dtype; -inf leaves an anchor out, but not
            all anchors of a class.

    Returns:
        [B, C]; zero, without gradient, where the attended anchors cancel to zero.
    """
    with full_precision(query.device):
        learns = any(t is not None and t.requires_grad for t in (query, image, bias))
        on_gpu = query.device.type == "cuda"
        at_once = bank.gram_size <= GRAM_FLOATS if on_gpu else len(bank.blocks) == 1 and not learns
        if at_once:
            whole, cancelled = plain_cosine(
                query, image, bank, normalise_values=normalise_values, detach_norm=detach_norm, bias=bias
            )
            if not bank.opposed or not bool(cancelled):
                return whole
        if len(query) <= _FEW and not learns:
            images = torch.arange(len(query), device=query.device).repeat(bank.num_classes)
            classes = torch.arange(bank.num_classes, device=query.device).repeat_interleave(len(query))
            found = pair_cosines(
                query, image, bank, images, classes=classes, normalise_values=normalise_values, bias=bias
            )
            return found.view(bank.num_classes, len(query)).T
        result: Tensor = _AttendedCosine.apply(  # type: ignore[no-untyped-call] # torch leaves it untyped
            query, image, bias, bank, normalise_values, detach_norm
        )
        return result


def plain_cosine(
    query: Tensor,
    image: Tensor,
    bank: AnchorBank,
    normalise_values: bool = False,
    detach_norm: bool = False,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `attended_cosine` for all classes at once, differentiated by torch; arguments are the same.

    Returns:
        The cosines [B, C], and whether any attended anchors cancelled, bool []: their cosines have lost digits.
    """
    block = bank.whole
    dtype = query.dtype
    vectors = bank.block_vectors(block, dtype)
    norms = bank.norms[:, None].to(dtype)
    logits = vectors @ query.T / bank.sigma[:, None].to(dtype)
    if bias is not None:
        logits = logits + bias[:, None]
    values = block.pad(logits, fill=float("-inf")).softmax(1)
    weight = _value_weight(bank, block, normalise_values, dtype)
    if weight is not None:
        values = values * block.pad(weight)
    dot = (values * block.pad(vectors @ image.T)).sum(1)
    square = (values * (bank.gram(block, dtype) @ values)).sum(1)
    with torch.no_grad():
        reach = (values * block.pad(norms)).sum(1)
        kept = square > (torch.finfo(dtype).eps * reach).square()
        cancelled = (square < CANCELLED * reach.square()).any()
    length = (square.detach() if detach_norm else square).clamp(min=torch.finfo(dtype).tiny)
    return torch.where(kept, dot * length.rsqrt(), 0.0).T, cancelled


@torch.no_grad()
def pair_cosines(
    query: Tensor,
    image: Tensor,
    bank: AnchorBank,
    images: Tensor,
    classes: Tensor,
    normalise_values: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute `attended_cosine` for single pairs of an image and a class: [P], without gradient.

    Args:
        query: Float [B, D], as for `attended_cosine`.
        image: Float [B, D], likewise.
        bank: The anchors.
        images: Int64 [P], rows of `query` and `image`.
        classes: Int64 [P], positions in the bank. Equal ones side by side are read once.
        normalise_values: As for `attended_cosine`.
        bias: As for `attended_cosine`.
    """
    parts = [query.new_empty(0)]
    with full_precision(query.device):
        for at, of in zip(images.split(_PAIRS_AT_ONCE), classes.split(_PAIRS_AT_ONCE), strict=True):
            part = _pair_cosines(
                query[at], image[at], bank, classes=of, normalise_values=normalise_values, bias=bias
            )
            parts.append(part)
    return torch.cat(parts)


def _pair_cosines(
    query: Tensor,
    image: Tensor,
    bank: AnchorBank,
    classes: Tensor,
    normalise_values: bool,
    bias: Tensor | None,
) -> Tensor:
    """Compute cos(I, G), [P], from q' and I, both [P, D], with one class for each row."""
    lengths = bank.offsets.diff()[classes]
    starts = F.pad(lengths.cumsum(0), (1, 0))
    pair = torch.repeat_interleave(lengths)
    rows = torch.arange(len(pair), device=pair.device) + (bank.offsets[classes] - starts[:-1])[pair]
    vectors = bank.vectors
    columns = rows
    if vectors.dtype != query.dtype:  # a copy of all in another dtype would take much memory
        some, at = classes.unique_consecutive(return_inverse=True)
        part = bank.select(some)
        vectors = part.vectors.to(query.dtype)
        columns = rows + (part.offsets[at] - bank.offsets[classes])[pair]
    pattern = torch.sparse_csr_tensor(
        starts, columns, query.new_zeros(len(rows)), (len(classes), len(vectors)), check_invariants=False
    )
    logits = torch.sparse.sampled_addmm(pattern, query, vectors.T, beta=0.0).values()
    logits = logits / bank.sigma[rows].to(query.dtype)
    if bias is not None:
        logits = logits + bias[rows]
    most = logits.new_full((len(classes),), -torch.inf).scatter_reduce(0, pair, logits, "amax")
    weights = (logits - most[pair]).exp()
    weights = weights / torch.zeros_like(most).index_add(0, pair, weights)[pair]
    norms = bank.norms[rows].to(query.dtype)
    if normalise_values:
        weights = weights / norms.clamp(min=1e-12)
    attended = F.embedding_bag(columns, vectors, starts[:-1], mode="sum", per_sample_weights=weights)
    length = torch.linalg.vector_norm(attended, dim=1)
    floor = torch.finfo(query.dtype).eps * torch.zeros_like(most).index_add(0, pair, weights * norms)
    cosine = (attended * image).sum(1) / length.clamp(min=torch.finfo(query.dtype).tiny)
    return torch.where(length > floor, cosine, 0.0)


class _AttendedCosine(torch.autograd.Function):
    """The cosines [B, C] of `attended_cosine`, block by block, with a handwritten gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        image: Tensor,
        bias: Tensor | None,
        bank: AnchorBank,
        normalise_values: bool,
        detach_norm: bool,
    ) -> Tensor:
        """Compute the cosines, and save attention and s of each block where a gradient is needed."""
        images = query.shape[0]
        learns = any(ctx.needs_input_grad[:3])
        ctx.bank = bank
        ctx.normalise_values = normalise_values
        ctx.detach_norm = detach_norm
        stacked = torch.cat([query, image]).T.contiguous()
        result = query.new_empty((images, bank.num_classes))
        saved = []
        for block in bank.blocks:
            products = bank.block_vectors(block, query.dtype) @ stacked
            attention = products[:, :images] / bank.sigma[block.start : block.stop, None].to(query.dtype)
            if bias is not None:
                attention += bias[block.start : block.stop, None]
            attention = block.unpad(block.pad(attention, fill=float("-inf")).softmax(1))
            scores = products[:, images:].contiguous()
            terms = _terms(
                attention, scores, image, bank=bank, block=block, normalise_values=normalise_values
            )
            result[:, block.first : block.last] = (terms.dot * terms.inverse).T
            if learns:
                saved += [attention, scores]
        ctx.save_for_backward(image, *saved)
        return result

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        """Compute the gradients of query, image and bias from that of the cosines."""
        bank: AnchorBank = ctx.bank
        image, *saved = ctx.saved_tensors
        with torch.no_grad(), full_precision(image.device):
            totals = [torch.zeros_like(image) if needed else None for needed in ctx.needs_input_grad[:2]]
            by_bias = image.new_empty(len(bank.losses)) if ctx.needs_input_grad[2] else None
            for block, attention, scores in zip(bank.blocks, saved[::2], saved[1::2], strict=True):
                outer = grad[:, block.first : block.last].T
                by_logit, by_image = _block_gradients(
                    attention,
                    scores,
                    outer,
                    image=image,
                    bank=bank,
                    block=block,
                    normalise_values=ctx.normalise_values,
                    detach_norm=ctx.detach_norm,
                )
                if by_bias is not None:
                    by_bias[block.start : block.stop] = by_logit.sum(1)
                vectors = bank.block_vectors(block, image.dtype)
                by_query = by_logit.div_(bank.sigma[block.start : block.stop, None].to(image.dtype))
                for total, part in zip(totals, (by_query, by_image), strict=True):
                    if total is not None:
                        total.addmm_(part.T, vectors)
        return totals[0], totals[1], by_bias, None, None, None


def _block_gradients(
    attention: Tensor,
    scores: Tensor,
    outer: Tensor,
    image: Tensor,
    bank: AnchorBank,
    block: Block,
    normalise_values: bool,
    detach_norm: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients with respect to the attention logits and to I . E_m, both [anchors, images]."""
    terms = _terms(attention, scores, image, bank=bank, block=block, normalise_values=normalise_values)
    shares = block.pad(attention)
    weight = _value_weight(bank, block, normalise_values, attention.dtype)
    slope = (outer * terms.inverse)[:, None]
    if detach_norm:
        by_shares = block.pad(scores) * slope
    else:
        pull = (terms.dot * terms.inverse.square())[:, None]
        by_shares = block.pad(scores).addcmul(terms.mixed, pull, value=-1.0).mul_(slope)
    if weight is not None:
        by_shares *= block.pad(weight)
    centre = (shares * by_shares).sum(1, keepdim=True)
    by_logit = block.unpad((by_shares - centre).mul_(shares))
    by_image = block.unpad(shares * slope)
    return by_logit, by_image if weight is None else by_image * weight


def _value_weight(
    bank: AnchorBank, block: Block, normalise_values: bool, dtype: torch.dtype
) -> Tensor | None:
    """Return the factor w of each anchor, [anchors, 1]; None stands for ones."""
    if not normalise_values:
        return None
    return bank.norms[block.start : block.stop, None].to(dtype).clamp(min=1e-12).reciprocal()


def _terms(
    attention: Tensor,
    scores: Tensor,
    image: Tensor,
    bank: AnchorBank,
    block: Block,
    normalise_values: bool,
) -> _Terms:
    """Compute G . I, 1 / |G| and E_m . G of every image with every class of a block."""
    dtype = attention.dtype
    weight = _value_weight(bank, block, normalise_values, dtype)
    weighted = attention if weight is None else attention * weight
    values = block.pad(weighted)
    mixed = bank.gram(block, dtype) @ values
    dot = (values * block.pad(scores)).sum(1)
    square = (values * mixed).sum(1)
    reach = block.pad(weighted * bank.norms[block.start : block.stop, None].to(dtype)).sum(1)
    cancelled = square < CANCELLED * reach.square()
    if bool(cancelled.any()):
        _direct(_Terms(dot, square, mixed), cancelled, values, image=image, bank=bank, block=block)
    floor = torch.finfo(dtype).eps * reach
    inverse = torch.where(square > floor.square(), square.clamp(min=torch.finfo(dtype).tiny).rsqrt(), 0.0)
    return _Terms(dot, inverse, mixed)


def _direct(
    terms: _Terms, cancelled: Tensor, values: Tensor, image: Tensor, bank: AnchorBank, block: Block
) -> None:
    """Overwrite the cancelled entries of dot, square (stored as `inverse`) and mixed by those of G itself."""
    for position in cancelled.any(1).nonzero()[:, 0].tolist():
        which = cancelled[position].nonzero()[:, 0]
        start = bank.bounds[block.first + position]
        stop = bank.bounds[block.first + position + 1]
        vectors = bank.vectors[start:stop].to(values.dtype)
        attended = values[position, : stop - start, which].T @ vectors
        terms.dot[position, which] = (attended * image[which]).sum(1)
        terms.inverse[position, which] = attended.square().sum(1)
        terms.mixed[position, : stop - start, which] = vectors @ attended.T
