"""Are an exported graph's answers those of the model, in float32 and float16, and how fast does onnxruntime give them?

    vlltr quickstart --dir DIR
    python -m benchmarks onnx_graph run --workspace DIR

The graph is that of `vlltr export --onnx --float16`. Answers are compared on 5,000 pictures of the test split of
Glyphs-LT, whose classes the workspace knows in part. Speed is from resized pixels to probabilities in this process:
torch and onnxruntime take turns, with as many threads.
"""

from __future__ import annotations

import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.kept import keep, surroundings
from benchmarks.study import Command, Results, Study, table
from vlltr_index.data.decoding import open_image
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.recognition.exported.graph import INPUT, OPSET
from vlltr_index.recognition.exported.onnx_folder import (
    HALF,
    MODEL,
    Comparison,
    export_onnx,
    pixels_of,
)
from vlltr_index.recognition.model import Model
from vlltr_index.store.workspace import Workspace
from vlltr_index.wording import plural

_COMPARED = 5000
_BATCHES = (1, 64)
_ROUNDS = 7
_SECONDS = 1.0  # of each part in a round
_NAMES = {"torch": "torch", MODEL: "onnxruntime, float32", HALF: "onnxruntime, float16"}

Answer = Callable[[NDArray[np.uint8]], NDArray[Any]]


def run(workspace: Path) -> None:
    """Export, compare, measure, and keep the result."""
    opened = Workspace.open(workspace)
    model = Model.open(opened.snapshot(), device="cpu")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "graph"
        export_onnx(opened, folder, float16=True)
        files = (MODEL, HALF)
        sizes = {name: (folder / name).stat().st_size for name in files}
        graphs = {name: _graph(folder / name) for name in files}
    answers = {"torch": _torch(model), **graphs}
    compared = dict.fromkeys(files, Comparison())
    for images in _pictures():
        pixels = pixels_of(model, images)
        expected = answers["torch"](pixels)
        compared = {name: one.with_batch(answers[name](pixels), expected) for name, one in compared.items()}
    unit = {
        "encoder": model.encoder.name,
        "classes": len(model.class_ids),
        "anchors": len(model.anchors.keys),
        "opset": OPSET,
        "onnxruntime": version("onnxruntime"),
        "sizes": sizes,
        "compared": {
            name: {
                "pictures": one.pictures,
                "same": one.same,
                "difference": one.difference,
                "regret": one.regret,
            }
            for name, one in compared.items()
        },
        "pictures_a_second": {str(batch): _rates(answers, pixels, batch) for batch in _BATCHES},
        **surroundings(),
    }
    keep("onnx_graph", "quickstart", unit)


def _pictures() -> Iterator[list[Image.Image]]:
    """Yield pictures of the test split, evenly from all classes, in batches."""
    rows = pq.read_table(glyph_files().images, columns=["image", "split"])
    test = rows["image"].filter(pc.equal(rows["split"], "test"))
    wanted = np.linspace(0, len(test) - 1, _COMPARED).astype(int)
    for some in np.array_split(wanted, _COMPARED // 50):
        yield [open_image(test[int(place)].as_py()) for place in some]


def _torch(model: Model) -> Answer:
    """Return the model from pixels to probabilities."""
    encoder = model.encoder
    mean = encoder.mean[:, None, None]
    std = encoder.std[:, None, None]

    @torch.inference_mode()
    def answer(pixels: NDArray[np.uint8]) -> NDArray[Any]:
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
        features = encoder.encode_pixels((scaled - mean) / std)
        return model.score(features, "exhaustive")[0].probabilities.numpy()

    return answer


def _graph(file: Path) -> Answer:
    """Return a graph from pixels to probabilities."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def answer(pixels: NDArray[np.uint8]) -> NDArray[Any]:
        found: NDArray[Any] = session.run(None, {INPUT: pixels})[0]
        return found

    return answer


def _rates(answers: dict[str, Answer], pixels: NDArray[np.uint8], batch: int) -> dict[str, float]:
    """Measure pictures a second of each, the median of rounds in which they take turns."""
    given = np.resize(pixels, (batch, *pixels.shape[1:]))
    found: dict[str, list[float]] = {name: [] for name in answers}
    for _ in range(_ROUNDS):
        for name, answer in answers.items():
            answer(given)
            start = time.monotonic()
            done = 0
            while time.monotonic() - start < _SECONDS:
                answer(given)
                done += batch
            found[name].append(done / (time.monotonic() - start))
    return {name: median(rates) for name, rates in found.items()}


def generated(results: Results) -> str:
    """Return the figures as Markdown."""
    found = results["quickstart"]
    machine = found["machine"]
    torch_rates = {batch: rates["torch"] for batch, rates in found["pictures_a_second"].items()}
    lines = [
        f"{found['encoder']}, {found['classes']:,} classes, {found['anchors']:,} anchors, opset {found['opset']}, "
        f"onnxruntime {found['onnxruntime']}, torch {found['versions']['torch']}, "
        f"{plural(machine['threads'], 'thread')}:",
        "",
    ]
    head = [
        "",
        "the class that the model names",
        "else less probable by at most",
        "largest difference of a probability",
        "MiB",
        *(f"pictures/s, {batch} at once" for batch in torch_rates),
    ]
    rows = []
    for name, said in _NAMES.items():
        one = found["compared"].get(name)
        cells = ["-"] * 4
        if one is not None:
            same = f"{one['same']:,} of {one['pictures']:,}"
            size = f"{found['sizes'][name] / 2**20:.1f}"
            cells = [same, f"{one['regret']:.4f}", f"{one['difference']:.6f}", size]
        for batch, rates in found["pictures_a_second"].items():
            cells.append(f"{rates[name]:,.0f} ({rates[name] / torch_rates[batch]:.2f} of torch)")
        rows.append([said, *cells])
    return "\n".join([*lines, *table(head, rows)]) + "\n"


def _run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, required=True)


STUDY = Study({"results/onnx_graph.md": generated}, commands={"run": Command(run, _run_arguments)})
