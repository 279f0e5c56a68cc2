"""Check what is in an exported folder, which may come from anybody, before the reader of commits opens it.

Reading a file takes as much memory as it is long, or less than a limit. A model is first built without memory (device
"meta") and compared with the file of its weights.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlltr_index.anchors.index import INDEX_FILES
from vlltr_index.data.files import rows_at_once
from vlltr_index.encoders import openclip, text_tower
from vlltr_index.encoders.openclip import GENERIC, SAVED_KEYS
from vlltr_index.encoders.weights import check_packages
from vlltr_index.errors import InputError, MissingPackageError, PretrainedError, VlltrError
from vlltr_index.heads.checkpoint import PROJECTIONS, SHARED, HeadManifest
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.text_prior import NUMBERS
from vlltr_index.recognition.exported.arrow_file import check_plain
from vlltr_index.schemas.exported import ExportedConfig, sentences_schema
from vlltr_index.schemas.manifests import EncoderManifest, Manifest
from vlltr_index.store.objects import Kind
from vlltr_index.store.parts import TABLES, PartManifest, part_schemas

CARD = "README.md"
SENTENCES = "sentences.parquet"
FOLDERS: Mapping[Kind, str] = {"checkpoints": "encoder", "heads": "head", "parts": "parts", "index": "index"}
"""The folder of each kind of object."""
OPTIONAL = (
    "encoder/words.json",
    "encoder/tokenizer.json",
    "encoder/tokenizer_config.json",
    *(f"index/{name}" for name in INDEX_FILES),
)
"""Files that an exported model may lack."""
MODEL_FILES = (
    CARD,
    "config.json",
    "encoder/encoder.json",
    "encoder/model.safetensors",
    "head/head.json",
    "head/head.safetensors",
    "parts/part.json",
    *(f"parts/{name}.arrow" for name in TABLES),
    SENTENCES,
    *OPTIONAL,
)
"""All files of an exported model except the digests; no other file is ever read."""
AGAIN = "Fetch the folder again, or export it again: vlltr export DIR"

_UNPACKED = 64  # times that a table may be larger in memory than in its file
_SMALL_TABLE = 256 << 20  # bytes in memory that any table may have
_BATCH = 1024
_LARGEST = 1e6
_LARGEST_NUMBER = 1 << 21  # a vocabulary, the widest layer
_DEEPEST = 512
_LONGEST_TEXT = 4096  # tokens; the attention mask is the square of them
_LARGEST_IMAGE = 4096
_LONGEST_NAME = 10_000  # characters
_LONGEST_PLACE = 200  # characters of the keys of a number, which are copied for each
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
_INTEGERS = {"class_ids", "told.class_ids", "told.digests", "held_out.labels"}

_Kind = TypeVar("_Kind", bound=Manifest)


class _TextTower(Manifest):
    hf_tokenizer_name: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None


class _VisualTower(Manifest):
    image_size: Any = 224


class _Towers(Manifest):
    """The part of an encoder's `model_cfg` that is checked by its meaning."""

    embed_dim: int
    text_cfg: _TextTower
    vision_cfg: _VisualTower


class _Preprocessing(Manifest):
    size: Any
    resize: Any = 224


class _Tokenizer(Manifest):
    model_config = ConfigDict(frozen=True, extra="allow")

    tokenizer_class: Any = None


def damaged(path: Path, why: str) -> NoReturn:
    """Refuse an exported folder for what is wrong with one of its files.

    Raises:
        PretrainedError: Always.
    """
    raise PretrainedError(f"{path} cannot be used: {why}", AGAIN)


def _manifest(kind: type[_Kind], path: Path) -> _Kind:
    try:
        return kind.load(path)
    except ValueError as error:
        damaged(path, str(error))


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """Yield every number in a JSON value, with the last characters of the keys that lead to it."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(inner, f"{where}.{key}"[-_LONGEST_PLACE:])
    elif isinstance(value, int | float):
        yield where, value


def check_encoder(folder: Path, config: ExportedConfig) -> None:
    """Check that an encoder's configuration can be built, and that its weights have exactly its shapes.

    Raises:
        PretrainedError: If it cannot, or they have not.
        MissingPackageError: If its tokenizer or text tower needs transformers, which is not installed.
    """
    path = folder / "encoder.json"
    facts = _manifest(EncoderManifest, path).config
    model = facts.model_cfg
    try:
        towers = _Towers.of(model, path.name)
        pre = _Preprocessing.of(facts.preprocess_cfg, path.name)
    except ValueError as error:
        damaged(path, str(error))
    if towers.embed_dim != config.dim:
        damaged(path, f"vectors are {towers.embed_dim} wide, config.json says {config.dim}")
    described = model["text_cfg"].get("hf_config")
    for key, name in (*model["text_cfg"].items(), *model["vision_cfg"].items()):
        place = key.endswith("model_name") and bool(set(":/") & set(str(name)))
        if described is None if key == "hf_model_name" else place:
            damaged(path, f"{key} {name!r} would be fetched from elsewhere")
    if towers.text_cfg.hf_tokenizer_name:
        _check_tokenizer(folder, towers.text_cfg.hf_tokenizer_name)
    strange = (towers.text_cfg.tokenizer_kwargs or {}).keys() - {"clean", "strip_sep_token"}
    if strange:
        damaged(path, f"{min(strange)!r} is no option of a saved tokenizer")
    for where, number in _numbers(facts.model_dump(), "config"):
        deep = any(word in where for word in ("layers", "depth"))
        most = _LONGEST_TEXT if "context_length" in where else _LARGEST_NUMBER
        if not abs(number) <= (_DEEPEST if deep else most):  # `not <=` also refuses NaN
            damaged(path, f"{where} is {number:,}")
    for size in (pre.size, pre.resize, towers.vision_cfg.image_size):
        sides = size if isinstance(size, list) and size else [size]
        if not all(isinstance(side, int) and 1 <= side <= _LARGEST_IMAGE for side in sides):
            damaged(path, f"images of {size!r} pixels a side; 1 to {_LARGEST_IMAGE} can be")
    try:
        if described is not None:
            text_tower.check_config(described)
            check_packages(path.name, model)
        with torch.device("meta"):
            state = openclip.build_model(model).state_dict()
    except MissingPackageError:
        raise
    except ValueError as error:
        damaged(path, str(error))
    except VlltrError as error:
        damaged(path, error.message)
    weights = folder / "model.safetensors"
    integers = {name for name, value in state.items() if not value.is_floating_point()}
    _check_tensors(weights, _tensors(weights), {n: tuple(v.shape) for n, v in state.items()}, integers)


def _check_tokenizer(folder: Path, name: str) -> None:
    """Check that a Hugging Face tokenizer is complete in the folder, so that nothing is fetched from elsewhere."""
    path = folder / "tokenizer_config.json"
    if not path.is_file() or not (folder / "tokenizer.json").is_file():
        damaged(folder / "encoder.json", f"hf_tokenizer_name {name!r} would be fetched from elsewhere")
    others = sorted(p.name for p in folder.iterdir() if f"encoder/{p.name}" not in MODEL_FILES)
    if others:
        damaged(folder / others[0], "not a file of an exported model, and a tokenizer might read it")
    facts = _manifest(_Tokenizer, path).model_dump()
    strange = sorted(facts.keys() - SAVED_KEYS)
    if strange:
        damaged(path, f"{strange[0][:80]!r} is not part of a saved tokenizer")
    if facts["tokenizer_class"] != GENERIC or not all(isinstance(v, str) for v in facts.values()):
        damaged(path, f"tokenizer_class must be {GENERIC!r}, and all values texts")


def check_head(folder: Path, config: ExportedConfig) -> None:
    """Check that a head belongs to the encoder, and that its weights are finite and have exactly its shapes.

    Raises:
        PretrainedError: If it does not, or they are not.
    """
    path = folder / "head.json"
    weights = folder / "head.safetensors"
    facts = _manifest(HeadManifest, path)
    stated = (str(config.model.text_fp), str(config.model.image_fp))
    fingerprints = (facts.text_fp, facts.image_fp)
    if stated != fingerprints:
        damaged(
            path,
            f"it is of the towers {' and '.join(fingerprints)}, config.json says {' and '.join(stated)}: "
            "they do not belong together",
        )
    if facts.dim != config.dim:
        damaged(path, f"the head is {facts.dim} wide, config.json says {config.dim}")
    tensors = _tensors(weights)
    rows = _length(tensors, "class_ids")
    held = _length(tensors, "held_out.labels")
    with torch.device("meta"):
        head = LGRHead(config.dim, rows, facts.visual, loss_bias=facts.loss_bias)
    expected = {
        f"head.{name}": tuple(value.shape)
        for name, value in head.state_dict().items()
        if name not in PROJECTIONS or f"head.{name}" in tensors
    }
    if facts.parts is not None:
        marks = tensors.get("kernel.landmarks")
        width = config.dim + NUMBERS
        if _length(tensors, "kernel.centre") != width:
            width += config.model.reading
        expected |= _part_shapes(config.dim, 0 if marks is None or not marks.ndim else len(marks), width)
        if "generative.shifts" in tensors:
            expected["generative.shifts"] = (rows, config.dim)
        told = _length(tensors, "told.class_ids")
        if told:
            expected |= {"told.class_ids": (told,), "told.digests": (told,), "told.means": (told, config.dim)}
        if facts.parts.outside is not None:
            damaged(weights, "the basis of an exported head must have all dimensions")
        if held:
            expected |= {"held_out.labels": (held,), "held_out.probabilities": (held, rows)}
    _check_tensors(weights, tensors, expected | {"class_ids": (rows,)}, _INTEGERS)
    for name in ("class_ids", "told.class_ids"):
        ids = tensors.get(name, torch.zeros(0, dtype=torch.int64))
        if not bool((ids >= 0).all() and (ids[1:] > ids[:-1]).all()):
            damaged(weights, f"{name} must be at least 0 and ascending")
    labels = tensors.get("held_out.labels", torch.zeros(0, dtype=torch.int64))
    if not bool(((labels >= 0) & (labels < rows)).all()):
        damaged(weights, f"held_out.labels must be integers from 0 to {rows - 1}")
    if "held_out.labels" in tensors:
        chances = tensors["held_out.probabilities"]
        if not bool((chances >= 0).all() and (chances <= 1).all()):
            damaged(weights, "held_out.probabilities must lie between 0 and 1")
    for name in ("log_logit_scale", "log_beta"):
        value = float(tensors.get(f"head.{name}", torch.zeros(())).double().exp())
        if not value <= _LARGEST:
            damaged(weights, f"the exponential of {name} is {value:g}; up to {_LARGEST:,.0f} can be")


def _tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file and check that all values are finite and of a known type.

    It takes as much memory as the file is long.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        damaged(path, f"not a safetensors file: {error}")
    for name, value in tensors.items():
        if value.dtype not in _TYPES:
            damaged(path, f"{name} holds {value.dtype}, which no exported model does")
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            damaged(path, f"{name} holds values that are not finite")
    return tensors


def _length(tensors: Mapping[str, Tensor], name: str) -> int:
    return tensors[name].numel() if name in tensors else 0


def _check_tensors(
    path: Path,
    found: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    integers: Container[str],
) -> None:
    """Check that a file has exactly these tensors, in these shapes, and integers only and always in those named."""
    for name, shape in expected.items():
        if name not in found:
            damaged(path, f"{name} is missing")
        if found[name].shape != shape:
            damaged(path, f"{name} has shape {list(found[name].shape)}, expected {list(shape)}")
        if (name in integers) == found[name].is_floating_point():
            wanted = "integers" if name in integers else "floating-point numbers"
            damaged(path, f"{name} holds {found[name].dtype}, expected {wanted}")
    for name in sorted(found.keys() - expected.keys()):
        damaged(path, f"{name[:80]!r} is not part of the model")


def _part_shapes(dim: int, landmarks: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the generative model's tensors, with so many landmarks of a width; 0: without a kernel."""
    told = dim + landmarks
    shapes: dict[str, tuple[int, ...]] = {f"generative.{name}": (dim,) for name in SHARED}
    shapes |= {"generative.basis": (dim, dim), "generative.text_centre": (told,)}
    shapes["generative.text_map"] = (told, dim)
    if landmarks:
        shapes |= {
            "kernel.centre": (width,),
            "kernel.scale": (width,),
            "kernel.landmarks": (landmarks, width),
        }
    return shapes


def read_sentences(path: Path, number: int) -> pa.Table:
    """Read a Parquet file that must have exactly the columns of sentences, `number` rows, and a bounded size in memory.

    Raises:
        PretrainedError: If it does not.
    """
    schema = sentences_schema()
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != number:
                damaged(path, f"{file.metadata.num_rows:,} rows, config.json says {number:,}")
            found = {f.name: f.type for f in file.schema_arrow}
            if found != {f.name: f.type for f in schema}:
                damaged(path, f"its columns are {found}")
            parts = []
            size = 0
            most = max(_SMALL_TABLE, _UNPACKED * path.stat().st_size)
            for batch in file.iter_batches(
                rows_at_once(path, file, schema.names, _BATCH), columns=schema.names
            ):
                size += batch.nbytes
                if size > most:
                    damaged(path, f"more than {most >> 20:,} MiB in memory, {_UNPACKED} times its size")
                parts.append(batch.select(schema.names).cast(schema))
            rows = pa.Table.from_batches(parts, schema)
            rows.validate(full=True)
            return rows
    except InputError as error:
        damaged(path, error.message)
    except (pa.ArrowException, OSError, ValueError) as error:
        damaged(path, f"not a readable Parquet file: {error}")


def check_part(folder: Path, config: ExportedConfig, sentences: pa.Table) -> None:
    """Check that a part is a base, in sound files, with finite numbers and keys that refer to each other.

    Args:
        folder: With `part.json` and a file for each table.
        config: Its configuration.
        sentences: From `read_sentences`.

    Raises:
        PretrainedError: If it does not.
    """
    facts = _manifest(PartManifest, folder / "part.json")
    if facts.gone or facts.rows.keys() != TABLES.keys():
        damaged(folder / "part.json", "it must hold all tables, and remove no rows")
    for name, number in (("classes", config.classes), ("anchors", config.anchors)):
        if facts.rows[name] != number:
            damaged(folder / "part.json", f"{facts.rows[name]:,} {name}, config.json says {number:,}")
    files = {name: folder / f"{name}.arrow" for name in TABLES}
    schemas = part_schemas(config.dim, config.model.reading)
    rows = {name: _arrow(files[name], schemas[name], facts.rows[name]) for name in TABLES}
    _check_names(files, rows)
    _check_stats(files["class_stats"], rows["class_stats"], config, rows["classes"])
    _check_anchors(files, rows, sentences)


def _arrow(path: Path, schema: pa.Schema, number: int) -> pa.Table:
    """Map an Arrow file that must have exactly these columns and `number` rows, and no compressed block."""
    try:
        check_plain(path)
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        if not file.schema.equals(schema):
            damaged(path, f"its columns are {dict(zip(file.schema.names, file.schema.types, strict=True))}")
        rows = file.read_all()
        rows.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        damaged(path, f"not a readable Arrow file: {error}")
    if rows.num_rows != number:
        damaged(path, f"{rows.num_rows:,} rows, part.json says {number:,}")
    if rows.nbytes > path.stat().st_size:
        damaged(path, "its columns overlap")
    for field, column in zip(schema, rows.columns, strict=True):
        inner = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
        values = pc.list_flatten(column) if inner else column
        if (not field.nullable and column.null_count) or (inner and values.null_count):
            damaged(path, f"a {field.name} is missing")
        if pa.types.is_floating(values.type) and not _all(pc.is_finite(values.drop_null())):
            damaged(path, f"a {field.name} holds values that are not finite")
    return rows


def _check_names(files: Mapping[str, Path], rows: Mapping[str, pa.Table]) -> None:
    """Check classes and the names above them."""
    classes = rows["classes"]
    _check_distinct(files["classes"], classes, {"class_id": "number", "name": "name"}, "two classes have one")
    if not _all(pc.greater_equal(classes["class_id"], 0)):
        damaged(files["classes"], "a class_id is negative")
    if classes["retired_at"].null_count != classes.num_rows:
        damaged(files["classes"], "a class was removed")
    taxonomy = rows["taxonomy"]
    _check_distinct(files["taxonomy"], taxonomy, {"name": "place"}, "two names have one")
    names = (
        ("classes", classes["name"]),
        ("classes", pc.list_flatten(classes["aliases"])),
        ("taxonomy", taxonomy["name"]),
        ("taxonomy", taxonomy["parent"]),
        ("taxonomy", taxonomy["rank"]),
    )
    for table, column in names:
        if not _all(pc.less_equal(pc.utf8_length(column.drop_null()), _LONGEST_NAME)):
            damaged(files[table], f"a name is longer than {_LONGEST_NAME:,} characters")
    for table, column in (("classes", classes["name"]), ("taxonomy", taxonomy["name"])):
        if not _all(pc.greater(pc.utf8_length(column), 0)):
            damaged(files[table], "a name is empty")


def _check_stats(path: Path, rows: pa.Table, config: ExportedConfig, classes: pa.Table) -> None:
    """Check the statistics of the classes' images."""
    _check_distinct(path, rows, {"class_id": "class_id"}, "two rows have one")
    if not _all(pc.is_in(rows["class_id"], value_set=classes["class_id"].combine_chunks())):
        damaged(path, "a class_id is not among the classes")
    if not _all(pc.equal(rows["image_fp"], config.model.image_fp)):
        damaged(path, f"its vectors are not of the tower {config.model.image_fp}")
    sums = torch.from_numpy(pc.list_flatten(rows["sum"]).to_numpy().copy()).view(-1, config.dim)
    counts = torch.from_numpy(rows["images"].to_numpy().copy())
    if bool((counts < 1).any()) or bool((sums.norm(dim=1) > 1.001 * counts).any()):
        damaged(path, "a class's sum is longer than its images' normalised vectors can add up to")


def _check_anchors(files: Mapping[str, Path], rows: Mapping[str, pa.Table], sentences: pa.Table) -> None:
    """Check that anchors, ranks, sentences and classes refer to each other."""
    path = files["anchors"]
    anchors = rows["anchors"]
    ranks = rows["ranks"]
    classes = rows["classes"]["class_id"].combine_chunks()
    for where, table in ((path, anchors), (files["classes"].parent.parent / SENTENCES, sentences)):
        if not _all(pc.is_in(table["class_id"], value_set=classes)):
            damaged(where, "a class_id is not among the classes")
        _check_distinct(where, table, {"sentence_id": "sentence_id"}, "two rows have one")
    if not _all(pc.is_in(anchors["sentence_id"], value_set=sentences["sentence_id"].combine_chunks())):
        damaged(path, f"a sentence_id is not in {SENTENCES}")
    for name, table in (("anchors", anchors), ("ranks", ranks)):
        keys = table["anchor_key"]
        if pc.count_distinct(keys).as_py() != len(keys) or not _all(pc.greater_equal(keys, 0)):
            damaged(files[name], "anchor_key must be distinct and not negative")
    known = pc.is_in(ranks["anchor_key"], value_set=anchors["anchor_key"].combine_chunks())
    if len(ranks) != len(anchors) or not _all(known):
        damaged(files["ranks"], "its anchor_keys are not those of anchors.arrow")
    if not _all(pc.less_equal(pc.abs(ranks["loss"].drop_null()), _LARGEST)):
        damaged(files["ranks"], f"a loss is not a number up to {_LARGEST:,.0f}")


def _check_distinct(path: Path, rows: pa.Table, columns: Mapping[str, str], wrong: str) -> None:
    for column, word in columns.items():
        if pc.count_distinct(rows[column]).as_py() != rows.num_rows:
            damaged(path, f"{wrong} {word}")


def _all(true: pa.ChunkedArray) -> bool:
    """Say whether all of these booleans are true, also if there is none."""
    return bool(pc.all(true, min_count=0).as_py())
