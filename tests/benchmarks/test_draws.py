"""The benchmark of random collections: paired draws, and folds that leave every class an image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.studies.draws import Plan, compact, measured
from benchmarks.studies.draws.rules import folds
from benchmarks.studies.draws.sources import TEXTS, Setting, draw, with_texts
from benchmarks.studies.draws.table import bound


@pytest.mark.parametrize("source", ["heldout", "train", "clip"])
def test_a_draw_depends_on_its_number_alone(source: str) -> None:
    """Twice the same; training and test pictures are apart; texts change no picture; the new class is another."""
    drawn = draw(source, Setting.of("10x5"), 3)
    assert drawn == draw(source, Setting.of("10x5"), 3)
    assert [k.name for k in drawn.kinds] != [k.name for k in draw(source, Setting.of("10x5"), 4).kinds]
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
        drawn.append(draw(str(place), Setting.of("4xhalf"), 3))
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


def test_the_bound_is_students() -> None:
    """t(0.95, 19) = 1.729: the mean plus that many standard errors."""
    values = [0.0, 1.0] * 10
    assert bound(values) == pytest.approx(0.5 + 1.729 * 0.51299 / 20**0.5, abs=1e-4)


@pytest.mark.slow
def test_a_draw_goes_through_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes of three images: method, parts and rules are measured, and one class is added and joined."""
    monkeypatch.setattr("benchmarks.studies.draws.bench.ADDITIONS", {"1 image": 1})
    plan = Plan("2x3", "heldout", "true", "vlltr-tiny:glyphs", "", True, False)
    found = measured(plan, 0, tmp_path / "draw")
    assert (found["classes"], found["images"], found["tests"]) == (2, [3, 3], 12)
    assert list(found["sides"]) == ["vl-ltr", "without text branch", "text side", "vl-ltr, --prior training"]
    assert list(found["rules"]) == [
        "class means",
        "shrunk discriminant",
        "logistic regression",
        "zero-shot",
        "Tip-Adapter",
    ]
    assert found["trained"]["images"] == 6
    kept = compact(found)
    assert set(kept["accuracy"]) == {*found["sides"], *found["rules"]}
    assert set(kept["calibration"]) == {"vl-ltr", "vl-ltr, --prior training", found["best simple"]}
    assert all(len(found["additions"]["1 image"][how]) == 2 for how in ("added", "joint"))


@pytest.mark.slow
def test_a_draw_takes_vectors_from_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of CLIP's geometry, also for the class that is added: none has the width of a picture's pixels."""
    monkeypatch.setattr("benchmarks.studies.draws.bench.ADDITIONS", {"1 image": 1, "text": 0})
    plan = Plan("2x3", "clip", "true", "", "", True, False)
    found = measured(plan, 0, tmp_path / "draw")
    assert found["sides"]["vl-ltr"]["accuracy"] > 0.8
    assert all(
        len(found["additions"][way][how]) == 2 for way in ("1 image", "text") for how in ("added", "joint")
    )
