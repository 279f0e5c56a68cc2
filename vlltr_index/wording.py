"""Words for people: counts in sentences, and text from outside where a terminal or a spreadsheet would act on it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Control characters but tab and line feed, line separators, what turns the direction of writing, lone surrogates.
_ACTED_ON = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def many(count: int, one: str, several: str | None = None) -> str:
    """A count with its noun in the right number: `1 image`, `2,000 images`.

    Args:
        count: At least 0.
        one: The noun, or noun and verb, for one.
        several: The same for any other count; by default `one` with an s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of `names`, and how many more there are."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most:,} more" if len(quoted) > most else "")


def shown(text: str) -> str:
    """`text` as a terminal may have it: what the terminal would act on stands as \\u001b, as in JSON.

    Tabs and line feeds stay. A text in JSON stays the same value.
    """
    return _ACTED_ON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def cell(value: Any) -> Any:
    """`value` as a field of a CSV file: a text that a spreadsheet would compute stands behind an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
