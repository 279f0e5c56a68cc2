"""Exported folders that somebody damaged or made on purpose: one clear error each, before memory is taken for them."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.exports import Shared, edit_json, edit_rows, edit_tensors, sign
from vlltr_index.errors import PretrainedError
from vlltr_index.pretrained import checks, read_model
from vlltr_index.pretrained.layout import SUMS

Spoil = Callable[[Path], None]

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


def encoder(*path: str, value: Any) -> Spoil:
    """Set one value of the encoder's configuration."""

    def change(values: dict[str, Any]) -> None:
        inner = values["config"]
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return lambda folder: edit_json(folder, "encoder/encoder.json", change)


def tensors(name: str, **values: torch.Tensor) -> Spoil:
    """Put tensors into a safetensors file; `__` in a name stands for a dot."""
    new = {key.replace("__", "."): value for key, value in values.items()}
    return lambda folder: edit_tensors(folder, name, lambda t: t.update(new))


def change_tensor(name: str, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    """Change one tensor of a safetensors file."""
    return lambda folder: edit_tensors(
        folder, name, lambda t: t.update({key: change(t[key]).clone(memory_format=torch.contiguous_format)})
    )


def rows_of_one(stats: dict[str, torch.Tensor]) -> torch.Tensor:
    """The classes' sums, brought to length 1."""
    return stats["sums"] / stats["sums"].norm(dim=1, keepdim=True)


def parts(*path: str, value: Any = GONE) -> Spoil:
    """Set one value of what the head's file says of its parts, or take it away."""

    def change(values: dict[str, Any]) -> None:
        *above, last = ("parts", *path)
        for key in above:
            values = values[key]
        if value is GONE:
            del values[last]
        else:
            values[last] = value

    return lambda folder: edit_json(folder, "head/head.json", change)


def rows(name: str, number: int = 0, **values: Any) -> Spoil:
    """Set values of one row of a Parquet file."""
    return lambda folder: edit_rows(folder, name, lambda table: table[number].update(values))


def text(name: str, value: str) -> Spoil:
    """Put text into a file, and sign."""

    def spoil(folder: Path) -> None:
        (folder / name).write_text(value, encoding="utf-8")
        sign(folder)

    return spoil


def drop(name: str) -> Spoil:
    """Delete a file, and sign."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
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


def sums(line: str) -> Spoil:
    """Add a line to the digests."""

    def spoil(folder: Path) -> None:
        (folder / SUMS).write_text((folder / SUMS).read_text() + line + "\n")

    return spoil


def other_columns(folder: Path) -> None:
    """A Parquet file of something else, with the right number of rows."""
    number = pq.read_metadata(folder / "anchors.parquet").num_rows
    pq.write_table(pa.table({"a": list(range(number))}), folder / "anchors.parquet")
    sign(folder)


def fewer_rows(folder: Path) -> None:
    """A row is missing."""
    edit_rows(folder, "anchors.parquet", lambda table: table.pop())


def too_wide(folder: Path) -> None:
    """A head that says it is as wide as memory is not."""
    edit_json(folder, "config.json", lambda v: v.update(dim=16_384))
    edit_json(folder, "encoder/encoder.json", lambda v: v["config"]["model_cfg"].update(embed_dim=16_384))


NAN = torch.tensor(float("nan"))
CASES: dict[str, tuple[Spoil, str]] = {
    "changed": (unsigned, r"anchors\.parquet is not the file that was exported: its SHA-256 differs"),
    "missing": (drop("head/head.json"), "has no file head/head.json"),
    "no digests": (lambda f: (f / SUMS).unlink(), "is not an exported folder: it has no SHA256SUMS"),
    "a path outside": (
        sums("0" * 64 + "  ../../etc/passwd"),
        r"names '\.\./\.\./etc/passwd', which is no file",
    ),
    "an absolute path": (sums("0" * 64 + "  /etc/passwd"), "names '/etc/passwd', which is no file"),
    "no digest": (sums("hello"), r"SHA256SUMS:\d+ is not a digest and a name"),
    "long digests": (lambda f: (f / SUMS).write_bytes(b"x" * 2**20 + b"x") and None, "no list of digests"),
    "config: newer": (config(format=99), r"has format 99, this program reads 1"),
    "config: other": (config(library="else"), r"is not of vlltr-index: its library is 'else'"),
    "config: key": (config(extra=1), r"config\.json cannot be used: extra: Extra inputs are not permitted"),
    "config: NaN": (text("config.json", '{"library": "vlltr-index", "x": [NaN]}'), r"x\.0 is nan"),
    "config: huge": (text("config.json", '{"x": 1e999}'), "x is inf"),
    "config: text": (text("config.json", "[" * 100_000), "not valid JSON"),
    "config: list": (text("config.json", "[]"), "not a JSON object"),
    "config: wide": (config(dim=10**9), r"dim: Input should be less than or equal to 16384"),
    "config: fusion": (
        lambda f: edit_json(f, "config.json", lambda v: v["fusion"].update(alpha=7)),
        r"fusion\.alpha: Input should be less than or equal to 1",
    ),
    "config: rule": (
        lambda f: edit_json(f, "config.json", lambda v: v["fusion"].update(tau=1e-300)),
        r"fusion\.tau: Extra inputs are not permitted",
    ),
    "config: twice": (
        lambda f: edit_json(f, "config.json", lambda v: v["classes"].append(v["classes"][0])),
        "two classes have one number",
    ),
    "config: towers": (config(image_fp="0" * 16), "they do not belong together|config.json says"),
    "encoder: layers": (
        encoder("model_cfg", "text_cfg", "layers", value=10**9),
        r"model_cfg\.text_cfg\.layers is 1,000,000,000",
    ),
    "encoder: width": (
        encoder("model_cfg", "text_cfg", "width", value=2**40),
        r"model_cfg\.text_cfg\.width is 1,099,511,627,776",
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
    "encoder: timm": (
        encoder("model_cfg", "vision_cfg", "timm_model_name", value="hf-hub:user/evil"),
        "timm_model_name 'hf-hub:user/evil' would be fetched from elsewhere",
    ),
    "encoder: unknown": (
        encoder("model_cfg", "vision_cfg", "timm_model_name", value="no_such_tower"),
        r"encoder\.json cannot be used: open_clip cannot build this model",
    ),
    "encoder: sections": (
        text("encoder/encoder.json", '{"format": 1, "config": {}}'),
        "KeyError: 'model_cfg'",
    ),
    "encoder: NaN": (
        lambda f: edit_tensors(f, "encoder/model.safetensors", lambda t: t.update(logit_scale=NAN)),
        "logit_scale holds values that are not finite",
    ),
    "dim: another": (too_wide, r"cannot be used: .* has shape .*, expected"),
    "head: width": (
        lambda f: edit_json(f, "head/head.json", lambda v: v.update(dim=99)),
        r"the head is 99 wide, config\.json says",
    ),
    "head: kind": (
        lambda f: edit_json(f, "head/head.json", lambda v: v.update(visual="magic")),
        "visual must be 'linear', 'mlp' or 'cosine', got 'magic'",
    ),
    "head: values": (
        lambda f: edit_json(f, "head/head.json", lambda v: v.update(normalise_values=[])),
        r"head\.json cannot be used: normalise_values in head\.json must be of type bool, got \[\]",
    ),
    "head: text for truth": (
        lambda f: edit_json(f, "head/head.json", lambda v: v.update(normalise_values="../x")),
        r"normalise_values in head\.json must be of type bool, got '\.\./x'",
    ),
    "head: scale": (
        tensors("head/head.safetensors", head__log_logit_scale=torch.tensor(90.0)),
        r"the logits' scale is 1\.\d+e\+39; up to 1,000,000 can be",
    ),
    "head: numbers": (
        lambda f: edit_tensors(
            f, "head/head.safetensors", lambda t: t.update(class_ids=t["class_ids"].float())
        ),
        r"class_ids are torch\.float32, expected int64",
    ),
    "head: format": (
        lambda f: edit_json(f, "head/head.json", lambda v: v.update(format=2)),
        "format 2, this program reads 1",
    ),
    "head: shape": (
        tensors("head/head.safetensors", head__query_norm__weight=torch.ones(3)),
        r"head\.query_norm\.weight has shape \[3\], expected",
    ),
    "head: rows": (
        tensors("head/head.safetensors", class_ids=torch.zeros(5, dtype=torch.int64)),
        r"head\.visual_head\.weight has shape \[\d+, \d+\], expected \[5, \d+\]",
    ),
    "head: more": (
        tensors("head/head.safetensors", stowaway=torch.ones(1)),
        "'stowaway' is not part of the model",
    ),
    "head: NaN": (
        tensors("head/head.safetensors", head__log_logit_scale=NAN),
        r"head\.log_logit_scale holds values that are not finite",
    ),
    "head: beta": (
        tensors("head/head.safetensors", head__log_beta=torch.tensor(60.0)),
        r"the losses' factor is 1\.\d+e\+26; up to 1,000,000 can be",
    ),
    "head: without its beta": (
        lambda f: edit_json(f, "head/head.json", lambda v: v.update(loss_bias=False)),
        r"'head\.log_beta' is not part of the model",
    ),
    "head: no word of beta": (
        lambda f: edit_json(f, "head/head.json", lambda v: v.pop("loss_bias")),
        r"head\.json has no 'loss_bias'",
    ),
    "head: pickle": (pickled, "not a safetensors file"),
    "parts: missing": (
        lambda f: edit_json(f, "head/head.json", lambda v: v.pop("parts")),
        r"head\.json cannot be used: head\.json has no 'parts'",
    ),
    "parts: a list": (parts(value=[]), "parts in head.json must hold accept_above, noise, text_r2, weights"),
    "parts: none": (parts(value=None), r"'generative\.\w+' is not part of the model"),
    "parts: no noise": (parts("noise"), "parts in head.json must hold accept_above, noise, text_r2, weights"),
    "parts: noise": (parts("noise", value=0.0), r"noise in head\.json must lie between 0 and 1000, got 0\.0"),
    "parts: loud": (
        parts("noise", value=1e300),
        r"noise in head\.json must lie between 0 and 1000, got 1e\+300",
    ),
    "parts: share": (parts("text_r2", value="1"), r"text_r2 in head\.json must be a finite float, got '1'"),
    "parts: level": (
        parts("accept_above", value=True),
        r"accept_above in head\.json must be a finite float, got True",
    ),
    "weights: NaN": (parts("weights", "text", value=float("nan")), r"parts\.weights\.text is nan"),
    "weights: text": (
        parts("weights", "told", value={"generative": "0.5", "text": 0.0, "offset": 0.0}),
        r"told\.generative in head\.json must be a finite float, got '0\.5'",
    ),
    "weights: missing": (
        parts("weights", "image"),
        r"weights \['generative', 'image', 'pictured\.generative', 'pictured\.offset'",
    ),
    "weights: one more": (
        parts("weights", "luck", value=1.0),
        r"weights \['generative', 'image', 'pictured\.generative', 'pictured\.offset'",
    ),
    "weights: negative": (
        parts("weights", "generative", value=-0.1),
        r"the weight 'generative' must lie in 0\.\.1,000,000, got -0\.1",
    ),
    "weights: huge": (
        parts("weights", "told", value={"generative": 1.0, "text": 0.0, "offset": -1e7}),
        r"the offset must lie within 1,000,000, got -10000000\.0",
    ),
    "generative: spread": (
        change_tensor("head/head.safetensors", "generative.spread", lambda t: t.index_fill(0, FIRST, 0.0)),
        r"a variance in head\.safetensors is not above 0",
    ),
    "generative: negative spread": (
        change_tensor("head/head.safetensors", "generative.spread", torch.neg),
        r"a variance in head\.safetensors is not above 0",
    ),
    "generative: basis": (
        change_tensor("head/head.safetensors", "generative.basis", lambda t: t[:, 1:]),
        r"generative\.basis has shape \[192, 191\], expected \[192, 192\]",
    ),
    "generative: centre": (
        change_tensor("head/head.safetensors", "generative.centre", lambda t: t[None]),
        r"generative\.centre has shape \[1, 192\], expected \[192\]",
    ),
    "generative: NaN": (
        change_tensor("head/head.safetensors", "generative.text_map", lambda t: t.fill_(float("nan"))),
        r"generative\.text_map holds values that are not finite",
    ),
    "generative: gone": (
        lambda f: edit_tensors(f, "head/head.safetensors", lambda t: t.pop("generative.basis")),
        r"generative\.basis is missing",
    ),
    "stats: shape": (
        tensors(STATS, counts=torch.ones(7, dtype=torch.int64)),
        r"class_stats\.safetensors cannot be used: counts has shape \[7\], expected \[60\]",
    ),
    "stats: width": (
        change_tensor(STATS, "sums", lambda t: t[:, 1:]),
        r"sums has shape \[60, 191\], expected \[60, 192\]",
    ),
    "stats: scalar": (tensors(STATS, class_ids=torch.tensor(1)), r"class_ids has shape \[\], expected \[0\]"),
    "stats: gone": (
        lambda f: edit_tensors(f, STATS, lambda t: t.pop("counts")),
        r"class_stats\.safetensors cannot be used: counts is missing",
    ),
    "stats: infinite": (
        change_tensor(STATS, "sums", lambda t: t.fill_(float("inf"))),
        "sums holds values that are not finite",
    ),
    "stats: too long": (
        lambda f: edit_tensors(
            f, STATS, lambda t: t.update(sums=1.01 * t["counts"][:, None] * rows_of_one(t))
        ),
        "a class's sum is longer than its images' normalised vectors can add up to",
    ),
    "stats: no image": (
        change_tensor(STATS, "counts", lambda t: t.index_fill(0, FIRST, 0)),
        "a class's sum is longer than its images' normalised vectors can add up to",
    ),
    "stats: below none": (
        change_tensor(STATS, "counts", torch.neg),
        "a class's sum is longer than its images' normalised vectors can add up to",
    ),
    "stats: class": (
        change_tensor(STATS, "class_ids", lambda t: t + 1000),
        "class_ids must be ascending numbers of classes in config.json",
    ),
    "stats: twice": (
        change_tensor(STATS, "class_ids", lambda t: t[:1].expand(len(t)).contiguous()),
        "class_ids must be ascending numbers of classes in config.json",
    ),
    "stats: float counts": (
        change_tensor(STATS, "counts", torch.Tensor.float),
        r"counts are torch\.float32, expected torch\.int64",
    ),
    "stats: narrow classes": (
        change_tensor(STATS, "class_ids", torch.Tensor.int),
        r"class_ids are torch\.int32, expected torch\.int64",
    ),
    "stats: narrow sums": (
        change_tensor(STATS, "sums", torch.Tensor.float),
        r"sums are torch\.float32, expected torch\.float64",
    ),
    "stats: more": (tensors(STATS, stowaway=torch.ones(1)), "'stowaway' is not part of the model"),
    "stats: no tensors": (
        text(STATS, "no"),
        r"class_stats\.safetensors cannot be used: not a safetensors file",
    ),
    "anchors: no Parquet": (
        text("anchors.parquet", "no"),
        r"anchors\.parquet cannot be used: not a readable Parquet",
    ),
    "anchors: columns": (other_columns, "its columns are"),
    "anchors: rows": (fewer_rows, r"rows, config\.json says"),
    "anchors: null": (rows("anchors.parquet", text=None), "not a readable Parquet file"),
    "anchors: class": (rows("anchors.parquet", class_id=12345), "a class_id is not among the classes"),
    "anchors: sentence": (
        rows("anchors.parquet", sentence_id="x"),
        r"a sentence_id is not in sentences\.parquet",
    ),
    "anchors: loss": (rows("anchors.parquet", loss=float("nan")), "a loss is not a number up to 1,000,000"),
    "anchors: key": (rows("anchors.parquet", anchor_key=-1), "anchor_key must be distinct and not negative"),
    "sentences: class": (rows("sentences.parquet", class_id=12345), "a class_id is not among the classes"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_is_refused_with_its_reason(folder: Path, case: str) -> None:
    """The message names the file and what is wrong with it; nothing in the folder runs."""
    spoil, message = CASES[case]
    spoil(folder)
    with pytest.raises(PretrainedError, match=message):
        read_model(folder)
    assert not (folder / "ran").exists()


def test_vectors_must_be_numbers(folder: Path) -> None:
    """An anchor's vector with NaN is refused."""

    def change(table: list[dict[str, Any]]) -> None:
        table[3]["vector"][0] = float("nan")

    edit_rows(folder, "anchors.parquet", change)
    with pytest.raises(PretrainedError, match="a vector holds values that are not finite"):
        read_model(folder)


def test_a_table_that_unpacks_to_an_absurd_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops at the limit, however small the file is."""
    monkeypatch.setattr(checks, "_MOST_TABLE", 1000)
    with pytest.raises(PretrainedError, match="GiB in memory"):
        read_model(folder)


def test_a_json_file_of_absurd_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read."""
    monkeypatch.setattr(checks, "_MOST_JSON", 100)
    with pytest.raises(PretrainedError, match=r"config\.json cannot be used: larger than"):
        read_model(folder)


def test_an_edited_card_is_no_damage(folder: Path) -> None:
    """People edit README.md on the hub."""
    (folder / "README.md").write_text("better words")
    assert read_model(folder).names


@pytest.mark.parametrize("name", [SUMS, "config.json", "head/head.json", "anchors.parquet", STATS])
def test_a_pipe_is_no_file(folder: Path, name: str) -> None:
    """Opening one would wait forever."""
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(PretrainedError, match=f"{name} is not a regular file"):
        read_model(folder)
