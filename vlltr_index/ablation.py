"""The ablation of Table 4: which rows there are, what each changes of a recipe, and the table made of their figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from vlltr_index.errors import UsageError
from vlltr_index.recipe import override
from vlltr_index.schemas.config import Recipe

__all__ = [
    "BINS",
    "ROWS",
    "AblationRow",
    "RowSummary",
    "figure",
    "markdown",
    "parse_numbers",
    "recipe_of",
    "shown_bins",
    "summarise",
]

BINS = ("overall", "many", "medium", "few", "few5", "new")


@dataclass(frozen=True)
class AblationRow:
    """One row of Table 4 (Tian et al. 2022).

    Attributes:
        number: 1 to 7, as in the paper.
        pretrained: Whether stage 1 starts from the recipe's weights.
        cvlp: Stage 1 with or without distillation, or none.
        head: The language-guided head, a linear layer on features, or votes of the nearest sentences.
        sentences: How the head's sentences are chosen; "-" where all serve, or none.
    """

    number: int
    pretrained: bool
    cvlp: Literal["with distillation", "without distillation", "none"]
    head: Literal["LGR", "FC", "KNN"]
    sentences: Literal["AnSS", "cut-off", "-"]

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """What the table says of the row."""
        return ("yes" if self.pretrained else "no", self.cvlp, self.head, self.sentences)


ROWS = {
    row.number: row
    for row in (
        AblationRow(1, True, "with distillation", "LGR", "AnSS"),
        AblationRow(2, True, "none", "LGR", "AnSS"),
        AblationRow(3, False, "without distillation", "LGR", "AnSS"),
        AblationRow(4, True, "without distillation", "LGR", "AnSS"),
        AblationRow(5, True, "with distillation", "FC", "-"),
        AblationRow(6, True, "with distillation", "KNN", "-"),
        AblationRow(7, True, "with distillation", "LGR", "cut-off"),
    )
}


@dataclass(frozen=True)
class RowSummary:
    """The figures of one row over its seeds, as shares of images.

    Attributes:
        row: Its number.
        cells: Weights, CVLP, head, sentences.
        seeds: Those that were run.
        mean: Mean top-1 accuracy of each bin.
        spread: Standard deviation over the seeds (n - 1); empty with one seed.
        reason: Why there are no figures.
    """

    row: int
    cells: tuple[str, str, str, str]
    seeds: tuple[int, ...]
    mean: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


def parse_numbers(text: str, what: str, allowed: range | None = None) -> tuple[int, ...]:
    """Numbers written as `1-3,5`, ascending and each once.

    Args:
        text: What was typed.
        what: The option's name, for the error.
        allowed: Which numbers there are; None: all from 0.

    Raises:
        UsageError: If it is something else, or a number is not allowed.
    """
    example = "1-7" if allowed else "0,1,2"
    found: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", piece, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first > 1000:
            raise UsageError(f"{what} takes numbers such as {example}, got {text!r}")
        found.update(range(first, last + 1))
    wrong = sorted(n for n in found if allowed is not None and n not in allowed)
    if wrong and allowed is not None:
        raise UsageError(
            f"{what}: there is no row {wrong[0]}",
            f"The rows are {allowed[0]} to {allowed[-1]}: {what} {example}",
        )
    return tuple(sorted(found))


def recipe_of(row: AblationRow, recipe: Recipe, seed: int) -> Recipe:
    """`recipe` as the row needs it; everything that the row does not name stays.

    Distillation that the recipe lacks becomes the full one, with the weight of the CCL (lambda 0.5).
    """
    values = [f"cvlp.seed={seed}", f"lgr.seed={seed}"]
    if not row.pretrained:
        values.append("encoder.pretrained=none")
    if row.cvlp != "with distillation":
        values += ["cvlp.distillation='none'", "cvlp.distillation_weight=0.0"]
    elif recipe.cvlp.distillation == "none" or recipe.cvlp.distillation_weight == 0:
        mode = "full" if recipe.cvlp.distillation == "none" else recipe.cvlp.distillation
        weight = recipe.cvlp.ccl_weight or 1.0
        values += [f"cvlp.distillation='{mode}'", f"cvlp.distillation_weight={weight}"]
    values.append(f"select.mode={'cutoff' if row.sentences == 'cut-off' else 'anss'}")
    return override(recipe, tuple(values))


def summarise(
    numbers: Sequence[int], results: Sequence[Mapping[str, Any]], reasons: Mapping[int, str]
) -> list[RowSummary]:
    """Mean and spread of each row.

    Args:
        numbers: The rows, in the table's order.
        results: What `reports/ablate/<row>-<seed>.json` hold.
        reasons: Row -> why it was not run.
    """
    summaries = []
    for number in numbers:
        mine = sorted((r for r in results if r["row"] == number), key=lambda r: r["seed"])
        values = {b: [r["top1"][b]["value"] for r in mine] for b in BINS if all(b in r["top1"] for r in mine)}
        summaries.append(
            RowSummary(
                number,
                ROWS[number].cells,
                tuple(r["seed"] for r in mine),
                {b: fmean(v) for b, v in values.items() if v},
                {b: stdev(v) for b, v in values.items() if len(v) > 1},
                None if mine else reasons.get(number, "not run"),
            )
        )
    return summaries


def figure(summary: RowSummary, name: str) -> str:
    """Mean and spread in per cent, `n/a` for a row without figures, a dash for a bin without images."""
    if summary.reason is not None:
        return "n/a"
    if name not in summary.mean:
        return "-"
    spread = f" ± {100 * summary.spread[name]:.1f}" if name in summary.spread else ""
    return f"{100 * summary.mean[name]:.1f}{spread}"


def shown_bins(summaries: Sequence[RowSummary]) -> list[str]:
    """The bins that some row has a figure for."""
    return [b for b in BINS if any(b in s.mean for s in summaries)] or ["overall"]


def markdown(summaries: Sequence[RowSummary]) -> str:
    """The table as Markdown, reasons for missing rows below it."""
    names = shown_bins(summaries)
    head = ["", "weights", "CVLP", "head", "sentences", *names]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --- |" * (len(head) - 1)]
    for summary in summaries:
        cells = [str(summary.row), *summary.cells, *(figure(summary, n) for n in names)]
        lines.append("| " + " | ".join(cells) + " |")
    missing = [f"Row {s.row}: n/a, {s.reason}" for s in summaries if s.reason is not None]
    return "\n".join([*lines, *(["", *missing] if missing else [])]) + "\n"
