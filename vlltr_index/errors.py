"""Error classes. A message gives the value, what was expected, and the next command to run."""

from __future__ import annotations

import errno
import os
import re

# How libraries give the system's error: (os error 28), [errno 28], Os { code: 28, ...; FAISS gives the text alone.
_CODE = re.compile(r"(?:os error |errno |code: )(\d+)", re.IGNORECASE)
_PLAIN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_SOURCE = re.compile(
    r",? (?:at )?/\S+\.(?:rs|cpp|cc|h):\d+(?::\d+)?|, location: Location \{[^}]*\}|, backtrace: \w+"
)
FREE_SPACE = "Free some space there, then run the same command again."


class VlltrError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the exit status of the command line.

    Args:
        message: What was wrong, where, and what was expected.
        hint: The command or change that solves it, shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message, and the hint on the next line."""
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(VlltrError):
    """The request is invalid: an option's value, or a combination of options."""

    exit_code = 2


class PriorError(UsageError):
    """Weights that say how common classes are do not fit the classes."""


class ConfigError(UsageError):
    """A TOML file or a `--set` value does not fit the schema."""


class InputError(VlltrError):
    """Data that was handed in cannot be used: a file, a line, a tensor's shape."""


class EncoderError(VlltrError):
    """An encoder's name, weights or preprocessing cannot be used."""


class MissingPackageError(VlltrError):
    """A package of an extra is needed but not installed; the hint is the command that installs it."""


class WorkspaceError(VlltrError):
    """The workspace is missing, damaged, or not what the command needs."""


class LockedError(WorkspaceError):
    """Another process is writing to the workspace."""


class MissingStepError(WorkspaceError):
    """Another command must be run first; the hint names it."""


class MissingFileError(MissingStepError):
    """A file or a table of the workspace is gone."""


class FingerprintMismatch(WorkspaceError):
    """Vectors, head and encoder do not belong together."""


class PretrainedError(VlltrError):
    """An exported folder cannot be written or used, or could not be downloaded from the hub or uploaded to it."""


class UnknownClassError(VlltrError):
    """The workspace has no class of that name; the message lists similar names."""


class PeerError(VlltrError):
    """Another process of the same run failed, and reports the reason itself.

    Args:
        exit_code: The exit status of that process.
    """

    def __init__(self, exit_code: int = 1) -> None:
        super().__init__("the first process of this run failed")
        self.exit_code = exit_code


def system_code(error: BaseException) -> int | None:
    """Return the number of the system error that a library's error is about; None if it names none."""
    found = _CODE.search(str(error))
    code = getattr(error, "errno", None) or (int(found[1]) if found else None)
    return code or next((code for code in _PLAIN if os.strerror(code) in str(error)), None)


def reason(error: BaseException) -> str:
    """Return the reason of an error of the system or a library: one line, without locations in the library's source."""
    code = system_code(error)
    if code in _PLAIN:
        return os.strerror(code)
    return _SOURCE.sub("", str(error)).strip().partition("\n")[0]


def write_error(place: str | os.PathLike[str], error: Exception) -> WorkspaceError:
    """Make the error for a file or folder that the system or a library could not write."""
    return WorkspaceError(
        f"{place} cannot be written: {reason(error)}",
        "Free some space, mend its permissions, or work on a copy of the workspace.",
    )
