"""What is measured and shown: the commands of a study, and the parts of the pages that are made of its results."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOCS", "Command", "Study", "add_folder", "no_arguments", "placed", "write_tables"]

DOCS = Path(__file__).parents[1] / "docs"
_END = "<!-- end of the generated part -->"


@dataclass(frozen=True)
class Command:
    """A command of a study.

    Attributes:
        work: Is called with the parsed arguments by name.
        arguments: Adds them to a parser.
    """

    work: Callable[..., object]
    arguments: Callable[[ArgumentParser], object]


@dataclass(frozen=True)
class Study:
    """A question, how it is measured, and how the answer is shown.

    Attributes:
        commands: `run` measures and keeps a result after each unit; what is done is not done again. Others help it.
        parts: Returns Markdown of the kept results by the page below docs/ that holds it; no page without results.
        beside: Writes what `table` writes beside the pages.
    """

    commands: Mapping[str, Command]
    parts: Callable[[], Mapping[str, str]]
    beside: Callable[[], None] | None = None


def no_arguments(parser: ArgumentParser) -> None:
    """Add nothing."""


def add_folder(parser: ArgumentParser) -> None:
    """Add `--dir`, a folder for workspaces, which is made if it is not there."""
    parser.add_argument("--dir", dest="folder", type=_folder, required=True, help="for workspaces")


def _folder(name: str) -> Path:
    path = Path(name).resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_tables(name: str, study: Study) -> None:
    """Write a study's parts into their pages, and what stands beside them.

    Raises:
        SystemExit: There is no result yet.
    """
    parts = study.parts()
    if not parts:
        raise SystemExit(f"no results; see: python -m benchmarks {name} run --help")
    for page, part in parts.items():
        path = DOCS / page
        text = path.read_text(encoding="utf-8") if path.exists() else _new_page(name)
        path.write_text(placed(text, name, part), encoding="utf-8")
    if study.beside is not None:
        study.beside()


def _new_page(name: str) -> str:
    return f"# {name.replace('_', ' ').capitalize()}\n\n{_begin(name)}\n{_END}\n"


def _begin(name: str) -> str:
    return f"<!-- generated: python -m benchmarks {name} table -->"


def placed(page: str, name: str, part: str) -> str:
    """Return `page` with `part` between the marks of the study `name`."""
    head, rest = page.split(_begin(name))
    return f"{head}{_begin(name)}\n\n{part}\n{_END}{rest.split(_END, 1)[1]}"
