"""An exported model with all that one can have, the answers of the workspace it came from, and ways to spoil it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.classes import add_class, merge_classes
from vlltr_index.data.writing import digest_folder
from vlltr_index.recognition.exported.reading import SUMS
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.fingerprint import digest_file
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.schemas.records import ClassScore, Prediction
from vlltr_index.store.workspace import Workspace


@dataclass(frozen=True)
class Shared:
    """A folder, and what its workspace answered before it was deleted."""

    folder: Path
    commit: int
    names: list[str]  # of the columns
    answers: list[list[Prediction]]  # a list for each of `ASKED`
    explained: list[ClassScore]


ASKED = [
    PredictOptions(top=5, explain=99, retrieval="faiss", reject=True),
    PredictOptions(top=99, explain=1, retrieval="exhaustive", crops=5),
]


def check_same(found: Any, expected: Any) -> None:
    """Records with the same words and ids, and numbers that agree: products round by where memory lies.

    A cosine rounds by some eps of float32, a logit of scale 100 by a hundred times as much, a probability by a quarter.
    """
    if is_dataclass(expected) and not isinstance(expected, type):
        assert type(found) is type(expected)
        found, expected = asdict(found), asdict(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            check_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=300 * torch.finfo(torch.float32).eps)
    else:
        assert found == expected


def changed(workspace: Workspace, heldout: dict[str, list[str]], pictures: Path) -> None:
    """Give a trained workspace a class known by text and images, one by text alone, and a merged one."""
    first, second = sorted(heldout)[:2]
    add_class(workspace, first, heldout[first], images=pictures / "unseen")
    add_class(workspace, second, heldout[second], aliases=["the second"])
    names = workspace.snapshot().class_table().names
    merge_classes(workspace, names[0], names[1])


def share(workspace: Workspace, folder: Path, pictures: Path) -> Shared:
    """Export a workspace, ask it, and delete it."""
    images = sorted(pictures.glob("known-*.png"))
    recognizer = Recognizer.open(workspace)
    answers = [recognizer.predict(images, asked) for asked in ASKED]
    names = [recognizer.current().names[i] for i in recognizer.current().class_ids.tolist()]
    explained = [recognizer.explain(images[0], names[n]) for n in (0, -1, -2)]
    recognizer.export(folder)
    shutil.rmtree(workspace.path)
    return Shared(folder, recognizer.commit, names, answers, explained)


def sign(folder: Path) -> None:
    """Write the digests of what is in the folder now, as somebody who means harm would."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):  # where config.json itself is spoiled
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["model"]["encoder"] = digest_folder(folder / "encoder")
        config["model"]["head"] = digest_folder(folder / "head")
        config["model"]["parts"][0] = digest_folder(folder / "parts")
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sign_as_named(folder)


def sign_as_named(folder: Path) -> None:
    """Write the digests of the files, and leave those of the objects as config.json has them."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    lines = [f"{digest_file(folder / name)}  {name}\n" for name in files if name != SUMS]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def edit_json(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file, and sign."""
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    change(value)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")
    sign(folder)


def edit_tensors(folder: Path, name: str, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change a safetensors file, and sign."""
    tensors = {key: value.clone() for key, value in load_file(folder / name).items()}
    change(tensors)
    save_file(tensors, folder / name)
    sign(folder)


def edit_rows(folder: Path, name: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the rows of a Parquet or Arrow file, whose columns stay, and sign."""
    path = folder / name
    table = pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()
    rows = table.to_pylist()
    change(rows)
    loose = pa.schema([field.with_nullable(True) for field in table.schema])
    columns = pa.Table.from_pylist(rows, schema=loose).columns
    strict = pa.Table.from_arrays(columns, schema=table.schema)
    if path.suffix == ".parquet":
        pq.write_table(strict.cast(loose), path)
    else:
        write_arrow(path, strict)
    sign(folder)


def write_arrow(path: Path, rows: pa.Table, **options: Any) -> None:
    """Write an Arrow file."""
    how = pa.ipc.IpcWriteOptions(**options)
    with path.open("wb") as file, pa.ipc.new_file(file, rows.schema, options=how) as writer:
        writer.write_table(rows)
