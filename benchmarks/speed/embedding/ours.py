"""What `vlltr embed` does once the weights are loaded: files to vectors in LanceDB."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.clock import Clock
from benchmarks.speed.embedding import common
from benchmarks.speed.harness import Arrays
from vlltr_index.data.text import text_hash
from vlltr_index.embedding.loading import open_encoder
from vlltr_index.embedding.vectors import embed_images, embed_sentences
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.schemas.tables import content_id, image_vectors_name, sentence_vectors_name
from vlltr_index.store.workspace import Workspace


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """A workspace that holds everything but vectors."""
    path = common.weights(values["model"])
    recipe = load_recipe("ours", ("prompts=[]",), encoder=f"{values['model']}:{path}")
    folder = Path(tempfile.mkdtemp(prefix="vlltr-embedding-"))
    workspace = Workspace.create(folder / "ws", recipe)
    texts = ["One."] if values["what"] == "images" else common.sentences(values["number"])
    (folder / "texts.json").write_text(json.dumps({"only": texts}))
    ingest_text(workspace, folder / "texts.json")
    files = common.photographs(values["number"] if values["what"] == "images" else 1)
    ingest_images(workspace, files[0].parents[1], "train")
    encoder = open_encoder(workspace.snapshot())
    encoder.eval()
    return values, workspace, encoder, files, texts


def run(state: Any) -> Arrays:
    """Embed in a copy, so that every round has the same to do; loading the weights is not in the time."""
    values, workspace, encoder, files, texts = state
    copy = workspace.path.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    other = Workspace.open(shutil.copytree(workspace.path, copy))
    hashes = [text_hash(t) for t in texts]
    with other.transaction("embed") as tx:
        clock = Clock()
        if values["what"] == "images":
            embed_images(tx, encoder, "train")
            name = image_vectors_name(encoder.image_fp)
            column = "vector_key"
        else:
            embed_sentences(tx, encoder, hashes, texts)
            name = sentence_vectors_name(encoder.text_fp)
            column = "text_hash"
        took = clock.read()
        rows = tx.table("images", columns=["uri", "image_id", "content_hash"]).to_pydict().values()
        ids = {Path(u).name: content_id(i, content) for u, i, content in zip(*rows, strict=True)}
        keys = [f"{ids[f.name]}:0" for f in files] if values["what"] == "images" else hashes
        vectors = tx.store.vectors(name, column, keys)
    return {"vectors": common.arrays(vectors), "_extra": took}
