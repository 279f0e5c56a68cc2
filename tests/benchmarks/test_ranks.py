"""The trees of Glyphs-LT and Icons-LT, and the tables of answers by rank."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.datasets.glyphs_lt import tree
from benchmarks.studies import ranks
from vlltr_index.data.taxonomy import read_taxonomy
from vlltr_index.store.taxonomy import misplaced

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("data", "named"), [("glyphs_lt", {"letter", "script"}), ("icons_lt", {"kind", "group", "field"})]
)
def test_trees_hold_every_class(data: str, named: set[str]) -> None:
    """Each class once, below a name of a rank or nothing; ranks are of names that are no classes."""
    classes = json.loads((RECIPES / data / "data" / "classes.json").read_text(encoding="utf-8"))
    taxa = {taxon.name: taxon for taxon in read_taxonomy(RECIPES / data / "tree.csv")}
    assert not misplaced(taxa, taxa)
    assert classes.keys() <= taxa.keys()
    for name, taxon in taxa.items():
        assert (taxon.rank in named) != (name in classes)
        assert taxon.parent is None or taxa[taxon.parent].rank in named


def test_the_tree_of_glyphs_is_what_the_program_makes() -> None:
    """And a letter is found whatever its case and its marks."""
    classes = json.loads((RECIPES / "glyphs_lt" / "data" / "classes.json").read_text(encoding="utf-8"))
    with (RECIPES / "glyphs_lt" / "tree.csv").open(encoding="utf-8", newline="") as file:
        assert [tuple(row) for row in csv.reader(file)][1:] == tree.rows(classes)
    found = {name: parent for name, parent, _ in tree.rows(classes)}
    assert found["latin capital letter a with acute"] == found["latin small letter a"] == "any latin a"
    assert found["any latin a"] == "Latin script"
    assert found["ampersand"] == "Basic Latin (block)"


def test_the_tables_count_answers_by_rank() -> None:
    """Of four images one is answered at its class, two above, one not at all."""
    run: dict[str, Any] = {
        "name": "icons_lt-0",
        "data": "icons_lt",
        "dataset": "0123456789abcdef00",
        "held_out": {"overall": 4, "many": 3, "medium": 0, "few": 1, "few5": 0},
        "ranks": [["class", 9], ["kind", 3]],
        "there": {"class": "1111", "kind": "1110"},
        "best class": {"class": "1100", "kind": "1110"},
        "summed": {"class": "1100", "kind": "1100"},
        "counts": [200, 50, 10, 3],
        "answered": {"0.9": "011-"},
        "right": {"0.9": "1100"},
        "least": {"0.9": {"class": 0.7, "kind": 0.6}},
    }
    text = ranks.generated({"icons_lt-0": ranks.counted(run)})
    assert "| class (9) | best class | 4 | 50.0 | 100.0 | 100.0 | 0.0 | 0.0 |" in text
    assert "| kind (3) | summed | 3 | 66.7 | 100.0 | 100.0 | 0.0 | - |" in text
    assert "| 90 % | class | 75.0: 100.0 | 25.0: 100.0 | 100.0: 100.0 | 0.0: - | 0.0: - | 0.0: - |" in text
    assert (
        "| 90 % | all answers | 87.5: 85.7 | 75.0: 66.7 | 100.0: 100.0 | 100.0: 100.0 | 50.0: 0.0 | 0.0: - |"
        in text
    )
