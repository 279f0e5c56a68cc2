"""The studies on Glyphs-LT: the page of results, comparisons at equal loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.studies.long_tailed import measure
from benchmarks.studies.long_tailed.table import ADJUSTED, IMAGE_ONLY, ORDER, generated
from benchmarks.studies.long_tailed.without_text import WHOLE
from benchmarks.studies.new_classes import at_equal_loss
from benchmarks.studies.paired import METHOD, bits_of
from vlltr_index.store.workspace import Workspace

BITS = "1101101011"


def result(seed: int, texts: str = "true") -> dict[str, Any]:
    """Ten images of five classes; the method has them all."""
    rows = {name: bits_of("1" * 10 if name == METHOD else BITS) for name in ORDER}
    decided = dict.fromkeys(("image", "generative", "text", "text_r2"), 0.5)
    return {
        "seed": seed,
        "texts": texts,
        "dataset": "ab" * 32,
        "recipe": "glyphs_lt/ours",
        "versions": {"torch": "2", "open_clip_torch": "3"},
        "machine": {"cores": 2, "threads": 1},
        "counts": [200, 200, 50, 50, 10, 10, 3, 3, 1, 1],
        "labels": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
        "right": rows,
        "top5": {name: float(values.mean()) for name, values in rows.items()},
        "calibration_error": {METHOD: 0.02},
        "decided": {METHOD: decided, WHOLE: decided},
        "seconds": {"train lgr": 30.0},
    }


@pytest.mark.slow
def test_the_page_has_rows_differences_and_decisions() -> None:
    """Of both kinds of texts; the primary contrast stands out."""
    text = generated([result(0), result(1)], [result(0, "permuted")])
    assert (
        "| vl-ltr | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 2.0 |"
        in text
    )
    assert f"| **{WHOLE}** | +30.0 [" in text
    assert f"| **{METHOD}, own texts less permuted** | +0.0 [+0.0, +0.0] |" in text
    assert "| permuted | 0 | 0.5 | 0.5 | 0.5 | 0.5 |" in text
    assert "| 1 | 30 |" in text


@pytest.mark.slow
def test_rows_of_a_trained_workspace(trained: Workspace) -> None:
    """All rows but the image-only ones, for the same test images; the decisions name the weights of both models."""
    found = measure(trained, baseline=False)
    assert set(found["right"]) == set(ORDER) - {IMAGE_ONLY, ADJUSTED}
    assert {len(row) for row in found["right"].values()} == {len(found["labels"])}
    assert found["decided"][METHOD].keys() == found["decided"][WHOLE].keys()
    assert found["decided"][WHOLE]["text"] == 0.0
    assert {"image", "generative", "text", "text_r2"} <= found["decided"][METHOD].keys()


def test_offsets_are_compared_at_equal_loss() -> None:
    """Of two old and one added class: a loss of none, of one, and of all."""
    added = torch.tensor([False, False, True])
    old = torch.tensor([[5.0, 0, 1], [0, 5.0, 3], [5.0, 0, 4.5], [1.0, 0, 9]])
    owners = torch.tensor([0, 1, 0, 1])  # the last is wrong without the added class too
    new = torch.tensor([[1.0, 0, 0.8], [3.0, 0, 1.5], [9.0, 0, 0]])
    labels = torch.tensor([2, 2, 2])
    found = [at_equal_loss(new, labels, old, owners, added, lost).tolist() for lost in (0, 1, 3)]
    assert found == [[True, False, False], [True, True, False], [True, True, True]]
