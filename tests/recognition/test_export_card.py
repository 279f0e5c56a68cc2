"""Model cards: text from anywhere stays text, and licences are said as they were found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from vlltr_index.recognition.exported.card import Results, licence_id, plain, write_card
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.exported import ExportedConfig
from vlltr_index.schemas.model import ModelRecord

NASTY = "<script>alert(1)</script> | **bold** `code` [link](http://x)\n# Heading"


def config(classes: int, **values: Any) -> ExportedConfig:
    """A small model's description."""
    record = ModelRecord(
        commit=3,
        first_commit=3,
        encoder="e",
        head="h",
        parts=(),
        index=None,
        text_fp="0" * 16,
        image_fp="1" * 16,
        selection_id="s",
        fusion=FusionConfig(),
        merged={},
        reading=0,
        offsets={},
    )
    facts: dict[str, Any] = {
        "program_version": "0.1.0",
        "created_at": "2026-01-01T00:00:00Z",
        "recipe": "glyphs_lt/fast",
        "protocol": "ours",
        "settings": {},
        "encoder": "vlltr-tiny",
        "dim": 8,
        "preprocess": {},
        "tokenizer": {},
        "rejects": False,
        "classes": classes,
        "anchors": 2,
        "sentences": 3,
        "model": record,
    }
    return ExportedConfig(**(facts | values))


def sentences(*pairs: tuple[str, str | None]) -> pa.Table:
    """Sources and licences."""
    sources, licences = [p[0] for p in pairs], [p[1] for p in pairs]
    return pa.table({"source": sources, "licence": pa.array(licences, pa.string())})


def card(
    folder: Path,
    names: Sequence[str],
    sentences: pa.Table,
    results: Results | None = None,
    texts: str = "",
    **values: Any,
) -> tuple[dict[str, Any], str]:
    """Front matter and body; attention over sentences has a weight where nothing is said of the `texts`."""
    facts = config(len(names), **values)
    write_card(folder, facts, names, sentences=sentences, results=results, texts=texts, attends=not texts)
    _, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_text_stays_text(tmp_path: Path) -> None:
    """Neither HTML nor Markdown nor the end of a table's cell comes through, from names, sources and licences."""
    front, body = card(tmp_path, [NASTY, "tench"], sentences((NASTY, NASTY), ("x", None)))
    assert "<script" not in body
    assert "\n# Heading" not in body
    assert "**bold**" not in body
    assert "[link]" not in body.replace("\\[", "")
    rows = [line for line in body.splitlines() if "alert" in line and line.startswith("|")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 4
    assert front["library_name"] == "vlltr-index"
    assert plain("a\n|b_") == "a \\|b\\_"


def test_what_the_card_says(tmp_path: Path) -> None:
    """Tags, licence, data set, use, the missing level, no results, and the licences' table."""
    table = sentences(("Wikipedia", "CC BY-SA 4.0"), ("Wikipedia", "CC BY-SA 4.0"), ("mine", None))
    front, body = card(tmp_path, ["tench", "crane"], table)
    assert front["license"] == "other"
    assert front["license_name"] == "see-data-licences"
    assert "datasets" not in front  # the recipe says nothing about whose pictures were ingested
    assert front["pipeline_tag"] == "image-classification"
    for part in (
        "| Wikipedia | CC BY\\-SA 4.0 | 2 |",
        "| mine | not stated | 1 |",
        "None: no evaluation has been run",
        'Recognizer.from_pretrained(".")',
        "no level for that is known",
        "## Intended use",
        "tench, crane.",
    ):
        assert part in body
    told = sentences(("Wikipedia", "CC BY-SA 4.0"))
    front, body = card(tmp_path, ["tench"], told, rejects=True, recipe="ours")
    assert front["license"] == "cc-by-sa-4.0"
    assert "reject=True" in body
    assert "An image classifier for 1 class\n" in body
    assert "\n\nIt attends over sentences about each class" in body
    _, body = card(tmp_path, ["tench"], told, texts="They do not count.")
    assert "It attends over" not in body
    assert "has no weight in its answers. They do not count. Made with vlltr" in body
    many = [f"class {i}" for i in range(60)]
    assert "and 10 more: see `parts/classes.arrow`." in card(tmp_path, many, sentences(("s", "MIT")))[1]


def test_of_few_units_pictures_are_counted(tmp_path: Path) -> None:
    """As in the evaluation there is no interval, and no share for the hub; a prior asked for is not the card's."""
    few = {"value": 0.7, "low": 0.4, "high": 0.9, "images": 40, "units": 10}
    shares = {"overall": {**few, "units": 40}, "few": few}
    common = {name: {**share, "value": 0.9} for name, share in shares.items()}
    facts = {
        "commit": 3,
        "split": "cross-validation",
        "crops": 1,
        "images": 40,
        "classes": 2,
        "convention": "release",
        "retrieval": "exhaustive",
        "rule": "ours",
        "prior": "training",
        "measures": [
            {"prior": "training", "row": "vl-ltr"},
            {"prior": "balanced", "row": "vl-ltr, --prior balanced"},
        ],
        "rows": {
            "vl-ltr": {"top1": common, "balanced": common["overall"]},
            "vl-ltr, --prior balanced": {"top1": shares, "balanced": {**shares["overall"], "value": 0.6}},
        },
        "same": True,
    }
    found = Results.parse(json.dumps(facts).encode(), "evaluate.json")
    front, body = card(tmp_path, ["tench", "crane"], sentences(("s", "MIT")), found)
    assert "| overall | 70.0 | 40.0 to 90.0 | 40 |" in body
    assert "| few | 28 of 40 | - | 40 |" in body
    (result,) = front["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [0.6, 0.7]
    assert "---: |\n| overall, each class counted alike | 60.0 |" in body
    told = "on the models of a cross-validation of this model, each on the training images that it was not trained on: "
    assert f"Measured {told}40 images" in body
    lacking = json.dumps({**facts, "rows": {"other": facts["rows"]["vl-ltr"]}}).encode()
    with pytest.raises(ValueError, match=r"rows in evaluate.json: .* no row 'vl-ltr, --prior balanced'"):
        Results.parse(lacking, "evaluate.json")
    with pytest.raises(ValueError, match="no row 'vl-ltr'"):
        Results.parse(json.dumps({**facts, "rows": {}, "measures": []}).encode(), "evaluate.json")


def test_the_hubs_name_of_a_licence() -> None:
    """One known licence has its identifier, anything else is `other`."""
    assert licence_id(["CC BY-SA 4.0"]) == "cc-by-sa-4.0"
    assert (
        licence_id(["MIT", "CC0"])
        == licence_id(["MIT", None])
        == licence_id(["x"])
        == licence_id([])
        == "other"
    )
