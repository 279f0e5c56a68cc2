"""The settings of the acceptance study with their seeds, and the draw of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.collections import photographs
from benchmarks.collections.sources import UNITS, draw, of_units
from benchmarks.studies.side_by_side.encoding import Encoding, noisy
from benchmarks.studies.side_by_side.worker import Draw

__all__ = ["FOLDERS", "PHOTOGRAPHS", "Unit", "make", "units"]

PHOTOGRAPHS = "photographs"
FOLDERS = ("emoji", "flags", "scripts")
_SETTINGS = Path(__file__).parent / "settings.json"
_ADDED = 10  # classes


@dataclass(frozen=True)
class Unit:
    """One setting.

    Attributes:
        kind: The kind of collection that it belongs to.
        name: Its name.
        source: As for `draw`, one of `FOLDERS`, or `PHOTOGRAPHS`.
        size: As for `draw`, or one of the settings of photographs.
        noise: Whether noise is added to the vectors.
        encoder: Which makes the vectors.
        seeds: Of its draws.
    """

    kind: str
    name: str
    source: str
    size: str
    noise: bool
    encoder: str
    seeds: tuple[int, ...]


def units() -> list[Unit]:
    """Return all settings."""
    rows = json.loads(_SETTINGS.read_text(encoding="utf-8"))
    return [Unit(**{**row, "seeds": tuple(row["seeds"])}) for row in rows]


def make(unit: Unit, seed: int, encoding: Encoding, folders: Path, photos: Path) -> Draw:
    """Make one draw.

    Args:
        unit: The setting.
        seed: Of the draw.
        encoding: Of the unit's encoder.
        folders: Has the folders `emoji`, `flags` and `scripts`.
        photos: Has Photos-LT.
    """
    if unit.source == PHOTOGRAPHS:
        kinds, added = photographs.drawn(photographs.read_photographs(photos), unit.size, seed)
        return encoding.draw(kinds, added, photographs.GROUP)
    if unit.source in UNITS:
        found = of_units(unit.source, seed, others=_ADDED - 1)
    else:
        source = str(folders / unit.source) if unit.source in FOLDERS else unit.source
        found = draw(source, unit.size, seed)
    made = encoding.draw(found.kinds, [found.new, *found.others][:_ADDED], found.group)
    return noisy(made, seed) if unit.noise else made
