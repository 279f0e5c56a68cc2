"""The report's figures from answers: tensors in, records out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from vlltr_index.evaluation.metrics import bins, few5, paired_difference
from vlltr_index.evaluation.records import ClassGain, Gains, GroupGain, WeakClass

SHOTS = ("many", "medium", "few", "few5", "new")
"""Classes by size, largest first; here each class has one of them: `few5` is taken out of `few`."""

_BARS = 40  # or a few more where a size would have none; with more classes, neighbours in size share a bar
_LISTED = 8  # classes named with the largest gain, and with the smallest
_RESAMPLES = 1000  # of the bootstrap behind each bar's interval


def shots(counts: Tensor) -> list[str]:
    """One of `SHOTS` for each class of `counts` int64 [C], by the release's bounds."""
    return [
        "few5" if small else name
        for name, small in zip(bins(counts, "release"), few5(counts).tolist(), strict=True)
    ]


def gains(
    against: str,
    method: Tensor,
    other: Tensor,
    labels: Tensor,
    counts: Tensor,
    names: Sequence[str],
) -> Gains:
    """What the method is above another row, by class size.

    Args:
        against: Name of the other row.
        method: Bool [N], whether the method is right.
        other: Bool [N], whether the other row is.
        labels: int64 [N], columns of the images' classes.
        counts: int64 [C], training images.
        names: Of the C classes.
    """
    tested = torch.bincount(labels, minlength=len(counts))
    shot = shots(counts)
    order = sorted((c for c in range(len(counts)) if tested[c]), key=lambda c: (-int(counts[c]), names[c]))
    bars = []
    for name in SHOTS:
        members = [c for c in order if shot[c] == name]
        if members:
            wanted = max(1, round(_BARS * len(members) / max(len(order), _BARS)))
            wanted = len(members) if len(order) <= _BARS else min(wanted, len(members))
            for part in torch.tensor(members).tensor_split(wanted):
                inside = torch.isin(labels, part)
                gain = paired_difference(method[inside], other[inside], resamples=_RESAMPLES)
                first = int(part[0])
                last = int(part[-1])
                sizes = int(counts[first]), int(counts[last])
                bars.append(GroupGain(name, len(part), names[first], names[last], *sizes, gain))
    right = [
        torch.bincount(labels[row], minlength=len(counts)) / tested.clamp(min=1) for row in (method, other)
    ]
    rows = [
        ClassGain(names[c], shot[c], int(counts[c]), int(tested[c]), float(right[0][c]), float(right[1][c]))
        for c in order
    ]
    rows.sort(key=lambda r: (r.other - r.method, -r.images, r.train, r.name))
    most = tuple(r for r in rows[:_LISTED] if r.method > r.other)
    least = tuple(r for r in rows[::-1][:_LISTED] if r.method < r.other)
    return Gains(against, tuple(bars), most, least)


def confused_pairs(best: Tensor, labels: Tensor, limit: int) -> list[tuple[int, int, int]]:
    """The most frequent confusions: (right column, answered column, images), most frequent first.

    Args:
        best: int64 [N], answered columns; -1 for a class that is gone, which is left out.
        labels: int64 [N], right columns.
        limit: How many.
    """
    wrong = (best != labels) & (best >= 0)
    pairs = Counter(zip(labels[wrong].tolist(), best[wrong].tolist(), strict=True))
    return [(a, b, n) for (a, b), n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:limit]]


def weakest(
    best: Tensor, labels: Tensor, counts: Tensor, names: Sequence[str], limit: int
) -> tuple[WeakClass, ...]:
    """Classes by rising accuracy; of equal ones those with more images first.

    Args:
        best: int64 [N], answered columns.
        labels: int64 [N], right columns.
        counts: int64 [C], training images.
        names: Of the C classes.
        limit: How many; classes without an error are left out.
    """
    tested = torch.bincount(labels, minlength=len(counts)).tolist()
    right = torch.bincount(labels[best == labels], minlength=len(counts)).tolist()
    shot = shots(counts)
    order = [c for c in range(len(counts)) if tested[c] > right[c]]
    order.sort(key=lambda c: (right[c] / tested[c], -tested[c], names[c]))
    rows = []
    for c in order[:limit]:
        taken = Counter(i for i in best[labels == c].tolist() if i not in (c, -1))
        shown = tuple(
            (names[i], n) for i, n in sorted(taken.items(), key=lambda item: (-item[1], item[0]))[:3]
        )
        rows.append(WeakClass(names[c], shot[c], int(counts[c]), tested[c], right[c], shown))
    return tuple(rows)


def spread(chosen: Tensor, labels: Tensor, confidence: Tensor, counts: Tensor, limit: int) -> list[int]:
    """Images to show: the surest of each class, classes with the fewest training images first.

    Args:
        chosen: Bool [N], which images may be shown.
        labels: int64 [N], right columns.
        confidence: Float [N], probability of the answer.
        counts: int64 [C], training images.
        limit: How many.
    """
    surest: dict[int, int] = {}
    places = chosen.nonzero()[:, 0]
    for place in places[confidence[places].argsort(descending=True, stable=True)].tolist():
        surest.setdefault(int(labels[place]), place)
    return [surest[c] for c in sorted(surest, key=lambda c: (int(counts[c]), c))[:limit]]
