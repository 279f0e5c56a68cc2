"""The page `docs/commands.md`, made from the commands themselves: `python -m benchmarks.reference`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from vlltr_index.cli.main import vlltr

__all__ = ["commands", "reference"]

_HEAD = """# Commands

Made from the program by `python -m benchmarks.reference > docs/commands.md`.

`vlltr [-w DIR] [--json] [-q] COMMAND ...`: a workspace is the nearest folder upward with a `vlltr.toml`, or
the one that `-w` names. `--json` writes results to stdout as JSON; everything else goes to stderr. Exit codes: 0
done, 1 failed, 2 the command was not understood, 130 stopped by Ctrl-C. A command that was stopped goes on where it
was when it is run again. Every command takes `-h`.
"""


def commands(
    group: click.Group = vlltr, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that can be run, with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        elif command is not None:
            yield (*path, name), command


def reference() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    seen: set[str] = set()
    for path, command in commands():
        if path[0] not in seen:
            seen.add(path[0])
            parts.append(f"## vlltr {path[0]}\n")
        parts.append(_entry(path, command))
    return "\n".join(parts)


def _entry(path: tuple[str, ...], command: click.Command) -> str:
    context = click.Context(
        command,
        info_name=" ".join(("vlltr", *path)),
        max_content_width=100,
        terminal_width=100,
        help_option_names=[],  # said once, above
        show_default=True,
    )
    return f"```text\n{command.get_help(context).rstrip()}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
