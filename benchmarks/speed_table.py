"""docs/benchmarks.md from the committed results of `python -m benchmarks run`, with one plot a question."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.peak import least_seconds

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
MARKS = ("<!-- generated: python -m benchmarks table -->", "<!-- end of the generated part -->")


def write() -> None:
    """Write the generated part of the page, and the plots beside it."""
    results = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("speed-*.json"))]
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    PAGE.write_text(f"{head}{MARKS[0]}\n\n{page(results)}\n{MARKS[1]}{tail}", encoding="utf-8")
    for result in results:
        plot(result, ROOT / "docs" / "plots" / f"speed-{result['question']}.svg")


def page(results: list[dict[str, Any]]) -> str:
    """All questions as Markdown."""
    lines: list[str] = []
    for result in results:
        module = importlib.import_module(f"benchmarks.{result['question']}")
        title, _, goals = (module.__doc__ or "").strip().partition("\n")
        lines += [f"## {title}", "", " ".join(goals.split()), ""]
        lines += [f"`python -m benchmarks run {result['question']}`", ""]
        lines += [f"![{_ALT.get(result['question'], _USUAL)}](plots/speed-{result['question']}.svg)", ""]
        if hasattr(module, "part"):
            lines += [*module.part(result), _machine(next(iter(result["cases"].values()))), ""]
            continue
        for case in module.CASES:
            if case.name in result["cases"]:
                lines += table(result["cases"][case.name], module.COMPETITORS, module)
    return "\n".join(lines)


_USUAL = "median time of each competitor"
_ALT = {"growth": "cost of each step against size, both logarithmic"}


def table(case: dict[str, Any], order: tuple[str, ...], module: ModuleType) -> list[str]:
    """One size as a Markdown table, with what it was measured on below it."""
    key = "cpu_median" if _by_processor(case) else "median"
    ours = case["rows"][order[-1]][key]
    extras = sorted({k for row in case["rows"].values() for k in row} - _KNOWN)
    shown = [k for k in extras if k != "kind"]
    lines = [f"### {case['case']}", ""]
    heads = ["", "median s", "least to most", "processor s", "x ours", "peak extra MiB", "resident MiB"]
    heads += [k.replace("_", " ") for k in shown]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name in order:
        if name not in case["rows"]:
            continue
        row = case["rows"][name]
        star = " *" if row["portion"] < 1 else ""
        label = name.replace("_", " ") + (f" ({row['kind']})" if name == "ours" and "kind" in row else "")
        cells = [
            label,
            _number(row["median"]) + star,
            f"{_number(min(row['seconds']))} to {_number(max(row['seconds']))}"
            if len(row["seconds"]) > 1
            else "one run",
            _number(row["cpu_median"]) + star if "cpu_median" in row else "",
            f"{row[key] / ours:.2f}",
            f"{row['peak_extra_mib']:.0f}",
            f"{row['resident_mib']:.0f}",
        ]
        cells += [_number(row[k]) if k in row else "" for k in shown]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    parts = {n: r["portion"] for n, r in case["rows"].items() if r["portion"] < 1}
    if parts:
        told = ", ".join(f"{n.replace('_', ' ')} 1/{1 / p:,.0f}" for n, p in parts.items())
        lines += [f"\\* extrapolated from a part of the work: {told}.", ""]
    for name, why in case["skipped"].items():
        lines += [f"Left out: {name.replace('_', ' ')}, {why}.", ""]
    lines += goals(case, module)
    told = [_agreement(case["agreement"])] if case["agreement"] else ["The answers cannot be compared."]
    return [*lines, *told, "", _machine(case), ""]


def goals(case: dict[str, Any], module: ModuleType) -> list[str]:
    """Each goal, what was found, whether that is good enough; below it what bounds the task at all."""
    given = [case["values"], case["rows"], case["machine"]["gpu"] is not None]
    if "found" in inspect.signature(module.goals).parameters:
        given.append(case["agreement"])
    lines = []
    for goal in module.goals(*given):
        star = " \\*" if goal.extrapolated else ""
        lines.append(
            f"- {goal.what}: {goal.wanted}; found {_number(goal.found)}{star}: {'met' if goal.met else '**missed**'}"
        )
    return [*lines, "", *bound(case, module)]


def bound(case: dict[str, Any], module: ModuleType) -> list[str]:
    """Operations over the measured peak, bytes over the measured bandwidth, and ours: all by processor time."""
    if not hasattr(module, "least"):
        return []
    if not _by_processor(case):
        return [
            "No bound: processor time was not taken, and wall time on a shared machine cannot be held against one.",
            "",
        ]
    peaks, cpu = json.loads((RESULTS / "peak.json").read_text(encoding="utf-8")), case["machine"]["cpu"]
    if cpu not in peaks:
        return [f"No bound: the peak of {cpu} was not measured.", ""]
    work, peak = module.least(case["values"]), peaks[cpu]
    operations, memory = least_seconds(work, peak)
    parts = [
        f"{work.operations / 1e9:,.1f} GFLOP at {peak['gemm_gflops']:.0f} GFLOP/s: {_number(operations)} s"
    ]
    parts.append(f"{work.bytes / 2**20:,.0f} MiB at {peak['read_gib_s']:.1f} GiB/s: {_number(memory)} s")
    kept = parts if work.operations else parts[1:]
    took = _number(case["rows"][module.COMPETITORS[-1]]["cpu_median"])
    return [f"Bound ({work.what}): {'; '.join(kept)}. Ours took {took} s.", ""]


def _by_processor(case: dict[str, Any]) -> bool:
    """Whether ratios go by processor time: every row has it, and no GPU worked."""
    return case["machine"]["gpu"] is None and all("cpu_median" in row for row in case["rows"].values())


_KNOWN = {
    "seconds",
    "median",
    "cpu_median",
    "each",
    "portion",
    "prepare_seconds",
    "resident_mib",
    "peak_extra_mib",
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _agreement(found: dict[str, Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{k} {v:.4g}" for k, v in value.items())
        return f"{value:.2g}"

    return "Agreement: " + "; ".join(f"{k.replace('_', ' ')}: {one(v)}" for k, v in found.items()) + "."


def _machine(case: dict[str, Any]) -> str:
    m = case["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items() if k != "vlltr-index")
    load = f" (load {m['load']})" if "load" in m else ""
    turns = "in turns" if case["in_turns"] else "one after the other, for memory"
    gpu = m["gpu"] or "no GPU"
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads{load}, {m['memory_gib']:.0f} GiB, {gpu}; "
        f"{versions}; competitors ran {turns}."
    )


def _seconds(rows: dict[str, Any], name: str) -> float:
    """Processor seconds where all rows have them."""
    every = all("cpu_median" in row for row in rows.values())
    return float(rows[name]["cpu_median" if every else "median"])


def plot(result: dict[str, Any], path: Path) -> None:
    """Median seconds of every competitor at every size, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "vlltr"
    from matplotlib import pyplot

    module = importlib.import_module(f"benchmarks.{result['question']}")
    if hasattr(module, "draw"):
        module.draw(result, path)
        return
    cases = [c.name for c in module.CASES if c.name in result["cases"]]
    names = [n for n in module.COMPETITORS if any(n in result["cases"][c]["rows"] for c in cases)]
    height = 0.28 * sum(len(result["cases"][c]["rows"]) for c in cases) + 0.5 * len(cases) + 0.8
    figure, axis = pyplot.subplots(figsize=(8, height), layout="constrained")
    place, ticks, labels = 0.0, [], []
    hatches = ("", "//", "..", "xx", "\\\\", "--", "++", "oo")
    for case in cases:
        rows = result["cases"][case]["rows"]
        axis.text(
            0.0, place - 0.15, f" {case}", transform=axis.get_yaxis_transform(), fontsize=9, weight="bold"
        )
        place += 0.7
        for name in names:
            if name not in rows:
                continue
            colour = "#0b5394" if name == "ours" else "#bdbdbd"
            hatch = hatches[names.index(name) % len(hatches)] if name != "ours" else ""
            axis.barh(
                place, _seconds(rows, name), color=colour, hatch=hatch, edgecolor="#333333", linewidth=0.5
            )
            star = " *" if rows[name]["portion"] < 1 else ""
            axis.text(
                _seconds(rows, name),
                place,
                f" {_number(_seconds(rows, name))} s{star}",
                va="center",
                fontsize=8,
            )
            ticks.append(place)
            labels.append(name.replace("_", " "))
            place += 1
        place += 0.5
    axis.set_xscale("log")
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.set_ylim(place - 0.5, -0.8)
    axis.margins(x=0.15)
    axis.set_xlabel("seconds, of the processor where they were taken; median (* extrapolated)")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
