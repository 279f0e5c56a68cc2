"""The benchmarks on Glyphs-LT: intervals, the page of results, comparisons at equal loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import ablation, long_tailed_table
from benchmarks.long_tailed_table import METHOD, ORDER, clustered_interval
from benchmarks.new_classes import at_equal_loss
from benchmarks.without_text import WHOLE
from vlltr_index.schemas.recipes import load_recipe, override

BITS = "1101101011"


def result(seed: int, texts: str = "true") -> dict[str, Any]:
    """Ten images of five classes; the method has them all."""
    rows = {name: "1" * 10 if name == METHOD else BITS for name in ORDER}
    later = {"generative": 0.5, "text": 0.5, "offset": 0.5}
    decided: dict[str, Any] = dict.fromkeys(("image", "generative", "text", "noise", "text_r2"), 0.5)
    decided |= {"pictured": later, "told": later}
    return {
        "seed": seed,
        "texts": texts,
        "dataset": "ab" * 32,
        "recipe": {"name": "glyphs_lt/ours", "baseline": {"epochs": 12}},
        "protocol": "ours",
        "versions": {"torch": "2", "open_clip_torch": "3"},
        "machine": {"cores": 2, "threads": 1},
        "counts": [200, 200, 50, 50, 10, 10, 3, 3, 1, 1],
        "labels": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
        "right": rows,
        "top5": rows,
        "calibration_error": {METHOD: 0.02},
        "decided": {METHOD: decided, WHOLE: decided, "of test images": decided},
        "seconds": {"train lgr": 30.0},
    }


def test_the_interval_draws_classes_and_then_images() -> None:
    """As a plain loop does, in distribution; wider than that of the images where classes differ."""
    rng = np.random.default_rng(1)
    classes = np.repeat(np.arange(40), rng.integers(1, 7, 40))
    values = np.repeat(rng.normal(0, 1, 40), np.bincount(classes)) + rng.normal(0, 0.1, len(classes))
    means = []
    for _ in range(2000):
        drawn = [values[classes == c] for c in rng.integers(0, 40, 40)]
        means.append(np.concatenate([rng.choice(v, len(v)) for v in drawn]).mean())
    low, high = clustered_interval(values, classes)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.05)
    alone = clustered_interval(values, np.arange(len(values)))
    assert high - low > 1.4 * (alone[1] - alone[0])


@pytest.mark.slow
def test_the_page_has_rows_differences_and_decisions() -> None:
    """Of both kinds of texts; the primary contrast stands out."""
    text = long_tailed_table.generated([result(0), result(1)], [result(0, "permuted")])
    assert (
        "| vl-ltr | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 2.0 |"
        in text
    )
    assert f"| **{WHOLE}** | +30.0 [" in text
    assert f"| **{METHOD}, own texts less permuted** | +0.0 [+0.0, +0.0] |" in text
    assert "| permuted | 0 | 0.5 | 0.5 | 0.5 | 0.5 / 0.5 / +0.50 | 0.5 / 0.5 / +0.50 | 0.5 | 0.5 |" in text
    assert "| 1 | 30 |" in text


def test_ablated_rows_change_only_what_they_are_about() -> None:
    """Each row's recipe differs from the recipe in the values that it names, and in the seeds."""
    base = load_recipe(ablation.RECIPE)
    none = ("cvlp.distillation='none'", "cvlp.distillation_weight=0.0")
    changes = {2: none, 3: (*none, "encoder.pretrained=none"), 4: none, 7: ("select.mode=cutoff",)}
    for number, row in ablation.ROWS.items():
        values = ("cvlp.seed=4", "lgr.seed=4", *changes.get(number, ()))
        assert ablation.recipe_of(row, 4) == override(base, values)


def test_offsets_are_compared_at_equal_loss() -> None:
    """Of two old and one added class: a loss of none, of one, and of all."""
    added = torch.tensor([False, False, True])
    old = torch.tensor([[5.0, 0, 1], [0, 5.0, 3], [5.0, 0, 4.5], [1.0, 0, 9]])
    owners = torch.tensor([0, 1, 0, 1])  # the last is wrong without the added class too
    new = torch.tensor([[1.0, 0, 0.8], [3.0, 0, 1.5], [9.0, 0, 0]])
    labels = torch.tensor([2, 2, 2])
    found = [at_equal_loss(new, labels, old, owners, added, lost).tolist() for lost in (0, 1, 3)]
    assert found == [[True, False, False], [True, True, False], [True, True, True]]
