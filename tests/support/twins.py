"""Naive float64 twins of the numeric modules: loops and whole matrices, written from the equations alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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
    """L_lin from the whole matrix; a class without an image is held against its mean sentence, and so are all classes
    where there is no image at all: then the logsumexp runs over those means."""
    labels = sorted(set(text_labels.tolist()))
    if not len(images):
        units = texts.double() / texts.double().norm(dim=1, keepdim=True)
        images = torch.stack([units[text_labels == label].mean(0) for label in labels])
        image_labels = torch.tensor(labels)
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


def head_attention(weights: dict[str, Tensor], image: Tensor, anchors: Tensor, bias: Tensor) -> Tensor:
    """Eqs. 4-5 as the release computes them: project every key, then softmax. [D], [M, D], [M] -> [M]."""
    dim = len(image)
    query = F.layer_norm(image, (dim,), weights["query_norm_weight"], weights["query_norm_bias"])
    keys = F.layer_norm(anchors, (dim,), weights["key_norm_weight"], weights.get("key_norm_bias"))
    query, keys = weights["query_proj"] @ query, keys @ weights["key_proj"].T
    return torch.softmax(keys @ query / math.sqrt(dim) + bias, 0)


def text_logits(
    weights: dict[str, Tensor],
    images: Tensor,
    classes: list[Tensor],
    losses: list[Tensor],
    scale: float,
    normalise_values: bool,
) -> Tensor:
    """Eqs. 4-6 with -beta L in the attention, one image and one class at a time, with G built up."""
    rows = []
    for image in images:
        row = []
        for anchors, loss in zip(classes, losses, strict=True):
            attention = head_attention(weights, image, anchors, -weights["log_beta"].exp() * loss)
            values = anchors / anchors.norm(dim=1, keepdim=True) if normalise_values else anchors
            attended = (attention[:, None] * values).sum(0)
            row.append(scale * (image @ attended) / (image.norm() * attended.norm()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def softmax(values: list[float]) -> list[float]:
    """exp over the sum of exp; minus infinity gives 0."""
    top = max(values)
    total = sum(math.exp(v - top) for v in values)
    return [math.exp(v - top) / total for v in values]


def logsumexp(values: list[float]) -> float:
    """log of the sum of exp; minus infinity of nothing."""
    top = max(values, default=-math.inf)
    return top + math.log(sum(math.exp(v - top) for v in values)) if math.isfinite(top) else -math.inf


def class_logits(rows: list[float], owners: list[int], classes: int) -> list[float]:
    """What the rows of each class are worth together, for one image."""
    return [logsumexp([v for v, o in zip(rows, owners, strict=True) if o == c]) for c in range(classes)]


def ours(
    linear: list[float],
    likelihoods: list[float],
    text: list[float],
    base: list[bool],
    offsets: list[float],
    weights: dict[str, Any],
) -> list[float]:
    """z of one image: base classes among themselves with the linear classifier, their level without it."""
    u = [
        weights["generative"] * g + (weights["text"] * t if weights["text"] else 0.0)
        for g, t in zip(likelihoods, text, strict=True)
    ]
    known = [c for c, there in enumerate(base) if there]
    a = {
        c: weights["combined"] * u[c] + weights["image"] * linear[c] if weights["image"] else u[c]
        for c in known
    }
    if not known:
        return [score + offset for score, offset in zip(u, offsets, strict=True)]
    level = logsumexp([u[c] for c in known]) - logsumexp(list(a.values()))
    return [a[c] + level if base[c] else u[c] + offsets[c] for c in range(len(u))]


def protocol(visual: list[float], text: list[float], rule: str, alpha: float) -> list[float]:
    """The rules of the paper and of the release for one image; minus infinity is a class without a visual row."""
    by_text, there = softmax(text), [v for v in visual if math.isfinite(v)]
    if rule == "logits":
        mean = sum(there) / max(len(there), 1)
        return softmax([t + (v if math.isfinite(v) else mean) for v, t in zip(visual, text, strict=True)])
    if not there:
        return by_text
    by_image = [math.exp(v - logsumexp(there)) for v in visual]
    return [alpha * p + (1 - alpha) * q for p, q in zip(by_image, by_text, strict=True)]


def weighted_mean(rows: list[Tensor], weights: list[float]) -> Tensor:
    """Row by row."""
    total = torch.zeros_like(rows[0])
    for row, weight in zip(rows, weights, strict=True):
        total = total + weight * row
    return total / sum(weights)


def shrunk(covariance: Tensor, observations: float, shrinkage: float) -> Tensor:
    """Toward the multiple of the identity that has its trace: by the `shrinkage`-th root of OAS."""
    dim = len(covariance)
    squares = sum(value**2 for value in covariance.flatten().tolist())
    trace = sum(covariance.diagonal().tolist())
    above = (1 - 2 / dim) * squares + trace**2
    below = (observations + 1 - 2 / dim) * (squares - trace**2 / dim)
    r = min(1.0, above / below) ** (1.0 / shrinkage) if below > 0 and above > 0 else 1.0
    return (1 - r) * covariance + r * covariance.trace() / dim * torch.eye(dim, dtype=covariance.dtype)


def observations_of(units: list[int], correlation: float) -> list[float]:
    """As what share of an observation each image counts: m of a unit as m / (1 + (m - 1) rho) of them, rounded
    down."""
    sizes = [units.count(unit) for unit in units]
    return [int(m / (1 + (m - 1) * correlation)) / m for m in sizes]


def weighted_means(rows: list[Tensor], labels: list[int], weights: list[float]) -> dict[int, Tensor]:
    """Mean of each class's rows by their weights."""
    means = {}
    for label in set(labels):
        own = [n for n, other in enumerate(labels) if other == label]
        means[label] = weighted_mean([rows[n] for n in own], [weights[n] for n in own])
    return means


def within(
    features: Tensor, units: list[int], labels: list[int], weights: list[float]
) -> tuple[Tensor, Tensor, float]:
    """S, of [V, N, D]: how a unit's mean varies in its class, and how images and views do about it; how a unit's plain
    mean does, times observations a unit, of images that count as `weights`; and the effective degrees of freedom of S.
    Without more units than classes, or any scatter, both are half that about the mean of the units."""
    views, images, dim = features.shape
    nothing = torch.zeros(dim, dim, dtype=torch.float64)
    middle, plain, owner = dict[int, Tensor](), dict[int, Tensor](), dict[int, int]()
    for unit in set(units):
        own = [n for n, other in enumerate(units) if other == unit]
        rows = [view[n] for view in features for n in own]
        middle[unit], owner[unit] = sum(rows, torch.zeros(dim).double()) / len(rows), labels[own[0]]
        plain[unit] = features[0, own].mean(0)
    pooled, sampling, freedom = nothing.clone(), nothing.clone(), len(middle) - len(set(labels))
    if freedom:
        for of, means, each in ((pooled, middle, 1.0), (sampling, plain, sum(weights) / len(middle))):
            for label in set(labels):
                some = [m for unit, m in means.items() if owner[unit] == label]
                mean = sum(some, torch.zeros(dim).double()) / len(some)
                for m in some:
                    of += each * torch.outer(m - mean, m - mean) / freedom
        inside = nothing.clone()
        for n, unit in enumerate(units):
            for view in features:
                apart = view[n] - middle[unit]
                inside += torch.outer(apart, apart) / (views * images)
        of_parts = sum(v**2 for v in pooled.flatten().tolist()) / freedom
        if views * images > len(middle):
            of_parts += sum(v**2 for v in inside.flatten().tolist()) / (views * images - len(middle))
        pooled += inside
        if pooled.trace() > 1e-9:
            return pooled, sampling, sum(v**2 for v in pooled.flatten().tolist()) / of_parts
    total, centre = nothing.clone(), sum(middle.values(), torch.zeros(dim).double()) / len(middle)
    for m in middle.values():
        total += torch.outer(m - centre, m - centre) / (2 * len(middle))
    total = total if total.trace() > 1e-9 else torch.eye(dim, dtype=torch.float64)
    return total, total, freedom


def correlation_of(images: Tensor, labels: list[int], units: list[int]) -> float:
    """The intraclass correlation of units in their classes, of [N, D], where the covariance in classes is the identity:
    by the mean squares between and within units, 20 images more being copies. 1 where none has several
    images, or no class several."""
    count, classes = len(set(units)), len(set(labels))
    if count == len(units) or count == classes:
        return 1.0
    scatter, _, freedom = within(images[None], units, labels, observations_of(units, 1.0))
    white = torch.linalg.inv(torch.linalg.cholesky(shrunk(scatter, freedom, 1.0))).T
    rows, alike = list(images.double() @ white), [1.0] * len(units)
    of_units, of_classes = weighted_means(rows, units, alike), weighted_means(rows, labels, alike)
    inside = sum(float((row - of_units[unit]).square().sum()) for row, unit in zip(rows, units, strict=True))
    between = sum(
        float((of_units[unit] - of_classes[label]).square().sum())
        for unit, label in zip(units, labels, strict=True)
    )
    inside, between = inside / (len(units) - count + 20), between / (count - classes)
    # The mean size of a unit, less where sizes in a class differ.
    owner = dict(zip(units, labels, strict=True))
    uneven = sum(units.count(unit) ** 2 / labels.count(label) for unit, label in owner.items())
    of_unit = max(0.0, (between - inside) * (count - classes) / (len(units) - uneven))
    return of_unit / (of_unit + inside) if of_unit + inside else 1.0


def text_maps(text: list[Tensor], seen: list[Tensor], weights: list[float], level: float) -> list[Tensor]:
    """a I, and a I + R for each strength of the ridge, in units of `level`, from centred rows."""
    dim, both, own = len(text[0]), 0.0, 0.0
    square = torch.zeros(dim, dim, dtype=torch.float64)
    for t, m, w in zip(text, seen, weights, strict=True):
        both, own = both + w * float(t @ m), own + w * float(t @ t)
        square += w * torch.outer(t, t)
    scale = both / own
    cross = torch.zeros(dim, dim, dtype=torch.float64)
    for t, m, w in zip(text, seen, weights, strict=True):
        cross += w * torch.outer(t, m - scale * t)
    identity = torch.eye(dim, dtype=torch.float64)
    maps = [scale * identity]
    for ridge in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0):
        rest = torch.linalg.solve(square + ridge * level * identity, cross)
        maps.append(scale * identity + rest)
    return maps


def text_fit(
    text: list[Tensor], seen: list[Tensor], weights: list[float], told: list[bool]
) -> tuple[Tensor, list[Tensor], float]:
    """T, what it leaves of each class mean with the class left out, and R^2."""
    dim = len(seen[0])
    nothing = torch.zeros(dim, dim, dtype=torch.float64), seen, 0.0
    known = [c for c, there in enumerate(told) if there]
    if len(known) < 3:
        return nothing
    w = [weights[c] for c in known]
    x0, y0 = (weighted_mean([rows[c] for c in known], w) for rows in (text, seen))
    level = sum(weights[c] * float((text[c] - x0) @ (text[c] - x0)) for c in known) / dim
    whole = text_maps([text[c] - x0 for c in known], [seen[c] - y0 for c in known], w, level)
    alone, predicted = dict[int, Tensor](), [dict[int, Tensor]() for _ in whole]
    for out in known:
        rest = [c for c in known if c != out]
        w = [weights[c] for c in rest]
        x0, y0 = (weighted_mean([rows[c] for c in rest], w) for rows in (text, seen))
        maps = text_maps([text[c] - x0 for c in rest], [seen[c] - y0 for c in rest], w, level)
        alone[out] = seen[out] - y0
        for found, mapped in zip(predicted, maps, strict=True):
            found[out] = (text[out] - x0) @ mapped
    total = sum(weights[c] * float(alone[c] @ alone[c]) for c in known)
    left = [sum(weights[c] * float((alone[c] - f[c]).square().sum()) for c in known) for f in predicted]
    best = left.index(min(left))
    if not left[best] < total:
        return nothing
    residuals = [alone[c] - predicted[best][c] if c in alone else seen[c] for c in range(len(seen))]
    return whole[best], residuals, 1.0 - left[best] / total


def between(
    apart: list[Tensor], counts: list[float], weights: list[float], noise: Tensor, shrinkage: float
) -> Tensor:
    """How class means lie apart, [D, D]: the weighted squares less what sampling adds, shrunk; of one class, I."""
    if len(apart) == 1:
        return torch.eye(len(apart[0]), dtype=torch.float64)
    total = torch.zeros_like(noise)
    for row, count, w in zip(apart, counts, weights, strict=True):
        total += w / sum(weights) * (torch.outer(row, row) - noise / count)
    return shrunk(total, len(apart), shrinkage)


def left_by_texts(
    left: list[Tensor],
    seen: list[Tensor],
    counts: list[float],
    weights: list[float],
    told: list[bool],
    noise: Tensor,
) -> float:
    """Share of the variance of class means, less what sampling adds, that texts leave; each class is left out."""
    known = [c for c, there in enumerate(told) if there]
    before = after = 0.0
    for c, residual in zip(known, left, strict=True):
        rest = [other for other in known if other != c]
        alone = seen[c] - weighted_mean([seen[other] for other in rest], [weights[other] for other in rest])
        of_sampling = float(noise.trace()) / counts[c]
        before += weights[c] * (float(alone @ alone) - of_sampling)
        after += weights[c] * (float(residual @ residual) - of_sampling)
    return max(after / before, 0.05) if before > 0 else 0.05


def shared_gaussian(
    features: Tensor,
    labels: list[int],
    units: list[int],
    prototypes: Tensor,
    correlation: float,
    shrinkage: float,
) -> dict[str, Tensor]:
    """What all classes share, in the features' own coordinates: g, Sigma, Lambda, Lambda_0, tbar, T and R^2.

    Whitened by a Cholesky factor: any other root of Sigma turns the space, and nothing here depends on that.
    """
    dim, classes = features.shape[2], sorted(set(labels))
    n, means, alike = list[float](), list[Tensor](), observations_of(units, correlation)
    for c in classes:
        own = [place for place, label in enumerate(labels) if label == c]
        n.append(sum(alike[place] for place in own))
        means.append(weighted_mean([features[0, place] for place in own], [alike[place] for place in own]))
    weights = [count / (count + 2.0) for count in n]
    centre = weighted_mean(means, weights)
    scatter, sampling, freedom = within(features, units, labels, alike)
    sigma = shrunk(scatter, freedom, shrinkage)
    whitening = torch.linalg.inv(torch.linalg.cholesky(sigma)).T
    noise = whitening.T @ sampling @ whitening
    told = [bool((prototypes[c] != 0).any()) for c in classes]
    text_centre = torch.zeros(dim, dtype=torch.float64)
    if any(told):
        pairs = [(prototypes[c], w) for c, w, there in zip(classes, weights, told, strict=True) if there]
        text_centre = weighted_mean([t for t, _ in pairs], [w for _, w in pairs])
    text = [(prototypes[c] - text_centre) @ whitening for c in classes]
    seen = [(mean - centre) @ whitening for mean in means]
    mapped, residuals, r2 = text_fit(text, seen, weights, told)
    spread = torch.zeros(dim, dim, dtype=torch.float64)
    # Classes that texts predict, or all where they predict none.
    chosen = [there or not r2 for there in told]
    kept = [[v for v, there in zip(of, chosen, strict=True) if there] for of in (residuals, n, weights)]
    about_texts = between(*kept, noise, shrinkage)  # type: ignore[arg-type]
    for direction in torch.linalg.eigh(about_texts)[1].T:
        spread += max(float(direction @ about_texts @ direction), 0.02) * torch.outer(direction, direction)
    if r2:
        r2 = 1.0 - left_by_texts(kept[0], seen, n, weights, told, noise)
    back = torch.linalg.inv(whitening)
    return {
        "centre": centre,
        "sigma": sigma,
        "spread": back.T @ spread @ back,
        "blank": back.T @ spread @ back / (1.0 - r2),
        "text_centre": text_centre,
        "text_map": whitening @ mapped @ back,
        "text_r2": torch.tensor(r2, dtype=torch.float64),
    }


def gaussian(x: Tensor, mean: Tensor, variance: Tensor) -> float:
    """log N(x; mean, variance), less a constant."""
    apart = x - mean
    return -0.5 * float(apart @ torch.linalg.inv(variance) @ apart + torch.logdet(variance))


def log_likelihoods(
    shared: dict[str, Tensor],
    counts: list[int],
    sums: Tensor,
    prototypes: Tensor,
    trust: Tensor,
    images: Tensor,
) -> Tensor:
    """log N(x; m, V) with whole covariance matrices, image by image and class by class."""
    sigma = shared["sigma"]
    rows = []
    for x in images:
        row = []
        for n, total, text, share in zip(counts, sums, prototypes, trust, strict=True):
            blank = shared["centre"], shared["blank"]
            predicted = (
                shared["centre"] + share * (text - shared["text_centre"]) @ shared["text_map"],
                share * shared["spread"] + (1.0 - share) * shared["blank"],
            )
            priors = [predicted, blank] if bool((text != 0).any()) else [blank]
            if n:
                priors.sort(key=lambda prior: -gaussian(total / n, prior[0], prior[1] + sigma / n))
            (mean, spread), prior = priors[0], priors[0][0]
            variance = sigma + spread
            if n:
                gain = spread @ torch.linalg.inv(spread + sigma / n)
                mean = prior + gain @ (total / n - prior)
                variance = sigma + torch.linalg.inv(torch.linalg.inv(spread) + n * torch.linalg.inv(sigma))
            row.append(torch.tensor(gaussian(x, mean, variance), dtype=torch.float64))
        rows.append(torch.stack(row))
    return torch.stack(rows)


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


def calibration_error(
    confidences: list[float], correct: list[bool], bins: int, labels: list[int] | None = None
) -> float:
    """Bin by bin; bin k holds confidences in (k / bins, (k + 1) / bins]; with labels each class has one vote."""
    votes = [1.0] * len(correct) if labels is None else [1.0 / labels.count(label) for label in labels]
    total = 0.0
    for k in range(bins):
        inside = [
            (p, right, vote)
            for p, right, vote in zip(confidences, correct, votes, strict=True)
            if k / bins < p <= (k + 1) / bins or (k == 0 and p == 0.0)
        ]
        if inside:
            votes_inside = sum(vote for _, _, vote in inside)
            accuracy = sum(vote * right for _, right, vote in inside) / votes_inside
            confidence = sum(vote * p for p, _, vote in inside) / votes_inside
            total += votes_inside / sum(votes) * abs(accuracy - confidence)
    return total
