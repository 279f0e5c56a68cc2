"""Read an exported folder, also from the hub: check it, since it may come from anybody, and open it as a commit is.

Only files with fixed names are read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from vlltr_index.anchors.index import exact_index
from vlltr_index.data.writing import digest_files
from vlltr_index.errors import MissingPackageError, MissingStepError, PretrainedError, UsageError, VlltrError
from vlltr_index.recognition.exported.checks import (
    AGAIN,
    CARD,
    FOLDERS,
    MODEL_FILES,
    OPTIONAL,
    SENTENCES,
    check_encoder,
    check_head,
    check_part,
    damaged,
    read_sentences,
)
from vlltr_index.recognition.exported.place import bring_back
from vlltr_index.recognition.lazy import Lazy
from vlltr_index.recognition.model import Model
from vlltr_index.recognition.opening import open_index
from vlltr_index.schemas.exported import LIBRARY, ExportedConfig
from vlltr_index.schemas.fingerprint import digest_file
from vlltr_index.schemas.model import ModelRecord
from vlltr_index.store.objects import Kept, Kind
from vlltr_index.store.parts import PartReader
from vlltr_index.store.taxonomy import misplaced
from vlltr_index.version import VERSION

_log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
_REPOSITORY = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LONGEST = 96  # characters of a repository's name
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_MOST_SUMS = 1 << 20
_MOST_JSON = 64 << 20


def locate(
    name: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Return the local folder of an exported model: `name` itself, or its files on the hub, downloaded into the
    cache.

    Args:
        name: A folder, or a repository on the hub, `user/name`.
        revision: Branch, tag or commit of the repository.
        token: For the hub; default: the one that is stored; False: none.
        cache_dir: Where fetched files are kept; default: huggingface_hub's cache.

    Raises:
        UsageError: If it is neither a folder nor a repository's name, or a folder and there is a `revision`.
        PretrainedError: If the hub does not give it.
    """
    folder = Path(os.path.expanduser(name))
    bring_back(folder)
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
    except Exception as error:  # huggingface_hub, its HTTP library and the file system raise different kinds
        raise refused(repository, error) from error
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


def refused(repository: str, error: Exception) -> PretrainedError:
    """Return the error to raise when the hub refuses a request, with its reason."""
    why = " ".join(str(error).split()) or type(error).__name__
    return PretrainedError(
        f"{repository} on the hub: {why}",
        "Check the name and the network. For what is private or gated log in (hf auth login), set HF_TOKEN, or give "
        "token=",
    )


class Exported:
    """An exported folder as what a model is opened from; its files have been checked.

    Attributes:
        record: What the model is made of.
    """

    def __init__(self, folder: Path, record: ModelRecord) -> None:
        self.record = record
        self._folder = folder
        self._parts = PartReader(lambda digest: self.whole("parts", digest))

    @property
    def objects(self) -> Kept:
        """The folder itself: it has one object of a kind."""
        return self

    def path(self, kind: Kind, digest: str) -> Path:
        """Return the folder of the object of a kind."""
        return self._folder / FOLDERS[kind]

    def whole(self, kind: Kind, digest: str) -> Path:
        """Return the folder of the object of a kind."""
        return self.path(kind, digest)

    def rows(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of one of `parts.TABLES`: the key and other columns, default all."""
        return self._parts.stored_rows(self.record.parts, name, columns)

    def vectors(self, name: str, keys: Tensor) -> Tensor:
        """Return the vectors of rows of `anchors`, float32, or `class_stats`, float64, by their keys, int64 [N]."""
        return self._parts.stored_vectors(self.record.parts, name, keys)


def read_model(folder: Path, device: str | torch.device | None = None, trust_index: bool = False) -> Model:
    """Load an exported folder as a model that predicts like the workspace did at the exported commit.

    Digests, shapes, sizes and values are checked, and nothing in the folder is executed. The folder is not needed
    afterwards.

    Args:
        folder: Written by `export_model`, or a copy.
        device: Device of the encoder; default: a GPU if there is one.
        trust_index: Whether FAISS may read the index file in the folder. FAISS is not safe against files that were
            changed on purpose; without the index file the anchors are searched exactly.

    Raises:
        PretrainedError: Naming the file, what is wrong with it, and what to do.
        MissingPackageError: If its tokenizer needs transformers, which is not installed.
    """
    folder = Path(folder)
    files = verify(folder)
    config = read_config(folder)
    _check_record(folder, config.model, files)
    try:
        check_encoder(folder / FOLDERS["checkpoints"], config)
        check_head(folder / FOLDERS["heads"], config)
        sentences = read_sentences(folder / SENTENCES, config.sentences)
        check_part(folder / FOLDERS["parts"], config, sentences)
        model = Model.open(Exported(folder, config.model), device=device)
        model = _loaded(model, trust_index and "index/index.json" in files)
    except (PretrainedError, MissingPackageError):
        raise
    except VlltrError as error:
        raise PretrainedError(f"{folder} cannot be used: {error.message}", AGAIN) from None
    if wrong := misplaced(model.taxonomy, model.taxonomy):
        damaged(folder / FOLDERS["parts"] / "taxonomy.arrow", wrong[1])
    return model


def _check_record(folder: Path, record: ModelRecord, files: Mapping[str, str]) -> None:
    """Check that a record names what an export has, by the digests of the files, which `verify` has checked."""
    path = folder / "config.json"
    if not isinstance(record.encoder, str) or len(record.parts) != 1 or None in (record.head, record.text_fp):
        damaged(path, "model names no encoder, head, part or fingerprint")
    named: dict[Kind, str | None] = {
        "checkpoints": record.encoder,
        "heads": record.head,
        "parts": record.parts[0],
    }
    if "index/index.json" in files:
        named["index"] = None if record.index is None else record.index.digest
    for kind, digest in named.items():
        start = f"{FOLDERS[kind]}/"
        there = {name.removeprefix(start): files[name] for name in files if name.startswith(start)}
        if digest_files(there) != digest:
            damaged(path, f"what it names is not what lies in {start}")


def _loaded(model: Model, trusted: bool) -> Model:
    """Load what a model opens on first use; without a trusted index, the anchors are searched exactly if one was
    built."""
    model = replace(model, lazy_encoder=Lazy.of(model.encoder))
    if model.source.record.index is None:
        return model
    if trusted:
        try:
            return replace(model, lazy_index=Lazy.of(open_index(model.source)))
        except MissingStepError as error:
            _log.warning("the anchors are searched exactly: %s", error.message)
    index = exact_index(model.bank.vectors, model.anchors.keys)
    return replace(model, lazy_index=Lazy.of(index))


def read_sums(folder: Path) -> dict[str, str]:
    """Read the digests in `SHA256SUMS` by file name.

    Raises:
        PretrainedError: If it is missing or damaged.
    """
    path = folder / SUMS
    if not path.is_file():
        raise PretrainedError(
            f"{folder} is not an exported folder: it has no file {SUMS}", "Make one: vlltr export DIR"
        )
    if path.stat().st_size > _MOST_SUMS:
        damaged(path, f"larger than {_MOST_SUMS:,} bytes")
    lines = [
        _LINE.fullmatch(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    if None in lines:
        damaged(path, f"line {lines.index(None) + 1} is not a digest and a name")
    return {line[2]: line[1] for line in lines if line}


def verify(folder: Path) -> dict[str, str]:
    """Check all files against their digests, and return these by name; the model card may be edited.

    Raises:
        PretrainedError: If a file is missing, not listed, or not what was written.
    """
    digests = read_sums(folder)
    strange = digests.keys() - set(MODEL_FILES)
    if "labels.json" in strange:
        raise PretrainedError(
            f"{folder} holds a graph for onnxruntime",
            "Ask it: python predict.py PICTURE; or export without --onnx.",
        )
    if strange:
        damaged(folder / SUMS, f"it names {min(strange)!r}, which is no file of an exported model")
    for name in MODEL_FILES:
        path = folder / name
        if name == CARD or (name in OPTIONAL and name not in digests and not path.exists()):
            continue
        if not path.is_file():  # also refuses a pipe, which would block forever
            raise PretrainedError(f"{folder} has no file {name}", AGAIN)
        if name.endswith(".json") and path.stat().st_size > _MOST_JSON:
            damaged(path, f"larger than {_MOST_JSON >> 20} MiB")
        if digests.get(name) != digest_file(path):
            raise PretrainedError(f"{path} is not the file that was exported: its SHA-256 differs", AGAIN)
    return digests


def read_config(folder: Path) -> ExportedConfig:
    """Read `config.json` of a folder that `verify` has checked.

    Raises:
        PretrainedError: If it is damaged, or of a newer format.
    """
    path = folder / "config.json"
    try:
        return ExportedConfig.load(path)
    except ValueError as error:
        damaged(path, str(error))
