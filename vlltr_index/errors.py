"""One tree of errors. A message gives the value, what was expected, and the next command to run."""

from __future__ import annotations

import errno
import os
import re

# The system's reason in a library's words: (os error 28), [errno 28], Os { code: 28, ...; FAISS has the text alone.
_CODE = re.compile(r"(?:os error |errno |code: )(\d+)", re.IGNORECASE)
_PLAIN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_SOURCE = re.compile(
    r",? (?:at )?/\S+\.(?:rs|cpp|cc|h):\d+(?::\d+)?|, location: Location \{[^}]*\}|, backtrace: \w+"
)
FREE_SPACE = "Free some space there, then run the same command again."


class VlltrError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line exits with.

    Args:
        message: What was wrong, where, and what was expected.
        hint: The command or change that mends it, shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(VlltrError):
    """The request itself cannot be meant: an option's value, a combination of options."""

    exit_code = 2


class ConfigError(UsageError):
    """A TOML file or a `--set` value does not fit the schema."""


class InputError(VlltrError):
    """Data that was handed in cannot be used: a file, a line, a tensor's shape."""


class EncoderError(VlltrError):
    """An encoder's name, weights or preprocessing cannot be used."""


class MissingPackageError(VlltrError):
    """A package of an extra is needed and not installed; the hint is the command that installs it."""


class WorkspaceError(VlltrError):
    """The workspace is missing, damaged, or not what the command needs."""


class LockedError(WorkspaceError):
    """Another process is writing to the workspace."""


class MissingStepError(WorkspaceError):
    """Something must be run first; the hint names the command."""


class FingerprintMismatch(WorkspaceError):
    """Vectors, head and encoder do not belong together."""


class PretrainedError(VlltrError):
    """An exported folder cannot be written or used, or the hub did not give or take it."""


class UnknownClassError(VlltrError):
    """A class name that the workspace does not know; the message lists close names."""


class PeerError(VlltrError):
    """Another process of the same run failed, and says itself why.

    Args:
        exit_code: What that one exits with.
    """

    def __init__(self, exit_code: int = 1) -> None:
        super().__init__("the first process of this run failed")
        self.exit_code = exit_code


def system_code(error: BaseException) -> int | None:
    """The number of the system's error behind what a library raised; None where it names none."""
    found = _CODE.search(str(error))
    code = getattr(error, "errno", None) or (int(found[1]) if found else None)
    return code or next((code for code in _PLAIN if os.strerror(code) in str(error)), None)


def reason(error: BaseException) -> str:
    """Why the system or a library refused, without the places in the library's own source."""
    code = system_code(error)
    return os.strerror(code) if code in _PLAIN else _SOURCE.sub("", str(error))


def write_error(place: str | os.PathLike[str], error: Exception) -> WorkspaceError:
    """What to say where the system or a library could not write a file, or into a folder."""
    return WorkspaceError(
        f"{place} cannot be written: {reason(error)}",
        "Free some space, mend its permissions, or work on a copy of the workspace.",
    )
