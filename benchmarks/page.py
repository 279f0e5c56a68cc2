"""Generated parts of docs/results.md, each between marks of its own."""

from __future__ import annotations

from pathlib import Path

__all__ = ["placed", "put"]

PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def put(command: str, title: str, part: str) -> None:
    """Write `part` into docs/results.md, as `placed` says."""
    PAGE.write_text(placed(PAGE.read_text(encoding="utf-8"), command, title, part), encoding="utf-8")


def placed(page: str, command: str, title: str, part: str) -> str:
    """`page` with `part` between the marks that name `command`; without them, under `title` at the end."""
    marks = f"<!-- generated: {command} -->", f"<!-- end of: {command} -->"
    if marks[0] not in page:
        page = f"{page.rstrip()}\n\n## {title}\n\n```sh\n{command}\n```\n\n{marks[0]}\n{marks[1]}\n"
    head, tail = page.split(marks[0])[0], page.split(marks[1])[1]
    return f"{head}{marks[0]}\n\n{part}\n{marks[1]}{tail}"
