"""Tables from the committed results of `benchmarks.long_tailed run`: docs/results.md, the quickstart's rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.long_tailed import GLYPHS, ICONS, METHOD, RESULTS, WEIGHED
from benchmarks.page import put
from benchmarks.without_text import WHOLE

ROOT = Path(__file__).parents[1]
TITLE = "method, controls without text, and image-only at equal image budget"
NAMES = {GLYPHS: "Glyphs-LT", ICONS: "Icons-LT"}
AGAINST = "image-only + logit adjustment"
ORDER = (
    METHOD,
    WEIGHED,
    "image side",
    "linear layer",
    "text branch",
    WHOLE,
    "generative without text",
    "class means",
    "shrunk discriminant",
    "linear + class means",
    "linear + discriminant",
    "image-only",
    AGAINST,
)
PERMUTED = (METHOD, "image side", "text branch", WHOLE)  # rows shown of permuted texts
BY_FAMILY = "few, families drawn"
BINS = ("overall", "many", "medium", "few", "few5")
Bits = NDArray[np.float64]
Runs = Sequence[dict[str, Any]]


def command(module: str, data: str) -> str:
    """What writes a module's table for one data set."""
    return f"python -m benchmarks.{module} table" + ("" if data == GLYPHS else f" --data {data}")


def write(data: str) -> None:
    """Write the generated part of docs/results.md, and of Glyphs-LT recipes/glyphs_lt/results.json."""
    runs, swapped = (
        [
            run
            for path in sorted(RESULTS.glob(name))
            if "labels" in (run := json.loads(path.read_text("utf-8")))
        ]
        for name in (f"{data}-[0-9]*.json", f"{data}-permuted-*.json")
    )
    if not runs:
        raise SystemExit(
            f"no results; run: python -m benchmarks.long_tailed run --data {data} --seed 0 --dir runs"
        )
    put(command("long_tailed", data), f"{NAMES[data]}: {TITLE}", generated(runs, swapped))
    if data != GLYPHS:
        return
    rows = [
        {
            "name": name,
            "epochs": runs[0]["recipe"]["baseline"]["epochs"],
            "seeds": len(runs),
            "top1": {b: round(float(np.mean([mean(r, name, b) for r in runs])), 4) for b in BINS},
        }
        for name in ("image-only", AGAINST)
    ]
    target = ROOT / "recipes" / data / "results.json"
    target.write_text(
        json.dumps({"dataset": runs[0]["dataset"], "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )


def generated(runs: Runs, swapped: Runs = ()) -> str:
    """The tables as Markdown: with the classes' own texts, what the method gains over each row, with swapped texts."""
    seeds = ", ".join(str(r["seed"]) for r in runs)
    first = runs[0]
    families = len(set(first.get("groups", [])) - {None})
    versions, machine = first["versions"], first["machine"]
    lines = [
        f"Data set `{first['dataset'][:16]}`, recipe `{first['recipe']['name']}`, seeds {seeds}; "
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
    """What to say of rows that not all runs have."""
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
        cells.append(spread([float(bits(r["top5"][name]).mean()) for r in having]))
        errors = [r["calibration_error"][name] for r in having if name in r["calibration_error"]]
        cells.append(f"{100 * np.mean(errors):.1f}" if errors else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _decisions(runs: Runs) -> list[str]:
    columns = ("image", "generative", "text")
    more = ("pictured", "told")
    heads = [*columns, "later, with images", "later, by text", "noise", "text_r2"]
    lines = ["| texts | seed | " + " | ".join(heads) + " |", "| --- | --- |" + " --- |" * len(heads)]
    for run in runs:
        mine, unseen = run["decided"][METHOD], run["decided"]["of test images"]
        cells = [f"{mine[name]:.3g}" for name in columns]
        for name in more:
            met = mine[name]
            cells.append(f"{met['generative']:.3g} / {met['text']:.3g} / {met['offset']:+.2f}")
        cells += [f"{mine[name]:.3g}" for name in ("noise", "text_r2")]
        lines.append(f"| {run['texts']} | {run['seed']} | {' | '.join(cells)} |")
        cells = [f"{unseen[name]:.3g}" for name in columns]
        lines.append(
            f"| {run['texts']}, had test images weighed | {run['seed']} | {' | '.join(cells)} | | | | |"
        )
    return lines


def bits(text: str) -> Bits:
    """Ones and zeros as numbers, [N]."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.float64) - ord("0")


def mask(run: dict[str, Any], name: str) -> NDArray[np.bool_]:
    """The images of one bin, bool [N]."""
    counts = np.asarray(run["counts"])
    masks = {
        "overall": counts >= 0,
        "many": counts >= 100,
        "medium": (counts > 20) & (counts < 100),
        "few": counts <= 20,
        "few5": counts <= 5,
    }
    return masks[name]


def mean(run: dict[str, Any], row: str, name: str) -> float:
    """Share of a bin's images that a row has right."""
    return float(bits(run["right"][row])[mask(run, name)].mean())


def spread(values: Sequence[float], signed: bool = False) -> str:
    """Mean in per cent, and the standard deviation over the seeds where there are several."""
    shown = f"{100 * np.mean(values):{'+' if signed else ''}.1f}"
    return shown + (f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def difference(
    runs: Runs, name: str, against: str, others: Runs | None = None, row: str = METHOD, by: str = "labels"
) -> str:
    """`row` less the row `against` of the same runs, or of `others` of the same seeds, in one bin.

    The interval draws classes, or with `by="groups"` families.
    """
    pairs = zip(runs, runs if others is None else others, strict=True)
    values = np.mean([bits(a["right"][row]) - bits(b["right"][against]) for a, b in pairs], axis=0)
    kept = mask(runs[0], name)
    return shown_gap(values[kept], np.unique(runs[0][by], return_inverse=True)[1][kept])


def shown_gap(values: Bits, classes: NDArray[Any]) -> str:
    """Mean of paired differences [N] of images of classes int [N] in points, with its interval."""
    low, high = clustered_interval(values, classes)
    return f"{100 * values.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def clustered_interval(
    values: Bits, classes: NDArray[Any], draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of values [N]: classes are drawn, then of each as many images as it has.

    Args:
        values: One an image.
        classes: Integers [N], the class of each image.
        draws: How often.
        seed: Of the draws.
    """
    order = np.argsort(classes, kind="stable")
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    ordered, rng, means = values[order], np.random.default_rng(seed), []
    for _ in range(draws):
        picked = rng.integers(len(sizes), size=len(sizes))
        size = np.repeat(sizes[picked], sizes[picked])
        start = np.repeat(starts[picked], sizes[picked])
        means.append(ordered[start + (rng.random(len(size)) * size).astype(np.int64)].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
