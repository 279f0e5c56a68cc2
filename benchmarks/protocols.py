"""The paper's and the release's protocols beside ours, each image seen as often: Glyphs-LT, or `--data icons_lt`.

    python -m benchmarks.protocols run --protocol paper --dir runs      resumable; to results/protocol-*.json
    python -m benchmarks.protocols run --protocol release --dir runs
    python -m benchmarks.protocols table                                with ours, to docs/results.md

All are of seed 0 and of 12 epochs of the tower; the paper's and the release's are six a stage. Ours are the rows of
`benchmarks.long_tailed`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.long_tailed import (
    DATA,
    GLYPHS,
    METHOD,
    RESULTS,
    Clock,
    bits,
    dataset,
    files_of,
    in_top5,
    made,
    surroundings,
    write_result,
)
from benchmarks.long_tailed_table import BINS, NAMES, command, difference, mean
from benchmarks.long_tailed_table import bits as numbers
from benchmarks.page import put
from vlltr_index.embedding.loading import image_set
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions

PROTOCOLS = ("paper", "release")
ROWS = {METHOD: "both branches", "image side": "image branch", "text branch": "text branch"}


def run(data: str, protocol: str, folder: Path) -> None:
    """Train and evaluate; a step that is done is not done again."""
    files, recipe = files_of(data), load_recipe(f"{data}/{protocol}")
    seconds = Clock(folder / f"seconds-{data}-{protocol}.json")
    workspace = made(folder / f"{data}-{protocol}", recipe, files.texts, files.images, seconds)
    result = {
        "recipe": recipe.model_dump(mode="json"),
        "dataset": dataset(files),
        **surroundings(),
        "seconds": seconds.values,
        **_measure(workspace),
    }
    write_result(f"protocol-{data}-{protocol}", result)


def _measure(workspace: Workspace) -> dict[str, Any]:
    embed(workspace)  # the paper's second stage tuned the visual tower
    snapshot = workspace.snapshot()
    scorer, test = Model.open(snapshot), image_set(snapshot, "test")
    labels = class_positions(scorer.class_ids, test.class_ids)
    fused = scorer.exhaustive(test.features)
    rows = {METHOD: fused.probabilities, "image side": fused.by_image, "text branch": fused.by_text}
    return {
        "counts": training_counts(snapshot, scorer.class_ids)[labels].tolist(),
        "labels": labels.tolist(),
        "right": {name: bits(scores.argmax(1) == labels) for name, scores in rows.items()},
        "top5": {name: bits(in_top5(scores, labels)) for name, scores in rows.items()},
    }


def generated(found: dict[str, dict[str, Any]]) -> str:
    """The table as Markdown, of results by the name of their protocol; `ours` is among them."""
    ours = found["ours"]
    lines = [
        f"Data set `{ours['dataset'][:16]}`, seed 0, {len(ours['counts']):,} test images; top-1 in per cent.",
        "",
        "| protocol | row | " + " | ".join(BINS) + " | top-5 |",
        "| --- | --- |" + " --- |" * (len(BINS) + 1),
    ]
    for protocol, result in found.items():
        for row, shown in ROWS.items():
            cells = [f"{100 * mean(result, row, name):.1f}" for name in BINS]
            cells.append(f"{100 * numbers(result['top5'][row]).mean():.1f}")
            lines.append(f"| {protocol} | {shown} | {' | '.join(cells)} |")
    lines += ["", "Both branches of ours less theirs, with the 95 % interval over classes:", ""]
    lines += ["| less | " + " | ".join(BINS) + " |", "| --- |" + " --- |" * len(BINS)]
    for protocol in list(found)[1:]:
        cells = [difference([ours], name, METHOD, others=[found[protocol]]) for name in BINS]
        lines.append(f"| {protocol} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table(data: str) -> None:
    """Write the generated part of docs/results.md."""
    names = {"ours": f"{data}-0"} | {one: f"protocol-{data}-{one}" for one in PROTOCOLS}
    paths = {protocol: RESULTS / f"{name}.json" for protocol, name in names.items()}
    found = {one: json.loads(path.read_text("utf-8")) for one, path in paths.items() if path.exists()}
    put(command("protocols", data), f"{NAMES[data]}: the protocols side by side", generated(found))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--protocol", choices=PROTOCOLS, required=True)
    one.add_argument("--dir", type=Path, required=True)
    for each in (one, commands.add_parser("table")):
        each.add_argument("--data", choices=DATA, default=GLYPHS)
    args = parser.parse_args()
    if args.command == "run":
        args.dir.mkdir(parents=True, exist_ok=True)
        run(args.data, args.protocol, args.dir)
    else:
        table(args.data)


if __name__ == "__main__":
    main()
