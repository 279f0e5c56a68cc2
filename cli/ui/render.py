"""The page's pieces as HTML, from the macros of `templates/page.html`."""

from __future__ import annotations

from functools import cache
from typing import Any

from vlltr_index.evaluation.report import environment
from vlltr_index.recognition.in_words import rather_than

__all__ = ["piece"]


def piece(name: str, *values: Any) -> str:
    """The piece of the page that the macro `name` draws of some values, with every text escaped."""
    return str(getattr(_macros(), name)(*values))


@cache
def _macros() -> Any:
    made = environment("vlltr_index.cli.ui")
    # What rounds to nothing has no sign.
    made.filters["change"] = lambda value: f"{value:+.3f}" if abs(value) >= 5e-4 else "0.000"
    made.globals["rather_than"] = rather_than
    return made.get_template("page.html").module
