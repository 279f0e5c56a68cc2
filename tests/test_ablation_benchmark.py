"""The ablation's generated page: the table, what each part is worth, and where it is put."""

from __future__ import annotations

from typing import Any

from benchmarks.ablation import MARKS, RECIPE, generated, placed
from vlltr_index.ablation import ROWS
from vlltr_index.recipe import load_recipe


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


def test_it_is_put_between_its_marks() -> None:
    """At the end of a page that has no marks, in their place in one that has; the rest of the page stays."""
    page = placed("# Results\n\ntext\n", "one")
    assert page.startswith("# Results\n\ntext\n\n## Ablation")
    assert placed(page + "after\n", "two") == page.replace("one", "two") + "after\n"
    assert page.count(MARKS[0]) == page.count(MARKS[1]) == 1


def test_the_recipe_is_what_the_page_says() -> None:
    """It starts from the weights that ship, with distillation, for six epochs."""
    recipe = load_recipe(RECIPE)
    assert (recipe.encoder.pretrained, recipe.cvlp.distillation, recipe.cvlp.epochs) == ("glyphs", "full", 6)
    ours = load_recipe("glyphs_lt/ours")
    assert recipe.lgr == ours.lgr
    assert recipe.select == ours.select
    assert recipe.fusion == ours.fusion
