"""What a class's text tells of its mean image: a linear map of its vector, and likeness to the texts of other classes.

The prior mean of a class is the mean over its sentences of

    T (e - tbar) + K (k(s) - kbar),        k_l(s) = exp((cos(b(s), b_l) - 1) / 0.5)

where e is a sentence's normalised vector, and b(s) that vector beside the sentence's words and, if there is one, its
reading by a sentence-embedding model, each less its mean over the classes and scaled alike; b_l is the mean of b over
the sentences of class l. T is a multiple of the identity, beside a ridge regression where K is zero. So each sentence
has its own exact part, and a word that the encoder did not read, or an encoder whose towers were never trained
together, still tells something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.dealing import row_keys
from vlltr_index.tensors import full_precision, unit_rows

NUMBERS = 512
"""Numbers that words are hashed to, see `data.words.number_words`."""
_EQUAL = 1e-9  # share of the squares of texts that is rounding error
_RIDGES = tuple(10.0**n for n in range(-2, 5))
_WIDTH = 0.5
_LANDMARKS = 2048  # classes at most
_FEWEST = 10  # classes with a text, for others to be compared with
_AT_ONCE = 4096
_NOTHING = 1e-5  # spread of unit rows that is rounding
_LEAST = 1e-6  # share of the largest: smaller eigenvalues are rounding


@dataclass(frozen=True, eq=False)
class TextKernel:
    """How alike a sentence is to the texts of L classes, by its vector, by its words, and by its reading.

    Attributes:
        centre: Float [X], the mean over the classes of the unit vectors, of the words, and of the unit readings; X is
            D + 512 + P, or D + 512 for a kernel that does not know the readings.
        scale: Float [X], by what these are multiplied, so that they count alike.
        landmarks: Float [L, X], the texts of L classes, all or 2,048, in these coordinates, normalised.
    """

    centre: Tensor
    scale: Tensor
    landmarks: Tensor

    @classmethod
    def of(cls, bank: AnchorBank, with_readings: bool = True) -> TextKernel | None:
        """Make it of the texts of a bank's classes; None if their words are not known, or there are few classes.

        Args:
            bank: The texts.
            with_readings: Whether their readings count, if the bank has them.
        """
        if bank.words is None or bank.num_classes < _FEWEST:
            return None
        means = _class_means(bank, _sentences, with_readings)
        centre = means.mean(0)
        apart = means - centre
        scale = torch.zeros_like(centre)
        first = 0
        for width in (bank.dim, NUMBERS, len(centre) - bank.dim - NUMBERS):
            at = slice(first, first + width)
            size = apart[:, at].square().sum(1).mean().sqrt()
            scale[at] = torch.where(size > _NOTHING, 1.0 / size, 0.0)
            first += width
        some = apart
        if bank.num_classes > _LANDMARKS:
            # Chosen by the content of each class's first anchor, so that the order of the classes has no effect.
            keys = row_keys(bank.vectors[bank.offsets[:-1]])
            some = apart[sorted(range(len(keys)), key=keys.__getitem__)[:_LANDMARKS]]
        return cls(centre=centre, scale=scale, landmarks=unit_rows(some * scale))

    def alike(self, vectors: Tensor, words: Tensor, readings: Tensor | None = None) -> Tensor:
        """Compute k(s) of sentences, [M, L] in float32.

        Args:
            vectors: Float [M, D], unnormalised as the encoder gives them.
            words: Int16 [M, K], of `data.words.number_words`.
            readings: Float [M, P], by the sentence-embedding model; unused by a kernel that does not know them.
        """
        known = readings if self.knows_readings(vectors.shape[1]) else None
        with full_precision(vectors.device):
            told = unit_rows((_sentences(vectors, words, known) - self.centre) * self.scale)
            return ((told @ self.landmarks.T - 1.0) / _WIDTH).exp()

    def knows_readings(self, dim: int) -> bool:
        """Say whether readings count, beside vectors of width `dim`."""
        return len(self.centre) > dim + NUMBERS

    @cached_property
    def root(self) -> Tensor:
        """An inverse root of the likeness of the landmarks to each other, float64 [L, R]: ridge is taken after it."""
        marks = self.landmarks.double()
        values, vectors = torch.linalg.eigh(((marks @ marks.T - 1.0) / _WIDTH).exp())
        kept = values > _LEAST * values[-1]
        found: Tensor = vectors[:, kept] * values[kept].rsqrt()
        return found

    def to(self, device: torch.device | str) -> TextKernel:
        """Return it on another device."""
        return TextKernel(*(getattr(self, field.name).to(device) for field in fields(self)))


def class_features(bank: AnchorBank, kernel: TextKernel | None) -> Tensor:
    """Compute the mean over the sentences of each class of their normalised vectors, beside those of `alike`.

    Args:
        bank: The sentences of C classes, with their words if there is a kernel.
        kernel: None: vectors alone.

    Returns:
        Float32 [C, D + L]; [C, D] without a kernel.
    """
    vectors = bank.prototypes(True).float()
    return vectors if kernel is None else torch.cat([vectors, _class_means(bank, kernel.alike)], 1)


def sentence_features(bank: AnchorBank, rows: slice, kernel: TextKernel | None) -> Tensor:
    """Return the terms of the means of `class_features` for some rows of a bank: float32 [M, D + L]."""
    vectors = bank.vectors[rows]
    unit = unit_rows(vectors).float()
    if kernel is None:
        return unit
    assert bank.words is not None
    readings = None if bank.readings is None else bank.readings[rows]
    return torch.cat([unit, kernel.alike(vectors, bank.words[rows], readings)], 1)


def _sentences(vectors: Tensor, words: Tensor, readings: Tensor | None) -> Tensor:
    """Return the unit vectors of sentences beside their words and unit readings, float32 [M, D + 512 + P]."""
    sizes = words.abs().long()
    hashed = vectors.new_zeros(len(words), NUMBERS + 1, dtype=torch.float32)
    hashed.scatter_add_(1, sizes, words.sign().float())
    parts = [unit_rows(vectors).float(), unit_rows(hashed[:, 1:])]
    if readings is not None:
        parts.append(unit_rows(readings.float()))
    return torch.cat(parts, 1)


def _class_means(
    bank: AnchorBank, of: Callable[[Tensor, Tensor, Tensor | None], Tensor], with_readings: bool = True
) -> Tensor:
    """Compute the mean over the sentences of each class of what `of` makes of them: float32 [C, X]."""
    assert bank.words is not None
    sums: Tensor | None = None
    for start in range(0, len(bank.vectors), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        owners = bank.class_of_row[rows]
        readings = bank.readings[rows] if with_readings and bank.readings is not None else None
        found = of(bank.vectors[rows], bank.words[rows], readings)
        sums = found.new_zeros(bank.num_classes, found.shape[1]) if sums is None else sums
        sums.index_add_(0, owners, found)
    assert sums is not None
    return sums / bank.offsets.diff()[:, None]


@dataclass(frozen=True, eq=False)
class VectorMap:
    """The map x -> a x + (x V) G from centred, whitened text vectors to class means less their mean.

    Attributes:
        multiple: a.
        left: Float64 [D, K], V.
        right: Float64 [K, D], G.
    """

    multiple: float
    left: Tensor
    right: Tensor

    @classmethod
    def zero(cls, like: Tensor) -> VectorMap:
        """Return the map to zero of rows [C, D]."""
        dim = like.shape[1]
        return cls(0.0, like.new_zeros(dim, 0), like.new_zeros(0, dim))

    def __call__(self, rows: Tensor) -> Tensor:
        """Map rows [C, D]: [C, D]."""
        return self.multiple * rows + (rows @ self.left) @ self.right


@dataclass(frozen=True, eq=False)
class TextFit:
    """What texts tell of class means, fitted on classes.

    Attributes:
        of_vectors: The map of the vectors; zero where texts predict nothing.
        of_alike: Float64 [L, D], the map of the likeness; zero where it predicts nothing more.
        residuals: Float64 [C, D], what class means that were left out of the fit differ from what it told of them;
            meaningless for classes without text unless the maps are zero.
        shifts: Float64 [C, D], by how much a fit without a class, about the same mean of the class means, tells another
            mean of it.
        r2: Share of the class means' variance that texts predict for classes left out, 0 to 1.
    """

    of_vectors: VectorMap
    of_alike: Tensor
    residuals: Tensor
    shifts: Tensor
    r2: float


def fit_text(vectors: Tensor, alike: Tensor, seen: Tensor, weights: Tensor) -> TextFit:
    """Fit the map from texts to class means by predictions for classes that are left out.

    It is zero, or that of `_fit_vectors`, unless likeness to other classes' texts, beside a multiple of the identity,
    leaves less of classes left out than either that or the multiple alone, by one standard error over the classes.

    Args:
        vectors: Float64 [C, D], vectors less their mean, whitened.
        alike: Float64 [C, L], likeness less its mean, where the ridge is to be taken; L may be 0.
        seen: Float64 [C, D], class means less their mean, whitened.
        weights: Float64 [C]; 0 for a class without text.
    """
    mapped, residuals, r2 = _fit_vectors(vectors, seen, weights)
    nothing = seen.new_zeros(alike.shape[1], seen.shape[1])
    first = TextFit(mapped, nothing, residuals, torch.zeros_like(seen), r2)
    told = weights > 0
    if not alike.shape[1] or int(told.sum()) < _FEWEST:
        return first
    identity = replace(VectorMap.zero(seen), multiple=_multiple(vectors, seen, weights))
    rest = seen - identity(vectors)
    found, left, shifts = _fit_alike(alike, rest, weights)
    apart = about_others(seen, weights)
    if not all(
        is_less(left, other, weights) for other in (residuals if r2 else apart, about_others(rest, weights))
    ):
        return first
    total = (weights[:, None] * apart.square()).sum()
    r2 = float(1.0 - (weights[:, None] * left.square()).sum() / total)
    return TextFit(identity, found, left, shifts, r2)


def _fit_alike(alike: Tensor, apart: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a ridge regression whose strength leaves the least of classes left out, each by itself, in closed form.

    Args:
        alike: Float64 [C, L], centred.
        apart: Float64 [C, D], what is to be predicted.
        weights: Float64 [C].

    Returns:
        The map [L, D]; the residuals [C, D] of the classes left out; and `TextFit.shifts`.
    """
    share = weights / weights.sum()
    has_text = weights[:, None] > 0
    apart = apart - weighted_mean(apart, weights)
    values, vectors = torch.linalg.eigh((weights[:, None] * alike).T @ alike)
    turned = alike @ vectors
    toward = (weights[:, None] * turned).T @ apart
    level = values.sum() / len(values)
    best: tuple[float, Tensor, Tensor, Tensor] | None = None
    for ridge in _RIDGES:
        shrink = 1.0 / (values.clamp(min=0.0) + ridge * level)
        mapped = shrink[:, None] * toward
        missed = apart - turned @ mapped
        leverage = weights * (turned.square() @ shrink) + share
        left = missed / (1.0 - leverage)[:, None]
        cost = float((weights[:, None] * left.square()).sum())
        if best is None or cost < best[0]:
            # The mean of all stays as it is: of few classes each would be told to lie opposite to itself.
            about_others = (share / (1.0 - share))[:, None] * apart
            shifts = torch.where(has_text, missed - left + about_others, 0.0)
            best = cost, vectors @ mapped, left, shifts
    assert best is not None
    return best[1:]


def about_others(rows: Tensor, weights: Tensor) -> Tensor:
    """Return rows [C, D] less the weighted mean of the others."""
    return (rows - weighted_mean(rows, weights)) / (1.0 - weights / weights.sum())[:, None]


def is_less(residuals: Tensor, others: Tensor, weights: Tensor) -> bool:
    """Say whether residuals [C, D] are smaller than others, in the weighted mean of squares, by one standard error."""
    share = weights / weights.sum()
    gained = (others.square() - residuals.square()).sum(1)
    mean = (share * gained).sum()
    error = (share.square() * (gained - mean).square()).sum().sqrt()
    return bool(mean > error)


def weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    """Compute the weighted mean [D] of rows [C, D]."""
    return (weights[:, None] * rows).sum(0) / weights.sum()


def _fit_vectors(text: Tensor, seen: Tensor, weights: Tensor) -> tuple[VectorMap, Tensor, float]:
    """Fit T, the map from text vectors to class means: a I, or a I + R with a ridge regression R of the rest.

    Of these maps, and zero, the one is chosen that leaves the least of class means that are left out, each by itself,
    in closed form: the mean of the others and a are those of the other classes, and so is R.

    Args:
        text: Float64 [C, D], prototypes less their mean, whitened.
        seen: Float64 [C, D], class means less their mean, whitened.
        weights: Float64 [C]; 0 for a class without text.

    Returns:
        T; the residuals [C, D] of class means that were left out of the fit; and the R^2 of these predictions
        against the mean of the other classes, which T = 0 predicts. Residuals of classes without text are meaningless
        unless T = 0.
    """
    if int((weights > 0).sum()) < 3:
        return VectorMap.zero(seen), seen, 0.0
    x = text - weighted_mean(text, weights)
    y = seen - weighted_mean(seen, weights)
    alone = y / (1.0 - weights / weights.sum())[:, None]
    total = float((weights[:, None] * alone.square()).sum())
    best = VectorMap.zero(seen), alone, total
    for mapped, residuals in _maps(x, y, weights):
        left = float((weights[:, None] * residuals.square()).sum())
        if left < best[2]:
            best = mapped, residuals, left
    mapped, residuals, left = best
    if left >= total:
        return mapped, seen, 0.0
    return mapped, residuals, 1.0 - left / total


def _maps(x: Tensor, y: Tensor, weights: Tensor) -> Iterator[tuple[VectorMap, Tensor]]:
    """Fit a I, and a I + R for each ridge of `_RIDGES`; yield each with the residuals of the classes left out, [C, D].

    Args:
        x, y: Texts and class means, float64 [C, D], less their weighted means.
        weights: Float64 [C].
    """
    share = weights / weights.sum()
    multiple = _multiple(x, y, weights)
    of_others = _multiples_of_others(x, y, weights)[:, None]
    nothing = VectorMap.zero(y)
    yield replace(nothing, multiple=multiple), (y - of_others * x) / (1.0 - share)[:, None]
    root = weights.sqrt()[:, None]
    rows = root * x
    # R is rows^T (rows rows^T + ridge)^-1 rest, or (rows^T rows + ridge)^-1 rows^T rest: the smaller matrix is taken.
    few = len(rows) < rows.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.T if few else rows.T @ rows)
    values = values.clamp(min=0.0)
    left = rows.T @ vectors if few else vectors
    toward_x, toward_y = (vectors.T @ (root * of if few else rows.T @ (root * of)) for of in (x, y))
    turned = x @ left
    level = (rows.square().sum() / rows.shape[1]).clamp(min=1e-300)
    for ridge in _RIDGES:
        shrink = (1.0 / (values + ridge * level))[:, None]
        mapped = VectorMap(multiple, left, shrink * (toward_y - multiple * toward_x))
        missed_x, missed_y = (of - turned @ (shrink * to) for of, to in ((x, toward_x), (y, toward_y)))
        if few:
            leverage = (vectors.square() @ (shrink * values[:, None]))[:, 0]
        else:
            leverage = weights * (turned.square() @ shrink)[:, 0]
        # The fit is linear in what it predicts, so that what it leaves of y - a x follows for any a.
        yield mapped, (missed_y - of_others * missed_x) / (1.0 - leverage - share)[:, None]


def _multiples_of_others(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Fit a of a I without each class, about the means of the others: float64 [C]; 0 where their texts are equal."""
    apart = weights / (1.0 - weights / weights.sum())
    products = (x * y).sum(1)
    squares = x.square().sum(1)
    total = (weights * squares).sum()
    left = total - apart * squares
    above = (weights * products).sum() - apart * products
    return torch.where(left > _EQUAL * total, above / left.clamp(min=1e-300), 0.0)


def _multiple(text: Tensor, seen: Tensor, weights: Tensor) -> float:
    """Fit a of a I, which maps centred texts [C, D] to class means [C, D]."""
    w = weights[:, None]
    return float((w * text * seen).sum() / (w * text.square()).sum().clamp(min=1e-300))
