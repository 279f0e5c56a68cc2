"""The ablation's rows and its generated page: the table, and what each part is worth."""

from __future__ import annotations

from typing import Any

from benchmarks.ablation import RECIPE, ROWS, generated, recipe_of
from vlltr_index.recipe import load_recipe, override


def run(seed: int) -> dict[str, Any]:
    """A result whose row n has 0.1 n + 0.01 seed."""
    cells = []
    for row in ROWS:
        value = 0.1 * row + 0.01 * seed * (row == 1)
        cells.append(
            {
                "row": row,
                "seed": seed,
                "top1": {name: {"value": value, "images": 10} for name in ("overall", "few")},
                "seconds": {"stage 1": 100.0, "the rest": 10.0 + row},
                "versions": {"torch": "2", "open_clip_torch": "3"},
                "machine": {"cores": 2, "threads": 1},
            }
        )
    return {
        "seed": seed,
        "dataset": "ab" * 32,
        "recipe": {"name": RECIPE, "protocol": "ours"},
        "cells": cells,
    }


def test_the_page_has_table_differences_and_seconds() -> None:
    """Rows with mean and spread, differences within the seeds, seconds of stage 1 and the rest."""
    text = generated([run(0), run(1)])
    assert "| 1 | yes | with distillation | LGR | AnSS | 10.5 ± 0.7 | 10.5 ± 0.7 |" in text
    assert "| 3 | no | without distillation | LGR | AnSS | 30.0 ± 0.0 | 30.0 ± 0.0 |" in text
    assert "| AnSS less cut-off | -59.5 ± 0.7 | -59.5 ± 0.7 |" in text
    assert "| 1 | 100 + 11 | 100 + 12 |" in text
    assert "seeds 0, 1; 10 test images" in text


def test_rows_change_only_what_they_are_about() -> None:
    """Each row's recipe differs from the recipe in the values that it names, and in the seeds."""
    base = load_recipe(RECIPE)
    none = ("cvlp.distillation='none'", "cvlp.distillation_weight=0.0")
    changes = {2: none, 3: (*none, "encoder.pretrained=none"), 4: none, 7: ("select.mode=cutoff",)}
    for number, row in ROWS.items():
        values = ("cvlp.seed=4", "lgr.seed=4", *changes.get(number, ()))
        assert recipe_of(row, 4) == override(base, values)
