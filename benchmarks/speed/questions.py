"""How long each part takes, beside other programs that do the same: a question is a folder beside this file.

python -m benchmarks speed run                       measures all questions; stopped, it goes on
python -m benchmarks speed run NAME [--case CASE]    measures one question anew
python -m benchmarks speed peak                      the rates behind the bounds
"""

from __future__ import annotations

import importlib
import json
import logging
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from benchmarks.kept import commit, keep, read
from benchmarks.speed.harness import Disagreement, machine, run_case
from benchmarks.speed.peak import keep_rates
from benchmarks.speed.table import beside_reference, page, plot
from benchmarks.study import DOCS, Command, Study

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
    "feature_width",
)
_log = logging.getLogger(__name__)


def run(question: str | None = None, case: str | None = None) -> None:
    """Measure every case of a question, or one; without a question those of all that this commit does not have yet.

    Raises:
        SystemExit: In the end, if competitors disagreed.
    """
    wrong = []
    for name in QUESTIONS if question is None else (question,):
        module = importlib.import_module(f"benchmarks.speed.{name}")
        for one in module.CASES:
            if case not in (None, one.name):
                continue
            here = {"machine": machine(), "commit": commit()}
            if question is None and _is_same(read("speed").get(name, {}).get(one.name), here):
                continue
            try:
                result = run_case(name, one, _log.info)
            except Disagreement as error:
                wrong.append(f"{name}, {one.name}: the competitors disagree: {error}")
                _log.error(wrong[-1])
                continue
            cases = read("speed").get(name, {})
            before = _before(module, cases.get(one.name), here)
            keep("speed", name, cases | {one.name: {**result, **here, **before}})
            _log.info("\n".join(summary(module, result)))
    if wrong:
        raise SystemExit("\n".join(wrong))


def _is_same(kept: dict[str, Any] | None, here: dict[str, Any]) -> bool:
    """Say whether a case was measured on this very commit and kind of machine."""
    if kept is None or kept["commit"] != here["commit"] or here["commit"].endswith("+"):
        return False
    return _is_alike(kept, here)


def _is_alike(kept: dict[str, Any], here: dict[str, Any]) -> bool:
    """Say whether a case was measured on this kind of machine."""
    return all(kept["machine"][part] == here["machine"][part] for part in ("cpu", "gpu"))


def _before(module: Any, kept: dict[str, Any] | None, here: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of the figure of an earlier commit: its share of the reference program's time."""
    if kept is None or not _is_alike(kept, here):
        return {}
    if kept["commit"] == here["commit"]:
        return {"before": kept["before"]} if "before" in kept else {}
    share = beside_reference(module, kept)
    return {} if share is None else {"before": {"commit": kept["commit"], "share": share}}


def summary(module: Any, result: dict[str, Any]) -> list[str]:
    """Return a line a competitor: median, peak memory, and how many times the product's time it took."""
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


def plots() -> None:
    """Draw one plot a question beside the page."""
    for question, cases in read("speed").items():
        plot(question, cases, Path(DOCS, "plots", f"speed-{question}.svg"))


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("question", nargs="?", choices=QUESTIONS, help="default: all")
    parser.add_argument("--case")


STUDY = Study(
    {"benchmarks.md": page},
    commands={"run": Command(run, _arguments), "peak": Command(keep_rates)},
    write_files=plots,
)
