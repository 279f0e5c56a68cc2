"""The benchmarks on Glyphs-LT: intervals, swapped texts, rows without text, equal losses, noise, and their pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import glyphs_lt, glyphs_lt_table, new_classes_table, noise, reject
from benchmarks.glyphs_lt import permuted
from benchmarks.glyphs_lt_table import AGAINST, METHOD, ORDER, clustered_interval
from benchmarks.new_classes import at_equal_loss
from benchmarks.without_text import WHOLE, discriminant
from vlltr_index.generative import GenerativeModel, class_sums, fit_shared
from vlltr_index.glyphs import glyph_files

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


def test_permuted_texts_go_to_other_classes_and_always_to_the_same(tmp_path: Path) -> None:
    """No class keeps its sentences, none are lost, and the order of the classes stays."""
    source = glyph_files(fast=True).texts
    told = json.loads(source.read_text(encoding="utf-8"))
    given = json.loads(permuted(source, tmp_path / "a" / "p.json").read_text(encoding="utf-8"))
    assert list(given) == list(told)
    assert all(given[name] != told[name] for name in told)
    assert sorted(map(str, given.values())) == sorted(map(str, told.values()))
    assert json.loads(permuted(source, tmp_path / "q.json").read_text(encoding="utf-8")) == given


def test_the_discriminant_is_the_solution_with_the_shrunk_covariance() -> None:
    """Equal, but for what all classes share, to means and Sigma^-1 by a linear solver."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(8)
    x = torch.randn(48, 5, generator=generator, dtype=torch.float64) + labels[:, None]
    counts, sums = class_sums(x, labels, 6)
    model = GenerativeModel(fit_shared(x[None], labels, torch.zeros(6, 5)), counts, sums, torch.zeros(6, 5))
    means = sums / 8
    apart = x - means[labels]
    covariance, r = apart.T @ apart / 42, 5 / (42 + 5)
    shrunk = (1 - r) * covariance + r * covariance.trace() / 5 * torch.eye(5, dtype=torch.float64)
    weights = torch.linalg.solve(shrunk, means.T)
    plain = x @ weights - 0.5 * (means.T * weights).sum(0)
    gap = discriminant(model, x) - plain
    assert gap == pytest.approx(gap[:, :1].expand(-1, 6), abs=1e-6)


def test_an_earlier_baseline_is_taken_over_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows, its settings and where it ran; an earlier result of other images is refused."""
    monkeypatch.setattr(glyphs_lt, "RESULTS", tmp_path)
    old = {**result(0), "seconds": {"train baseline fc": 455.0}}
    (tmp_path / "glyphs_lt-0.json").write_text(json.dumps(old), encoding="utf-8")
    new = {**result(0), "right": {METHOD: "1" * 10}, "top5": {METHOD: "1" * 10}, "versions": {"torch": "9"}}
    glyphs_lt._copy_baseline(new)
    assert new["right"] == {METHOD: "1" * 10, "image-only": BITS, AGAINST: BITS}
    assert new["baseline"]["seconds"] == 455.0
    assert new["baseline"]["versions"]["torch"] == "2"
    (tmp_path / "glyphs_lt-0.json").write_text(json.dumps(new), encoding="utf-8")
    third = {**result(0), "right": {}, "top5": {}}
    glyphs_lt._copy_baseline(third)
    assert third["baseline"] == new["baseline"]
    with pytest.raises(SystemExit, match="of other test images"):
        glyphs_lt._copy_baseline({**result(0), "counts": [1] * 10})


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


def test_wrong_sentences_are_of_other_classes() -> None:
    """So many for each right one; and the table has a row a rung."""
    classes = torch.tensor([0, 1, 0, 2, 1, 2, 2])
    vectors = torch.nn.functional.one_hot(classes).float()
    text, owners = noise.with_wrong(vectors, classes, 3, torch.Generator().manual_seed(0))
    assert torch.equal(owners, classes.repeat(4))
    assert torch.equal(text[:7], vectors)
    assert not bool((text[7:].argmax(1) == owners[7:]).any())
    values = {f"{n}, {w}, {a}": [0.8, 0.82] for n in noise.WRONG for w in noise.WAYS for a in noise.ATTENTION}
    facts = {"accuracy": values, "images": 10, "recipe": "r", "seed": 0, "sentences": 7}
    assert "| 3 | trained | 81.0 ± 1.4 | 81.0 ± 1.4 | 81.0 ± 1.4 |" in noise.generated(facts)
