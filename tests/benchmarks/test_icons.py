"""The benchmarks on Icons-LT: senses labelled by hand, and other texts in the place of a class's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import explained
from benchmarks.studies import protocols, senses, text_controls
from benchmarks.studies.paired import METHOD, bits_of


def test_the_labelled_pairs_are_those_drawn() -> None:
    """Each once, by two labellings of ones and zeros, of classes with several senses."""
    rows = senses.labelled()
    assert [(name, sense) for name, sense, *_ in rows] == sorted(senses.drawn())
    assert {value for _, _, *both in rows for value in both} == {0, 1}


def test_kappa_is_agreement_beyond_chance() -> None:
    """As in Cohen's example of two readers: 35 of 50 alike, 0.4; and 1 where all are alike."""
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    assert senses.kappa(*zip(*pairs, strict=True)) == pytest.approx(0.4)
    assert senses.kappa([0, 1, 1], [0, 1, 1]) == 1.0


def test_the_table_of_senses_counts_pairs_that_both_labellings_agree_on() -> None:
    """A gloss is dropped if none of its sentences was kept; a tie of ranks counts half."""
    keys = ("first", "second", "best_rank", "gloss_kept", "glosses", "sense_kept", "sentences")
    pairs = [
        (1, 1, 0.1, 1, 2, 2, 4),
        (1, 1, 0.5, 0, 2, 0, 4),
        (0, 0, 0.5, 0, 1, 1, 8),
        (1, 0, 0.0, 1, 1, 1, 1),
    ]
    kinds = {"all": {"prompt": 1, "wordnet:gloss": 3}, "anchors": {"prompt": 1, "wordnet:gloss": 1}}
    result = {"seed": 0, "kinds": kinds, "pairs": [dict(zip(keys, pair, strict=True)) for pair in pairs]}
    text = senses.generated(result)
    assert "| right | 2 | 50 % | 75 % | 30 % |" in text
    assert "| wrong | 1 | 100 % | 88 % | 50 % |" in text
    assert "in 75 % of all such pairs" in text
    assert "| WordNet: gloss | 75 | 50 |" in text


def test_other_texts_keep_what_they_are_to_keep() -> None:
    """The name goes in either number, and no part of a word; random sentences have as many words."""
    told = {"axe": ["An axe.", "Axes of relaxed axemen."], "bus": ["A bus is a kind of vehicle."]}
    found = text_controls.ways(told, {"axe": told["bus"], "bus": told["axe"]})
    assert found["own name replaced"]["axe"] == ["An thing.", "thing of relaxed axemen."]
    assert found["bare name"] == {"axe": ["axe"], "bus": ["bus"]}
    lengths = {name: [len(s.split()) for s in texts] for name, texts in found["random words"].items()}
    assert lengths == {"axe": [2, 4], "bus": [7]}
    assert found["random words"]["axe"] != told["axe"]


def test_the_table_of_controls_has_rows_and_gaps() -> None:
    """Of classes and of families."""
    run: dict[str, Any] = {
        "seed": 0,
        "counts": [200, 50, 10, 10, 3, 3],
        "labels": [0, 1, 2, 2, 3, 3],
        "groups": ["a", "a", "b", "b", "c", "c"],
        "right": {METHOD: bits_of("111111"), "bare name": bits_of("110000")},
        "decided": {"bare name": {"text": 0.5, "text_r2": 0.25}},
    }
    text = text_controls.generated([run])
    assert (
        "| bare name | 0 | 33.3 | 100.0 | 100.0 | 0.0 | 0.0 | +100.0 [+100.0, +100.0] | +100.0 [+100.0, +100.0] |"
        in text
    )


def test_explained_pictures_are_the_first_of_each_kind() -> None:
    """Of few-shot classes, two at most: right; wrong where the text alone is right; wrong both ways."""
    right = torch.tensor([True, False, True, True, True, False, False, False])
    text = torch.tensor([False, True, False, True, True, False, False, True])
    few = torch.tensor([True, True, True, False, True, True, False, False])
    assert explained.of_each_kind(right, text, few) == [[0, 2], [1], [5]]


def test_the_table_of_protocols_sets_them_side_by_side() -> None:
    """Each branch's accuracy, then ours less theirs on the same images."""

    def result(right: str) -> dict[str, Any]:
        rows = dict.fromkeys(protocols.ROWS, bits_of(right))
        top5 = dict.fromkeys(protocols.ROWS, 2 / 3)
        return {"dataset": "d" * 64, "counts": [100, 5, 50], "labels": [0, 1, 2], "right": rows, "top5": top5}

    text = protocols.generated({"ours": result("111"), "paper": result("101")})
    assert "| paper | both branches | 66.7 | 100.0 | 100.0 | 0.0 | 0.0 | 66.7 |" in text
    assert "| paper | +33.3 [" in text
