"""Counts in sentences for people."""

from __future__ import annotations

from collections.abc import Iterable


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
    shown = [repr(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most:,} more" if len(shown) > most else "")
