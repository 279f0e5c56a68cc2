"""Model cards: text from anywhere stays text, and licences are said as they were found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from vlltr_index.recognition.exported.card import licence_id, plain, write_card
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.exported import ExportedClass, ExportedConfig

NASTY = "<script>alert(1)</script> | **bold** `code` [link](http://x)\n# Heading"


def config(*names: str, **values: Any) -> ExportedConfig:
    """A small model's description."""
    facts: dict[str, Any] = {
        "program_version": "0.1.0",
        "commit": 3,
        "created_at": "2026-01-01T00:00:00Z",
        "recipe": "glyphs_lt/fast",
        "protocol": "ours",
        "encoder": "vlltr-tiny",
        "text_fp": "0" * 16,
        "image_fp": "1" * 16,
        "dim": 8,
        "selection_id": "s",
        "fusion": FusionConfig(),
        "classes": tuple(ExportedClass(class_id=i, name=name) for i, name in enumerate(names)),
        "anchors": 2,
        "sentences": 3,
    }
    return ExportedConfig(**(facts | values))


def sentences(*pairs: tuple[str, str | None]) -> pa.Table:
    """Sources and licences."""
    sources, licences = [p[0] for p in pairs], [p[1] for p in pairs]
    return pa.table({"source": sources, "licence": pa.array(licences, pa.string())})


def card(folder: Path, *args: Any) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    write_card(folder, *args)
    _, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_text_stays_text(tmp_path: Path) -> None:
    """Neither HTML nor Markdown nor the end of a table's cell comes through, from names, sources and licences."""
    front, body = card(tmp_path, config(NASTY, "tench"), sentences((NASTY, NASTY), ("x", None)), None)
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
    front, body = card(tmp_path, config("tench", "crane"), table, None)
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
    told = config("tench", rejects=True, recipe="ours")
    front, body = card(tmp_path, told, sentences(("Wikipedia", "CC BY-SA 4.0")), None)
    assert front["license"] == "cc-by-sa-4.0"
    assert "reject=True" in body
    assert "1 class that" in body
    many = config(*(f"class {i}" for i in range(60)))
    assert "and 10 more: see `config.json`." in card(tmp_path, many, sentences(("s", "MIT")), None)[1]


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
