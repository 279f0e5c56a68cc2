"""The tables of random collections, from the kept draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist, fmean, stdev
from typing import Any

from benchmarks.kept import read
from benchmarks.studies.draws.bench import ADDITIONS
from benchmarks.studies.draws.rules import TEXTLESS
from benchmarks.studies.draws.sources import ALL_SHARE, TEXTS, UNITS
from benchmarks.studies.paired import METHOD, UNDER_TRAINING, WITHOUT_BRANCH

__all__ = ["bound", "generated", "parts", "student"]

SETTINGS = ("2x10", "9xall", "10x20", "10x5", "40x8", "99x3", "200x3", "60xall", "all")
SOURCES = {
    "heldout": "Held-out glyph classes (development), which the encoder never saw",
    "heldout-final": "Held-out glyph classes (final), which the encoder never saw",
    "train": "Trained glyph classes, test images in unseen fonts",
    "icons": "Icons, which the shipped encoder does not suit",
    "clip": "Vectors of CLIP's geometry",
    **{source: f"Units: {name}" for source, name in UNITS.items()},
}
UNTUNED = {
    "families": "icons, test pictures by other designers",
    "bursts": "bursts on photographs",
    "emoji": "emoji of vendors",
    "flags": "flags of vendors",
    "scripts": "letters of other scripts",
}
"""Kinds of collections that chose nothing."""
RULES = ("class means", "shrunk discriminant", "logistic regression", "zero-shot", "Tip-Adapter")
Result = dict[str, Any]
Row = dict[str, Any]


def bound(values: Sequence[float], level: float = 0.95) -> float:
    """Return the upper end of the one-sided interval of the mean, by Student's t; of one value there is none."""
    if len(values) < 2:
        return math.nan
    return fmean(values) + student(level, len(values) - 1) * stdev(values) / math.sqrt(len(values))


def student(level: float, freedom: float) -> float:
    """Return a quantile of Student's t, by Cornish and Fisher."""
    z = NormalDist().inv_cdf(level)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def parts() -> dict[str, str]:
    """Return all tables."""
    runs = list(read("draws").values())
    return {"results/draws.md": generated(runs)} if runs else {}


def generated(runs: Sequence[Result]) -> str:
    """Return all tables as Markdown."""
    first = runs[0]
    parts = [
        "Top-1 in per cent, mean over the draws, each class counted alike / each picture; torch"
        f" {first['versions']['torch']}, {first['machine']['threads']} thread. *Behind*: what the best simple rule,"
        " chosen on folds of the training images, has more than vl-ltr, in points: mean, upper end of its one-sided"
        " 95 % interval, worst draw. ECE in points; a rule's is at the temperature that suits its folds best."
        " `train lgr` in processor seconds. Held-out classes have at most 8 images to train on; a setting that wants"
        f" more classes than there are takes all. In `all` each class has {ALL_SHARE:.0%} of its training images, in"
        " `60xall` all.",
    ]
    for label in sorted({r["label"] for r in runs}):
        for source, title in SOURCES.items():
            some = [r for r in runs if r["label"] == label and _source(r) == source]
            shown = some if source not in UNTUNED else []
            parts += _of_source(title + (f"; encoder of {label}" if label else ""), shown) if shown else []
    kinds = {kind: [r for r in runs if r["source"] == kind] for kind in UNTUNED}
    parts += _untuned({kind: some for kind, some in kinds.items() if some})
    return "\n".join(parts) + "\n"


def _untuned(kinds: Mapping[str, Sequence[Result]]) -> list[str]:
    """Return how far vl-ltr is behind on kinds that chose nothing: each setting, each kind, all draws."""
    rows = {
        f"{run['source']} {run['setting']}": list(run["draws"].values())
        for some in kinds.values()
        for run in some
    }
    for kind, some in kinds.items():
        rows[f"**{UNTUNED[kind]}**"] = [draw for run in some for draw in run["draws"].values()]
    if not rows:
        return []
    rows["**all**"] = [draw for some in kinds.values() for run in some for draw in run["draws"].values()]
    return [
        "",
        "**Kinds that chose nothing**",
        "",
        "vl-ltr where each class counts alike, and under `--prior training` where each picture does; then what the best"
        " simple rule, chosen on folds, and logistic regression, plain or balanced by folds, have more in points: mean,"
        " upper end, and how much larger than the best rule's vl-ltr's NLL is, likewise.",
        "",
        *_table(
            "| collection | draws | pictures of a class | vl-ltr | behind, a class | a picture | behind logistic"
            " regression, a class | a picture | NLL, less the best rule's | under training |",
            rows,
            _behind,
        ),
    ]


def _behind(rows: Sequence[Row]) -> list[str]:
    def upper(values: Sequence[float], digits: int = 2) -> str:
        return f"{fmean(values):+.{digits}f}, {bound(values):+.{digits}f}"

    def gap(rule: Callable[[Row], str]) -> list[str]:
        sides = (("balanced", METHOD), ("accuracy", UNDER_TRAINING))
        return [upper([100 * (r[how][rule(r)] - r[how][row]) for r in rows]) for how, row in sides]

    least, most = min(r["images"][0] for r in rows), max(r["images"][1] for r in rows)
    shares = f"{_mean([r['balanced'] for r in rows], METHOD)} / {_mean([r['accuracy'] for r in rows], UNDER_TRAINING)}"
    nll = [
        upper([r["calibration"][row][1] - r["calibration"][r["best simple"]][1] for r in rows], 3)
        for row in (METHOD, UNDER_TRAINING)
    ]
    best = gap(lambda r: str(r["best simple"]))
    return [str(len(rows)), f"{least} to {most}", shares, *best, *gap(lambda r: "logistic regression"), *nll]


def _source(run: Result) -> str:
    return str(run["source"]) + ("-final" if run["final"] else "")


def _of_source(title: str, runs: Sequence[Result]) -> list[str]:
    by = {(r["setting"], r["texts"]): list(r["draws"].values()) for r in runs}
    true = {s: rows for (s, texts), rows in by.items() if texts == "true"}
    usual = {s: true[s] for s in SETTINGS if s in true}
    few = {s: true[s] for s in sorted(true.keys() - set(SETTINGS), key=_size)}
    lines = ["", f"**{title}**", ""]
    if usual:
        lines += _table(
            f"| classes x images | draws | vl-ltr | {WITHOUT_BRANCH} | {' | '.join(RULES)} | behind, a class"
            " | a picture | ECE / NLL | best simple rule's | train lgr s |",
            usual,
            lambda rows: _main(rows) + _calibration(rows),
        )
    if few:
        head = (
            "| classes x images | draws | vl-ltr | "
            + " | ".join(RULES)
            + " | vl-ltr less the best without text |"
        )
        lines += _table(head, few, _few)
    told = {s: {t: by[s, t] for t in TEXTS if (s, t) in by} for s in SETTINGS}
    told = {s: rows for s, rows in told.items() if rows.keys() - {"true"}}
    if told:
        lines += [
            "Without text branch less vl-ltr, likewise, by what the texts say:",
            "",
        ]
        lines += _table("| classes x images | " + " | ".join(TEXTS) + " |", told, _texts)
    added = {s: rows for s, rows in usual.items() if any("additions" in row for row in rows)}
    if added:
        lines += [
            "One class added: points that the others lose (joint: it is there from the start) / per cent of it found.",
            "",
        ]
        lines += _table("| classes x images | " + " | ".join(ADDITIONS) + " |", added, _added)
    return lines


def _size(setting: str) -> list[int]:
    return [int(n) for n in setting.split("x")]


def _table(head: str, rows: Mapping[str, Any], line: Callable[[Any], list[str]]) -> list[str]:
    """Return a table with a row a setting."""
    rule = "| " + " | ".join("---" for _ in range(head.count("|") - 1)) + " |"
    return [head, rule, *("| " + " | ".join([name, *line(found)]) + " |" for name, found in rows.items()), ""]


def _main(rows: Sequence[Row]) -> list[str]:
    found = {which: [row[which] for row in rows] for which in ("balanced", "accuracy")}
    shown = [" / ".join(_mean(found[which], n) for which in found) for n in (METHOD, WITHOUT_BRANCH, *RULES)]
    behind = [
        _gap([a[r["best simple"]] - a[METHOD] for r, a in zip(rows, some, strict=True) if METHOD in a])
        for some in found.values()
    ]
    return [str(len(rows)), *shown, *behind]


def _few(rows: Sequence[Row]) -> list[str]:
    """Compare with the textless rule that is best in the mean over the draws, with a two-sided interval."""
    found = [row["accuracy"] for row in rows]
    there = [a for a in found if METHOD in a]
    rules = [n for n in TEXTLESS if there and n in there[0]]
    shown = "-"
    if rules:
        best = max(rules, key=lambda n: fmean(a[n] for a in there))
        less = [a[METHOD] - a[best] for a in there]
        shown = f"{100 * fmean(less):+.1f} ± {100 * (bound(less, 0.975) - fmean(less)):.1f} ({best})"
    return [str(len(rows)), *(_mean(found, n) for n in (METHOD, *RULES)), shown]


def _texts(found: Mapping[str, Sequence[Row]]) -> list[str]:
    gaps = {
        t: [a[WITHOUT_BRANCH] - a[METHOD] for a in (row["accuracy"] for row in rows) if METHOD in a]
        for t, rows in found.items()
    }
    return [_gap(gaps[t]) if t in gaps else "" for t in TEXTS]


def _added(rows: Sequence[Row]) -> list[str]:
    """Return a dash where every draw was refused: words stand in the place of figures then."""
    cells = []
    for way in ADDITIONS:
        lost = {}
        recall = {}
        for how in ("added", "joint"):
            told = [(a["before"], a[way][how]) for r in rows if (a := r.get("additions"))]
            pairs = [(before, found) for before, found in told if not isinstance(found, str)]
            lost[how] = f"{100 * fmean(b - f[0] for b, f in pairs):.2f}" if pairs else "-"
            recall[how] = f"{100 * fmean(f[1] for _, f in pairs):.0f}" if pairs else "-"
        cells.append(f"{lost['added']} ({lost['joint']}) / {recall['added']} ({recall['joint']})")
    return cells


def _calibration(rows: Sequence[Row]) -> list[str]:
    """Return calibration error and NLL of the method and of the best rules, and the seconds of `train lgr`."""
    there = [r for r in rows if METHOD in r["accuracy"]]
    if not there:
        return ["-"] * 3

    def shown(found: Sequence[Sequence[float] | None]) -> str:
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return "-"
        return f"{100 * fmean(one[0] for one in known):.1f} / {fmean(one[1] for one in known):.2f}"

    return [
        shown([r["calibration"].get(METHOD) for r in there]),
        shown([r["calibration"].get(r["best simple"]) for r in there]),
        f"{fmean(r['train lgr'] for r in there):.1f}",
    ]


def _mean(found: Sequence[Mapping[str, float]], name: str) -> str:
    values = [a[name] for a in found if name in a]
    return f"{100 * fmean(values):.1f}" if values else "-"


def _gap(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{100 * fmean(values):+.2f}, {100 * bound(values):+.2f}, {100 * max(values):+.1f}"
