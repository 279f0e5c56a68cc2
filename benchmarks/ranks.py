"""Answers above the classes, on Icons-LT (hypernyms) and Glyphs-LT (script, base letter): given and right how often.

    python -m benchmarks.ranks run --name icons_lt-0 --workspace runs/seed-0    to results/ranks-icons_lt-0.json
    python -m benchmarks.ranks table                                            all results to docs/results.md

The workspace is a copy of one of `benchmarks.long_tailed`, or any other over the data set that has test images; it gets
the recipe's tree.csv, and its head again where that keeps no answers to held-out images. Thresholds come from those
alone; the test images are looked at once, for these tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.long_tailed import RESULTS, about, bits, dataset, files_of, surroundings, write_result
from benchmarks.long_tailed_table import NAMES, spread
from benchmarks.page import put
from vlltr_index.embedding.loading import class_positions, image_set
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.pipelines.taxonomy import ingest_classes
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.predictor import load_answers
from vlltr_index.recognition.ranks import Ranks
from vlltr_index.recognition.scorer import load_scorer
from vlltr_index.store.workspace import Workspace

COMMAND = "python -m benchmarks.ranks table"
RECIPES = Path(__file__).parents[1] / "recipes"
ASKED = (0.8, 0.9, 0.95)
BINS = {"overall": (0, 10**9), "many": (100, 10**9), "medium": (21, 99), "few": (0, 20), "few5": (0, 5)}


def run(name: str, workspace: Workspace) -> None:
    """Measure a workspace."""
    data = about(workspace)
    ingest_classes(workspace, RECIPES / data / "tree.csv")
    parts = load_scorer(workspace, workspace.snapshot()).saved.parts
    if parts is None or parts.held_out is None:
        train_lgr_stage(workspace, workspace.recipe.lgr)
    result = {"name": name, "data": data, "dataset": dataset(files_of(data)), **surroundings()}
    write_result(f"ranks-{name}", {**result, **measured(workspace)})


@torch.inference_mode()
def measured(workspace: Workspace) -> dict[str, Any]:
    """Each test image: whether each rank is right, and for each accuracy asked for at which rank it is answered."""
    snapshot = workspace.snapshot()
    answers, test = load_answers(workspace, snapshot), image_set(snapshot, "test")
    scorer, tree = answers.scorer, answers.tree()
    labels = class_positions(scorer.class_ids, test.class_ids)
    chances = scorer.exhaustive(test.features).probabilities
    sums, holding = tree.sums(chances), tree.holding(labels)
    levels, best = list(tree.levels), chances.argmax(1)
    truth = {rank: nodes[labels] for rank, nodes in tree.at_rank.items()}
    found: dict[str, Any] = {"answered": {}, "right": {}, "least": {}}
    for asked in ASKED:
        least = Ranks(tree).holding(scorer, torch.arange(len(scorer.class_ids)), asked).least or {}
        nodes = tree.answers(sums, least)
        said = [levels.index(tree.ranks[node]) if node >= 0 else -1 for node in nodes.tolist()]
        found["answered"][f"{asked:g}"] = "".join("-" if n < 0 else str(n) for n in said)
        found["right"][f"{asked:g}"] = bits(
            holding.gather(1, nodes.clamp(min=0)[:, None])[:, 0] & (nodes >= 0)
        )
        found["least"][f"{asked:g}"] = {rank: round(value, 3) for rank, value in least.items()}
    assert scorer.saved.parts is not None
    assert scorer.saved.parts.held_out is not None
    return {
        **found,
        "held_out": len(scorer.saved.parts.held_out.labels),
        "ranks": {rank: len(nodes) for rank, nodes in tree.levels.items()},
        "there": {rank: bits(own >= 0) for rank, own in truth.items()},
        "best class": {rank: bits(tree.at_rank[rank][best] == own) for rank, own in truth.items()},
        "summed": {rank: bits(tree.best_at(rank, chances) == own) for rank, own in truth.items()},
        "counts": training_counts(snapshot, scorer.class_ids)[labels].tolist(),
    }


def share(hits: str, among: Sequence[bool]) -> float | None:
    """Share of ones at some places of a text of ones and zeros; None where there are none."""
    chosen = [one == "1" for one, here in zip(hits, among, strict=True) if here]
    return float(np.mean(chosen)) if chosen else None


def within(run: dict[str, Any], name: str) -> list[bool]:
    """Whether each image is of a class of the bin."""
    low, high = BINS[name]
    return [low <= count <= high for count in run["counts"]]


def table_by_rank(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Accuracy of what is said at each rank, on images whose class has a name of it."""
    lines = [f"| rank (names) | answer | images | {' | '.join(BINS)} |", "| --- " * (len(BINS) + 3) + "|"]
    for rank, names in runs[0]["ranks"].items():
        for how in ("best class", "summed"):
            images = runs[0]["there"][rank].count("1")
            cells = []
            for name in BINS:
                found = [
                    share(
                        run[how][rank],
                        [t == "1" and w for t, w in zip(run["there"][rank], within(run, name), strict=True)],
                    )
                    for run in runs
                ]
                known = [value for value in found if value is not None]
                cells.append(spread(known) if known else "-")
            lines.append(f"| {rank} ({names:,}) | {how} | {images:,} | {' | '.join(cells)} |")
    return lines


def table_of_answers(runs: Sequence[dict[str, Any]]) -> list[str]:
    """For each accuracy asked for and each rank: images answered there, and how many of these answers are right."""
    lines = [f"| asked for | rank | {' | '.join(BINS)} |", "| --- " * (len(BINS) + 2) + "|"]
    for asked in runs[0]["answered"]:
        for place, rank in enumerate([*runs[0]["ranks"], "all answers"]):
            cells = []
            for name in BINS:
                given, right = [], []
                for run in runs:
                    said, inside = run["answered"][asked], within(run, name)
                    here = [s != "-" if rank == "all answers" else s == str(place) for s in said]
                    given.append(share("".join("1" if h else "0" for h in here), inside) or 0.0)
                    value = share(run["right"][asked], [h and i for h, i in zip(here, inside, strict=True)])
                    right += [] if value is None else [value]
                told = f"{100 * np.mean(right):.1f}" if right else "-"
                cells.append(f"{100 * np.mean(given):.1f}: {told}")
            lines.append(f"| {100 * float(asked):g} % | {rank} | {' | '.join(cells)} |")
    return lines


def generated(groups: dict[str, list[dict[str, Any]]]) -> str:
    """The section, a part for each group of runs."""
    parts: list[str] = []
    for title, runs in groups.items():
        held = ", ".join(f"{run['held_out']:,}" for run in runs)
        parts += [
            f"**{title}**, {len(runs[0]['counts']):,} test images, {held} images held out in training; data set"
            f" `{runs[0]['dataset'][:16]}`. Top-1 by rank, per cent:",
            "",
            *table_by_rank(runs),
            "",
            "With `--coverage`: images answered at a rank, and after the colon how many of these answers are right, per"
            " cent:",
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
    commands.add_parser("table")
    args = parser.parse_args()
    if args.command == "run":
        run(args.name, Workspace.open(args.workspace))
    else:
        write()


if __name__ == "__main__":
    main()
