"""What parts cost: writing a base and deltas, and reading, at some number of anchors, next to reading the tables.

    python -m benchmarks.trust.parts [--anchors 100000]       # writes results/trust-parts.json

Vectors are out of the air, 512 wide, 16 anchors a class with as many sentences. Seconds are processor seconds; a
process of its own reads, so that nothing is kept from the writing. Twice as many anchors cost twice as much.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

RESULT = Path(__file__).parents[1] / "results" / "trust-parts.json"
DIM, EACH = 512, 16


def write(folder: Path, anchors: int) -> dict[str, Any]:
    """Make a workspace with so many anchors; return the seconds and sizes of its base and of deltas after it."""
    import torch  # noqa: F401  # now, and not while the parts are timed

    from vlltr_index.schemas.recipes import load_recipe
    from vlltr_index.schemas.tables import sentence_vectors
    from vlltr_index.store import parts
    from vlltr_index.store.workspace import Workspace

    workspace = Workspace.create(folder, load_recipe("glyphs_lt/ours"))
    took: list[float] = []
    whole = parts.next_parts

    def timed(*arguments: Any) -> Any:
        found: list[Any] = []
        took.append(_seconds(lambda: found.append(whole(*arguments))))
        return found[0]

    parts.next_parts = timed
    classes = anchors // EACH
    with workspace.transaction("a workspace out of the air") as tx:
        tx.store.create("sentence_vectors_t", sentence_vectors(DIM), "text_hash")
        _write(tx, range(classes))
        tx.set(text_fp="t", image_fp="i", selection_id="s", head="ab" * 32)
        tx.note(dim=DIM, logit_scale=10.0)
    many = classes // 10  # the delta is then almost as large as it may be
    wrote = {}
    for name, more in (("addition", 1), ("many", many), ("late_addition", 1)):
        with workspace.transaction(name) as tx:
            _write(tx, range(classes, classes + more))
        classes += more
        wrote[f"write_{name}"] = took[-1]
        wrote[f"{name}_mib"] = _mib(workspace.path, workspace.history.last().parts[1])
    return {
        "write_base": took[0],
        "base_mib": _mib(workspace.path, workspace.history.last().parts[0]),
        **wrote,
    }


def _mib(workspace: Path, digest: str) -> float:
    """Size of the files of a part."""
    files = (workspace / "parts" / digest[:16]).iterdir()
    return round(sum(path.stat().st_size for path in files) / 2**20, 3)


def _write(tx: Any, classes: range) -> None:
    """Rows of some classes: their sentences, of which each is an anchor, its score, and their statistics."""
    from vlltr_index.data.text import sentence_id, text_hash
    from vlltr_index.schemas.tables import CLASSES, SENTENCES, class_stats

    owners = [class_id for class_id in classes for _ in range(EACH)]
    texts = [
        f"Sentence {n} of class {class_id}, about what it looks like." for n, class_id in enumerate(owners)
    ]
    hashes = [text_hash(text) for text in texts]
    ids = [sentence_id(class_id, key) for class_id, key in zip(owners, hashes, strict=True)]
    draw, count = np.random.default_rng(classes.start), len(ids)
    names = {"class_id": list(classes), "name": [f"class {i}" for i in classes]}
    rest = {
        "aliases": [[]] * len(classes),
        "origin": ["trained"] * len(classes),
        "created_at": [""] * len(classes),
    }
    rows = pa.table({**names, **rest}, schema=pa.schema(list(CLASSES)[:5]))
    tx.upsert("classes", rows)
    sentences = {
        "sentence_id": ids,
        "text_hash": hashes,
        "class_id": owners,
        "text": texts,
        "source": ["made"] * count,
    }
    empty = {field.name: pa.nulls(count, field.type) for field in SENTENCES if field.name not in sentences}
    tx.upsert("sentences", pa.table({**sentences, **empty}).select(SENTENCES.names).cast(SENTENCES))
    vectors = pa.array(draw.standard_normal(count * DIM, dtype=np.float32))
    tx.store.append(
        "sentence_vectors_t",
        pa.table({"text_hash": hashes, "vector": pa.FixedSizeListArray.from_arrays(vectors, DIM)}),
    )
    numbers = {name: [1.0] * count for name in ("scale", "lse", "last_exact_lse", "positive", "loss")}
    facts = {name: ["x"] * count for name in ("text_fp", "image_fp", "image_set")}
    tx.upsert("sentence_scores", pa.table({"sentence_id": ids, **facts, **numbers}))
    first = tx.next_id("anchors", count)
    ranks = list(range(EACH)) * len(classes)
    keys = {"anchor_key": range(first, first + count), "selection_id": ["s"] * count, "class_id": owners}
    tx.upsert(
        "anchors",
        pa.table({name: pa.array(v) for name, v in {**keys, "sentence_id": ids, "rank": ranks}.items()}),
    )
    sums = pa.FixedSizeListArray.from_arrays(pa.array(draw.standard_normal(len(classes) * DIM)), DIM)
    stats = {
        "class_id": list(classes),
        "image_fp": ["i"] * len(classes),
        "images": [9] * len(classes),
        "sum": sums,
    }
    tx.upsert("class_stats", pa.table(stats).cast(class_stats(DIM)))


def read(folder: Path) -> dict[str, Any]:
    """Seconds of the digests and of the anchors, from the parts and from the tables."""
    from vlltr_index.recognition.anchors import read_anchors
    from vlltr_index.store.parts import TableReader
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

    workspace = Workspace.open(folder)
    snapshot = workspace.snapshot()
    workspace.store.names()
    found = {"digests": _seconds(lambda: workspace.parts.read(snapshot.commit.parts))}
    found["anchors_of_parts"] = _seconds(lambda: read_anchors(snapshot))
    tables = Snapshot(
        workspace.store, snapshot.commit, workspace.objects, recipe=workspace.recipe, reader=TableReader()
    )
    found["anchors_of_tables"] = _seconds(lambda: read_anchors(tables))
    return found


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return round(time.process_time() - started, 3)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--anchors", type=int, default=100_000)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        sys.stdout.write(json.dumps(read(args.read)))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as place:
        wrote = write(Path(place) / "workspace", args.anchors)
        command = [sys.executable, "-m", __spec__.name, "--read", f"{place}/workspace"]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result = {"anchors": args.anchors // EACH * EACH, "dim": DIM, **wrote, **json.loads(told)}
    RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
