"""Answers above the classes, on Icons-LT (hypernyms) and Glyphs-LT (script, base letter): given and right how often.

    python -m benchmarks ranks run --name icons_lt-0 --workspace runs/seed-0    the data set, a hyphen, and the seed
    python -m benchmarks ranks make --dir runs                                  a workspace: runs/glyphs-frozen

The workspace is a copy of one of the study long_tailed, or any other over the data set that has test images; it gets
the recipe's tree.csv, and its head again where that keeps no answers to held-out images. Thresholds come from those
alone; the test images are looked at once, for these tables. `make` takes every third class of Glyphs-LT by name, and
the shipped encoder as it is.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.datasets.files import GLYPHS, NAMES, RECIPES, digest, files_of
from benchmarks.intervals import spread
from benchmarks.kept import keep, surroundings
from benchmarks.studies.paired import bits_of
from benchmarks.studies.workspaces import StepSeconds, about, bits, made, seeded
from benchmarks.study import Command, Results, Study, add_folder, table
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.embedding.loading import image_set
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.pipelines.taxonomy import ingest_classes
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.model import Model
from vlltr_index.recognition.ranks import ranks_holding
from vlltr_index.schemas.recipes import override
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions
from vlltr_index.wording import plural

ASKED = (0.8, 0.9, 0.95)
HELD = "as held out"
BINS = {"overall": (0, 10**9), "many": (100, 10**9), "medium": (21, 99), "few": (0, 20), "few5": (0, 5)}
APART = ("many", "medium", "few")  # bins that have each image once
ALL_ANSWERS = "all answers"


def make(folder: Path) -> None:
    """Make a workspace over every third class of Glyphs-LT, whose encoder stays as it ships; resumable."""
    data = glyph_files()
    target = folder / "glyphs-frozen"
    told = json.loads(data.texts.read_text(encoding="utf-8"))
    kept = sorted(told)[::3]
    texts = folder / "third.json"
    images = folder / "third.parquet"
    texts.write_text(json.dumps({name: told[name] for name in kept}), encoding="utf-8")
    pq.write_table(pq.read_table(data.images, filters=[("label", "in", kept)]), images)
    recipe = override(seeded(GLYPHS, 0), ("encoder.pretrained=glyphs", "lgr.views=1"))
    seconds = StepSeconds(folder / "seconds-glyphs-frozen.json")
    made(target, recipe, texts, images, seconds, ("train", "test"), ("train cvlp",))


def run(name: str, workspace: Path) -> None:
    """Measure a workspace."""
    opened = Workspace.open(workspace)
    data = about(opened)
    ingest_classes(opened, RECIPES / data / "tree.csv")
    parts = Model.open(opened.snapshot()).saved.parts
    if parts is None or parts.held_out is None:
        train_lgr_stage(opened, opened.recipe.lgr)
    facts = {"name": name, "data": data, "dataset": digest(files_of(data)), **surroundings()}
    keep("ranks", name, {**facts, **counted(measured(opened))})


@torch.inference_mode()
def measured(workspace: Workspace) -> dict[str, Any]:
    """Return of each test image which ranks are right, and at which it is answered for each accuracy asked for."""
    snapshot = workspace.snapshot()
    scorer = Model.open(snapshot)
    test = image_set(snapshot, "test")
    tree = scorer.tree()
    labels = class_positions(scorer.class_ids, test.class_ids)
    chances = scorer.exhaustive(test.features).probabilities
    sums = tree.sums(chances)
    holding = tree.holding(labels)
    levels = list(tree.levels)
    best = chances.argmax(1)
    assert scorer.saved.parts is not None
    assert scorer.saved.parts.held_out is not None
    known = scorer.saved.parts.held_out
    truth = {rank: nodes[labels] for rank, nodes in tree.at_rank.items()}
    found: dict[str, Any] = {"answered": {}, "right": {}, "least": {}}
    for asked in ASKED:
        least = ranks_holding(tree, known, scorer.class_ids, scorer.known.row_owners, min_accuracy=asked)
        nodes = tree.answers(sums, least)
        said = [levels.index(tree.ranks[node]) if node >= 0 else -1 for node in nodes.tolist()]
        found["answered"][f"{asked:g}"] = "".join("-" if n < 0 else str(n) for n in said)
        found["right"][f"{asked:g}"] = bits(
            holding.gather(1, nodes.clamp(min=0)[:, None])[:, 0] & (nodes >= 0)
        )
        found["least"][f"{asked:g}"] = {rank: round(value, 3) for rank, value in least.items()}
    counts = training_counts(snapshot, scorer.class_ids)
    held = counts[class_positions(scorer.class_ids, scorer.known.row_owners)][known.labels]
    return {
        **found,
        "held_out": {
            name: sum(low <= n <= high for n in held.tolist()) for name, (low, high) in BINS.items()
        },
        "ranks": [[rank, len(nodes)] for rank, nodes in tree.levels.items()],
        "there": {rank: bits(own >= 0) for rank, own in truth.items()},
        "best class": {rank: bits(tree.at_rank[rank][best] == own) for rank, own in truth.items()},
        "summed": {rank: bits(tree.best_at(rank, chances) == own) for rank, own in truth.items()},
        "counts": counts[labels].tolist(),
    }


_OF_IMAGES = ("counts", "there", "best class", "summed", "answered", "right")
Sums = Mapping[str, float]
"""What counts, by bin: images, or those that a rule has right."""


def counted(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `measured` says of each image as sums over the images of each bin."""
    counts = np.asarray(found["counts"])
    within = {name: ((counts >= low) & (counts <= high)) for name, (low, high) in BINS.items()}

    def sums(hits: NDArray[np.bool_]) -> dict[str, int]:
        return {name: int((hits & mask).sum()) for name, mask in within.items()}

    ranks = [rank for rank, _ in found["ranks"]]
    result = {key: value for key, value in found.items() if key not in _OF_IMAGES}
    result["images"] = sums(counts >= 0)
    result["there"] = {rank: sums(bits_of(found["there"][rank]) > 0) for rank in ranks}
    for how in ("best class", "summed"):
        result[how] = {
            rank: sums(bits_of(found[how][rank]) * bits_of(found["there"][rank]) > 0) for rank in ranks
        }
    result["answered"] = {}
    result["right"] = {}
    for asked, said in found["answered"].items():
        place = np.array(list(said))
        right = bits_of(found["right"][asked]) > 0
        given = {rank: place == str(number) for number, rank in enumerate(ranks)}
        given[ALL_ANSWERS] = place != "-"
        result["answered"][asked] = {rank: sums(some) for rank, some in given.items()}
        result["right"][asked] = {rank: sums(some & right) for rank, some in given.items()}
    return result


def share(hits: Sums, among: Sums, run: Mapping[str, Any], name: str) -> float | None:
    """Return how much of `among` are `hits` in a column; None where there is nothing.

    Under `HELD` many, medium and few count so much that they are as frequent as among the images held out.
    """
    if name != HELD:
        return hits[name] / among[name] if among[name] else None
    weights = {b: run["held_out"][b] / max(run["images"][b], 1) for b in APART}
    there = sum(weights[b] * among[b] for b in APART)
    return sum(weights[b] * hits[b] for b in APART) / there if there else None


def generated(results: Results) -> str:
    """Return a part for the runs of each data set, and for each of those that are special."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in results.values():
        way = one["name"].removeprefix(f"{one['data']}-")
        title = NAMES[one["data"]] + (f", {way}" if not way.isdigit() else "")
        groups.setdefault(title, []).append(one)
    return "\n".join(line for title, runs in groups.items() for line in _of_data(title, runs))


def _of_data(title: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    held, few = (sum(run["held_out"][name] for run in runs) for name in ("overall", "few"))
    images = runs[0]["images"]
    return [
        f"**{title}**: {images['overall']:,} test images, {100 * images['few'] / images['overall']:.0f} % of"
        " few-shot classes;"
        f" {held // len(runs):,} images held out in training, {100 * few / held:.0f} % of such classes; data set"
        f" `{runs[0]['dataset'][:16]}`, {plural(len(runs), 'seed')}. Top-1 by rank, per cent:",
        "",
        *table(["rank (names)", "answer", "images", *BINS], _by_rank(runs)),
        "",
        "With `--min-accuracy`: images answered at a rank, and after the colon how many of these answers are right,"
        f" per cent. *{HELD}*: the test images weighed so that many, medium and few are as frequent as among those"
        f" held out.",
        "",
        *table(["asked for", "rank", HELD, *BINS], _of_answers(runs)),
        "",
    ]


def _by_rank(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the accuracy of what is said at each rank, on images whose class has a name of it."""
    rows = []
    for rank, names in runs[0]["ranks"]:
        for how in ("best class", "summed"):
            cells = []
            for name in BINS:
                found = [share(r[how][rank], r["there"][rank], r, name) for r in runs]
                known = [value for value in found if value is not None]
                cells.append(spread(known) if known else "-")
            images = runs[0]["there"][rank]["overall"]
            rows.append([f"{rank} ({names:,})", how, f"{images:,}", *cells])
    return rows


def _of_answers(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return for each accuracy asked for and each rank how many images are answered there, and are right."""
    rows = []
    for asked in runs[0]["answered"]:
        for rank in (*(rank for rank, _ in runs[0]["ranks"]), ALL_ANSWERS):
            cells = []
            for name in (HELD, *BINS):
                given = []
                right = []
                for run in runs:
                    answered = run["answered"][asked][rank]
                    given.append(share(answered, run["images"], run, name) or 0.0)
                    right.append(share(run["right"][asked][rank], answered, run, name))
                known = [value for value in right if value is not None]
                shown = f"{100 * np.mean(known):.1f}" if known else "-"
                cells.append(f"{100 * np.mean(given):.1f}: {shown}")
            rows.append([f"{100 * float(asked):g} %", rank, *cells])
    return rows


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="data set, a hyphen, and the seed or what is special")
    parser.add_argument("--workspace", type=Path, required=True, help="it is written to: a copy")


STUDY = Study(
    {"results/ranks.md": generated},
    commands={"run": Command(run, _arguments), "make": Command(make, add_folder)},
)
