"""Tables of the kept results of `long_tailed`: its page and the summary on docs/results.md."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.studies.paired import BINS, METHOD, WITHOUT_BRANCH, Runs, difference, mean, read_runs, spread
from benchmarks.studies.without_text import WHOLE
from benchmarks.studies.workspaces import DATA, NAMES, by_data

__all__ = [
    "ADJUSTED",
    "BY_FAMILY",
    "IMAGE_ONLY",
    "ORDER",
    "generated",
    "of_data",
    "parts",
    "summary",
]

IMAGE_ONLY = "image-only"
ADJUSTED = "image-only + logit adjustment"
ORDER = (
    METHOD,
    WITHOUT_BRANCH,
    "linear layer",
    "text branch",
    WHOLE,
    "generative without text",
    "class means",
    "shrunk discriminant",
    "linear + class means",
    "linear + discriminant",
    IMAGE_ONLY,
    ADJUSTED,
)
PERMUTED = (METHOD, WITHOUT_BRANCH, "text branch", WHOLE)  # rows shown of permuted texts
SUMMARY = (METHOD, WHOLE, ADJUSTED)
BY_FAMILY = "few, families drawn"


def of_data(data: str, texts: str = "true") -> Runs:
    """Return the kept runs of one data set with the classes' own or permuted texts, by seed."""
    return [run for unit, run in read_runs("long_tailed").items() if unit.startswith(f"{data}/{texts}/")]


def parts() -> dict[str, str]:
    """Return the tables of both data sets, and the summary."""
    found = {data: of_data(data) for data in DATA}
    found = {data: runs for data, runs in found.items() if runs}
    if not found:
        return {}
    tables = {data: generated(runs, of_data(data, "permuted")) for data, runs in found.items()}
    return {"results/long_tailed.md": by_data(tables), "results.md": summary(found)}


def summary(found: dict[str, Runs]) -> str:
    """Return one table of the main rows of each data set: few-shot classes, and all."""
    columns = ("overall", "few", "few5")
    lines = [
        f"| top-1, per cent | {' | '.join(columns)} | {METHOD} less it, few |",
        "| --- |" + " --- |" * (len(columns) + 1),
    ]
    for data, runs in found.items():
        for name in SUMMARY:
            having = _having(runs, name)
            if having:
                cells = [spread([mean(run, name, b) for run in having]) for b in columns]
                cells.append("" if name == METHOD else difference(having, "few", against=name))
                lines.append(f"| {NAMES[data]}: {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def generated(runs: Runs, swapped: Runs = ()) -> str:
    """Return the tables as Markdown: by the classes' own texts, gains over each row, by swapped texts."""
    seeds = ", ".join(str(r["seed"]) for r in runs)
    first = runs[0]
    families = len(set(first.get("groups", [])))
    versions = first["versions"]
    machine = first["machine"]
    lines = [
        f"Data set `{first['dataset'][:16]}`, recipe `{first['recipe']}`, seeds {seeds}; "
        f"{len(first['counts']):,} test images; torch {versions['torch']}, open_clip {versions['open_clip_torch']}, "
        f"{machine['threads']} thread. Per cent, mean and standard deviation over the seeds; top-1 but for the last "
        "two columns; release bounds. ECE: expected calibration error.",
        *_alone(runs),
        "",
        *_accuracies(runs),
        "",
        f"{METHOD} less each row on the same images, in points, with the 95 % bootstrap interval over classes and the "
        "images within them"
        + (f"; last, over the {families} families of the test images." if families else "."),
        "",
        f"| {METHOD} less | " + " | ".join(BINS) + (f" | {BY_FAMILY} |" if families else " |"),
        "| --- |" + " --- |" * (len(BINS) + bool(families)),
    ]
    for name in _rows(runs)[1:]:
        shown = f"**{name}**" if name == WHOLE else name
        having = _having(runs, name)
        cells = [difference(having, b, against=name) for b in BINS]
        cells += [difference(having, "few", against=name, by="groups")] if families else []
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    if swapped:
        lines += [
            "",
            "The same with texts permuted between the classes, from stage 1 on:",
            "",
            *_accuracies(swapped, PERMUTED),
        ]
        kept = {run["seed"] for run in swapped}
        paired = [run for run in runs if run["seed"] in kept]
        cells = [difference(paired, b, against=METHOD, others=swapped) for b in BINS]
        lines += [f"| **{METHOD}, own texts less permuted** | " + " | ".join(cells) + " | | |"]
    lines += ["", "What `train lgr` decided:", "", *_decisions([*runs, *swapped])]
    lines += [
        "",
        "Seconds a step, on a machine with other work:",
        "",
    ]
    names = list(dict.fromkeys(name for run in runs for name in run["seconds"]))
    lines += ["| seed | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    lines += [
        f"| {r['seed']} | "
        + " | ".join(f"{r['seconds'][n]:.0f}" if n in r["seconds"] else "-" for n in names)
        + " |"
        for r in runs
    ]
    return "\n".join(lines) + "\n"


def _rows(runs: Runs) -> list[str]:
    return [name for name in ORDER if any(name in run["right"] for run in runs)]


def _alone(runs: Runs) -> list[str]:
    """Return what to say of rows that not all runs have."""
    few = [name for name in _rows(runs) if len(_having(runs, name)) < len(runs)]
    seeds = {str(run["seed"]) for name in few for run in _having(runs, name)}
    return [f"Of seed {', '.join(sorted(seeds))} alone: {', '.join(few)}."] if few else []


def _having(runs: Runs, name: str) -> Runs:
    return [run for run in runs if name in run["right"]]


def _accuracies(runs: Runs, shown: Sequence[str] = ORDER) -> list[str]:
    lines = ["| | " + " | ".join(BINS) + " | top-5 | ECE |", "| --- |" + " --- |" * (len(BINS) + 2)]
    for name in (name for name in _rows(runs) if name in shown):
        having = _having(runs, name)
        cells = [spread([mean(r, name, b) for r in having]) for b in BINS]
        cells.append(spread([r["top5"][name] for r in having]))
        errors = [r["calibration_error"][name] for r in having if name in r["calibration_error"]]
        cells.append(f"{100 * np.mean(errors):.1f}" if errors else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _decisions(runs: Runs) -> list[str]:
    columns = ("image", "generative", "text", "text_r2")
    lines = ["| texts | seed | " + " | ".join(columns) + " |", "| --- | --- |" + " --- |" * len(columns)]
    for run in runs:
        cells = " | ".join(f"{run['decided'][METHOD][name]:.3g}" for name in columns)
        lines.append(f"| {run['texts']} | {run['seed']} | {cells} |")
    return lines
