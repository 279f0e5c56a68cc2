"""Exported folders on the Hugging Face hub: fetched and pushed through huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path

from vlltr_index.errors import PretrainedError, UsageError
from vlltr_index.recognition.exported.reading import MODEL_FILES, OPTIONAL, SUMS, read_config, verify
from vlltr_index.schemas.exported import LIBRARY
from vlltr_index.version import VERSION

_REPOSITORY = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LONGEST = 96


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
    check_repository(repository)
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
        raise _refused(repository, error) from error
    return Path(str(found))


def check_repository(repo_id: str) -> None:
    """Refuse what cannot be a repository's name, before anything is written.

    Raises:
        UsageError: If it cannot.
    """
    if not _REPOSITORY.fullmatch(repo_id) or len(repo_id) > _LONGEST:
        raise UsageError(
            f"{repo_id!r} is neither a folder here nor a name for a repository on the hub",
            "Give a folder that `vlltr export DIR` wrote, or user/name.",
        )


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
    files = verify(folder)
    config = read_config(folder)
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
        raise _refused(repo_id, error) from error
    return str(done.commit_url)


def _refused(repository: str, error: Exception) -> PretrainedError:
    """What to say when the hub does not do what it was asked; huggingface_hub says why."""
    why = " ".join(str(error).split()) or type(error).__name__
    return PretrainedError(
        f"{repository} on the hub: {why}",
        "Check the name and the network. For what is private or gated log in (hf auth login), set HF_TOKEN, or give "
        "token=",
    )
