"""What it costs to add one class, by the number of classes that are there; and many in a row.

    python -m benchmarks additions run

The classes that are there have random vectors in clusters, written straight into the tables: the cost does not depend
on what they mean. Their head has no out-of-fold table, so that no offset is computed. Encoder: vlltr-tiny with random
weights. Timed is `add_classes` with a `Recognizer` that is loaded,
from files and sentences to the commit, with 80 sentences and 5 images (or none) for each new class. Seconds are of
processor time, all threads together, since other programs may run beside it; wall-clock time stands in the result too.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.kept import keep, surroundings
from benchmarks.study import Command, Results, Study
from vlltr_index.anchors.selection import select
from vlltr_index.classes import ChangeOptions, NewClass, add_classes
from vlltr_index.data.text import sentence_id, text_hash
from vlltr_index.embedding.loading import image_set, stats_rows
from vlltr_index.embedding.vectors import vector_table
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.heads.checkpoint import RuleParameters, SavedHead, save_head
from vlltr_index.heads.fusion import PartWeights
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.moments import Moments
from vlltr_index.heads.plda_fit import fit_plda
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.schemas.tables import (
    CLASSES,
    IMAGES,
    SENTENCES,
    image_vectors,
    image_vectors_name,
    sentence_vectors,
    sentence_vectors_name,
)
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import unit_rows

SIZES = (100, 1000, 10_000)
REPEATS = 5
ROW = 256
SENTENCES_EACH = 8
IMAGES_EACH = 2
VAL_IMAGES = 500
CLUSTER = 20
# In the row there are many sentences from the start, so that what the new ones add is little: images cost by them.
ROW_SENTENCES = 40
ROW_NEW = 16
WORDS = [
    a + b
    for a in ("ba", "do", "fe", "gu", "ki", "lo", "mi", "nu")
    for b in ("ran", "tel", "sis", "vor", "wen")
]
_log = logging.getLogger(__name__)


def run() -> None:
    """Measure at all sizes, and the row of additions."""
    cost = [_cost(size, REPEATS) for size in SIZES]
    keep("additions", "vlltr-tiny", {"cost": cost, "row": _row(SIZES[1], ROW), **surroundings()})


def _cost(classes: int, repeats: int) -> dict[str, Any]:
    """Seconds and bytes of one addition beside `classes` others: from text alone, and with images."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        workspace = _workspace(Path(folder) / "workspace", classes)
        made = time.monotonic() - started
        recognizer = Recognizer.open(workspace)
        draw = random.Random(0)
        found = dict[str, Any]()
        add_classes(
            workspace, [_new(draw, Path(folder), "warm", 1)], ChangeOptions(recognizer=recognizer)
        )  # loads what is kept
        for kind, images in (("text", 0), ("text + 5 images", 5)):
            steps = [
                _timed(workspace, recognizer, _new(draw, Path(folder), f"{kind} {number}", images))
                for number in range(repeats)
            ]
            found[kind] = {
                "seconds": round(median(s for s, _, _ in steps), 3),
                "mib": round(median(b for _, _, b in steps) / 2**20, 2),
                "all": [round(s, 3) for s, _, _ in steps],
                "wall": [round(w, 3) for _, w, _ in steps],
            }
        facts = {"classes": classes, "sentences": classes * SENTENCES_EACH, "images": classes * IMAGES_EACH}
        _log.info(
            "%s (made in %.0f s): %s", facts, made, {k: (v["seconds"], v["mib"]) for k, v in found.items()}
        )
        return {**facts, **found}


def _row(classes: int, count: int) -> dict[str, Any]:
    """Seconds and bytes of each of many additions in a row."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = _workspace(Path(folder) / "workspace", classes, ROW_SENTENCES)
        recognizer = Recognizer.open(workspace)
        draw = random.Random(1)
        add_classes(workspace, [_new(draw, Path(folder), "warm", 1)], ChangeOptions(recognizer=recognizer))
        steps = [
            _timed(workspace, recognizer, _new(draw, Path(folder), f"class {n}", 5, ROW_NEW))
            for n in range(count)
        ]
        found: dict[str, Any] = {
            "classes": classes,
            "additions": count,
            "sentences": [classes * ROW_SENTENCES, ROW_NEW],
            "seconds": [round(s, 3) for s, _, _ in steps],
            "wall": [round(w, 3) for _, w, _ in steps],
            "mib": [round(b / 2**20, 3) for _, _, b in steps],
        }
        _log.info("%s", {what: _quarters(found[what]) for what in ("seconds", "wall", "mib")})
        return found


def _quarters(values: list[float]) -> list[float]:
    """Means of the four quarters; of 256 additions each holds one merging of vectors (every 64) and two of the rest."""
    size = max(1, len(values) // 4)
    return [round(mean(values[n : n + size]), 3) for n in range(0, 4 * size, size)][:4]


def _timed(workspace: Workspace, recognizer: Recognizer, wanted: NewClass) -> tuple[float, float, int]:
    before = _bytes(workspace.path)
    started = time.monotonic()
    busy = time.process_time()
    add_classes(workspace, [wanted], ChangeOptions(recognizer=recognizer))
    return (
        time.process_time() - busy,
        time.monotonic() - started,
        _bytes(workspace.path) - before,
    )


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _new(draw: random.Random, folder: Path, name: str, images: int, sentences: int = 80) -> NewClass:
    """A class of random words and noise."""
    texts = tuple(f"{name} {n}: " + " ".join(draw.choices(WORDS, k=8)) for n in range(sentences))
    files = []
    for number in range(images):
        path = folder / "images" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.frombuffer(draw.randbytes(32 * 32 * 3), dtype=np.uint8).reshape(32, 32, 3)
        Image.fromarray(noise).save(path)
        files.append(path)
    return NewClass(name, texts, images=tuple(files))


def _workspace(folder: Path, classes: int, sentences: int = SENTENCES_EACH) -> Workspace:
    """A finished workspace with vectors out of the air, `sentences` a class."""
    recipe = override(load_recipe("glyphs_lt/ours"), ("lgr.views=1",))
    workspace = Workspace.create(folder, recipe)
    encoder = Encoder.scratch("vlltr-tiny", WORDS, seed=0)
    generator = torch.Generator().manual_seed(0)
    dim = encoder.dim
    groups = torch.randn(classes // CLUSTER + 1, dim, generator=generator)
    centres = groups[torch.arange(classes) // CLUSTER] + 0.7 * torch.randn(classes, dim, generator=generator)

    def around(owners: Tensor) -> Tensor:
        return centres[owners] + 0.7 * torch.randn(len(owners), dim, generator=generator)

    with workspace.transaction("a workspace out of the air") as tx:
        _write_classes(tx, classes)
        _write_sentences(tx, encoder, classes, sentences, around)
        _write_images(tx, encoder, "train", torch.arange(classes).repeat_interleave(IMAGES_EACH), around)
        owners = torch.randint(classes, (VAL_IMAGES,), generator=generator)
        _write_images(tx, encoder, "val", owners, around)
        with workspace.objects.put("checkpoints") as made:
            encoder.save(made.folder)
        checkpoint = made.digest
        tx.set(checkpoint=checkpoint, text_fp=encoder.text_fp, image_fp=encoder.image_fp)
        tx.note(logit_scale=encoder.logit_scale, dim=dim, views=1)
    select(workspace, recipe.select)
    head = LGRHead(dim, classes, logit_scale=encoder.logit_scale)
    assert isinstance(head.visual_head, nn.Linear)
    with torch.no_grad():
        head.visual_head.weight.copy_(centres / dim**0.5)
    images = image_set(workspace.snapshot(), "train")
    each = torch.arange(len(images.class_ids))
    moments = Moments.of(unit_rows(images.features)[None], images.class_ids, each, classes)
    shared = fit_plda(moments, unit_rows(centres)).shared
    parts = RuleParameters(shared, PartWeights(image=1.0, generative=0.1, text=0.1))
    saved = SavedHead(head, torch.arange(classes), encoder.text_fp, encoder.image_fp, parts)
    with workspace.transaction("a head out of the air") as tx:
        with workspace.objects.put("heads") as made:
            save_head(saved, made.folder)
        tx.set(head=made.digest)
        rows = stats_rows(
            images.features, images.class_ids, [str(n) for n in range(len(each))], encoder.image_fp, 1.0
        )
        tx.replace("class_stats", rows)
    index_anchors(workspace)
    return workspace


def _write_classes(tx: Any, classes: int) -> None:
    rows = [
        {
            "class_id": i,
            "name": f"old {i}",
            "aliases": [],
            "origin": "trained",
            "created_at": "2026-01-01T00:00:00+00:00",
        }
        for i in range(classes)
    ]
    tx.replace("classes", pa.Table.from_pylist(rows, schema=CLASSES))


def _write_sentences(tx: Any, encoder: Encoder, classes: int, each: int, around: Any) -> None:
    owners = torch.arange(classes).repeat_interleave(each)
    texts = [f"Old {i}, sentence {n}." for n, i in enumerate(owners.tolist())]
    hashes = [text_hash(t) for t in texts]
    ids = [sentence_id(i, h) for i, h in zip(owners.tolist(), hashes, strict=True)]
    columns = {
        "sentence_id": ids,
        "text_hash": hashes,
        "class_id": owners.int().numpy(),
        "text": texts,
        "source": ["made"] * len(ids),
        "position": list(range(each)) * classes,
    }
    empty = {f.name: pa.nulls(len(ids), f.type) for f in SENTENCES if f.name not in columns}
    tx.replace("sentences", pa.table({**columns, **empty}).select(SENTENCES.names).cast(SENTENCES))
    name = sentence_vectors_name(encoder.text_fp)
    tx.store.create(name, sentence_vectors(encoder.dim), "text_hash")
    tx.store.append(name, vector_table({"text_hash": hashes}, around(owners)))


def _write_images(tx: Any, encoder: Encoder, split: str, owners: Tensor, around: Any) -> None:
    hashes = [text_hash(f"{split} {n}") for n in range(len(owners))]
    rows = [
        {
            "image_id": h[:32],
            "content_hash": h,
            "uri": f"/made/{split}/{n}.png",
            "class_id": i,
            "split": split,
        }
        for n, (h, i) in enumerate(zip(hashes, owners.tolist(), strict=True))
    ]
    tx.upsert("images", pa.Table.from_pylist(rows, schema=IMAGES))
    ids = [h[:32] for h in hashes]
    name = image_vectors_name(encoder.image_fp)
    tx.store.create(name, image_vectors(encoder.dim), "vector_key")
    keys: dict[str, list[str] | list[int]] = {
        "vector_key": [f"{i}:0" for i in ids],
        "content_id": ids,
        "view": [0] * len(ids),
    }
    tx.store.append(name, vector_table(keys, around(owners)))


def generated(results: Results) -> str:
    """Return the costs as Markdown."""
    result = results["vlltr-tiny"]
    machine = result["machine"]
    versions = result["versions"]
    repeats = len(result["cost"][0]["text"]["all"])
    lines = [
        f"One class with 80 sentences, added to a loaded workspace: median of {repeats}, processor seconds,"
        f" {machine['threads']} thread of {machine['cores']} cores, torch {versions['torch']}, lancedb"
        f" {versions['lancedb']}.",
        "",
        "| classes | sentences | images | text: seconds | MiB | text + 5 images: seconds | MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["cost"]:
        cells = [f"{row[key]:,}" for key in ("classes", "sentences", "images")]
        for kind in ("text", "text + 5 images"):
            cells += [f"{row[kind]['seconds']:.2f}", f"{row[kind]['mib']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    row = result["row"]
    count = result["row"]["additions"]
    lines += [
        "",
        f"{count} additions in a row, each with {row['sentences'][1]} sentences and 5 images, beside {row['classes']:,}"
        f" classes with {row['sentences'][0]:,} sentences; means of the four quarters, each of {count // 4}:",
        "",
        "| | 1 | 2 | 3 | 4 |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {label} | " + " | ".join(f"{v:.2f}" for v in _quarters(row[what])) + " |"
            for what, label in (("seconds", "processor seconds"), ("mib", "MiB"))
        ),
    ]
    return "\n".join(lines) + "\n"


STUDY = Study({"results/additions.md": generated}, commands={"run": Command(run)})
