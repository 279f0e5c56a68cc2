"""The list of commands: each entry names a file that has the command, and the library's functions that it calls."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import click
import pytest

from vlltr_index.cli.commands import COMMANDS
from vlltr_index.cli.main import vlltr

CLI = Path(__file__).parents[2] / "cli"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_entry_names_what_is_there(name: str) -> None:
    """Its file has the command, its functions exist, and the file calls them by their names."""
    entry = COMMANDS[name]
    assert isinstance(vlltr.get_command(click.Context(vlltr), name), click.Command)
    source = (CLI / f"{entry.file.replace('.', '/')}.py").read_text(encoding="utf-8")
    for path in entry.calls:
        place, _, function = path.rpartition(".")
        assert callable(getattr(found(place), function)), path
        assert function in source, path


def found(path: str) -> ModuleType | type:
    """The module or class of a dotted path below the package."""
    try:
        return import_module(f"vlltr_index.{path}")
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        made: type = getattr(import_module(f"vlltr_index.{module}"), name)
        return made
