"""Exported folders on the Hugging Face hub: fetched and pushed through huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vlltr_index.errors import PretrainedError, UsageError
from vlltr_index.recognition.exported.layout import MODEL_FILES, OPTIONAL, SUMS
from vlltr_index.recognition.exported.reading import read_config, verify
from vlltr_index.schemas.exported import LIBRARY
from vlltr_index.version import VERSION

__all__ = ["check_repository", "locate", "push"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LONGEST = 96
_TOKEN_HINT = "Log in (hf auth login), set HF_TOKEN, or give token="


def locate(
    name: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """The local folder of an exported model: `name` itself, or what the hub has under it, fetched into the cache.

    Args:
        name: A folder, or a repository on the hub, `user/name`.
        revision: Branch, tag or commit of the repository.
        token: For the hub; default: the one that is stored; False: none.
        cache_dir: Where fetched files are kept; default: huggingface_hub's cache.

    Raises:
        UsageError: If it is neither a folder nor a repository's name, or a folder and there is a `revision`.
        PretrainedError: If the hub does not give it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"{folder} is a folder here: it has no revision {revision!r}")
        return folder
    repository = str(name)
    if not _REPOSITORY.fullmatch(repository) or len(repository) > _LONGEST:
        raise UsageError(
            f"{repository!r} is neither a folder nor a repository on the hub",
            "Give a folder that `vlltr export DIR` wrote, or user/name.",
        )
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            repository,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            allow_patterns=[SUMS, *MODEL_FILES],
            library_name=LIBRARY,
            library_version=VERSION,
        )
    except Exception as error:  # huggingface_hub, its HTTP library and the file system each raise their own
        raise _refused(repository, revision, error) from error
    return Path(str(found))


def check_repository(repo_id: str) -> None:
    """Refuse what cannot be a repository's name, before anything is written.

    Raises:
        UsageError: If it cannot.
    """
    if not _REPOSITORY.fullmatch(repo_id) or len(repo_id) > _LONGEST or "--" in repo_id or ".." in repo_id:
        raise UsageError(f"{repo_id!r} is no name for a repository on the hub", "For example: user/name")


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Make what `folder` holds the model `repo_id` on the hub, in one commit; the repository is made if there is none.

    Args:
        folder: Written by `export_model`; its digests are checked first.
        repo_id: `user/name`.
        private: Whether a new repository is private; default: what the user or organisation has set.
        commit_message: Default: names the commit that was exported.
        token: For the hub; default: the one that is stored.

    Returns:
        The address of the hub's commit.

    Raises:
        UsageError: If `repo_id` is no name.
        PretrainedError: If the folder is damaged, or the hub does not take it.
    """
    check_repository(repo_id)
    config = read_config(folder)
    files = verify(folder)
    from huggingface_hub import HfApi

    api = HfApi(library_name=LIBRARY, library_version=VERSION, token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or f"Upload commit {config.commit} of recipe {config.recipe}",
            allow_patterns=[SUMS, *files],
            delete_patterns=list(OPTIONAL),  # of an earlier push; those that are uploaded stay
        )
    except Exception as error:  # as in `locate`
        raise _refused(repo_id, None, error, pushing=True) from error
    return str(done.commit_url)


def _refused(
    repository: str, revision: str | None, error: Exception, pushing: bool = False
) -> PretrainedError:
    """What to say when the hub does not do what it was asked."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return PretrainedError(
            f"{repository} is gated on the hub: its owner has to let you in",
            f"Ask for access on its page. Then: {_TOKEN_HINT}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return PretrainedError(
            f"{repository} has no revision {revision!r} on the hub", "Leave it out for the newest."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return PretrainedError(
            f"{repository} is neither a folder here nor a repository on the hub that you may see",
            f"Check the name. If it is private: {_TOKEN_HINT}",
        )
    if status in (401, 403):
        return PretrainedError(
            f"the hub refuses {repository} with status {status}: {_first_line(error)}", _TOKEN_HINT
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) or _unreachable(error):
        if pushing:
            return PretrainedError(
                f"the hub cannot be reached: {_first_line(error)}", "Try again with a network."
            )
        return PretrainedError(
            f"the hub cannot be reached, and {repository} is not in the cache: {_first_line(error)}",
            "Try again with a network, or copy the folder here and name it instead.",
        )
    return PretrainedError(f"{repository}: {type(error).__name__}: {_first_line(error)}", "Try again later.")


def _unreachable(error: Any) -> bool:
    """Whether an HTTP library says that there was no connection."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectError", "ConnectionError", "TimeoutException", "Timeout", "TransportError"})


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
