"""Tables from the committed results of `benchmarks.glyphs_lt run`: docs/results.md and rows for the quickstart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
MARKS = ("<!-- generated: python -m benchmarks.glyphs_lt table -->", "<!-- end of the generated part -->")
AGAINST = "image-only + logit adjustment"
BINS = ("overall", "many", "medium", "few", "few5")
Bits = NDArray[np.float64]


def write() -> None:
    """Write the generated part of docs/results.md, and recipes/glyphs_lt/results.json."""
    runs = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("glyphs_lt-*.json"))]
    page = ROOT / "docs" / "results.md"
    text = page.read_text(encoding="utf-8")
    head, tail = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    page.write_text(f"{head}{MARKS[0]}\n\n{generated(runs)}\n{MARKS[1]}{tail}", encoding="utf-8")
    rows = [
        {
            "name": name,
            "epochs": runs[0]["recipe"]["baseline"]["epochs"],
            "seeds": len(runs),
            "top1": {b: round(float(np.mean([mean(r, name, b) for r in runs])), 4) for b in BINS},
        }
        for name in ("image-only", AGAINST)
    ]
    target = ROOT / "recipes" / "glyphs_lt" / "results.json"
    target.write_text(
        json.dumps({"dataset": runs[0]["dataset"], "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )


def generated(runs: Sequence[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    seeds = ", ".join(str(r["seed"]) for r in runs)
    first = runs[0]
    versions, machine = first["versions"], first["machine"]
    lines = [
        f"Data set `{first['dataset'][:16]}` (sha256), recipe `{first['recipe']['name']}`, "
        f"protocol {first['protocol']}, "
        f"seeds {seeds}; {len(first['counts']):,} test images; torch {versions['torch']}, "
        f"open_clip {versions['open_clip_torch']}; {machine['cores']} cores, {machine['threads']} thread a run. "
        "Top-1 in per cent, mean over the seeds and their standard deviation; release bounds (many >= 100, few <= 20; "
        "few5 <= 5).",
        "",
        "| | " + " | ".join(BINS) + " | top-5 |",
        "| --- |" + " --- |" * (len(BINS) + 1),
    ]
    for name in runs[0]["right"]:
        cells = [spread([mean(r, name, b) for r in runs]) for b in BINS]
        top5 = spread([float(bits(r["top5"][name]).mean()) for r in runs])
        lines.append(f"| {name} | " + " | ".join([*cells, top5]) + " |")
    cells = [difference(runs, b) for b in BINS]
    lines += [
        f"| **vl-ltr less {AGAINST}**, paired bootstrap 95 % | " + " | ".join(cells) + " | |",
        "",
        "New classes from text alone: 100 classes added at once to the trained workspace, recognised among all,",
        "and what the old classes lose meanwhile (points of their top-1 on the test split).",
        "",
        "| held-out classes | top-1 | top-5 | old classes before | beside them | change |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for group, label in (("dev", "100 for development"), ("final", "100 for final figures")):
        found = [r["new"][group] for r in runs]
        values = [
            [float(bits(f[k]).mean()) for f in found] for k in ("right", "top5", "old_before", "old_after")
        ]
        change = [a - b for a, b in zip(values[3], values[2], strict=True)]
        lines.append(
            f"| {label} | " + " | ".join(spread(v) for v in values) + f" | {spread(change, signed=True)} |"
        )
    lines += ["", "Seconds a step, one thread, two runs side by side:", ""]
    names = list(runs[0]["seconds"])
    lines += ["| seed | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    lines += [
        f"| {r['seed']} | " + " | ".join(f"{r['seconds'].get(n, 0):.0f}" for n in names) + " |" for r in runs
    ]
    return "\n".join(lines) + "\n"


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


def difference(runs: Sequence[dict[str, Any]], name: str, draws: int = 10_000, against: str = AGAINST) -> str:
    """Mean over the seeds of the paired difference, images resampled: the interval is that of the test images."""
    each = [bits(r["right"]["vl-ltr"]) - bits(r["right"][against]) for r in runs]
    values = np.mean(each, axis=0)[mask(runs[0], name)]
    rng = np.random.default_rng(0)
    picks = [rng.choice(values, (500, len(values))).mean(1) for _ in range(draws // 500)]
    low, high = np.quantile(np.concatenate(picks), [0.025, 0.975])
    return f"{100 * values.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
