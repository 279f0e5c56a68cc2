"""A value that is opened on first use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Lazy(Generic[Value]):
    """A value that is opened on first use, and kept.

    Args:
        opens: Returns the value.
    """

    def __init__(self, opens: Callable[[], Value]) -> None:
        self._opens = opens

    @classmethod
    def of(cls, value: Value) -> Lazy[Value]:
        """Return a value that is open already."""
        return cls(lambda: value)

    @cached_property
    def value(self) -> Value:
        """The value; errors are those of `opens`."""
        return self._opens()
