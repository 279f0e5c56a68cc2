"""Naive float64 twins of the numeric modules: loops and whole matrices, written from the equations alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

PARITY = Path(__file__).parent / "data" / "parity"


def parity(name: str) -> dict[str, Tensor]:
    """The arrays of one parity file, as tensors."""
    with np.load(PARITY / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """All cosines, one at a time."""
    rows = [torch.stack([a @ b / (a.norm() * b.norm()) for b in second]) for a in first]
    return torch.stack(rows)


def contrastive_side(logits: Tensor, row_labels: Tensor, column_labels: Tensor, smoothing: float) -> Tensor:
    """One side of Eq. 2, row by row."""
    losses = []
    for row, label in zip(logits, row_labels.tolist(), strict=True):
        positives = [j for j, other in enumerate(column_labels.tolist()) if other == label]
        if not positives:
            continue
        target = torch.full_like(row, smoothing / len(row))
        for j in positives:
            target[j] += (1 - smoothing) / len(positives)
        losses.append(-(target * (row - torch.logsumexp(row, 0))).sum())
    return torch.stack(losses).mean() if losses else logits.sum() * 0


def contrastive(
    images: Tensor, texts: Tensor, image_labels: Tensor, text_labels: Tensor, scale: float, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Both sides of Eq. 2."""
    logits = scale * cosines(images, texts)
    return (
        contrastive_side(logits, image_labels, text_labels, smoothing),
        contrastive_side(logits.T, text_labels, image_labels, smoothing),
    )


def distillation(student: Tensor, teacher: Tensor, mode: str) -> Tensor:
    """Eq. 3 (`paired`) or its whole-row form (`full`), term by term."""
    sides = []
    for s, t in ((student, teacher), (student.T, teacher.T)):
        total = torch.zeros((), dtype=s.dtype)
        for i in range(len(s)):
            q, log_p = torch.softmax(t[i], 0), s[i] - torch.logsumexp(s[i], 0)
            total = total - (q[i] * log_p[i] if mode == "paired" else (q * log_p).sum())
        sides.append(total / len(s))
    return sides[0] + sides[1] if mode == "paired" else (sides[0] + sides[1]) / 2


def sentence_losses(
    texts: Tensor, text_labels: Tensor, images: Tensor, image_labels: Tensor, scale: float
) -> Tensor:
    """L_lin from the whole matrix; a class without an image is held against its mean sentence."""
    logits = scale * cosines(texts.double(), images.double())
    result = []
    for t, label in enumerate(text_labels.tolist()):
        own = [i for i, other in enumerate(image_labels.tolist()) if other == label]
        if own:
            positive = torch.stack([logits[t, i] for i in own]).mean()
        else:
            mine = [texts[j].double() for j, other in enumerate(text_labels.tolist()) if other == label]
            mean = torch.stack([v / v.norm() for v in mine]).mean(0)
            positive = scale * cosines(texts[t : t + 1].double(), mean[None])[0, 0]
        result.append(torch.logsumexp(logits[t], 0) - positive)
    return torch.stack(result)


def head_attention(weights: dict[str, Tensor], image: Tensor, anchors: Tensor) -> Tensor:
    """Eqs. 4-5 as the release computes them: project every key, then softmax. [D], [M, D] -> [M]."""
    dim = len(image)
    query = F.layer_norm(image, (dim,), weights["query_norm_weight"], weights["query_norm_bias"])
    keys = F.layer_norm(anchors, (dim,), weights["key_norm_weight"], weights.get("key_norm_bias"))
    query, keys = weights["query_proj"] @ query, keys @ weights["key_proj"].T
    return torch.softmax(keys @ query / math.sqrt(dim), 0)


def text_logits(
    weights: dict[str, Tensor], images: Tensor, classes: list[Tensor], scale: float, normalise_values: bool
) -> Tensor:
    """Eqs. 4-6, one image and one class at a time, with G built up."""
    rows = []
    for image in images:
        row = []
        for anchors in classes:
            attention = head_attention(weights, image, anchors)
            values = anchors / anchors.norm(dim=1, keepdim=True) if normalise_values else anchors
            attended = (attention[:, None] * values).sum(0)
            row.append(scale * (image @ attended) / (image.norm() * attended.norm()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def fused(
    visual: Tensor,
    text: Tensor,
    row_class: list[int],
    trained: list[bool],
    alpha: float,
    taus: tuple[float, float],
    margin: float,
    rule: str = "ours",
    agreement: float = 0.0,
) -> Tensor:
    """The fusion rules for one image, class by class, in plain Python."""
    z = [float(t) / taus[1] - (margin if known else 0.0) for t, known in zip(text, trained, strict=True)]
    live = [(float(v) / taus[0], c) for v, c in zip(visual, row_class, strict=True) if c >= 0]
    if rule == "ours" and agreement:
        apart = _disagreement(z, live, trained)
        z = [v - (agreement * apart if known else 0.0) for v, known in zip(z, trained, strict=True)]
    top = max(z)
    by_text = [math.exp(v - top) / sum(math.exp(w - top) for w in z) for v in z]
    if not live:
        return torch.tensor(by_text, dtype=torch.float64)
    top = max(v for v, _ in live)
    total = sum(math.exp(v - top) for v, _ in live)
    by_image = dict.fromkeys((c for _, c in live), 0.0)
    for v, c in live:
        by_image[c] += math.exp(v - top) / total
    if rule == "logits":
        return _summed(z, live)
    if rule == "paper":
        both = [alpha * by_image.get(c, 0.0) + (1 - alpha) * p for c, p in enumerate(by_text)]
        return torch.tensor(both, dtype=torch.float64)
    u = sum(p for c, p in enumerate(by_text) if c not in by_image)
    result = [
        alpha * by_image[c] * (1 - u) + (1 - alpha) * p if c in by_image else p for c, p in enumerate(by_text)
    ]
    return torch.tensor(result, dtype=torch.float64)


def _disagreement(text: list[float], live: list[tuple[float, int]], trained: list[bool]) -> float:
    """-log of the chance that both branches name the same trained class."""
    rows = [(v, c) for v, c in live if trained[c]]
    if not rows:
        return 0.0
    tops = max(v for v, _ in rows), max(t for t, known in zip(text, trained, strict=True) if known)
    by_image = [math.exp(v - tops[0]) / sum(math.exp(w - tops[0]) for w, _ in rows) for v, _ in rows]
    among = sum(math.exp(t - tops[1]) for t, known in zip(text, trained, strict=True) if known)
    same = sum(p * math.exp(text[c] - tops[1]) / among for p, (_, c) in zip(by_image, rows, strict=True))
    return -math.log(max(same, 1e-6))


def _summed(text: list[float], live: list[tuple[float, int]]) -> Tensor:
    """Softmax of text logit + visual logit; several rows by logsumexp, none by the rows' mean."""
    mean = sum(v for v, _ in live) / len(live)
    total = []
    for c, t in enumerate(text):
        own = [v for v, owner in live if owner == c]
        best = max(own, default=mean)
        total.append(t + best + (math.log(sum(math.exp(v - best) for v in own)) if own else 0.0))
    weights = [math.exp(v - max(total)) for v in total]
    return torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)


def auroc(scores: list[float], positives: list[bool]) -> float:
    """Pair by pair."""
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, p in zip(scores, positives, strict=True)
        if p
        for b, q in zip(scores, positives, strict=True)
        if not q
    ]
    return sum(pairs) / len(pairs)


def calibration_error(confidences: list[float], correct: list[bool], bins: int) -> float:
    """Bin by bin; bin k holds confidences in (k / bins, (k + 1) / bins]."""
    total = 0.0
    for k in range(bins):
        inside = [
            (p, right)
            for p, right in zip(confidences, correct, strict=True)
            if k / bins < p <= (k + 1) / bins or (k == 0 and p == 0.0)
        ]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(p for p, _ in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total
