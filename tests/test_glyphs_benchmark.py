"""The benchmarks on Glyphs-LT: intervals, swapped texts, rows without text, equal losses, noise, and their pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import glyphs_lt_table, new_classes_table, reject
from benchmarks.glyphs_lt_table import METHOD, ORDER, clustered_interval
from benchmarks.new_classes import at_equal_loss
from benchmarks.without_text import WHOLE

BITS = "1101101011"


def result(seed: int, texts: str = "true") -> dict[str, Any]:
    """Ten images of five classes; the method has them all."""
    rows = {name: "1" * 10 if name == METHOD else BITS for name in ORDER}
    decided = dict.fromkeys(("image", "generative", "text", "gate", "offset", "noise", "text_r2"), 0.5)
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


def test_the_page_has_rows_differences_and_decisions() -> None:
    """Of both kinds of texts; the primary contrast stands out."""
    text = glyphs_lt_table.generated([result(0), result(1)], [result(0, "permuted")])
    assert (
        "| vl-ltr | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 2.0 |"
        in text
    )
    assert f"| **{WHOLE}** | +30.0 [" in text
    assert f"| **{METHOD}, own texts less permuted** | +0.0 [+0.0, +0.0] |" in text
    assert "| permuted | 0 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 |" in text
    assert "| 1 | 30 |" in text


def test_offsets_are_compared_at_equal_loss() -> None:
    """Of two old and one added class: a loss of none, of one, and of all."""
    added = torch.tensor([False, False, True])
    old = torch.tensor([[5.0, 0, 1], [0, 5.0, 3], [5.0, 0, 4.5], [1.0, 0, 9]])
    owners = torch.tensor([0, 1, 0, 1])  # the last is wrong without the added class too
    new = torch.tensor([[1.0, 0, 0.8], [3.0, 0, 1.5], [9.0, 0, 0]])
    labels = torch.tensor([2, 2, 2])
    found = [at_equal_loss(new, labels, old, owners, added, lost).tolist() for lost in (0, 1, 3)]
    assert found == [[True, False, False], [True, True, False], [True, True, True]]


def test_the_pages_of_new_classes_and_of_rejection() -> None:
    """Rows with draws, the oracle, and the gain over the method before."""
    row = {"right": "1100", "top5": "1111", "old": "1110", "right_at_equal_loss": "1110"}
    then = {"rows": {"text": {"right": "1000", "old": "1110"}}, "old_before": "1111"}
    run = {
        "seed": 0,
        "group": "final",
        "dataset": "ab" * 32,
        "versions": {"torch": "2"},
        "machine": {"threads": 1},
        "labels": [0, 0, 1, 1],
        "old_before": "1111",
        "rows": {"text": row, "text + 1 image, draw 0": row, "text + 1 image, draw 1": row},
        "before": then,
    }
    oracle = {**run, "images": 1, "row": {**row, "right": "1111"}}
    text = new_classes_table.generated([run], [oracle])
    assert "| text | 50.0 | 100.0 | 75.0 | -25.0 |" in text
    assert "| text + 1 image | 50.0 (50.0-50.0) |" in text
    assert "| oracle, seed 0: trained with them, text + 1 image | 100.0 |" in text
    assert "- text + 1 image less the oracle, seed 0, the same images: -50.0 [" in text
    assert "| text | 25.0 | 25.0 | 75.0 | +50.0 [" in text
    scores = {reject.SCORE: {"auroc": 0.9, "fpr95": 0.2}, "largest probability": {"auroc": 0.8, "fpr95": 0.4}}
    group = {"images": [1000, 10], "scores": scores, "accepted": [0.95, 0.3]}
    text = reject.generated([{"seed": 0, "dataset": "ab" * 32, "groups": {"dev": group}}])
    assert f"| 100 for development | {reject.SCORE} | 0.900 | 20.0 | 95.0 | 30.0 |" in text
    assert "| 100 for development | largest probability | 0.800 | 40.0 | - | - |" in text
