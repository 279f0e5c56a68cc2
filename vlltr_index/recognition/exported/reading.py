"""Read an exported folder, also from the hub. It may come from anybody, so it is checked before use.

Only files with fixed names are read, and reading one takes as much memory as the file is long, or less than a limit. A
model is first built without memory (device "meta") and compared with the file of its weights.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.anchors.index import FaissIndex, TorchIndex, load_index
from vlltr_index.data.files import rows_at_once
from vlltr_index.encoders import openclip
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.openclip import GENERIC, SAVED_KEYS
from vlltr_index.errors import (
    InputError,
    MissingPackageError,
    MissingStepError,
    PretrainedError,
    UsageError,
    VlltrError,
)
from vlltr_index.heads.checkpoint import SHARED, HeadManifest, SavedHead, load_head
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.recognition.exported.place import bring_back
from vlltr_index.recognition.model import Model
from vlltr_index.recognition.state import TEXT_COLUMNS, Anchors, ClassStats, texts_of, usable_rule
from vlltr_index.schemas.exported import LIBRARY, ExportedConfig, anchors_schema, sentences_schema
from vlltr_index.schemas.fingerprint import digest_file
from vlltr_index.schemas.records import Taxon
from vlltr_index.store.class_table import ClassTable
from vlltr_index.store.taxonomy import misplaced, taxonomy_of
from vlltr_index.version import VERSION

_log = logging.getLogger(__name__)

CARD = "README.md"
SUMS = "SHA256SUMS"
OPTIONAL = (
    "class_stats.safetensors",
    "encoder/words.json",
    "encoder/tokenizer.json",
    "encoder/tokenizer_config.json",
    "index/index.json",
    "index/anchors.safetensors",
    "index/index.faiss",
)
"""Files that an exported model may lack."""
MODEL_FILES = (
    CARD,
    "config.json",
    "encoder/encoder.json",
    "encoder/model.safetensors",
    "head/head.json",
    "head/head.safetensors",
    "anchors.parquet",
    "sentences.parquet",
    *OPTIONAL,
)
"""All files of an exported model except the digests; no other file is ever read."""


_REPOSITORY = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LONGEST = 96  # characters of a repository's name
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_AGAIN = "Fetch the folder again, or export it again: vlltr export DIR"
_MOST_SUMS = 1 << 20
_MOST_JSON = 64 << 20
_UNPACKED = 64  # times that a table may be larger in memory than in its file
_SMALL_TABLE = 256 << 20  # bytes in memory that any table may have
_BATCH = 1024
_LARGEST = 1e6
_LARGEST_NUMBER = 1 << 21  # a vocabulary, the widest layer
_DEEPEST = 512
_LONGEST_TEXT = 4096  # tokens; the attention mask is the square of them
_LARGEST_IMAGE = 4096


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
    try:
        _check_encoder(folder / "encoder", config)
        saved = _head(folder / "head", config)
        stats = _stats(folder / "class_stats.safetensors", config, "class_stats.safetensors" in files)
        rows = _rows(folder / "anchors.parquet", anchors_schema(config.dim), config.anchors)
        _check_links(folder, config, rows)
        anchors = _anchors(rows, config)
        encoder = Encoder.open(folder / "encoder", device=device)
        _check_towers(folder / "encoder", encoder, config)
        index = _index(folder, config, anchors, trust_index and "index/index.json" in files)
    except (PretrainedError, MissingPackageError):
        raise
    except VlltrError as error:
        raise PretrainedError(f"{folder} cannot be used: {error.message}", _AGAIN) from None
    classes = ClassTable(
        {item.class_id: item.name for item in config.classes},
        {item.class_id: item.aliases for item in config.classes},
    )
    taxonomy = taxonomy_of((Taxon(**item.model_dump()) for item in config.taxonomy), classes)
    if wrong := misplaced(taxonomy, taxonomy):
        _damaged(folder / "config.json", wrong[1])
    texts = rows.select(TEXT_COLUMNS)
    return Model(
        anchors=anchors,
        saved=saved,
        stats=stats,
        fusion=usable_rule(config.fusion, saved),
        merged=config.merged,
        commit=config.commit,
        first_commit=config.commit,
        classes=classes,
        open_encoder=lambda: encoder,
        open_index=lambda: index,
        open_texts=cache(lambda: texts_of(texts)),
        device=encoder.device,
        taxonomy=taxonomy,
    )


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
        _damaged(path, f"larger than {_MOST_SUMS:,} bytes")
    lines = [
        _LINE.fullmatch(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    if None in lines:
        _damaged(path, f"line {lines.index(None) + 1} is not a digest and a name")
    return {line[2]: line[1] for line in lines if line}


def verify(folder: Path) -> dict[str, str]:
    """Check all files against their digests, and return these by name; the model card may be edited.

    Raises:
        PretrainedError: If a file is missing, not listed, or not what was written.
    """
    digests = read_sums(folder)
    strange = digests.keys() - set(MODEL_FILES)
    if strange:
        _damaged(folder / SUMS, f"it names {min(strange)!r}, which is no file of an exported model")
    for name in MODEL_FILES:
        path = folder / name
        if name == CARD or (name in OPTIONAL and name not in digests and not path.exists()):
            continue
        if not path.is_file():  # also refuses a pipe, which would block forever
            raise PretrainedError(f"{folder} has no file {name}", _AGAIN)
        if name.endswith(".json") and path.stat().st_size > _MOST_JSON:
            _damaged(path, f"larger than {_MOST_JSON >> 20} MiB")
        if digests.get(name) != digest_file(path):
            raise PretrainedError(f"{path} is not the file that was exported: its SHA-256 differs", _AGAIN)
    return digests


def read_config(folder: Path) -> ExportedConfig:
    """Read `config.json` of a folder that `verify` has checked.

    Raises:
        PretrainedError: If it is damaged, or of a newer format.
    """
    path = folder / "config.json"
    try:
        config = ExportedConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        _damaged(path, f"{'.'.join(map(str, first['loc'])) or '(top)'}: {first['msg']}")
    twins = (
        ("two classes have one number", [item.class_id for item in config.classes]),
        ("two classes have one name", [item.name for item in config.classes]),
        ("a name has two places in the tree of classes", [item.name for item in config.taxonomy]),
    )
    for wrong, keys in twins:
        if len(set(keys)) != len(keys):
            _damaged(path, wrong)
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        _damaged(path, f"not valid JSON: {error}")
    if not isinstance(value, dict):
        _damaged(path, "not a JSON object")
    return value


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """Yield every number in a JSON value, with the keys that lead to it."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(inner, f"{where}.{key}")
    elif isinstance(value, int | float):
        yield where, value


def _damaged(path: Path, why: str) -> NoReturn:
    raise PretrainedError(f"{path} cannot be used: {why}", _AGAIN)


def _check_towers(path: Path, found: Encoder | SavedHead, config: ExportedConfig) -> None:
    """Refuse an encoder, or a head trained on an encoder, with other fingerprints than `config`."""
    stated = (config.text_fp, config.image_fp)
    fingerprints = (found.text_fp, found.image_fp)
    if stated != fingerprints:
        raise PretrainedError(
            f"{path} is of the towers {' and '.join(fingerprints)}, config.json says {' and '.join(stated)}: "
            "they do not belong together",
            _AGAIN,
        )


def _check_encoder(folder: Path, config: ExportedConfig) -> None:
    """Check that an encoder's configuration can be built, and that its weights have exactly its shapes."""
    path = folder / "encoder.json"
    facts = _json(path)
    try:
        model = facts["config"]["model_cfg"]
        pre = facts["config"]["preprocess_cfg"]
        text = dict(model["text_cfg"])
        kwargs = dict(text.get("tokenizer_kwargs") or {})
        vision = dict(model["vision_cfg"])
        width = model["embed_dim"]
        sizes = (pre["size"], pre.get("resize", 224), vision.get("image_size", 224))
    except (KeyError, TypeError, ValueError) as error:
        _damaged(path, f"{type(error).__name__}: {error}")
    if width != config.dim:
        _damaged(path, f"vectors are {width!r} wide, config.json says {config.dim}")
    for key, name in (*text.items(), *vision.items()):
        if key == "hf_model_name" or (key.endswith("model_name") and set(":/") & set(str(name))):
            _damaged(path, f"{key} {name!r} would be fetched from elsewhere")
    if text.get("hf_tokenizer_name"):
        _check_tokenizer(folder, str(text["hf_tokenizer_name"]))
    strange = kwargs.keys() - {"clean", "strip_sep_token"}
    if strange:
        _damaged(path, f"{min(strange)!r} is no option of a saved tokenizer")
    for where, number in _numbers(facts["config"], "config"):
        deep = any(word in where for word in ("layers", "depth"))
        most = _LONGEST_TEXT if "context_length" in where else _LARGEST_NUMBER
        if not abs(number) <= (_DEEPEST if deep else most):  # `not <=` also refuses NaN
            _damaged(path, f"{where} is {number:,}")
    for size in sizes:
        sides = size if isinstance(size, list) and size else [size]
        if not all(isinstance(side, int) and 1 <= side <= _LARGEST_IMAGE for side in sides):
            _damaged(path, f"images of {size!r} pixels a side; 1 to {_LARGEST_IMAGE} can be")
    try:
        with torch.device("meta"):
            state = openclip.build_model(model).state_dict()
    except VlltrError as error:
        _damaged(path, error.message)
    weights = folder / "model.safetensors"
    _check_shapes(weights, _tensors(weights), {n: tuple(v.shape) for n, v in state.items()})


def _check_tokenizer(folder: Path, name: str) -> None:
    """Check that a Hugging Face tokenizer is complete in the folder, so that nothing is fetched from elsewhere."""
    path = folder / "tokenizer_config.json"
    if not path.is_file() or not (folder / "tokenizer.json").is_file():
        _damaged(folder / "encoder.json", f"hf_tokenizer_name {name!r} would be fetched from elsewhere")
    others = sorted(p.name for p in folder.iterdir() if f"encoder/{p.name}" not in MODEL_FILES)
    if others:
        _damaged(folder / others[0], "not a file of an exported model, and a tokenizer might read it")
    facts = _json(path)
    strange = sorted(facts.keys() - SAVED_KEYS)
    if strange:
        _damaged(path, f"{strange[0][:80]!r} is not part of a saved tokenizer")
    if facts.get("tokenizer_class") != GENERIC or not all(isinstance(v, str) for v in facts.values()):
        _damaged(path, f"tokenizer_class must be {GENERIC!r}, and all values texts")


def _head(folder: Path, config: ExportedConfig) -> SavedHead:
    """Load the head after checking that its weights are finite and have exactly the described shapes."""
    path = folder / "head.json"
    weights = folder / "head.safetensors"
    try:
        facts = HeadManifest.load(path)
    except ValueError as error:
        _damaged(path, str(error))
    if facts.dim != config.dim:
        _damaged(path, f"the head is {facts.dim} wide, config.json says {config.dim}")
    tensors = _tensors(weights)
    rows = _length(tensors, "class_ids")
    held = _length(tensors, "held_out.labels")
    with torch.device("meta"):
        head = LGRHead(config.dim, rows, facts.visual, loss_bias=facts.loss_bias)
    expected = {f"head.{name}": tuple(value.shape) for name, value in head.state_dict().items()}
    if facts.parts is not None:
        for name in SHARED:
            square = name in ("basis", "text_map")
            expected[f"generative.{name}"] = (config.dim, config.dim) if square else (config.dim,)
        if held:
            expected |= {"held_out.labels": (held,), "held_out.probabilities": (held, rows)}
    _check_shapes(weights, tensors, expected | {"class_ids": (rows,)})
    if "held_out.labels" in tensors:
        labels = tensors["held_out.labels"]
        chances = tensors["held_out.probabilities"]
        if labels.dtype != torch.int64 or not bool(((labels >= 0) & (labels < rows)).all()):
            _damaged(weights, f"held_out.labels must be integers from 0 to {rows - 1}")
        if not bool((chances >= 0).all() and (chances <= 1).all()):
            _damaged(weights, "held_out.probabilities must lie between 0 and 1")
    for name in ("log_logit_scale", "log_beta"):
        value = float(tensors.get(f"head.{name}", torch.zeros(())).double().exp())
        if not value <= _LARGEST:
            _damaged(weights, f"the exponential of {name} is {value:g}; up to {_LARGEST:,.0f} can be")
    saved = load_head(folder)
    _check_towers(folder, saved, config)
    return saved


def _stats(path: Path, config: ExportedConfig, there: bool) -> ClassStats:
    """Load the statistics of the classes' images; empty without the file."""
    dim = config.dim
    none = torch.empty(0, dtype=torch.int64)
    if not there:
        return ClassStats(none, none, torch.empty(0, dim, dtype=torch.float64))
    found = _tensors(path)
    count = _length(found, "class_ids")
    _check_shapes(path, found, {"class_ids": (count,), "counts": (count,), "sums": (count, dim)})
    # Cloned because unaligned rows in a mapped file are multiplied by other kernels, which round differently.
    ids = found["class_ids"].clone().long()
    counts = found["counts"].clone().long()
    sums = found["sums"].clone().double()
    if set(ids.tolist()) - {item.class_id for item in config.classes} or bool((ids.diff() <= 0).any()):
        _damaged(path, "class_ids must be ascending numbers of classes in config.json")
    if bool((counts < 1).any()) or bool((sums.norm(dim=1) > 1.001 * counts).any()):
        _damaged(path, "a class's sum is longer than its images' normalised vectors can add up to")
    return ClassStats(ids, counts, sums)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file and check that all values are finite; it takes as much memory as the file is long."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        _damaged(path, f"not a safetensors file: {error}")
    for name, value in tensors.items():
        if value.is_complex():
            _damaged(path, f"{name} holds complex values")
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            _damaged(path, f"{name} holds values that are not finite")
    return tensors


def _length(tensors: Mapping[str, Tensor], name: str) -> int:
    return tensors[name].numel() if name in tensors else 0


def _check_shapes(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a file has exactly these tensors, in these shapes."""
    for name, shape in expected.items():
        if name not in found:
            _damaged(path, f"{name} is missing")
        if found[name].shape != shape:
            _damaged(path, f"{name} has shape {list(found[name].shape)}, expected {list(shape)}")
    for name in sorted(found.keys() - expected.keys()):
        _damaged(path, f"{name[:80]!r} is not part of the model")


def _rows(path: Path, schema: pa.Schema, number: int) -> pa.Table:
    """Read a Parquet file that must have exactly these columns, `number` rows, and a bounded size in memory."""
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != number:
                _damaged(path, f"{file.metadata.num_rows:,} rows, config.json says {number:,}")
            found = {f.name: f.type for f in file.schema_arrow}
            if found != {f.name: f.type for f in schema}:
                _damaged(path, f"its columns are {found}")
            parts = []
            size = 0
            most = max(_SMALL_TABLE, _UNPACKED * path.stat().st_size)
            for batch in file.iter_batches(
                rows_at_once(path, file, schema.names, _BATCH), columns=schema.names
            ):
                size += batch.nbytes
                if size > most:
                    _damaged(path, f"more than {most >> 20:,} MiB in memory, {_UNPACKED} times its size")
                parts.append(batch.select(schema.names).cast(schema))
            rows = pa.Table.from_batches(parts, schema)
            rows.validate(full=True)
            return rows
    except InputError as error:
        _damaged(path, error.message)
    except (pa.ArrowException, OSError, ValueError) as error:
        _damaged(path, f"not a readable Parquet file: {error}")


def _check_links(folder: Path, config: ExportedConfig, anchors: pa.Table) -> None:
    """Check that classes, sentences and anchors refer to each other: distinct keys, and no missing ones."""
    path = folder / "anchors.parquet"
    beside = folder / "sentences.parquet"
    sentences = _rows(beside, sentences_schema(), config.sentences)
    classes = pa.array([item.class_id for item in config.classes], pa.int32())
    for where, rows in ((path, anchors), (beside, sentences)):
        if not _all(pc.is_in(rows["class_id"], value_set=classes)):
            _damaged(where, "a class_id is not among the classes of config.json")
        if pc.count_distinct(rows["sentence_id"]).as_py() != rows.num_rows:
            _damaged(where, "two rows have one sentence_id")
    known = sentences["sentence_id"].combine_chunks()
    if not _all(pc.is_in(anchors["sentence_id"], value_set=known)):
        _damaged(path, "a sentence_id is not in sentences.parquet")
    keys = anchors["anchor_key"]
    if pc.count_distinct(keys).as_py() != anchors.num_rows or not _all(pc.greater_equal(keys, 0)):
        _damaged(path, "anchor_key must be distinct and not negative")
    if not _all(pc.is_finite(pc.list_flatten(anchors["vector"]))):
        _damaged(path, "a vector holds values that are not finite")
    if not _all(pc.less_equal(pc.abs(anchors["loss"]), _LARGEST)):
        _damaged(path, f"a loss is not a number up to {_LARGEST:,.0f}")


def _all(true: pa.ChunkedArray) -> bool:
    """Say whether all of these booleans are true, also if there is none."""
    return bool(pc.all(true, min_count=0).as_py())


def _anchors(rows: pa.Table, config: ExportedConfig) -> Anchors:
    rows = rows.sort_by([("class_id", "ascending"), ("rank", "ascending")])
    vectors = torch.from_numpy(pc.list_flatten(rows["vector"]).to_numpy().copy())
    losses = torch.from_numpy(rows["loss"].to_numpy().copy())
    return Anchors.of(rows, vectors.view(-1, config.dim), losses, config.selection_id)


def _index(
    folder: Path, config: ExportedConfig, anchors: Anchors, trusted: bool
) -> FaissIndex | TorchIndex | None:
    """Return the index for retrieval, or None if the workspace had none, so that all classes are scored."""
    if config.index is None:
        return None
    if trusted:
        try:
            return load_index(folder / "index")
        except MissingStepError as error:
            _log.warning("the anchors are searched exactly: %s", error.message)
    return TorchIndex(F.normalize(anchors.bank.vectors, dim=1), anchors.keys)
