"""The page of the acceptance study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.intervals import Interval, over_classes, over_draws, over_kinds
from benchmarks.kept import draws_of
from benchmarks.studies.fresh_draws.collections import PHOTOGRAPHS, units
from benchmarks.studies.side_by_side.driver import AFTER, BEFORE, SIDES
from benchmarks.studies.side_by_side.worker import ADDITIONS, METHOD
from benchmarks.study import Results, table

__all__ = ["generated"]

KIND_LEAST, ALL_LEAST, NLL_MOST = -0.01, -0.005, 0.02
LOST_MOST, BEHIND_MOST = 0.01, -0.01
KEPT, KEPT_WITHIN = 0.95, 0.02
Draw = Mapping[str, Any]


def generated(results: Results) -> str:
    """Return all tables as Markdown."""
    done = {unit.name: _done(results[unit.name]) for unit in units() if unit.name in results}
    kinds: dict[str, list[str]] = {}
    for unit in units():
        if done.get(unit.name):
            kinds.setdefault(unit.kind, []).append(unit.name)
    first = next(iter(results.values()))
    lines = [
        f"Before: commit `{first['commits'][BEFORE]}`; after: `{first['commits'][AFTER]}`; torch"
        f" {first['versions']['torch']}, one thread. Means over draws; intervals of the paired difference are 95%, by"
        " Student's t over draws, on photographs by bootstrap over classes, of which each weighs the same there, for"
        " NLL too. Bold: a kind, all its draws.",
        "",
        *_missing(done),
        *_existing(kinds, done),
        *_added(kinds, done),
        *_rejection(kinds, done),
    ]
    return "\n".join(lines) + "\n"


def _done(unit: Mapping[str, Any]) -> list[Draw]:
    """Return the draws on which no side failed."""
    return [draw for draw in draws_of(unit) if not any("failed" in draw[side] for side in SIDES)]


def _missing(done: Mapping[str, Sequence[Draw]]) -> list[str]:
    """Name the settings that lack draws: those that are not measured, or on which a version failed."""
    lacking = {unit.name: len(unit.seeds) - len(done.get(unit.name, ())) for unit in units()}
    some = [f"{name} ({count})" for name, count in lacking.items() if count]
    return (
        [f"**Draws that are missing or failed, and are in no table:** {', '.join(some)}.", ""] if some else []
    )


def _existing(kinds: Mapping[str, Sequence[str]], done: Mapping[str, Sequence[Draw]]) -> list[str]:
    """Return the table of existing classes, and whether the bounds hold."""
    rows: list[list[str]] = []
    gaps: dict[str, tuple[Interval, Interval]] = {}
    for kind, names in kinds.items():
        for name in names:
            rows.append(_existing_row(name, done[name], _gaps(kind, done[name])))
        every = [draw for name in names for draw in done[name]]
        gaps[kind] = _gaps(kind, every)
        if len(names) > 1:
            rows.append(_existing_row(f"**{kind}**", every, gaps[kind]))
    over_all = [over_kinds(some) for some in zip(*gaps.values(), strict=True)]
    shown = over_all[0].shown(), over_all[1].shown(3, 1.0)
    rows.append(["**all kinds, equally weighted**", "", "", "", shown[0], "", "", shown[1], "", ""])
    accuracy = ["balanced accuracy, before", "after", "difference"]
    others = ["ECE, before / after", "processor seconds, before / after"]
    head = ["collection", "draws", *accuracy, "NLL, before", "after", "difference", *others]
    balanced = {kind: pair[0].low > KIND_LEAST for kind, pair in gaps.items()}
    nll = {kind: pair[1].high < NLL_MOST for kind, pair in gaps.items()}
    return [
        "**Existing classes**",
        "",
        *table(head, rows),
        "",
        _verdict("Balanced accuracy: lower end above -1.0 points for each kind", balanced),
        _verdict("Lower end above -0.5 points over the kinds", {"all kinds": over_all[0].low > ALL_LEAST}),
        _verdict("NLL: upper end below +0.02", nll | {"all kinds": over_all[1].high < NLL_MOST}),
        "",
    ]


def _gaps(kind: str, draws: Sequence[Draw]) -> tuple[Interval, Interval]:
    """Return how much more balanced accuracy and NLL are after than before."""
    if kind == PHOTOGRAPHS:
        sides = [[draw[side]["classes"] for side in SIDES] for draw in draws]
        balanced, nll = ([_less(before, after, place) for before, after in sides] for place in (0, 1))
        return over_classes(balanced), over_classes(nll)
    return (
        over_draws([_row(draw, AFTER)["balanced"] - _row(draw, BEFORE)["balanced"] for draw in draws]),
        over_draws([_row(draw, AFTER)["nll"] - _row(draw, BEFORE)["nll"] for draw in draws]),
    )


def _less(before: Mapping[str, Any], after: Mapping[str, Any], place: int) -> dict[str, float]:
    """Return by class how much more one of its figures is after than before."""
    return {name: after[name][place] - value[place] for name, value in before.items()}


def _row(draw: Draw, side: str) -> Mapping[str, float]:
    found: Mapping[str, float] = draw[side]["rows"][METHOD]
    return found


def _existing_row(name: str, draws: Sequence[Draw], gaps: tuple[Interval, Interval]) -> list[str]:
    def mean(side: str, measure: str, factor: float, digits: int) -> str:
        return f"{factor * fmean(_row(draw, side)[measure] for draw in draws):.{digits}f}"

    return [
        name,
        str(len(draws)),
        *(mean(side, "balanced", 100, 1) for side in SIDES),
        gaps[0].shown(),
        *(mean(side, "nll", 1, 3) for side in SIDES),
        gaps[1].shown(3, 1.0),
        " / ".join(mean(side, "ece", 100, 1) for side in SIDES),
        " / ".join(f"{fmean(draw[side]['seconds'] for draw in draws):.1f}" for side in SIDES),
    ]


def _added(kinds: Mapping[str, Sequence[str]], done: Mapping[str, Sequence[Draw]]) -> list[str]:
    """Return the table of added classes, and whether the bounds hold."""
    rows = []
    lost: dict[str, bool] = {}
    behind: dict[str, bool] = {}
    for count, shots in ADDITIONS:
        how = f"{count} x {shots}"
        for kind, names in kinds.items():
            for name in names:
                draws = [draw for draw in done[name] if how in draw[AFTER]["added"]]
                if not draws:
                    continue
                gap = _added_gap(kind, draws, how)
                rows.append(_added_row(name, _words(count, shots), how, draws, gap))
                case = f"{name}, {_words(count, shots)}"
                lost[case] = fmean(draw[AFTER]["added"][how]["lost"] for draw in draws) <= LOST_MOST
                behind[case] = gap.mean > BEHIND_MOST
    measures = [f"{what}, before" for what in ("lost", "found", "all classes")]
    pairs = [cell for one in measures for cell in (one, "after")]
    return [
        "**Added classes**",
        "",
        "Points of balanced accuracy that existing classes lose (worst draw), per cent of the added classes' images"
        " that are found, and balanced accuracy over all classes.",
        "",
        *table(["collection", "added", "draws", *pairs, "difference"], rows),
        "",
        _verdict("At most 1.0 points lost on average", lost),
        _verdict("Balanced accuracy over all classes less than 1.0 points behind", behind),
        "",
    ]


def _words(count: int, shots: int) -> str:
    what = "text alone" if not shots else f"{shots} image{'s' if shots > 1 else ''}"
    return f"{count}, {what}"


def _added_gap(kind: str, draws: Sequence[Draw], how: str) -> Interval:
    """Return how much more balanced accuracy over existing and added classes is after than before."""
    if kind == PHOTOGRAPHS:
        sides = [[draw[side]["added_classes"][how] for side in SIDES] for draw in draws]
        return over_classes(
            [{name: after[name] - value for name, value in before.items()} for before, after in sides]
        )
    return over_draws(
        [draw[AFTER]["added"][how]["all"] - draw[BEFORE]["added"][how]["all"] for draw in draws]
    )


def _added_row(name: str, words: str, how: str, draws: Sequence[Draw], gap: Interval) -> list[str]:
    def values(side: str, what: str) -> list[float]:
        return [draw[side]["added"][how][what] for draw in draws]

    cells = [name, words, str(len(draws))]
    cells += [
        f"{100 * fmean(values(side, 'lost')):.2f} ({100 * max(values(side, 'lost')):.1f})" for side in SIDES
    ]
    cells += [f"{100 * fmean(values(side, what)):.1f}" for what in ("found", "all") for side in SIDES]
    return [*cells, gap.shown()]


def _rejection(kinds: Mapping[str, Sequence[str]], done: Mapping[str, Sequence[Draw]]) -> list[str]:
    """Return the table of `--reject`, and whether the bound holds."""
    rows = []
    kept: dict[str, bool] = {}
    by_kind: list[float] = []
    for names in kinds.values():
        every = _values([draw for name in names for draw in done[name]], AFTER, "known_accepted")
        by_kind += [fmean(every)] if every else []
        for name in names:
            known = {side: _values(done[name], side, "known_accepted") for side in SIDES}
            unknown = {side: _values(done[name], side, "unknown_accepted") for side in SIDES}
            cells = [name, " / ".join(str(len(known[side])) for side in SIDES)]
            cells += [_share(some[side]) for some in (known, unknown) for side in SIDES]
            rows.append(cells)
            if known[AFTER]:
                kept[name] = abs(fmean(known[AFTER]) - KEPT) <= KEPT_WITHIN
    if by_kind:
        rows.append(["**all kinds, equally weighted**", "", "", _share(by_kind), "", ""])
        kept["all kinds"] = abs(fmean(by_kind) - KEPT) <= KEPT_WITHIN
    shares = ["kept, before", "after", "unknown accepted, before", "after"]
    return [
        "**`--reject`**",
        "",
        "Per cent of new images of known classes that are kept, and of unknown images that are accepted. A draw without"
        " a threshold is in no mean.",
        "",
        *table(["collection", "draws with a threshold, before / after", *shares], rows),
        "",
        _verdict("95 ± 2% of new images of known classes are kept", kept),
        "",
    ]


def _values(draws: Sequence[Draw], side: str, name: str) -> list[float]:
    return [draw[side][name] for draw in draws if draw[side].get(name) is not None]


def _share(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f}" if values else "-"


def _verdict(rule: str, holds: Mapping[str, bool]) -> str:
    """Say whether a rule holds, and otherwise where it does not."""
    broken = [name for name, good in holds.items() if not good]
    return f"- {rule}: " + ("holds." if not broken else f"**does not hold** for {'; '.join(broken)}.")
