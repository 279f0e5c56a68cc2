"""Figures of the report, computed from answers: tensors in, records out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from vlltr_index.evaluation.metrics import bins, few5, paired_difference
from vlltr_index.evaluation.records import ClassGain, Gains, GroupGain, WeakClass

SHOTS = ("many", "medium", "few", "few5", "new")
"""Sizes of classes, largest first; here each class has exactly one: `few` does not include `few5`."""

_BARS = (
    40  # about; with more classes, classes of similar size share a bar, and each size has at least one bar
)
_LISTED = 8  # classes that are listed for the largest gain, and for the smallest
_RESAMPLES = 1000  # bootstrap resamples for each bar's interval


def shots(counts: Tensor) -> list[str]:
    """Return one of `SHOTS` for each class of `counts`, int64 [C], by the release's bounds."""
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
    """Compute the method's gain of accuracy over another row, by class size.

    Args:
        against: Name of the other row.
        method: Bool [N], whether the method is right.
        other: Bool [N], whether the other row is right.
        labels: Int64 [N], columns of the images' classes.
        counts: Int64 [C], training images of each class.
        names: Names of the C classes.
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
                bar = GroupGain(
                    shot=name,
                    classes=len(part),
                    first=names[first],
                    last=names[last],
                    largest=int(counts[first]),
                    smallest=int(counts[last]),
                    gain=gain,
                )
                bars.append(bar)
    right = [
        torch.bincount(labels[row], minlength=len(counts)) / tested.clamp(min=1) for row in (method, other)
    ]
    rows = [
        ClassGain(
            name=names[c],
            shot=shot[c],
            train=int(counts[c]),
            images=int(tested[c]),
            method=float(right[0][c]),
            other=float(right[1][c]),
        )
        for c in order
    ]
    rows.sort(key=lambda r: (r.other - r.method, -r.images, r.train, r.name))
    most = tuple(r for r in rows[:_LISTED] if r.method > r.other)
    least = tuple(r for r in rows[::-1][:_LISTED] if r.method < r.other)
    return Gains(against, tuple(bars), most, least)


def confused_pairs(best: Tensor, labels: Tensor, limit: int) -> list[tuple[int, int, int]]:
    """Return the most frequent confusions, as (right column, answered column, images), most frequent first.

    Args:
        best: Int64 [N], answered columns; -1 for a class that is gone, which is left out.
        labels: Int64 [N], right columns.
        limit: Most confusions to return.
    """
    wrong = (best != labels) & (best >= 0)
    pairs = Counter(zip(labels[wrong].tolist(), best[wrong].tolist(), strict=True))
    return [(a, b, n) for (a, b), n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:limit]]


def weakest(
    best: Tensor, labels: Tensor, counts: Tensor, names: Sequence[str], limit: int
) -> tuple[WeakClass, ...]:
    """Return the classes of lowest accuracy, in rising order; of ties those with more images first.

    Args:
        best: Int64 [N], answered columns.
        labels: Int64 [N], right columns.
        counts: Int64 [C], training images of each class.
        names: Names of the C classes.
        limit: Most classes to return; classes without an error are left out.
    """
    tested = torch.bincount(labels, minlength=len(counts)).tolist()
    right = torch.bincount(labels[best == labels], minlength=len(counts)).tolist()
    shot = shots(counts)
    order = [c for c in range(len(counts)) if tested[c] > right[c]]
    order.sort(key=lambda c: (right[c] / tested[c], -tested[c], names[c]))
    rows = []
    for c in order[:limit]:
        taken = Counter(i for i in best[labels == c].tolist() if i not in (c, -1))
        frequent = sorted(taken.items(), key=lambda item: (-item[1], item[0]))[:3]
        shown = tuple((names[i], n) for i, n in frequent)
        rows.append(
            WeakClass(
                name=names[c],
                shot=shot[c],
                train=int(counts[c]),
                images=tested[c],
                right=right[c],
                taken_for=shown,
            )
        )
    return tuple(rows)


def spread(chosen: Tensor, labels: Tensor, confidence: Tensor, counts: Tensor, limit: int) -> list[int]:
    """Choose images to show: the most confident one of each class, with the smallest classes first.

    Args:
        chosen: Bool [N], which images may be shown.
        labels: Int64 [N], right columns.
        confidence: Float [N], probability of the answer.
        counts: Int64 [C], training images of each class.
        limit: Most images to return.
    """
    surest: dict[int, int] = {}
    places = chosen.nonzero()[:, 0]
    for place in places[confidence[places].argsort(descending=True, stable=True)].tolist():
        surest.setdefault(int(labels[place]), place)
    return [surest[c] for c in sorted(surest, key=lambda c: (int(counts[c]), c))[:limit]]
