"""Exported folders that somebody damaged or made on purpose: one clear error each, before memory is taken for them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from tests.support.exports import Shared, edit_json, edit_rows, edit_tensors, sign
from vlltr_index.errors import PretrainedError
from vlltr_index.recognition.exported import reading
from vlltr_index.recognition.exported.reading import SUMS, read_model

Spoil = Callable[[Path], object]

GONE = object()
STATS = "class_stats.safetensors"
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


def rows(name: str, number: int = 0, **values: Any) -> Spoil:
    """Set values of one row of a Parquet file."""
    return lambda folder: edit_rows(folder, name, lambda table: table[number].update(values))


def text(name: str, value: str) -> Spoil:
    """Put text into a file, and sign."""

    def spoil(folder: Path) -> None:
        (folder / name).write_text(value, encoding="utf-8")
        sign(folder)

    return spoil


def unsigned(folder: Path) -> None:
    """Change a byte, and leave the digests."""
    path = folder / "anchors.parquet"
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
    number = pq.read_metadata(folder / "anchors.parquet").num_rows
    pq.write_table(pa.table({"a": list(range(number))}), folder / "anchors.parquet")
    sign(folder)


NAN = torch.tensor(float("nan"))
CASES: dict[str, tuple[Spoil, str]] = {
    "changed": (unsigned, r"anchors\.parquet is not the file that was exported: its SHA-256 differs"),
    "missing": (lambda f: (f / "head/head.json").unlink() or sign(f), "has no file head/head.json"),
    "no digests": (lambda f: (f / SUMS).unlink(), "is not an exported folder: it has no file SHA256SUMS"),
    "a path outside": (
        lambda f: (f / SUMS).write_text(f"{(f / SUMS).read_text()}{'0' * 64}  ../../etc/passwd\n"),
        r"names '\.\./\.\./etc/passwd', which is no file",
    ),
    "long digests": (lambda f: (f / SUMS).write_bytes(b"x" * 2**20 + b"x"), "larger than 1,048,576"),
    "config: key": (config(extra=1), r"config\.json cannot be used: extra: Extra inputs are not permitted"),
    "config: text": (text("config.json", "[" * 100_000), "Invalid JSON"),
    "encoder: text": (text("encoder/encoder.json", "[" * 100_000), "not valid JSON"),
    "encoder: NaN": (encoder("preprocess_cfg", "mean", value=[float("nan")] * 3), r"mean\.0 is nan"),
    "config: wide": (config(dim=10**9), r"dim: Input should be less than or equal to 16384"),
    "config: twice": (
        lambda f: edit_json(f, "config.json", lambda v: v["classes"].append(v["classes"][0])),
        "two classes have one number",
    ),
    "config: two of one name": (
        lambda f: edit_json(f, "config.json", lambda v: v["classes"][1].update(name=v["classes"][0]["name"])),
        "two classes have one name",
    ),
    "config: towers": (config(image_fp="0" * 16), "is of the towers .*: they do not belong together"),
    "encoder: layers": (
        encoder("model_cfg", "text_cfg", "layers", value=10**9),
        r"config\.model_cfg\.text_cfg\.layers is 1,000,000,000",
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
        "encoder.json cannot be used: TypeError",
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
        r"class_ids are torch\.int32, expected int64",
    ),
    "head: without its beta": (head("loss_bias", value=False), r"'head\.log_beta' is not part of the model"),
    "head: pickle": (pickled, "not a safetensors file"),
    "parts: missing": (head("parts"), r"head\.json cannot be used: parts in head\.json: Field required"),
    "parts: noise": (
        parts("noise", value=0.0),
        r"parts\.noise in head\.json: Input should be greater than 0",
    ),
    "weights: NaN": (parts("weights", "text", value=float("nan")), r"parts\.weights\.text .* finite number"),
    "weights: text": (
        parts("weights", "text_only", value={"generative": "0.5", "text": 0.0, "offset": 0.0}),
        r"text_only\.generative in head\.json: Input should be a valid number",
    ),
    "weights: missing": (parts("weights", "image"), r"parts\.weights\.image in head\.json: Field required"),
    "weights: huge": (
        parts("weights", "text_only", value={"generative": 1.0, "text": 0.0, "offset": -1e7}),
        r"text_only\.offset in head\.json: Input should be greater than or equal to -1000000",
    ),
    "generative: spread": (
        change_tensor("head/head.safetensors", "generative.spread", lambda t: t.index_fill(0, FIRST, 0.0)),
        r"a variance in head\.safetensors is not above 0",
    ),
    "stats: infinite": (
        change_tensor(STATS, "sums", lambda t: t.fill_(float("inf"))),
        "sums holds values that are not finite",
    ),
    "stats: too long": (
        lambda f: edit_tensors(
            f, STATS, lambda t: t.update(sums=1.01 * t["counts"][:, None] * normalize(t["sums"]))
        ),
        "a class's sum is longer than its images' normalised vectors can add up to",
    ),
    "stats: class": (
        change_tensor(STATS, "class_ids", lambda t: t + 1000),
        "class_ids must be ascending numbers of classes in config.json",
    ),
    "anchors: columns": (other_columns, "its columns are"),
    "anchors: class": (rows("anchors.parquet", class_id=12345), "a class_id is not among the classes"),
    "anchors: sentence": (
        rows("anchors.parquet", sentence_id="x"),
        r"a sentence_id is not in sentences\.parquet",
    ),
    "anchors: loss": (rows("anchors.parquet", loss=float("nan")), "a loss is not a number up to 1,000,000"),
    "anchors: key": (rows("anchors.parquet", anchor_key=-1), "anchor_key must be distinct and not negative"),
    "anchors: vector": (
        rows("anchors.parquet", vector=[float("nan")] * 192),
        "a vector holds values that are not finite",
    ),
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
    monkeypatch.setattr(reading, "_SMALL_TABLE", 2**20)
    monkeypatch.setattr(reading, "_UNPACKED", 1)
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


@pytest.mark.parametrize("name", [SUMS, STATS])
def test_a_pipe_is_no_file(folder: Path, name: str) -> None:
    """Opening one would wait forever."""
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(PretrainedError, match=f"has no file {name}"):
        read_model(folder)
