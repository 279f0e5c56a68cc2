"""100,000 classes with 16 anchors each, on synthetic vectors; and curves of each kind of index, for `index --plan`.

    python -m benchmarks scaling run       the steps of a workspace, each in a process of its own
    python -m benchmarks scaling curves    answers by way of each kind of index at several sizes
    python -m benchmarks scaling fit       what `vlltr index --plan --classes N --anchors M` reckons with

Head training is timed for 20 steps, the rest is whole.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.kept import keep, read
from benchmarks.speed.clock import Clock
from benchmarks.speed.clusters import around, centres
from benchmarks.speed.harness import machine
from benchmarks.study import Command, Results, Study
from vlltr_index.anchors.planning import features_of, number_bytes, plan_index

FITTED = Path(__file__).parents[2] / "vlltr_index" / "anchors" / "curves.json"
CLASSES = 100_000
ANCHORS = 16
WIDTH = 192  # of vlltr-tiny
BATCH = 128
TRAIN_BATCH = 32
STEPS = 20
PICTURED = 5  # each fifth class has an image
SETTINGS = (
    "encoder.pretrained=glyphs",
    "lgr.views=1",
    f"select.max_anchors={ANCHORS}",
    "select.max_share=none",
)
SIZES = (1_000, 4_000, 62_500)  # classes, of 16 anchors
WIDTHS = (128, 512)
LARGEST = {"hnsw": 64_000 * 128, "": 1_000_000 * 128}  # numbers in an index of a kind
_AT_ONCE = 100_000
_log = logging.getLogger(__name__)
Facts = dict[str, Any]


@contextmanager
def timed(facts: Facts, name: str) -> Iterator[None]:
    """Note the seconds of the block, those on the clock and those of a processor."""
    clock = Clock()
    yield
    facts[name] = {key: round(value, 3) for key, value in clock.read().items()}


def vectors(centre: Any, labels: Any, seed: int, spread: float) -> Iterator[tuple[int, Tensor]]:
    """Vectors around the centres of labels, some at a time, with the place of the first."""
    for start in range(0, len(labels), _AT_ONCE):
        rng = np.random.default_rng(seed + start)
        yield start, torch.from_numpy(around(rng, centre, labels[start : start + _AT_ONCE], spread))


def make(folder: Path, classes: int) -> Facts:
    """Tables with 16 sentences a class, an image for each fifth class, and their vectors; nothing is embedded."""
    from vlltr_index.data.text import sentence_id, text_hash
    from vlltr_index.embedding.loading import recipe_encoder
    from vlltr_index.embedding.vectors import image_vector_table, vector_table
    from vlltr_index.schemas import tables
    from vlltr_index.schemas.recipes import load_recipe
    from vlltr_index.store.workspace import Workspace

    facts: Facts = {}
    workspace = Workspace.create(folder, load_recipe("glyphs_lt/ours", SETTINGS))
    encoder = recipe_encoder(workspace.recipe.encoder)
    centre = centres(np.random.default_rng(0), classes, encoder.dim)
    owners = np.repeat(np.arange(classes, dtype=np.int32), ANCHORS)
    pictured = np.arange(0, classes, PICTURED, dtype=np.int32)
    with timed(facts, "make"), workspace.transaction("synthetic") as tx:
        names = [f"class {c:06}" for c in range(classes)]
        rows = {"class_id": np.arange(classes, dtype=np.int32), "name": names, "aliases": [[]] * classes}
        fixed = {"origin": ["trained"] * classes, "created_at": ["2026-01-01T00:00:00+00:00"] * classes}
        tx.replace("classes", pa.table({**rows, **fixed}))
        texts = [f"Sentence {n} of class {c:06}." for c in range(classes) for n in range(ANCHORS)]
        hashes = [text_hash(text) for text in texts]
        ids = [sentence_id(owner, hashed) for owner, hashed in zip(owners.tolist(), hashes, strict=True)]
        told = {"sentence_id": ids, "text_hash": hashes, "class_id": owners, "text": texts}
        at = {
            "source": ["synthetic"] * len(ids),
            "position": np.tile(np.arange(ANCHORS, dtype=np.int32), classes),
        }
        tx.replace("sentences", pa.table({**told, **at}))
        some = ids[: len(pictured)]
        seen = {"image_id": some, "content_hash": some, "uri": some}
        where = {"class_id": pictured, "split": ["train"] * len(pictured)}
        tx.replace("images", pa.table({**seen, **where}))
        name = tables.sentence_vectors_name(encoder.text_fp)
        tx.store.create(name, tables.sentence_vectors(encoder.dim), "text_hash")
        for start, part in vectors(centre, owners, 1, 1.2):
            tx.store.append(name, vector_table({"text_hash": hashes[start : start + len(part)]}, part))
        name = tables.image_vectors_name(encoder.image_fp)
        tx.store.create(name, tables.image_vectors(encoder.dim), "vector_key")
        for start, part in vectors(centre, pictured, 1, 1.2):
            tx.store.append(name, image_vector_table(some[start : start + len(part)], "0", 0, part))
        tx.set(text_fp=encoder.text_fp, image_fp=encoder.image_fp)
        tx.note(logit_scale=encoder.logit_scale, dim=encoder.dim, views=1)
    return {**facts, "classes": classes, "anchors": len(ids), "width": encoder.dim, "images": len(pictured)}


def select(folder: Path, classes: int) -> Facts:
    """`vlltr select`."""
    from vlltr_index.anchors.selection import select
    from vlltr_index.store.workspace import Workspace

    facts = dict[str, Any]()
    workspace = Workspace.open(folder)
    with timed(facts, "select"):
        select(workspace, workspace.recipe.select)
    return facts


def train(folder: Path, classes: int) -> Facts:
    """20 steps of `vlltr train lgr` over all classes, B = 32, one image each; that head is committed.

    Its parts are weighed as they usually are.
    """
    from benchmarks.speed.retrieval.common import parts
    from vlltr_index.embedding.loading import stats_rows
    from vlltr_index.heads.checkpoint import SavedHead, save_head
    from vlltr_index.recognition.anchors import read_anchors
    from vlltr_index.store.workspace import Workspace
    from vlltr_index.train.lgr import StoredImages, new_head, train_until

    facts = dict[str, Any]()
    workspace = Workspace.open(folder)
    snapshot = workspace.snapshot()
    with timed(facts, "load the anchors"):
        bank = read_anchors(snapshot).bank
    labels = torch.arange(classes)
    centre = centres(np.random.default_rng(0), classes, bank.dim)
    features = torch.cat([part for _, part in vectors(centre, labels.numpy(), 1, 1.2)])
    config = workspace.recipe.lgr.model_copy(update={"batch_size": TRAIN_BATCH})
    head = new_head(bank, config, None, 50.0)
    with torch.no_grad():
        head.visual_head.weight.copy_(2 * torch.nn.functional.normalize(features, dim=1))  # type: ignore[union-attr,operator]
    times: list[float] = []

    def enough(*_: object) -> None:
        times.append(time.process_time())
        if len(times) == STEPS:
            raise StopAsyncIteration

    with timed(facts, "20 steps with what precedes them"), suppress(StopAsyncIteration):
        images = StoredImages(features[None], labels, bank, labels)
        train_until(head, images, config, STEPS, progress=enough)
    head.eval()
    facts["one step"] = {"cpu_seconds": round(float(np.median(np.diff(times))), 3)}
    names = snapshot.commit.text_fp or "", snapshot.commit.image_fp or ""
    saved = SavedHead(head, labels, *names, parts(bank.dim))
    with workspace.transaction("train lgr") as tx:
        with workspace.objects.put("heads") as made:
            save_head(saved, made.folder)
        digest = made.digest
        tx.replace(
            "class_stats", stats_rows(features, labels, [str(n) for n in range(classes)], saved.image_fp, 1.0)
        )
        tx.set(head=digest, fusion=workspace.recipe.fusion)
        tx.note(lgr=config.model_dump(mode="json"), recipe=workspace.recipe.name)
    return facts


def index(folder: Path, classes: int) -> Facts:
    """`vlltr index`."""
    from vlltr_index.pipelines.build_index import index_anchors
    from vlltr_index.store.workspace import Workspace

    facts: Facts = {}
    with timed(facts, "index"):
        facts["kind"] = index_anchors(Workspace.open(folder)).kind
    return facts


def predict(folder: Path, classes: int) -> Facts:
    """Answers to features by scoring all classes and by retrieval: a batch of 128, and one alone."""
    from vlltr_index.recognizer import Recognizer

    facts: Facts = {}
    labels = np.random.default_rng(7).integers(0, classes, BATCH)
    images = _images(classes, labels)
    with timed(facts, "open the model"):
        recognizer = Recognizer.open(folder)
    best = {}
    for way in ("exhaustive", "faiss"):
        recognizer.score(images[:1], way)  # the index is opened
        with timed(facts, f"{way}, batch of 128"):
            fused, _ = recognizer.score(images, way)
        with timed(facts, f"{way}, one image"):
            recognizer.score(images[:1], way)
        best[way] = fused.probabilities.max(1)
        del fused
    same = best["faiss"].indices == best["exhaustive"].indices
    facts["same best class"] = float(same.float().mean())
    facts["error of its probability"] = float((best["faiss"].values - best["exhaustive"].values).abs().mean())
    facts["probabilities"] = [round(p, 6) for p in best["exhaustive"].values[:8].tolist()]
    facts["right"] = float((best["exhaustive"].indices == torch.from_numpy(labels)).float().mean())
    return facts


def _images(classes: int, labels: Any) -> Tensor:
    """Features of images of some classes, [B, D]."""
    _, images = next(vectors(centres(np.random.default_rng(0), classes, WIDTH), labels, 7, 0.8))
    return images


def add(folder: Path, classes: int) -> Facts:
    """`vlltr classes add` of a class with three sentences."""
    from vlltr_index.classes import add_class
    from vlltr_index.store.workspace import Workspace

    facts: Facts = {}
    with timed(facts, "classes add"):
        add_class(Workspace.open(folder), "one more", [f"It has {n} corners and a tail." for n in (3, 4, 5)])
    return facts


STAGES: dict[str, Callable[[Path, int], Facts]] = {
    "make": make, "select": select, "train lgr": train, "index": index, "predict": predict, "classes add": add,
}  # fmt: skip


def run(classes: int, place: str | None) -> None:
    """Every step; each is written to the results as soon as it is there."""
    found: Facts = {"steps": {}, "machine": machine()}
    folder = Path(tempfile.mkdtemp(prefix="vlltr-scaling-", dir=place))
    try:
        for name in STAGES:
            told = subprocess.run(
                [sys.executable, "-m", "benchmarks", "scaling", "step", name, str(folder / "ws"), str(classes)],
                check=True, stdout=subprocess.PIPE, text=True,
            ).stdout  # fmt: skip
            found["steps"][name] = {**json.loads(told.splitlines()[-1]), "disk_mib": _mib(folder)}
            keep("scaling", "steps", found)
            _log.info("%s: %s", name, found["steps"][name])
    finally:
        shutil.rmtree(folder)


def _mib(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) >> 20


def curves() -> None:
    """Answers by way of each kind of index, and of none, at several sizes; processor seconds."""
    found: Facts = {"curves": [], "machine": machine()}
    for width in WIDTHS:
        for classes in SIZES:
            for kind in ("exhaustive", "torch", "flat", "ivf", "hnsw"):
                if classes * ANCHORS * width > LARGEST.get(kind, LARGEST[""]):
                    continue
                told = subprocess.run(
                    [sys.executable, "-m", "benchmarks", "scaling", "curve", kind, str(classes), str(width)],
                    check=True, stdout=subprocess.PIPE, text=True,
                ).stdout  # fmt: skip
                found["curves"].append(json.loads(told.splitlines()[-1]))
                keep("scaling", "curves", found)
                _log.info(told.splitlines()[-1])


def curve(kind: str, classes: int, width: int) -> Facts:
    """One kind at one size."""
    from benchmarks.speed.retrieval import inputs
    from benchmarks.speed.retrieval.common import State
    from vlltr_index.anchors.index import build_index, save_index

    values = {"classes": classes, "anchors": ANCHORS, "dim": width}
    state = State(inputs(values), values)
    facts = {"kind": kind, "anchors": classes * ANCHORS, "width": width}
    if kind != "exhaustive":
        unit = state.unit
        with timed(facts, "build"):
            made = build_index(unit, state.keys, kind)
        with tempfile.TemporaryDirectory() as folder:
            save_index(made, Path(folder))
            facts["disk_mib"] = round(sum(p.stat().st_size for p in Path(folder).iterdir()) / 2**20, 1)
        state.use(made, 0.0)
    found: Any = state.measure()["_extra"]
    facts["batch_cpu_s"] = found.get("cpu_seconds")
    facts["one_cpu_s"] = found["one_image_cpu_s"]
    return facts


def fit() -> None:
    """Weights of the costs' parts, by least squares of the relative errors, none below zero; and the worst error."""
    from scipy.optimize import nnls

    found = read("scaling")["curves"]
    kinds: Facts = {}
    for kind in dict.fromkeys(point["kind"] for point in found["curves"]):
        points = [point for point in found["curves"] if point["kind"] == kind]
        name, built = ("none", False) if kind == "exhaustive" else (kind, True)
        at = [(point["anchors"], point["width"]) for point in points]
        costs = {
            "one": [point["one_cpu_s"] for point in points],
            "batch": [point["batch_cpu_s"] for point in points],
            "build": [point["build"]["cpu_seconds"] if built else 0.0 for point in points],
        }
        facts: Facts = {"largest": max(anchors * width for anchors, width in at), "worst_error": {}}
        for what, seconds in costs.items():
            wanted = np.array(seconds)
            parts = np.array([features_of(what, name, *size) for size in at])
            scale = np.maximum(wanted, 1e-9)[:, None]
            weights = nnls(parts / scale, np.ones(len(at)))[0] if wanted.any() else np.zeros(parts.shape[1])
            facts[what] = [float(f"{weight:.4g}") for weight in weights]
            if wanted.any():
                ratios = parts @ weights / wanted
                facts["worst_error"][what] = round(float(np.maximum(ratios, 1 / ratios).max()), 2)
        if built:
            most = max(points, key=lambda point: int(point["anchors"]))
            vector = number_bytes(kind) * most["width"]
            facts["bytes_an_anchor"] = round(most["disk_mib"] * 2**20 / most["anchors"] - vector)
        kinds[name] = facts
    here = found["machine"]
    machine_ = f"{here['cpu']}, {here['threads']} thread, faiss {here['versions']['faiss-cpu']}"
    FITTED.write_text(json.dumps({"machine": machine_, "kinds": kinds}, indent=1) + "\n", encoding="utf-8")


def generated(results: Results) -> str:
    """Return the steps, next to those of an older version, and the measured and the fitted points of the curves."""
    found, before, points = (results[unit] for unit in ("steps", "before", "curves"))
    made = found["steps"]["make"]
    lines = [
        f"{made['classes']:,} classes, {made['anchors']:,} anchors of width {made['width']}, "
        f"{made['images']:,} images; {_machine(found['machine'])}.",
        "",
        "| step | processor s (before) | peak MiB (before) | disk after it, MiB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, step in found["steps"].items():
        old = before["steps"][name]
        for what, took in step.items():
            if isinstance(took, dict):
                label = what if what.startswith(name) else f"{name}: {what}"
                seconds = f"{took['cpu_seconds']:.3g} ({old[what]['cpu_seconds']:.3g})"
                memory = f"{step['peak_mib']:,} ({old['peak_mib']:,})"
                lines.append(f"| {label} | {seconds} | {memory} | {step['disk_mib']:,} |")
    if missing := [name for name in STAGES if name not in found["steps"]]:
        lines += ["", f"**Not measured yet: {', '.join(missing)}.**"]
    if answers := found["steps"].get("predict"):
        lines += [
            "",
            f"Retrieval named the class that scoring all of them names for {answers['same best class']:.1%} of {BATCH} "
            f"images; its probability was off by {answers['error of its probability']:.1g} on average.",
            "",
            "The probabilities of the first images' best classes, and those before: "
            + ", ".join(
                f"{now:.6f} ({was:.6f})"
                for now, was in zip(
                    answers["probabilities"][:4], before["steps"]["predict"]["probabilities"], strict=False
                )
            )
            + ".",
        ]
    lines += [
        "",
        f"Curves, {_machine(points['machine'])}; the plan's figure in brackets:",
        "",
        "| anchors x width | kind | build s | one image ms | 128 images s | disk MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for point in points["curves"]:
        kind = "none" if point["kind"] == "exhaustive" else point["kind"]
        (told,) = (c for c in plan_index(point["anchors"], point["width"]).costs if c.kind == kind)
        build = "-"
        disk = "-"
        if kind != "none":
            build = f"{point['build']['cpu_seconds']:.2g} ({told.build_seconds:.2g})"
            disk = f"{point['disk_mib']:.0f}"
        lines.append(
            f"| {point['anchors']:,} x {point['width']} | {kind} | {build} | {1000 * point['one_cpu_s']:.3g} "
            f"({1000 * told.one_image_seconds:.3g}) | {point['batch_cpu_s']:.2g} ({told.batch_seconds:.2g}) | {disk} |"
        )
    return "\n".join(lines) + "\n"


def _machine(here: Facts) -> str:
    return f"{here['cpu']}, {here['threads']} thread, load {here['load']}"


def step(name: str, folder: Path, classes: int) -> None:
    """Say what one step of `run` took."""
    facts = STAGES[name](folder, classes)
    facts["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    sys.stdout.write(json.dumps(facts) + "\n")


def one_curve(kind: str, classes: int, width: int) -> None:
    """Say what one point of `curves` took."""
    sys.stdout.write(json.dumps(curve(kind, classes, width)) + "\n")


def _run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--place", help="a folder with 10 GB of room; default: the system's for temporary files"
    )
    parser.add_argument("--classes", type=int, default=CLASSES)


def _step_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=STAGES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("classes", type=int)


def _curve_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("kind")
    parser.add_argument("classes", type=int)
    parser.add_argument("width", type=int)


STUDY = Study(
    {"scaling.md": generated},
    commands={
        "run": Command(run, _run_arguments),
        "curves": Command(curves),
        "fit": Command(fit),
        "step": Command(step, _step_arguments),
        "curve": Command(one_curve, _curve_arguments),
    },
)
