"""Reading UnicodeData.txt, Scripts.txt, Blocks.txt and NamesList.txt, and choosing the characters to draw."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from pathlib import Path

_SCRIPTS = ("Latin", "Greek", "Cyrillic", "Armenian", "Georgian")
_LETTERS = ("Lu", "Ll", "Lo", "Lt")
_ARROWS = ((0x2190, 0x21FF), (0x27F0, 0x27FF), (0x2900, 0x297F), (0x2B00, 0x2B11), (0x2B30, 0x2B4C))
_MATHS = ((0x2200, 0x22FF), (0x27C0, 0x27EF), (0x2980, 0x2AFF))
# Shapes, superscript and subscript digits and signs, vulgar fractions, roman numerals.
_SHAPES = ((0x25A0, 0x25FF), (0x2B12, 0x2B2F))
_NUMBERS = ((0xB2, 0xB3), (0xB9, 0xB9), (0xBC, 0xBE), (0x2070, 0x208E), (0x2150, 0x215F), (0x2160, 0x2188))
_SIGNS = (0xA1, 0xA7, 0xAC, 0xB1, 0xB5, 0xB6, 0xBF, 0xD7, 0xF7, 0x2020, 0x2021, 0x2030, 0x203B)
# Curly logical or and and: several fonts have the two the wrong way round.
_SWAPPED = (0x22CE, 0x22CF)


@dataclass(slots=True)
class Character:
    """What the Unicode data says of one character."""

    code: int
    name: str
    category: str
    decomposition: str
    upper: int | None
    lower: int | None
    script: str = ""
    block: str = ""
    aliases: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    crosses: list[int] = field(default_factory=list)


def _ranges(path: Path) -> tuple[list[int], list[tuple[int, str]]]:
    """Read `first..last; value` lines, sorted by first."""
    found: list[tuple[int, int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        part = line.split("#")[0].strip()
        if not part or part.startswith("@"):
            continue
        span, value = (piece.strip() for piece in part.split(";")[:2])
        first, _, last = span.partition("..")
        found.append((int(first, 16), int(last or first, 16), value))
    found.sort()
    return [first for first, _, _ in found], [(last, value) for _, last, value in found]


def _lookup(table: tuple[list[int], list[tuple[int, str]]], code: int) -> str:
    index = bisect.bisect_right(table[0], code) - 1
    if index < 0 or table[1][index][0] < code:
        return ""
    return table[1][index][1]


def parse_names_list(text: str) -> dict[int, tuple[list[str], list[str], list[int]]]:
    """Return code -> (aliases, notes, cross references) from the text of NamesList.txt."""
    entries: dict[int, tuple[list[str], list[str], list[int]]] = {}
    current: tuple[list[str], list[str], list[int]] | None = None
    for line in text.splitlines():
        head = re.match(r"([0-9A-F]{4,6})\t", line)
        if head:
            current = ([], [], [])
            entries[int(head.group(1), 16)] = current
        elif line.startswith("@"):
            current = None
        elif current is not None and line.startswith("\t"):
            body = line.strip()
            if body.startswith("= "):
                current[0].extend(piece.strip() for piece in body[2:].split(",") if piece.strip())
            elif body.startswith("* "):
                current[1].append(body[2:].strip())
            elif body.startswith("x "):
                code = re.search(r"([0-9A-F]{4,6})\)?$", body)
                if code:
                    current[2].append(int(code.group(1), 16))
    return entries


def read_unicode(folder: Path) -> dict[int, Character]:
    """Read every named character of the Unicode data in `folder`."""
    scripts, blocks = _ranges(folder / "Scripts.txt"), _ranges(folder / "Blocks.txt")
    notes = parse_names_list((folder / "NamesList.txt").read_text(encoding="utf-8"))
    table: dict[int, Character] = {}
    for line in (folder / "UnicodeData.txt").read_text(encoding="utf-8").splitlines():
        cells = line.split(";")
        code = int(cells[0], 16)
        if cells[1].startswith("<"):
            continue
        upper, lower = (int(cell, 16) if cell else None for cell in (cells[12], cells[13]))
        char = Character(code, cells[1].lower(), cells[2], cells[5], upper, lower)
        char.script, char.block = _lookup(scripts, code), _lookup(blocks, code)
        if code in notes:
            char.aliases, char.notes, char.crosses = notes[code]
        table[code] = char
    return table


def _inside(code: int, spans: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= code <= last for first, last in spans)


def is_drawn(char: Character) -> bool:
    """Say whether a character belongs to the pool: letters of five scripts, ASCII, currency, arrows, mathematics.

    Shapes and number forms count as mathematics. Other characters with a compatibility decomposition (ligatures,
    raised letters, wide forms) are left out.
    """
    if char.code in _SWAPPED:
        return False
    if _inside(char.code, _SHAPES) or (_inside(char.code, _NUMBERS) and char.category in ("No", "Nl", "Sm")):
        return True
    if char.decomposition.startswith("<") and char.code not in (0x17F, 0xB5):
        return False
    if 0x21 <= char.code <= 0x7E or char.code in _SIGNS:
        return True
    if char.category in _LETTERS and char.script in _SCRIPTS:
        return True
    if char.category == "Sc":
        return True
    return char.category in ("Sm", "So", "Ps", "Pe") and (
        _inside(char.code, _ARROWS) or _inside(char.code, _MATHS)
    )


def full_decomposition(table: dict[int, Character], code: int) -> list[int]:
    """Return the code points of the full canonical decomposition (the code itself where there is none)."""
    cell = table[code].decomposition if code in table else ""
    if not cell or cell.startswith("<"):
        return [code]
    return [part for piece in cell.split() for part in full_decomposition(table, int(piece, 16))]
