"""The trials of the image-only baseline: which fonts are held out, that a trial runs, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import baseline_trials as trials
from vlltr_index.glyphs import glyph_files
from vlltr_index.recipe import load_recipe


def pictures(*rows: tuple[str, str, str]) -> pa.Table:
    """Rows of (group, label, split)."""
    return pa.table(
        {
            "image": pa.array([b"x"] * len(rows), pa.binary()),
            "label": [label for _, label, _ in rows],
            "split": [split for *_, split in rows],
            "source": [f"{group}/family/{number}" for number, (group, *_) in enumerate(rows)],
        }
    )


def test_held_groups_are_twenty_of_the_training_fonts_whatever_their_order() -> None:
    """The choice goes by the groups' names alone, and test fonts are not among them."""
    table = pq.read_table(glyph_files().images, columns=["label", "split", "source"])
    held = trials.held_groups(table)
    train = {
        s.split("/")[0]
        for s, split in zip(*(table[c].to_pylist() for c in ("source", "split")), strict=True)
        if split == "train"
    }
    assert len(set(held)) == 20
    assert set(held) < train
    assert trials.held_groups(table.take(pa.array(range(table.num_rows - 1, -1, -1)))) == held


def test_held_images_leave_train_and_classes_without_others_are_left_out() -> None:
    """Every row of train is in one of both splits; rows of other splits are not there."""
    table = pictures(("a", "x", "train"), ("b", "x", "train"), ("b", "y", "train"), ("a", "x", "test"))
    found = trials.without_held(table, ["b"])
    assert [(r["label"], r["split"]) for r in found.to_pylist()] == [("x", "train"), ("x", "held")]


def test_a_trial_runs_on_the_small_slice_and_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command's function to the file, and from there to the table."""
    fast = glyph_files(fast=True)
    monkeypatch.setattr(trials, "glyph_files", lambda: fast)
    monkeypatch.setattr(trials, "TRIALS", (("baseline.epochs=1", "baseline.lr=1e-3"),))
    monkeypatch.setattr(trials, "RECIPE", "glyphs_lt/fast")
    monkeypatch.setattr(trials, "RESULT", tmp_path / "trials.json")
    monkeypatch.setattr(trials, "HELD_GROUPS", 3)
    trials.run(0, tmp_path)
    found = json.loads((tmp_path / "trials.json").read_text(encoding="utf-8"))
    assert set(found["0"]["top1"]) == {"image-only", "image-only + logit adjustment"}
    assert found["0"]["images"] > 0
    assert found["0"]["recipe"]["baseline"]["lr"] == 1e-3
    page = trials.generated(found)
    assert "| 0.001 | 0.05 | 0 | image-only |" in page
    assert f"{found['0']['images']:,} images of 3 font groups" in page


def test_settings_of_all_trials_fit_the_recipe_and_differ() -> None:
    """As many as the method had."""
    recipes = [trials.override(load_recipe(trials.RECIPE), t).baseline for t in trials.TRIALS]
    assert len(recipes) == 5
    assert all(a != b for n, a in enumerate(recipes) for b in recipes[:n])
