"""The page of the study of photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.collections.photographs import ADDED, SETTINGS
from benchmarks.intervals import Interval, over_classes
from benchmarks.studies.photographs.imagenet import GROUPS, NEITHER, Knowledge
from benchmarks.studies.photographs.summary import ENCODERS, PERMUTED, PREVIOUS, RANDOM, ROWS
from benchmarks.studies.side_by_side.worker import ADDITIONS, METHOD
from benchmarks.study import Results, table

__all__ = ["generated"]

LEAST_CLASSES = 5
_TEXT_ALONE = "10 x 0"
_BY_TEXT = (METHOD, PREVIOUS, "prompts alone", PERMUTED, RANDOM)
Unit = Mapping[str, Any]


def generated(results: Results) -> str:
    """Return all tables as Markdown."""
    first = next(iter(results.values()))
    commits = ", ".join(
        f"{side} {' and '.join(f'`{commit}`' for commit in sorted({one['commits'][side] for one in results.values()}))}"
        for side in first["commits"]
    )
    lines = [
        f"Commits: {commits}; torch {first['versions']['torch']}, one thread. Means over draws. *Ahead*: the method"
        " less the row, with a 95% interval by bootstrap over classes, because draws share images. ECE in points.",
        "",
    ]
    for encoder in ENCODERS:
        for setting in SETTINGS:
            unit = results.get(f"{encoder}, {setting}")
            if unit is not None:
                lines += _of_setting(f"{encoder}, {setting}", unit)
        added = results.get(f"{encoder}, {ADDED}")
        if added is not None:
            lines += [*_added(encoder, added), *_rejection(added), *_by_text(encoder, added)]
    return "\n".join(lines) + "\n"


def _of_setting(title: str, unit: Unit) -> list[str]:
    """Return the table of a setting."""
    rows = []
    for name in _rows(unit):
        row = unit["rows"][name]
        rows.append(
            [
                name,
                f"{100 * row['accuracy']:.1f}",
                f"{100 * row['balanced']:.1f}",
                f"{row['nll']:.3f}",
                f"{100 * row['ece']:.1f}",
                "-" if row["seconds"] is None else f"{row['seconds']:.2f}",
                *(["", ""] if name == METHOD else [_gap(row["ahead"]), _gap(row["NLL less"], 3, 1.0)]),
            ]
        )
    measures = ["accuracy", "balanced accuracy", "NLL", "ECE", "processor seconds"]
    head = ["row", *measures, "ahead, balanced accuracy", "NLL less"]
    return [f"**{title}** ({unit['draws']} draws)", "", *table(head, rows), ""]


def _rows(unit: Unit) -> list[str]:
    """Return the rows that were measured, in their order."""
    return [name for name in ROWS if name in unit["rows"]]


def _gap(values: Sequence[float], digits: int = 1, factor: float = 100.0) -> str:
    return Interval(*values).shown(digits, factor)


def _added(encoder: str, unit: Unit) -> list[str]:
    """Return the table of added classes."""
    rows = []
    for name in _rows(unit):
        cells = [
            _addition(unit["rows"][name]["added"].get(f"{count} x {shots}")) for count, shots in ADDITIONS
        ]
        if any(cell != "-" for cell in cells):
            rows.append([name, *cells])
    return [
        f"**{encoder}, added classes**: points of balanced accuracy that existing classes lose (worst draw) / per cent"
        " of the added classes' images that are found / balanced accuracy over all classes. With five images, a class"
        " has up to five.",
        "",
        *table(["row", *(_words(*one) for one in ADDITIONS)], rows),
        "",
    ]


def _words(count: int, shots: int) -> str:
    return f"{count}, {f'{shots} image' + 's' * (shots > 1) if shots else 'text alone'}"


def _addition(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    lost = f"{100 * found['lost']:.2f} ({100 * found['worst']:.1f})"
    return f"{lost} / {100 * found['found']:.1f} / {100 * found['all']:.1f}"


def _rejection(unit: Unit) -> list[str]:
    """Say what `--reject` keeps and accepts."""
    said = [
        f"{name}: {100 * row['known_accepted']:.1f}% of new images of known classes are kept,"
        f" {100 * row['unknown_accepted']:.1f}% of unknown images are accepted"
        for name, row in unit["rows"].items()
        if "known_accepted" in row and "unknown_accepted" in row
    ]
    return [f"`--reject`: {'; '.join(said)}.", ""] if said else []


def _by_text(encoder: str, unit: Unit) -> list[str]:
    """Return the table of text-only classes by what ImageNet's names say of them."""
    rows = [name for name in _BY_TEXT if _TEXT_ALONE in unit["rows"].get(name, {}).get("found", {})]
    if not rows:
        return []
    knowledge = Knowledge()
    groups = {group: [n for n, of in knowledge.group.items() if of == group] for group in GROUPS}
    groups["neither, and none of ImageNet's classes is a kind of it"] = [
        name for name in groups[NEITHER] if not knowledge.contains[name]
    ]
    lines: list[list[str]] = []
    for group, names in groups.items():
        shares = {row: _shares(unit["rows"][row]["found"][_TEXT_ALONE], names) for row in rows}
        count = len(shares[METHOD])
        cells = [f"{100 * fmean(one.values()):.1f}" if one else "-" for one in shares.values()]
        more = "no claim"
        if count >= LEAST_CLASSES and RANDOM in shares:
            gap = over_classes([{name: one - shares[RANDOM][name] for name, one in shares[METHOD].items()}])
            more = gap.shown()
        lines.append([group, str(count), *cells, more])
    return [
        f"**{encoder}, text-only classes**: per cent of their images that are found, mean over classes, where ten are"
        " added; by whether ImageNet's 1,000 classes name the class. *More*: the method less random texts, with its"
        f" interval over classes. With fewer than {LEAST_CLASSES} classes there is no claim.",
        "",
        *table(["classes", "number", *rows, "more"], lines),
        "",
    ]


def _shares(found: Mapping[str, Sequence[int]], names: Sequence[str]) -> dict[str, float]:
    return {name: found[name][1] / found[name][0] for name in names if found.get(name, [0])[0]}
