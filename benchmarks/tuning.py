"""Stage 1 for people without a GPU: no stage 1, the text tower alone, and all weights, on Glyphs-LT.

    python -m benchmarks.tuning run --tune text --dir runs   to results/tuning-text.json; resumable; also --tune none
    python -m benchmarks.tuning table                        all results to docs/results.md

`none` and `text` start from the shipped encoder, whose image tower they keep; all weights are those of
`benchmarks.long_tailed`, seed 0, trained from a random start.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.draws_bench import prototypes
from benchmarks.long_tailed import (
    GLYPHS,
    METHOD,
    RESULTS,
    Clock,
    bits,
    dataset,
    made,
    seeded,
    surroundings,
    write_result,
)
from benchmarks.long_tailed_table import BINS, difference, mean
from benchmarks.page import put
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.embedding.loading import image_set
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.recipes import override
from vlltr_index.tensors import class_positions, cosine_logits

WAYS = ("none", "text")
COMMAND = "python -m benchmarks.tuning table"
TITLE = "Stage 1 without a GPU: what the text tower alone gains"
ROWS = (METHOD, "image side", "text branch", "zero-shot")


def run(way: str, folder: Path, fast: bool = False) -> None:
    """Train and evaluate one way; a step that is done is not done again. With `fast` no result is kept."""
    data, name = glyph_files(fast), f"tuning-{way}{'-fast' if fast else ''}"
    seconds = Clock(folder / f"seconds-{name}.json")
    settings = ("encoder.pretrained=glyphs", *(("cvlp.tune=text",) if way == "text" else ()))
    recipe = override(seeded(GLYPHS, 0, fast), settings)
    left_out = () if way == "text" else ("train cvlp",)
    workspace = made(folder / name, recipe, data.texts, data.images, seconds, left_out=left_out)
    snapshot = workspace.snapshot()
    scorer, test = Model.open(snapshot), image_set(snapshot, "test")
    labels = class_positions(scorer.class_ids, test.class_ids)
    said = scorer.exhaustive(test.features)
    means = prototypes(workspace, scorer.class_ids)[0]["own sentences"]
    rows = (said.probabilities, said.by_image, said.by_text, cosine_logits(test.features.double(), means))
    result = {
        "tune": way,
        "dataset": dataset(data),
        **surroundings(),
        "seconds": seconds.values,
        "counts": training_counts(snapshot, scorer.class_ids)[labels].tolist(),
        "labels": labels.tolist(),
        "right": {n: bits(row.argmax(1) == labels) for n, row in zip(ROWS, rows, strict=True)},
    }
    if fast:
        print({n: round(b.count("1") / len(b), 3) for n, b in result["right"].items()})  # noqa: T201 # a trial's only output
    else:
        write_result(f"tuning-{way}", result)


def write() -> None:
    """Write the section of docs/results.md."""
    runs = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("tuning-*.json"))]
    whole = json.loads((RESULTS / "glyphs_lt-0.json").read_text(encoding="utf-8"))
    put(COMMAND, TITLE, generated([*runs, {**whole, "tune": "full"}]))


def generated(runs: list[dict[str, Any]]) -> str:
    """The table as Markdown; the last run has all weights tuned."""
    lines = [
        f"Top-1 in per cent on {len(runs[0]['labels']):,} test images, one seed. `none` and `text` keep the image tower"
        " of the shipped encoder, `full` trains all weights from a random start. Below: vl-ltr of `full` less that of"
        " the row, with the 95 % bootstrap interval.",
        "",
        "| cvlp.tune | row | " + " | ".join(BINS) + " |",
        "| --- | --- |" + " --- |" * len(BINS),
    ]
    for run in runs:
        for name in (n for n in ROWS if n in run["right"]):
            cells = " | ".join(f"{100 * mean(run, name, b):.1f}" for b in BINS)
            lines.append(f"| {run['tune']} | {name} | {cells} |")
    lines += ["", "| full less | " + " | ".join(BINS) + " |", "| --- |" + " --- |" * len(BINS)]
    for run in runs[:-1]:
        cells = " | ".join(difference(runs[-1:], b, METHOD, [run]) for b in BINS)
        lines.append(f"| {run['tune']} | {cells} |")
    lines += ["", "Seconds a step, on a machine with other work:", ""]
    for run in runs[:-1]:
        lines.append(f"- {run['tune']}: " + ", ".join(f"{n} {s:.0f}" for n, s in run["seconds"].items()))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--tune", choices=WAYS, required=True)
    one.add_argument("--dir", type=Path, required=True)
    one.add_argument("--fast", action="store_true", help="on the small slice, to see whether it works")
    commands.add_parser("table")
    args = parser.parse_args()
    if args.command == "run":
        args.dir.mkdir(parents=True, exist_ok=True)
        run(args.tune, args.dir, args.fast)
    else:
        write()


if __name__ == "__main__":
    main()
