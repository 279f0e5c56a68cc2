"""The ablation of Table 4 on Glyphs-LT.

    python -m benchmarks.ablation run --seed 0 --dir runs    one seed, resumable; to results/ablation-0.json
    python -m benchmarks.ablation table                      all seeds' results to docs/results.md

One seed is three runs of stage 1, and a head or votes for each of the seven rows. `--rows 1,7` runs those alone: what
is done is kept, and the result is written once all seven rows are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vlltr_index.ablation import ROWS, markdown, parse_numbers, summarise
from vlltr_index.glyphs import glyph_files
from vlltr_index.recipe import load_recipe
from vlltr_index.schemas.config import WorkspaceConfig
from vlltr_index.stages.ablate import ablate
from vlltr_index.stages.ingest import ingest_images, ingest_text
from vlltr_index.workspace import Workspace

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
RECIPE = "glyphs_lt/ablation"
MARKS = ("<!-- generated: python -m benchmarks.ablation table -->", "<!-- end of the ablation table -->")
GOALS = (
    (1, 7, "AnSS less cut-off"),
    (1, 2, "CVLP less none"),
    (1, 4, "with distillation less without"),
    (4, 3, "pretrained weights less none"),
    (1, 5, "LGR less FC"),
    (1, 6, "LGR less KNN"),
)


def run(seed: int, folder: Path, rows: Sequence[int] = tuple(ROWS), fast: bool = False) -> None:
    """Run the rows of one seed; a cell that is done is not done again."""
    data, recipe, path = glyph_files(fast), load_recipe(RECIPE), folder / "ablation"
    workspace = Workspace.open(path) if (path / "vlltr.toml").exists() else Workspace.create(path, recipe)
    workspace.write_config(WorkspaceConfig(recipe=recipe))
    ingest_text(workspace, data.texts)
    for split in ("train", "val", "test"):
        ingest_images(workspace, data.images, split)
    report = ablate(workspace, recipe, rows, (seed,), progress=_say)
    if fast or len(report.files) < len(ROWS):
        print(markdown(report.rows), flush=True)  # noqa: T201 - a program
        return
    cells = [json.loads(Path(name).read_text(encoding="utf-8")) for name in report.files]
    result = {
        "seed": seed,
        "dataset": json.loads((data.folder / "manifest.json").read_text(encoding="utf-8"))["content_sha256"],
        "recipe": recipe.model_dump(mode="json"),
        "cells": cells,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, sort_keys=True, indent=1) + "\n"
    (RESULTS / f"ablation-{seed}.json").write_text(text, encoding="utf-8")


def _say(step: str, done: int, total: int | None) -> None:
    if done == total:
        print(step, flush=True)  # noqa: T201 - a program


def write() -> None:
    """Write the generated part of docs/results.md, at its end where the page has none yet."""
    runs = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("ablation-*.json"))]
    page = ROOT / "docs" / "results.md"
    page.write_text(placed(page.read_text(encoding="utf-8"), generated(runs)), encoding="utf-8")


def placed(page: str, part: str) -> str:
    """`page` with `part` between the marks."""
    if MARKS[0] not in page:
        page = f"{page.rstrip()}\n\n## Ablation (Table 4) on Glyphs-LT\n\n{MARKS[0]}\n{MARKS[1]}\n"
    head, tail = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
    return f"{head}{MARKS[0]}\n\n{part}\n{MARKS[1]}{tail}"


def generated(runs: Sequence[dict[str, Any]]) -> str:
    """The table, what each part is worth, and how long it took, as Markdown."""
    first, cells = runs[0], [cell for run in runs for cell in run["cells"]]
    versions, machine = cells[0]["versions"], cells[0]["machine"]
    lines = [
        f"Data set `{first['dataset'][:16]}` (sha256), recipe `{first['recipe']['name']}`, protocol "
        f"{first['recipe']['protocol']}, seeds {', '.join(str(r['seed']) for r in runs)}; "
        f"{cells[0]['top1']['overall']['images']:,} test images; torch {versions['torch']}, open_clip "
        f"{versions['open_clip_torch']}; {machine['cores']} cores, {machine['threads']} thread a run. Top-1 in per "
        "cent, mean over the seeds and their standard deviation; release bounds (many >= 100, few <= 20; few5 <= 5).",
        "",
        markdown(summarise(tuple(ROWS), cells, {})),
        "The same seeds compared, in points:",
        "",
        "| | overall | few |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {_difference(runs, a, b, 'overall')} | {_difference(runs, a, b, 'few')} |"
            for a, b, name in GOALS
        ),
        "",
        "Seconds, one thread (rows 1, 5, 6 and 7 share a stage 1):",
        "",
        "| seed | " + " | ".join(f"row {n}" for n in ROWS) + " |",
        "| --- |" + " --- |" * len(ROWS),
        *(f"| {r['seed']} | " + " | ".join(_seconds(c) for c in r["cells"]) + " |" for r in runs),
    ]
    return "\n".join(lines) + "\n"


def _top1(run: dict[str, Any], row: int, name: str) -> float:
    return float(next(c for c in run["cells"] if c["row"] == row)["top1"][name]["value"])


def _difference(runs: Sequence[dict[str, Any]], first: int, second: int, name: str) -> str:
    each = [100 * (_top1(r, first, name) - _top1(r, second, name)) for r in runs]
    return f"{fmean(each):+.1f}" + (f" ± {stdev(each):.1f}" if len(each) > 1 else "")


def _seconds(cell: dict[str, Any]) -> str:
    return f"{cell['seconds']['stage 1']:.0f} + {cell['seconds']['the rest']:.0f}"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--dir", type=Path, required=True)
    one.add_argument("--rows", default="1-7")
    one.add_argument("--fast", action="store_true", help="on the small slice, to see whether it works")
    commands.add_parser("table")
    args = parser.parse_args()
    if args.command == "run":
        args.dir.mkdir(parents=True, exist_ok=True)
        run(args.seed, args.dir, parse_numbers(args.rows, "--rows", range(1, 8)), args.fast)
    else:
        write()


if __name__ == "__main__":
    main()
