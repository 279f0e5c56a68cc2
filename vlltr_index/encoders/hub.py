"""Models that are named by a folder, or by a repository of the Hugging Face hub with its commit."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from vlltr_index.errors import EncoderError, reason

_log = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[a-z0-9][\w.-]*/[a-z0-9][\w.-]*", re.ASCII | re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def local_folder(name: str, takes: str) -> Path | None:
    """Return the folder that is named; None if the name is that of a repository, `OWNER/NAME@COMMIT`.

    Args:
        name: The name.
        takes: What takes such names, for the hint of the error.

    Raises:
        EncoderError: It is neither.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder.resolve()
    repository, _, commit = name.partition("@")
    if not _REPOSITORY.fullmatch(repository) or not _COMMIT.fullmatch(commit):
        raise EncoderError(
            f"{name} is neither a folder here nor a repository with its commit"
            if name
            else "no folder or repository is named",
            f"{takes} takes a folder, or OWNER/NAME@COMMIT with all 40 digits of the commit.",
        )
    return None


def in_cache(repository: str, names: Sequence[str], revision: str | None = None) -> bool:
    """Say whether one of the files of a repository is on this machine already."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repository, name, revision=revision), str) for name in names)


def announce_download(weights: str, from_hub: bool) -> None:
    """Say which weights are downloaded, and check that the hub answers, if they come from there.

    Raises:
        ConnectionError: It does not answer.
    """
    _log.info("downloading the weights %s", weights)
    problem = _problem() if from_hub else None
    if problem is not None:
        raise ConnectionError(problem)


def _problem() -> str | None:
    """Ask the hub once, and say why it does not answer; None if it does.

    A download that cannot reach the hub tries for half a minute a file.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of huggingface_hub's HTTP library, which depends on its version
        return f"{constants.ENDPOINT} does not answer: {error}"
    return None


def model_folder(name: str, takes: str, files: Sequence[str]) -> Path:
    """Return the folder of a model, fetched if it is a repository on the hub.

    Args:
        name: See `local_folder`, which raises the same errors.
        takes: See there.
        files: Patterns of the names of the files to fetch; those in folders of ONNX and OpenVINO are not.

    Raises:
        EncoderError: The hub does not give it, and it is not in the hub's cache on this machine.
    """
    found = local_folder(name, takes)
    if found is not None:
        return found
    from huggingface_hub import snapshot_download

    repository, _, commit = name.partition("@")
    if not in_cache(repository, ["config.json"], commit):
        _log.info("downloading %s", name)
    problem = _problem()
    try:
        return Path(
            snapshot_download(
                repository,
                revision=commit,
                allow_patterns=list(files),
                ignore_patterns=["onnx/*", "openvino/*"],
                local_files_only=problem is not None,
            )
        )
    except Exception as error:  # huggingface_hub and its HTTP library raise many kinds of errors
        hint = "The first time this needs a network; or copy its files here, and name the folder."
        raise EncoderError(f"the hub does not give {name}: {problem or reason(error)}", hint) from None
