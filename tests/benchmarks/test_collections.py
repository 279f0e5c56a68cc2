"""Random collections: draws that depend on their number alone, and folds that leave every class an image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.collections.sources import TEXTS, draw, with_texts
from benchmarks.studies.photographs.rules import folds


@pytest.mark.parametrize("source", ["heldout", "train", "clip"])
def test_a_draw_depends_on_its_number_alone(source: str) -> None:
    """Twice the same; training and test pictures are apart; texts change no picture; the new class is another."""
    drawn = draw(source, "10x5", 3)
    assert drawn == draw(source, "10x5", 3)
    assert [k.name for k in drawn.kinds] != [k.name for k in draw(source, "10x5", 4).kinds]
    assert drawn.new.name not in {k.name for k in drawn.kinds}
    for kind in (*drawn.kinds, drawn.new):
        assert len(kind.train) == 5
        assert len(kind.test) >= 5
        assert not {name for name, _ in kind.train} & {name for name, _ in kind.test}
    for texts in TEXTS:
        told = with_texts(drawn, texts, 3)
        assert told == with_texts(drawn, texts, 3)
        assert [(k.train, k.test) for k in told.kinds] == [(k.train, k.test) for k in drawn.kinds]
        assert all((a == b) == (texts == "true") for a, b in zip(told.kinds, drawn.kinds, strict=True))
    swapped = with_texts(drawn, "swapped", 3).kinds
    assert {(k.name, k.sentences) for k in swapped} == {(k.name, k.sentences) for k in drawn.kinds}
    assert not any(a.name == b.name for a, b in zip(swapped, drawn.kinds, strict=True))


def test_a_folder_is_drawn_by_its_name(tmp_path: Path) -> None:
    """Wherever it lies: half of a class's pictures are for testing."""
    drawn = []
    for place in (tmp_path / "here" / "kinds", tmp_path / "there" / "kinds"):
        for name in "abcde":
            (place / name).mkdir(parents=True)
            for number in range(7):
                (place / name / f"{number}.png").write_bytes(f"{name}{number}".encode())
        drawn.append(draw(str(place), "4xhalf", 3))
    assert drawn[0] == drawn[1]
    for kind in drawn[0].kinds:
        assert (len(kind.train), len(kind.test)) == (4, 3)
        assert len({*kind.train, *kind.test}) == 7


def test_folds_leave_every_class_an_image() -> None:
    """Each image of a class of two or more is held out once; a class of one never; five folds, or one of many."""
    labels = torch.tensor([0, 1, 1, 2, 2, 2, *([3] * 11)])
    held = folds(labels, 0)
    assert sorted(torch.cat(held).tolist()) == list(range(1, 17))
    for rows in held:
        kept = torch.ones(17, dtype=torch.bool).index_fill(0, rows, False)
        assert set(labels[kept].tolist()) == {0, 1, 2, 3}
    assert len(folds(torch.arange(2500).repeat(2), 0)) == 1
    assert folds(torch.arange(4), 0) == []
    units = torch.arange(12).repeat_interleave(3)
    parted = folds(torch.tensor([0, 1]).repeat_interleave(18), 0, units)
    assert sorted(torch.cat(parted).tolist()) == list(range(36))
    assert all(len(rows) == 3 * len(units[rows].unique()) for rows in parted)
