"""`python -m benchmarks run NAME [--case CASE]` measures one question; `python -m benchmarks table` writes the page."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Disagreement, machine, run_case

RESULTS = Path(__file__).parent / "results"
QUESTIONS = (
    "anss",
    "anss_update",
    "lgr_training",
    "lgr_inference",
    "retrieval",
    "embedding",
    "head_epoch",
    "training_loader",
    "store",
    "startup",
    "growth",
)


def run(question: str, wanted: str | None) -> None:
    """Measure every case of a question; each is written to its result file as soon as it is there."""
    module = importlib.import_module(f"benchmarks.{question}")
    path = RESULTS / f"speed-{question}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cases": {}}
    for case in module.CASES:
        if wanted is not None and case.name != wanted:
            continue
        here = machine()
        try:
            result = run_case(question, case, _say)
        except Disagreement as error:
            raise SystemExit(f"{question}, {case.name}: the competitors disagree: {error}") from None
        found["cases"][case.name] = {**result, "machine": here}
        found |= {"question": question, "asks": module.__doc__.strip().splitlines()[0]}
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        sys.stdout.write("\n".join(summary(module, found["cases"][case.name])) + "\n")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def summary(module: Any, result: dict[str, Any]) -> list[str]:
    """One line a competitor: median, peak memory, and how many times the product's time it took."""
    ours = result["rows"][module.COMPETITORS[-1]]["median"]
    lines = [f"{result['case']}  ({json.dumps(result['values'])})"]
    for name, row in result["rows"].items():
        note = f" (extrapolated from {row['portion']:.3g} of the work)" if row["portion"] < 1 else ""
        lines.append(
            f"  {name:<12} {row['median']:>10.4f} s  {row['cpu_median']:>10.4f} CPU s"
            f"  {row['median'] / ours:>7.2f} x ours"
            f"  peak extra {row['peak_extra_mib']:>8.1f} MiB{note}"
        )
    lines += [f"  {name:<12} left out: {why}" for name, why in result["skipped"].items()]
    lines.append(f"  agreement: {json.dumps(result['agreement'])}")
    return lines


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("question", choices=QUESTIONS)
    one.add_argument("--case")
    commands.add_parser("table")
    args = parser.parse_args()
    if args.command == "run":
        RESULTS.mkdir(exist_ok=True)
        run(args.question, args.case)
    else:
        from benchmarks.speed_table import write

        write()


if __name__ == "__main__":
    main()
