"""Say in words what went wrong: errors of the library, and those of the system that a person can mend."""

from __future__ import annotations

import errno
from io import StringIO

import click

from vlltr_index.errors import FREE_SPACE, VlltrError

_MENDS = {
    errno.ENOSPC: FREE_SPACE,
    errno.EROFS: "Choose a folder that you may write to.",
    errno.EACCES: "Mend its permissions, or choose another place.",
    errno.EAGAIN: "Allow more memory and processes: ulimit -v, ulimit -u.",
}


def usage_lines(error: click.ClickException) -> list[str]:
    """Return what click shows of an error, by lines; a line feed in what was typed does not end one."""
    told = StringIO()
    error.show(told)
    if isinstance(error, click.MissingParameter):  # of what was not typed, and it lists choices by lines
        return told.getvalue().splitlines()
    message = error.format_message()
    *lines, last = told.getvalue().replace(message, "\0").splitlines()
    return [*lines, last.replace("\0", message)]


def error_lines(error: Exception) -> tuple[str, str | None] | None:
    """Return an error's message and hint if a person can mend it, else None."""
    if isinstance(error, VlltrError):
        return f"Error: {error.message}", error.hint
    if isinstance(error, MemoryError):
        return f"Error: there is not enough memory: {str(error) or 'none is left'}", None
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename is not None else ""
        return f"Error: {error.strerror or error}{where}", _MENDS.get(error.errno or 0)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; compared by name, so that torch is not imported
        mend = "Free memory of the GPU (nvidia-smi shows who holds it), or use --device cpu."
        return f"Error: {str(error).partition('. Including')[0]}", mend
    if str(error) == "can't start new thread":
        return "Error: no more threads can be started here", _MENDS[errno.EAGAIN]
    return None
