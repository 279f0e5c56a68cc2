"""Counts in sentences for people."""

from __future__ import annotations

__all__ = ["many"]


def many(count: int, one: str, several: str | None = None) -> str:
    """A count with its noun in the right number: `1 image`, `2,000 images`.

    Args:
        count: At least 0.
        one: The noun, or noun and verb, for one.
        several: The same for any other count; by default `one` with an s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"
