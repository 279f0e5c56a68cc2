"""Tables of the kept results of `long_tailed`: its page and the summary on docs/results.md."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.datasets.files import DATA, NAMES
from benchmarks.intervals import spread
from benchmarks.studies.long_tailed.without_text import WHOLE
from benchmarks.studies.paired import BINS, METHOD, WITHOUT_BRANCH, Runs, difference, mean, read_runs
from benchmarks.studies.workspaces import by_data
from benchmarks.study import Results, table

__all__ = [
    "ADJUSTED",
    "BY_FAMILY",
    "IMAGE_ONLY",
    "ORDER",
    "generated",
    "of_data",
    "page",
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


def page(results: Results) -> str:
    """Return the tables of both data sets."""
    parts = {
        data: generated(runs, of_data(results, data, "permuted")) for data, runs in _by_data(results).items()
    }
    return by_data(parts)


def summary(results: Results) -> str:
    """Return one table of the main rows of each data set: few-shot classes, and all."""
    columns = ("overall", "few", "few5")
    rows = []
    for data, runs in _by_data(results).items():
        for name in SUMMARY:
            having = _having(runs, name)
            if having:
                cells = [spread([mean(run, name, b) for run in having]) for b in columns]
                cells.append("" if name == METHOD else difference(having, "few", against=name))
                rows.append([f"{NAMES[data]}: {name}", *cells])
    return "\n".join(table(["top-1, per cent", *columns, f"{METHOD} less it, few"], rows)) + "\n"


def of_data(results: Results, data: str, texts: str = "true") -> Runs:
    """Return the runs of one data set with the classes' own or permuted texts, by seed."""
    return [run for unit, run in read_runs(results).items() if unit.startswith(f"{data}/{texts}/")]


def _by_data(results: Results) -> dict[str, Runs]:
    found = {data: of_data(results, data) for data in DATA}
    return {data: runs for data, runs in found.items() if runs}


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
        *_gains(runs, bool(families)),
    ]
    if swapped:
        lines += [
            "",
            "The same with texts permuted between the classes, from stage 1 on:",
            "",
            *_accuracies(swapped, PERMUTED, [_own_less_permuted(runs, swapped)]),
        ]
    lines += ["", "What `train lgr` decided:", "", *_decisions([*runs, *swapped])]
    lines += ["", "Seconds a step, on a machine with other work:", "", *_seconds(runs)]
    return "\n".join(lines) + "\n"


def _gains(runs: Runs, has_families: bool) -> list[str]:
    """Return the table of what the method has more than each row; by families too where they are known."""
    rows = []
    for name in _rows(runs)[1:]:
        having = _having(runs, name)
        cells = [difference(having, b, against=name) for b in BINS]
        cells += [difference(having, "few", against=name, by="groups")] if has_families else []
        rows.append([f"**{name}**" if name == WHOLE else name, *cells])
    return table([f"{METHOD} less", *BINS, *([BY_FAMILY] if has_families else [])], rows)


def _own_less_permuted(runs: Runs, swapped: Runs) -> list[str]:
    """Return the row of what the classes' own texts gain over permuted ones, of the same seeds."""
    seeds = {run["seed"] for run in swapped}
    paired = [run for run in runs if run["seed"] in seeds]
    cells = [difference(paired, b, against=METHOD, others=swapped) for b in BINS]
    return [f"**{METHOD}, own texts less permuted**", *cells, "", ""]


def _rows(runs: Runs) -> list[str]:
    return [name for name in ORDER if any(name in run["right"] for run in runs)]


def _alone(runs: Runs) -> list[str]:
    """Return what to say of rows that not all runs have."""
    few = [name for name in _rows(runs) if len(_having(runs, name)) < len(runs)]
    seeds = {str(run["seed"]) for name in few for run in _having(runs, name)}
    return [f"Of seed {', '.join(sorted(seeds))} alone: {', '.join(few)}."] if few else []


def _having(runs: Runs, name: str) -> Runs:
    return [run for run in runs if name in run["right"]]


def _accuracies(runs: Runs, shown: Sequence[str] = ORDER, more: Sequence[Sequence[str]] = ()) -> list[str]:
    """Return the table of accuracies of the rows `shown`, followed by `more` rows."""
    rows = []
    for name in (name for name in _rows(runs) if name in shown):
        having = _having(runs, name)
        cells = [spread([mean(r, name, b) for r in having]) for b in BINS]
        cells.append(spread([r["top5"][name] for r in having]))
        errors = [r["calibration_error"][name] for r in having if name in r["calibration_error"]]
        cells.append(f"{100 * np.mean(errors):.1f}" if errors else "-")
        rows.append([name, *cells])
    return table(["", *BINS, "top-5", "ECE"], [*rows, *more])


def _decisions(runs: Runs) -> list[str]:
    columns = ("image", "generative", "text", "text_r2")
    rows = [
        [run["texts"], str(run["seed"]), *(f"{run['decided'][METHOD][name]:.3g}" for name in columns)]
        for run in runs
    ]
    return table(["texts", "seed", *columns], rows)


def _seconds(runs: Runs) -> list[str]:
    names = list(dict.fromkeys(name for run in runs for name in run["seconds"]))
    rows = [
        [str(r["seed"]), *(f"{r['seconds'][n]:.0f}" if n in r["seconds"] else "-" for n in names)]
        for r in runs
    ]
    return table(["seed", *names], rows)
