"""Exported folders that somebody damaged or made on purpose: one clear error each, before memory is taken for them."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from tests.support.exports import (
    Shared,
    edit_json,
    edit_rows,
    edit_tensors,
    sign,
    sign_as_named,
    write_arrow,
)
from vlltr_index.errors import PretrainedError
from vlltr_index.recognition.exported import checks, reading
from vlltr_index.recognition.exported.reading import SUMS, read_model
from vlltr_index.version import VERSION

Spoil = Callable[[Path], object]

GONE = object()
PARTS = ("anchors", "classes", "class_stats", "ranks", "taxonomy")
ANCHORS, CLASSES, STATS, RANKS, TAXONOMY = (f"parts/{name}.arrow" for name in PARTS)
FIRST = torch.tensor([0])


@pytest.fixture
def folder(shared: Shared, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(shared.folder, tmp_path / "model"))


def config(**values: Any) -> Spoil:
    """Set keys of config.json."""
    return lambda folder: edit_json(folder, "config.json", lambda v: v.update(values))


def at(name: str, *path: str, value: Any = GONE) -> Spoil:
    """Set one value of a JSON file, or take it away."""

    def change(values: dict[str, Any]) -> None:
        *above, last = path
        for key in above:
            values = values[key]
        values.update({last: value})
        if value is GONE:
            del values[last]

    return lambda folder: edit_json(folder, name, change)


encoder = partial(at, "encoder/encoder.json", "config")
head = partial(at, "head/head.json")
parts = partial(at, "head/head.json", "parts")
part = partial(at, "parts/part.json")


def _bert(**settings: Any) -> dict[str, Any]:
    """A text tower of transformers, with such settings in its configuration."""
    return {"hf_model_name": "user/evil", "hf_config": {"model_type": "bert", **settings}}


def record(**values: Any) -> Spoil:
    """Set values of the record in config.json."""

    def spoil(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        said["model"].update(values)
        (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
        sign_as_named(folder)

    return spoil


def tokenizer(beside: str = "", **values: Any) -> Spoil:
    """Put a Hugging Face tokenizer into the folder, with these values in its description, and a file beside it."""

    def spoil(folder: Path) -> None:
        encoder("model_cfg", "text_cfg", "hf_tokenizer_name", value="user/tokenizer")(folder)
        facts = {"tokenizer_class": "PreTrainedTokenizerFast"} | values
        (folder / "encoder" / "tokenizer.json").write_text("{}", encoding="utf-8")
        (folder / "encoder" / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
        sign(folder)
        if beside:
            (folder / "encoder" / beside).write_text("{}", encoding="utf-8")

    return spoil


def tensors(name: str, **values: torch.Tensor) -> Spoil:
    """Put tensors into a safetensors file; `__` in a name stands for a dot."""
    new = {key.replace("__", "."): value for key, value in values.items()}
    return lambda folder: edit_tensors(folder, name, lambda t: t.update(new))


def change_tensor(name: str, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    """Change one tensor of a safetensors file."""
    return lambda folder: edit_tensors(
        folder, name, lambda t: t.update({key: change(t[key]).clone(memory_format=torch.contiguous_format)})
    )


def rows(name: str, number: int = 0, /, **values: Any) -> Spoil:
    """Set values of one row of a table."""
    return lambda folder: edit_rows(folder, name, lambda table: table[number].update(values))


def text(name: str, value: str) -> Spoil:
    """Put text into a file, and sign."""

    def spoil(folder: Path) -> None:
        (folder / name).write_text(value, encoding="utf-8")
        sign(folder)

    return spoil


def unsigned(folder: Path) -> None:
    """Change a byte, and leave the digests."""
    path = folder / ANCHORS
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))


def pickled(folder: Path) -> None:
    """A pickle that would run code, under the name of the head."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (folder / "ran",))  # type: ignore[return-value]  # what a pickle would call

    (folder / "head" / "head.safetensors").write_bytes(pickle.dumps(Bomb()))
    sign(folder)


def other_columns(folder: Path) -> None:
    """A Parquet file of something else, with the right number of rows."""
    number = read(folder, ANCHORS).num_rows
    write_arrow(folder / ANCHORS, pa.table({"a": list(range(number))}))
    sign(folder)


def read(folder: Path, name: str) -> pa.Table:
    """Read an Arrow file into memory."""
    with (folder / name).open("rb") as file:
        return pa.ipc.open_file(file.read()).read_all()


def columns(name: str, change: Callable[[pa.Table], pa.Table]) -> Spoil:
    """Change the table in an Arrow file, and sign."""

    def spoil(folder: Path) -> None:
        write_arrow(folder / name, change(read(folder, name)))
        sign(folder)

    return spoil


def again(name: str) -> Spoil:
    """Put the first row of a table there twice, under the old number of rows."""
    return columns(name, lambda table: pa.concat_tables([table.slice(0, 1), table.slice(0, len(table) - 1)]))


def compressed(codec: str) -> Spoil:
    """Write a table with compressed blocks, which Arrow would unpack to whatever length they state."""

    def spoil(folder: Path) -> None:
        write_arrow(folder / RANKS, read(folder, RANKS), compression=codec)
        sign(folder)

    return spoil


def blocks(folder: Path, change: Callable[[bytearray, int, int], None]) -> None:
    """Write a table of two blocks, change the bytes of the file, given where the footer lists both, and sign."""
    table = read(folder, RANKS)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=-(-len(table) // 2))
    data = bytearray(sink.getvalue().to_pybytes())
    first = 8 + int.from_bytes(data[12:16], "little") + 8  # after the magic and the schema's message
    listed = data.rindex(first.to_bytes(8, "little"))
    change(data, listed, listed + 24)
    (folder / RANKS).write_bytes(data)
    sign(folder)


def narrow(vectors: pa.ChunkedArray) -> pa.Array:
    """Return vectors of half the width."""
    flat = vectors.combine_chunks().flatten()
    return pa.FixedSizeListArray.from_arrays(flat, 96).slice(0, len(vectors))


def twice(data: bytearray, one: int, other: int) -> None:
    """List one block twice."""
    data[other : other + 24] = data[one : one + 24]


def outside(data: bytearray, one: int, other: int) -> None:
    """Say that a block lies behind the file."""
    data[other : other + 8] = (1 << 40).to_bytes(8, "little")


def footer(length: int) -> Callable[[bytearray, int, int], None]:
    """State another length of the footer."""
    return lambda data, one, other: data.__setitem__(slice(-10, -6), length.to_bytes(4, "little"))


NAN = torch.tensor(float("nan"))
NOTHING = {"parent": [None, None], "rank": [None, None]}
CASES: dict[str, tuple[Spoil, str]] = {
    "changed": (unsigned, r"anchors\.arrow is not the file that was exported: its SHA-256 differs"),
    "missing": (lambda f: (f / "head/head.json").unlink() or sign(f), "has no file head/head.json"),
    "no digests": (lambda f: (f / SUMS).unlink(), "is not an exported folder: it has no file SHA256SUMS"),
    "a path outside": (
        lambda f: (f / SUMS).write_text(f"{(f / SUMS).read_text()}{'0' * 64}  ../../etc/passwd\n"),
        r"names '\.\./\.\./etc/passwd', which is no file",
    ),
    "long digests": (lambda f: (f / SUMS).write_bytes(b"x" * 2**20 + b"x"), "larger than 1,048,576"),
    "config: key": (
        config(extra=1),
        r"extra in config\.json: Extra inputs are not permitted",
    ),
    "config: text": (text("config.json", "[" * 100_000), "Invalid JSON"),
    "encoder: text": (text("encoder/encoder.json", "[" * 100_000), "Invalid JSON"),
    "encoder: NaN": (encoder("preprocess_cfg", "mean", value=[float("nan")] * 3), r"mean\.0 is nan"),
    "config: wide": (config(dim=10**9), r"dim in config\.json: Input should be less than or equal to 16384"),
    "config: towers": (record(image_fp="0" * 16), "is of the towers .*: they do not belong together"),
    "encoder: layers": (
        encoder("model_cfg", "text_cfg", "layers", value=10**9),
        r"config\.model_cfg\.text_cfg\.layers is 1,000,000,000",
    ),
    "encoder: numbers below a long key": (
        encoder("model_cfg", "vision_cfg", "x" * 20_000_000, value=[0] * 1_000_000 + [10**9]),
        r"cannot be used: x+\.1000000 is 1,000,000,000",
    ),
    "encoder: not the weights'": (
        encoder("model_cfg", "text_cfg", "vocab_size", value=2_000_000),
        r"model\.safetensors cannot be used: .* has shape \[\d+, \d+\], expected \[2000000, \d+\]",
    ),
    "encoder: image": (
        encoder("preprocess_cfg", "size", value=10**6),
        "images of 1000000 pixels a side; 1 to 4096 can be",
    ),
    "encoder: fetched": (
        encoder("model_cfg", "text_cfg", "hf_model_name", value="user/evil"),
        "hf_model_name 'user/evil' would be fetched from elsewhere",
    ),
    "encoder: kernel of the hub": (
        encoder("model_cfg", "text_cfg", value=_bert(attn_implementation="user/evil")),
        "'attn_implementation' is no setting of a text tower: 'user/evil'",
    ),
    "encoder: class of the hub": (
        encoder("model_cfg", "text_cfg", value=_bert(auto_map={"AutoModel": "user/evil--evil.Model"})),
        "'auto_map' is no setting of a text tower",
    ),
    "encoder: other text tower": (
        encoder("model_cfg", "text_cfg", value=_bert(model_type="evil")),
        "hf_config is of none of the text towers roberta, ",
    ),
    "encoder: deep text tower": (
        encoder("model_cfg", "text_cfg", value=_bert(num_hidden_layers=10**6)),
        r"text_cfg\.hf_config\.num_hidden_layers is 1,000,000",
    ),
    "tokenizer: fetched": (
        encoder("model_cfg", "text_cfg", "hf_tokenizer_name", value="user/evil"),
        "hf_tokenizer_name 'user/evil' would be fetched from elsewhere",
    ),
    "tokenizer: options": (
        encoder("model_cfg", "text_cfg", "tokenizer_kwargs", value={"trust_remote_code": True}),
        "'trust_remote_code' is no option of a saved tokenizer",
    ),
    "tokenizer: code": (
        tokenizer(auto_map={"AutoTokenizer": ["user/evil--code.Tokenizer", None]}),
        r"tokenizer_config\.json cannot be used: 'auto_map' is not part of a saved tokenizer",
    ),
    "tokenizer: class": (
        tokenizer(tokenizer_class="LlamaTokenizer"),
        "tokenizer_class must be 'PreTrainedTokenizerFast', and all values texts",
    ),
    "tokenizer: beside": (
        tokenizer("special_tokens_map.json"),
        r"special_tokens_map\.json cannot be used: not a file of an exported model, and a tokenizer might read it",
    ),
    "encoder: timm": (
        encoder("model_cfg", "vision_cfg", "timm_model_name", value="hf-hub:user/evil"),
        "timm_model_name 'hf-hub:user/evil' would be fetched from elsewhere",
    ),
    "encoder: a mask of its texts' square": (
        encoder("model_cfg", "text_cfg", "context_length", value=30_000),
        r"config\.model_cfg\.text_cfg\.context_length is 30,000",
    ),
    "encoder: options that are none": (
        encoder("model_cfg", "text_cfg", "tokenizer_kwargs", value=5),
        r"text_cfg\.tokenizer_kwargs in encoder\.json: ",
    ),
    "head: width": (head("dim", value=99), r"the head is 99 wide, config\.json says"),
    "head: scale": (
        tensors("head/head.safetensors", head__log_logit_scale=torch.tensor(90.0)),
        r"the exponential of log_logit_scale is 1\.\d+e\+39; up to 1,000,000 can be",
    ),
    "head: shape": (
        tensors("head/head.safetensors", head__query_norm__weight=torch.ones(3)),
        r"head\.query_norm\.weight has shape \[3\], expected",
    ),
    "head: NaN": (
        tensors("head/head.safetensors", head__log_logit_scale=NAN),
        r"head\.log_logit_scale holds values that are not finite",
    ),
    "head: class numbers": (
        change_tensor("head/head.safetensors", "class_ids", lambda t: t.int()),
        r"class_ids holds torch\.int32, which no exported model does",
    ),
    "head: class numbers as floats": (
        change_tensor("head/head.safetensors", "class_ids", lambda t: t.double()),
        r"class_ids holds torch\.float64, expected integers",
    ),
    "head: class numbers reversed": (
        change_tensor("head/head.safetensors", "class_ids", lambda t: t.flip(0)),
        r"class_ids must be at least 0 and ascending",
    ),
    "head: class numbers below 0": (
        change_tensor("head/head.safetensors", "class_ids", lambda t: t - 1),
        r"class_ids must be at least 0 and ascending",
    ),
    "head: whole numbers": (
        tensors("head/head.safetensors", head__log_logit_scale=torch.tensor(1)),
        r"head\.log_logit_scale holds torch\.int64, expected floating-point numbers",
    ),
    "head: eight bits": (
        change_tensor("head/head.safetensors", "generative.basis", lambda t: t.to(torch.float8_e4m3fn)),
        r"generative\.basis holds torch\.float8_e4m3fn, which no exported model does",
    ),
    "head: without its beta": (head("loss_bias", value=False), r"'head\.log_beta' is not part of the model"),
    "head: pickle": (pickled, "not a safetensors file"),
    "parts: missing": (head("parts"), r"head\.json cannot be used: parts in head\.json: Field required"),
    "parts: level": (
        parts("text_level", value=3),
        r"parts\.text_level in head\.json: Input should be less than or equal to 2",
    ),
    "parts: outside": (
        parts("outside", value=[1.0, 0.0]),
        "the basis of an exported head must have all dimensions",
    ),
    "parts: interval": (
        parts("unknown_range", value=[0.9, 0.1]),
        r"unknown_range in head\.json: Value error, the lower end comes first",
    ),
    "weights: NaN": (parts("weights", "text", value=float("nan")), r"parts\.weights\.text .* finite number"),
    "weights: text": (
        parts("weights", "text", value="0.5"),
        r"parts\.weights\.text in head\.json: Input should be a valid number",
    ),
    "weights: missing": (parts("weights", "image"), r"parts\.weights\.image in head\.json: Field required"),
    "weights: huge": (
        parts("weights", "generative", value=1e7),
        r"weights\.generative in head\.json: Input should be less than or equal to 1000000",
    ),
    "rejection: weight": (
        parts("ratio_weight", value=-1.0),
        r"parts\.ratio_weight in head\.json: Input should be greater than or equal to 0",
    ),
    "generative: spread": (
        change_tensor("head/head.safetensors", "generative.spread", lambda t: t.index_fill(0, FIRST, 0.0)),
        r"a variance in head\.safetensors is not above 0",
    ),
    "stats: infinite": (
        rows(STATS, sum=[float("inf")] * 192),
        "a sum holds values that are not finite",
    ),
    "stats: too long": (
        lambda f: edit_rows(
            f, STATS, lambda table: table[0].update(sum=[1.01 * table[0]["images"]] + [0.0] * 191)
        ),
        "a class's sum is longer than its images' normalised vectors can add up to",
    ),
    "stats: none": (rows(STATS, images=0), "a class's sum is longer"),
    "stats: class": (rows(STATS, class_id=12345), "a class_id is not among the classes"),
    "stats: twice": (again(STATS), "two rows have one class_id"),
    "stats: tower": (rows(STATS, image_fp="0" * 16), "its vectors are not of the tower"),
    "classes: negative": (rows(CLASSES, -1, class_id=-5), "a class_id is negative"),
    "classes: number": (
        lambda f: edit_rows(f, CLASSES, lambda table: table[1].update(class_id=table[0]["class_id"])),
        "two classes have one number",
    ),
    "classes: name": (
        lambda f: edit_rows(f, CLASSES, lambda table: table[1].update(name=table[0]["name"])),
        "two classes have one name",
    ),
    "classes: empty": (rows(CLASSES, name=""), "a name is empty"),
    "classes: long": (rows(CLASSES, aliases=["x" * 10_001]), "a name is longer than 10,000 characters"),
    "classes: no alias": (rows(CLASSES, aliases=["x", None]), "a aliases is missing"),
    "classes: no name": (rows(CLASSES, name=None), "a name is missing"),
    "classes: removed": (rows(CLASSES, retired_at="2026"), "a class was removed"),
    "taxonomy: twice": (
        columns(TAXONOMY, lambda table: pa.table({"name": ["a", "a"], **NOTHING}, table.schema)),
        r"2 rows, part\.json says 0",
    ),
    "anchors: columns": (other_columns, "its columns are"),
    "anchors: width": (
        columns(ANCHORS, lambda table: table.set_column(7, "vector", narrow(table["vector"]))),
        "its columns are",
    ),
    "anchors: class": (rows(ANCHORS, class_id=12345), "a class_id is not among the classes"),
    "anchors: sentence": (rows(ANCHORS, sentence_id="x"), r"a sentence_id is not in sentences\.parquet"),
    "anchors: key": (rows(ANCHORS, anchor_key=-1), "anchor_key must be distinct and not negative"),
    "anchors: vector": (
        rows(ANCHORS, vector=[float("nan")] * 192),
        "a vector holds values that are not finite",
    ),
    "anchors: number": (columns(ANCHORS, lambda table: table.slice(1)), r"rows, part\.json says"),
    "anchors: no vector": (rows(ANCHORS, vector=[None] * 192), "a vector is missing"),
    "ranks: loss": (rows(RANKS, loss=float("nan")), "a loss holds values that are not finite"),
    "ranks: huge loss": (rows(RANKS, loss=1e7), "a loss is not a number up to 1,000,000"),
    "ranks: other anchor": (rows(RANKS, anchor_key=10**9), "its anchor_keys are not those of anchors"),
    "ranks: twice": (again(RANKS), "anchor_key must be distinct and not negative"),
    "arrow: lz4": (compressed("lz4"), "not a readable Arrow file: a block is compressed"),
    "arrow: zstd": (compressed("zstd"), "not a readable Arrow file: a block is compressed"),
    "arrow: listed twice": (partial(blocks, change=twice), "two of its blocks overlap"),
    "arrow: outside": (partial(blocks, change=outside), "a block is longer than the file"),
    "arrow: footer": (partial(blocks, change=footer(10**9)), "its footer is longer than the file"),
    "arrow: no footer": (partial(blocks, change=footer(0)), "an offset leads out of the file"),
    "arrow: empty": (text(RANKS, ""), "it is empty"),
    "arrow: text": (text(RANKS, "x" * 100), "it does not begin and end as an Arrow file does"),
    "part: gone": (part("gone", value={"anchors": [1]}), "it must hold all tables, and remove no rows"),
    "part: tables": (part("rows", "other", value=1), "it must hold all tables, and remove no rows"),
    "part: rows": (part("rows", "anchors", value=7), r"7 anchors, config\.json says"),
    "part: text": (text("parts/part.json", "[" * 100_000), "Invalid JSON"),
    "part: key": (part("extra", value=1), r"extra in part\.json: Extra inputs are not permitted"),
    "record: encoder": (
        record(encoder={"model": "ViT-B-32", "pretrained": "openai"}),
        "model names no encoder, head, part or fingerprint",
    ),
    "record: head": (record(head=None), "model names no encoder, head, part or fingerprint"),
    "record: parts": (record(parts=[]), "model names no encoder, head, part or fingerprint"),
    "record: offset": (
        record(offsets={"1": 0.5}),
        r"offsets\.1 in config\.json: Input should be less than or equal to 0",
    ),
    "record: huge offset": (
        record(offsets={"1": -1e7}),
        r"offsets\.1 in config\.json: Input should be greater than or equal to -1000000",
    ),
    "record: merged": (record(merged={"1": 2**70}), r"merged\.1 in config\.json: "),
}


@pytest.mark.parametrize("case", CASES)
def test_each_is_refused_with_its_reason(folder: Path, case: str) -> None:
    """The message names the file and what is wrong with it; nothing in the folder runs."""
    spoil, message = CASES[case]
    spoil(folder)
    with pytest.raises(PretrainedError, match=message):
        read_model(folder)
    assert not (folder / "ran").exists()


def test_files_of_absurd_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops at the limit, however small a table's file is: one text may be that of every row."""
    monkeypatch.setattr(checks, "_SMALL_TABLE", 2**20)
    monkeypatch.setattr(checks, "_UNPACKED", 1)
    edit_rows(folder, "sentences.parquet", lambda table: [row.update(text="x" * 2**16) for row in table])
    with pytest.raises(PretrainedError, match="more than 1 MiB in memory, 1 times its size"):
        read_model(folder)
    monkeypatch.setattr(reading, "_MOST_JSON", 100)
    with pytest.raises(PretrainedError, match=r"config\.json cannot be used: larger than"):
        read_model(folder)


def test_an_edited_card_is_no_damage(folder: Path) -> None:
    """People edit README.md on the hub."""
    (folder / "README.md").write_text("better words")
    assert read_model(folder).classes.names


def test_objects_are_those_that_the_record_names(folder: Path) -> None:
    """Files under digests of their own, but beside the record of another model, are refused."""
    data = (folder / "head" / "head.json").read_bytes()
    (folder / "head" / "head.json").write_bytes(data + b"\n")
    sign_as_named(folder)
    with pytest.raises(PretrainedError, match=r"what it names is not what lies in head/"):
        read_model(folder)


@pytest.mark.slow
def test_flipped_bits_end_in_words_or_in_answers(folder: Path) -> None:
    """Of a table's file and of its footer, signed anew."""
    draw = random.Random(7)
    for name in (ANCHORS, CLASSES, RANKS, STATS):
        whole = (folder / name).read_bytes()
        for number in range(12):
            place = draw.randrange(len(whole)) if number % 2 else len(whole) - 1 - draw.randrange(200)
            data = bytearray(whole)
            data[place] ^= 1 << draw.randrange(8)
            (folder / name).write_bytes(data)
            sign(folder)
            with suppress(PretrainedError):
                assert read_model(folder).classes.names
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("name", [SUMS, "index/index.json"])
def test_a_pipe_is_no_file(folder: Path, name: str) -> None:
    """Opening one would wait forever."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(PretrainedError, match=f"has no file {name}"):
        read_model(folder)


@pytest.mark.parametrize("name", ["config.json", "encoder/encoder.json", "head/head.json", "parts/part.json"])
def test_another_format_is_refused(folder: Path, name: str) -> None:
    """By the sentence that a workspace is refused by; `config.json` names the version that wrote the folder."""
    edit_json(folder, name, lambda facts: facts.update(format=0))
    reads = {"head/head.json": 3}.get(name, 1)
    writer = f"vlltr-index {VERSION}" if name == "config.json" else "version"
    with pytest.raises(PretrainedError) as caught:
        read_model(folder)
    file = Path(name).name
    assert str(caught.value) == (
        f"{folder / name} cannot be used: {file} has format 0, but this vlltr-index {VERSION} reads format {reads}: "
        f"the {writer} that wrote it can read it\n{checks.AGAIN}"
    )
