"""The harness of all studies: what a study is, its resumable run over settings and draws, and its page.

A study is a module with `STUDY`. Its docstring asks the question; `Study` has its settings, each with the seeds of its
draws and what is measured of one, and what makes the tables of the results. A study whose units are no draws, such as
trained workspaces, has its own `run` among the commands.
"""

from __future__ import annotations

import logging
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.kept import keep_draw, read, surroundings

__all__ = [
    "DOCS",
    "Command",
    "Results",
    "Setting",
    "Study",
    "add_draws",
    "add_folder",
    "chosen",
    "commands",
    "no_arguments",
    "placed",
    "run_draws",
    "table",
    "write_pages",
]

DOCS = Path(__file__).parents[1] / "docs"
_END = "<!-- end of the generated part -->"
Results = Mapping[str, Any]
"""What `kept.read` returns: results by unit."""
_log = logging.getLogger(__name__)


def no_arguments(parser: ArgumentParser) -> None:
    """Add nothing."""


@dataclass(frozen=True)
class Command:
    """A command of a study.

    Attributes:
        work: Is called with the parsed arguments by name.
        arguments: Adds them to a parser.
    """

    work: Callable[..., object]
    arguments: Callable[[ArgumentParser], object] = no_arguments


@dataclass(frozen=True)
class Setting:
    """A setting of a study, of which several draws are measured.

    Attributes:
        name: Its unit in the results.
        seeds: Of its draws.
        measure: Returns the result of the draw of a seed, as JSON has it; one with `failed` is measured again.
    """

    name: str
    seeds: Sequence[int]
    measure: Callable[[int], Mapping[str, Any]]


@dataclass(frozen=True)
class Study:
    """The settings and the tables of a question.

    Attributes:
        pages: What makes the Markdown of the results, by the page below docs/ that holds it.
        settings: Returns what `run` measures, from the parsed `arguments`; None: `commands` has `run`.
        arguments: Adds those of `settings` to the parser of `run`.
        commands: Other commands, by name.
        write_files: Writes what `table` writes next to the pages.
    """

    pages: Mapping[str, Callable[[Results], str]]
    settings: Callable[..., Sequence[Setting]] | None = None
    arguments: Callable[[ArgumentParser], object] = no_arguments
    commands: Mapping[str, Command] = field(default_factory=dict)
    write_files: Callable[[], None] | None = None


def commands(name: str, study: Study) -> dict[str, Command]:
    """Return all commands of a study: `run`, its own ones, and `table`."""
    found: dict[str, Command] = {}
    if study.settings is not None:
        found["run"] = Command(partial(_run, name, study.settings), partial(_run_arguments, study))
    return {**found, **study.commands, "table": Command(partial(write_pages, name, study))}


def _run(
    name: str,
    settings_of: Callable[..., Sequence[Setting]],
    draws: int | None,
    settings: Sequence[str] | None,
    **given: Any,
) -> None:
    run_draws(name, chosen(settings_of(**given), settings), draws, surroundings())


def _run_arguments(study: Study, parser: ArgumentParser) -> None:
    study.arguments(parser)
    add_draws(parser)


def chosen(every: Sequence[Setting], names: Sequence[str] | None) -> list[Setting]:
    """Return the settings with these names; all without names.

    Raises:
        SystemExit: There is no such setting.
    """
    if unknown := set(names or ()) - {setting.name for setting in every}:
        known = "; ".join(setting.name for setting in every)
        raise SystemExit(f"no setting {', '.join(sorted(unknown))}; --settings takes: {known}")
    return [setting for setting in every if names is None or setting.name in names]


def run_draws(
    name: str,
    settings: Iterable[Setting],
    draws: int | None,
    facts: Mapping[str, Any],
    folder: Path | None = None,
) -> None:
    """Measure the draws that are not measured yet, or failed, and keep the result after each.

    Args:
        name: Of the file of results.
        settings: Whose draws.
        draws: Number of draws of each setting, the first ones; None: all.
        facts: Are kept with each setting.
        folder: Has the file of results; default: `kept.RESULTS`.
    """
    for setting in settings:
        done = read(name, folder).get(setting.name, {}).get("draws", {})
        for seed in setting.seeds[:draws]:
            earlier = done.get(str(seed))
            if earlier is None or "failed" in earlier:
                found = setting.measure(seed)
                keep_draw(name, setting.name, seed, found, facts, folder)
                _log.info("%s, draw %d: %.300s", setting.name, seed, found.get("failed") or found)


def add_draws(parser: ArgumentParser) -> None:
    """Add `--draws` and `--settings`."""
    parser.add_argument("--draws", type=int, help="the first draws of each setting; default: all")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="these settings; default: all")


def add_folder(parser: ArgumentParser) -> None:
    """Add `--dir`, a folder for workspaces, which is made if it is missing."""
    parser.add_argument("--dir", dest="folder", type=_folder, required=True, help="for workspaces")


def _folder(name: str) -> Path:
    path = Path(name).resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table of as many columns as `head` has."""
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def write_pages(name: str, study: Study) -> None:
    """Write the tables of a study into their pages, and the files next to them.

    Raises:
        SystemExit: There is no result yet.
    """
    results = read(name)
    if not results:
        raise SystemExit(f"no results; see: python -m benchmarks {name} run --help")
    for page, generated in study.pages.items():
        path = DOCS / page
        text = path.read_text(encoding="utf-8") if path.exists() else _new_page(name)
        path.write_text(placed(text, name, generated(results)), encoding="utf-8")
    if study.write_files is not None:
        study.write_files()


def _new_page(name: str) -> str:
    return f"# {name.replace('_', ' ').capitalize()}\n\n{_begin(name)}\n{_END}\n"


def _begin(name: str) -> str:
    return f"<!-- generated: python -m benchmarks {name} table -->"


def placed(page: str, name: str, part: str) -> str:
    """Return `page` with `part` between the marks of the study `name`."""
    head, rest = page.split(_begin(name))
    return f"{head}{_begin(name)}\n\n{part}\n{_END}{rest.split(_END, 1)[1]}"
