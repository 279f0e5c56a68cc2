"""Answers above the classes, on Icons-LT (hypernyms) and Glyphs-LT (script, base letter): given and right how often.

    python -m benchmarks.ranks run --name icons_lt-0 --workspace runs/seed-0    to results/ranks-icons_lt-0.json
    python -m benchmarks.ranks make --dir runs                                  a workspace: runs/glyphs-frozen
    python -m benchmarks.ranks table                                            all results to docs/results.md

The workspace is a copy of one of `benchmarks.long_tailed`, or any other over the data set that has test images; it gets
the recipe's tree.csv, and its head again where that keeps no answers to held-out images. Thresholds come from those
alone; the test images are looked at once, for these tables. `make` takes every third class of Glyphs-LT by name, and
the shipped encoder as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.long_tailed import (
    GLYPHS,
    RESULTS,
    Clock,
    about,
    bits,
    dataset,
    files_of,
    made,
    seeded,
    surroundings,
    write_result,
)
from benchmarks.long_tailed_table import NAMES, spread
from benchmarks.page import put
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.embedding.loading import image_set
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.pipelines.taxonomy import ingest_classes
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.recipes import override
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions
from vlltr_index.wording import many

COMMAND = "python -m benchmarks.ranks table"
RECIPES = Path(__file__).parents[1] / "recipes"
ASKED = (0.8, 0.9, 0.95)
HELD = "as held out"
BINS = {"overall": (0, 10**9), "many": (100, 10**9), "medium": (21, 99), "few": (0, 20), "few5": (0, 5)}


def make(folder: Path) -> None:
    """A workspace over every third class of Glyphs-LT, whose encoder stays as it ships; resumable."""
    data, target = glyph_files(), folder / "glyphs-frozen"
    told = json.loads(data.texts.read_text(encoding="utf-8"))
    kept = sorted(told)[::3]
    folder.mkdir(parents=True, exist_ok=True)
    texts, images = folder / "third.json", folder / "third.parquet"
    texts.write_text(json.dumps({name: told[name] for name in kept}), encoding="utf-8")
    pq.write_table(pq.read_table(data.images, filters=[("label", "in", kept)]), images)
    recipe = override(seeded(GLYPHS, 0), ("encoder.pretrained=glyphs", "lgr.views=1"))
    seconds = Clock(folder / "seconds-glyphs-frozen.json")
    made(target, recipe, texts, images, seconds, ("train", "test"), ("train cvlp",))


def run(name: str, workspace: Workspace) -> None:
    """Measure a workspace."""
    data = about(workspace)
    ingest_classes(workspace, RECIPES / data / "tree.csv")
    parts = Model.open(workspace.snapshot()).saved.parts
    if parts is None or parts.held_out is None:
        train_lgr_stage(workspace, workspace.recipe.lgr)
    result = {"name": name, "data": data, "dataset": dataset(files_of(data)), **surroundings()}
    write_result(f"ranks-{name}", {**result, **measured(workspace)})


@torch.inference_mode()
def measured(workspace: Workspace) -> dict[str, Any]:
    """Each test image: whether each rank is right, and for each accuracy asked for at which rank it is answered."""
    snapshot = workspace.snapshot()
    answers, test = Model.open(snapshot), image_set(snapshot, "test")
    scorer, tree = answers, answers.tree()
    labels = class_positions(scorer.class_ids, test.class_ids)
    chances = scorer.exhaustive(test.features).probabilities
    sums, holding = tree.sums(chances), tree.holding(labels)
    levels, best = list(tree.levels), chances.argmax(1)
    truth = {rank: nodes[labels] for rank, nodes in tree.at_rank.items()}
    found: dict[str, Any] = {"answered": {}, "right": {}, "least": {}}
    for asked in ASKED:
        least = scorer.ranks_holding(tree, torch.arange(len(scorer.class_ids)), asked)
        nodes = tree.answers(sums, least)
        said = [levels.index(tree.ranks[node]) if node >= 0 else -1 for node in nodes.tolist()]
        found["answered"][f"{asked:g}"] = "".join("-" if n < 0 else str(n) for n in said)
        found["right"][f"{asked:g}"] = bits(
            holding.gather(1, nodes.clamp(min=0)[:, None])[:, 0] & (nodes >= 0)
        )
        found["least"][f"{asked:g}"] = {rank: round(value, 3) for rank, value in least.items()}
    assert scorer.saved.parts is not None
    assert scorer.saved.parts.held_out is not None
    counts = training_counts(snapshot, scorer.class_ids)
    held = counts[class_positions(scorer.class_ids, scorer.row_owners)][scorer.saved.parts.held_out.labels]
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


Values = NDArray[np.float64]


def ones(text: str) -> Values:
    """A text of ones and zeros as float64 [N]."""
    return np.array([float(c == "1") for c in text])


def share(hits: Values, among: Values) -> float | None:
    """Weighed mean of `hits` [N]; None where nothing weighs anything."""
    return float(hits @ among / among.sum()) if among.any() else None


def within(run: dict[str, Any], name: str) -> Values:
    """What each image counts in a column: 1 if its class is of the bin, else 0.

    Under `HELD`: many, medium and few so much that they are as frequent as among the images held out.
    """
    counts = np.array(run["counts"])
    if name != HELD:
        low, high = BINS[name]
        return ((counts >= low) & (counts <= high)).astype(np.float64)
    parts = [(within(run, b), run["held_out"][b]) for b in ("many", "medium", "few")]
    return np.sum([part * held / max(part.sum(), 1.0) for part, held in parts], axis=0)


def table_by_rank(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Accuracy of what is said at each rank, on images whose class has a name of it."""
    lines = [f"| rank (names) | answer | images | {' | '.join(BINS)} |", "| --- " * (len(BINS) + 3) + "|"]
    for rank, names in runs[0]["ranks"]:
        for how in ("best class", "summed"):
            images, cells = runs[0]["there"][rank].count("1"), []
            for name in BINS:
                found = [share(ones(r[how][rank]), ones(r["there"][rank]) * within(r, name)) for r in runs]
                known = [value for value in found if value is not None]
                cells.append(spread(known) if known else "-")
            lines.append(f"| {rank} ({names:,}) | {how} | {images:,} | {' | '.join(cells)} |")
    return lines


def table_of_answers(runs: Sequence[dict[str, Any]]) -> list[str]:
    """For each accuracy asked for and each rank: images answered there, and how many of these answers are right."""
    columns = (HELD, *BINS)
    lines = [f"| asked for | rank | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    for asked in runs[0]["answered"]:
        for place, rank in enumerate([*(rank for rank, _ in runs[0]["ranks"]), "all answers"]):
            cells = []
            for name in columns:
                given, right = [], []
                for run in runs:
                    said = np.array(list(run["answered"][asked]))
                    here = (said != "-" if rank == "all answers" else said == str(place)).astype(np.float64)
                    given.append(share(here, within(run, name)) or 0.0)
                    right.append(share(ones(run["right"][asked]), here * within(run, name)))
                known = [value for value in right if value is not None]
                told = f"{100 * np.mean(known):.1f}" if known else "-"
                cells.append(f"{100 * np.mean(given):.1f}: {told}")
            lines.append(f"| {100 * float(asked):g} % | {rank} | {' | '.join(cells)} |")
    return lines


def generated(groups: dict[str, list[dict[str, Any]]]) -> str:
    """The section, a part for each group of runs."""
    parts: list[str] = []
    for title, runs in groups.items():
        held, few = (sum(run["held_out"][name] for run in runs) for name in ("overall", "few"))
        tested = share(within(runs[0], "few"), within(runs[0], "overall"))
        parts += [
            f"**{title}**: {len(runs[0]['counts']):,} test images, {100 * (tested or 0):.0f} % of few-shot classes;"
            f" {held // len(runs):,} images held out in training, {100 * few / held:.0f} % of such classes; data set"
            f" `{runs[0]['dataset'][:16]}`, {many(len(runs), 'seed')}. Top-1 by rank, per cent:",
            "",
            *table_by_rank(runs),
            "",
            "With `--min-accuracy`: images answered at a rank, and after the colon how many of these answers are right,"
            f" per cent. *{HELD}*: the test images weighed so that many, medium and few are as frequent as among those"
            f" held out.",
            "",
            *table_of_answers(runs),
            "",
        ]
    return "\n".join(parts)


def write() -> None:
    """Write the section of docs/results.md."""
    runs = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("ranks-*.json"))]
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in runs:
        way = one["name"].removeprefix(f"{one['data']}-")
        title = NAMES[one["data"]] + (f", {way}" if not way.isdigit() else "")
        groups.setdefault(title, []).append(one)
    put(COMMAND, "Ranks above the classes", generated(groups))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--name", required=True, help="data set, a hyphen, and the seed or what is special")
    one.add_argument("--workspace", type=Path, required=True, help="it is written to: a copy")
    commands.add_parser("make").add_argument("--dir", type=Path, required=True)
    commands.add_parser("table")
    args = parser.parse_args()
    if args.command == "run":
        run(args.name, Workspace.open(args.workspace))
    elif args.command == "make":
        make(args.dir)
    else:
        write()


if __name__ == "__main__":
    main()
