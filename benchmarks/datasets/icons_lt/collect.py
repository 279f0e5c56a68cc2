"""Reading the icon sets of the package @iconify/json: which icons draw a noun, and what else the sets call them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.datasets.icons_lt.names import noun_of
from benchmarks.datasets.icons_lt.render import Drawing
from benchmarks.datasets.icons_lt.wordnet import WordNet

HERE = Path(__file__).resolve().parents[3] / "recipes" / "icons_lt"


@dataclass(frozen=True, slots=True)
class Icon:
    """One icon that draws a noun: its family, set and name, other names of the set for it, and its categories."""

    noun: str
    family: str
    set: str
    name: str
    drawing: Drawing = field(repr=False)
    aliases: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Where the image comes from, unique over the data set: family/set/name."""
        return f"{self.family}/{self.set}/{self.name}"


@cache
def table() -> dict[str, Any]:
    """The reviewed table: `families` (name -> sets, why), `test` (family names) and `left_out` (set -> reason)."""
    found: dict[str, Any] = json.loads((HERE / "families.json").read_text(encoding="utf-8"))
    return found


def read_set(package: Path, name: str) -> dict[str, Any]:
    """One icon set as the package holds it."""
    found: dict[str, Any] = json.loads((package / "json" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def logo_names(package: Path) -> frozenset[str]:
    """Names of the icons in the package's sets of logos, with underscores."""
    collections = json.loads((package / "collections.json").read_text(encoding="utf-8"))
    logos = [name for name, info in collections.items() if info.get("category") == "Logos"]
    return frozenset(icon.replace("-", "_") for name in logos for icon in read_set(package, name)["icons"])


def collect(package: Path, nouns: WordNet) -> list[Icon]:
    """Every icon of the table's sets whose name is a noun, sorted by noun and source."""
    logos = logo_names(package)
    found = [
        icon
        for family, entry in table()["families"].items()
        for name in entry["sets"]
        for icon in _icons(read_set(package, name), family, nouns, logos)
    ]
    return sorted(found, key=lambda icon: (icon.noun, icon.source))


def _icons(values: dict[str, Any], family: str, nouns: WordNet, logos: frozenset[str]) -> Iterator[Icon]:
    aliases: dict[str, list[str]] = {}
    for other, entry in values.get("aliases", {}).items():
        if entry.keys() == {"parent"}:
            aliases.setdefault(entry["parent"], []).append(other)
    categories: dict[str, list[str]] = {}
    for category, names in values.get("categories", {}).items():
        for name in names:
            categories.setdefault(name, []).append(category)
    for name, entry in values["icons"].items():
        noun = noun_of(name, nouns, logos)
        if noun is None or entry.get("hidden"):
            continue
        left, top, width, height = (
            float(entry.get(key, values.get(key, default)))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        yield Icon(
            noun,
            family,
            values["prefix"],
            name,
            Drawing(entry["body"], left, top, width, height),
            tuple(sorted(aliases.get(name, []))),
            tuple(sorted(categories.get(name, []))),
        )
