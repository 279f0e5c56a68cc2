"""The page of the kept results of `python -m benchmarks speed run`, and one plot a question."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.kept import read
from benchmarks.speed.peak import least_seconds

Cases = Mapping[str, Any]
"""What was measured of a question, by the name of the case."""


def page(found: Mapping[str, Cases]) -> str:
    """Return the machines and commits, then all questions, as Markdown."""
    machines = list(dict.fromkeys(_machine(case) for cases in found.values() for case in cases.values()))
    lines = ["Machines:", "", *(f"{n}. {machine}" for n, machine in enumerate(machines, 1)), ""]
    lines += [_commits(found), ""]
    for question, kept in found.items():
        module = importlib.import_module(f"benchmarks.speed.{question}")
        title, _, about = (module.__doc__ or "").strip().partition("\n")
        cases = [kept[case.name] for case in module.CASES if case.name in kept]
        lines += [f"## {title}", "", " ".join(about.split()), ""]
        lines += [f"![{_ALT.get(question, _USUAL)}](plots/speed-{question}.svg)", ""]
        lines += (
            module.part(kept) if hasattr(module, "part") else [*table(cases, module), *goals(cases, module)]
        )
        lines += _changes(cases, module)
        lines += [f"`{question}`: {_where(cases, machines)}", ""]
    return "\n".join(lines)


def _commits(found: Mapping[str, Cases]) -> str:
    """Return the commits that figures are of, each with its questions."""
    questions: dict[str, list[str]] = {}
    for question, cases in found.items():
        for commit in dict.fromkeys(case["commit"] for case in cases.values()):
            questions.setdefault(commit, []).append(f"`{question}`")
    note = " A +: with changes that are in no commit." * any(one.endswith("+") for one in questions)
    if len(questions) == 1:
        return f"All figures are of commit {next(iter(questions))}.{note}"
    told = (f"{commit} ({', '.join(names)})" for commit, names in questions.items())
    return f"Figures are of several commits: {', '.join(told)}.{note}"


_NOTICED = 1.1  # times slower or faster


def beside_reference(module: ModuleType, case: dict[str, Any]) -> float | None:
    """Return the product's time over that of the question's first program; None where that was not measured."""
    first = module.COMPETITORS[0]
    ours = module.COMPETITORS[-1]
    if first == ours or first not in case["rows"]:
        return None
    key = "cpu_median" if _by_processor(case) else "median"
    return float(case["rows"][ours][key] / case["rows"][first][key])


def _changes(cases: list[dict[str, Any]], module: ModuleType) -> list[str]:
    """A line for each size at which the product has become slower or faster, beside the question's first program."""
    lines = []
    for case in cases:
        share = beside_reference(module, case)
        if share is None or "before" not in case:
            continue
        times = share / case["before"]["share"]
        if max(times, 1 / times) > _NOTICED:
            how = f"slower by {times - 1:.0%}" if times > 1 else f"faster by {1 / times - 1:.0%}"
            beside = module.COMPETITORS[0].replace("_", " ")
            lines.append(
                f"- {how} than on commit {case['before']['commit']}, beside {beside}: {case['case']}"
            )
    return [*lines, ""] if lines else []


_USUAL = "seconds of each program"
_ALT = {"growth": "cost of each step against size, both logarithmic"}


def table(cases: list[dict[str, Any]], module: ModuleType) -> list[str]:
    """All sizes of a question as one Markdown table; below it what was left out."""
    extras = sorted({k for case in cases for row in case["rows"].values() for k in row} - _KNOWN)
    heads = ["size", "program", "s", "x ours", "MiB"]
    heads += [k.replace("_", " ") for k in extras]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    left_out = []
    for case in cases:
        key = "cpu_median" if _by_processor(case) else "median"
        size = case["case"]
        ours = case["rows"][module.COMPETITORS[-1]][key]
        for name in (n for n in module.COMPETITORS if n in case["rows"]):
            row = case["rows"][name]
            label = name.replace("_", " ") + (f" ({row['kind']})" if name == "ours" and "kind" in row else "")
            part = f" \\*1/{1 / row['portion']:,.0f}" if row["portion"] < 1 else ""
            cells = [size, label, _number(row[key]) + part, f"{row[key] / ours:.2f}"]
            cells.append(f"{row['resident_mib']:.0f}+{row['peak_extra_mib']:.0f}")
            cells += [_number(row[k]) if k in row else "" for k in extras]
            lines.append("| " + " | ".join(cells) + " |")
            size = ""
        if case["skipped"]:
            told = "; ".join(f"{n.replace('_', ' ')} ({why})" for n, why in case["skipped"].items())
            left_out.append(f"- left out, {case['case']}: {told}")
    return [*lines, "", *left_out]


def goals(cases: list[dict[str, Any]], module: ModuleType) -> list[str]:
    """A line a goal: what was found at each size, in the table's order; below them what bounds the task at all."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for case in cases:
        given = [case["values"], case["rows"], case["machine"]["gpu"] is not None]
        if "found" in inspect.signature(module.goals).parameters:
            given.append(case["agreement"])
        for goal in module.goals(*given):
            shown = _number(goal.found) + " \\*" * goal.extrapolated + " **missed**" * (not goal.met)
            found.setdefault(goal.what, {})[case["case"]] = (goal.wanted, shown)
    lines = []
    for what, by_size in found.items():
        wanted = list(dict.fromkeys(value[0] for value in by_size.values()))
        told = [shown + (f" ({one})" if len(wanted) > 1 else "") for one, shown in by_size.values()]
        if len(by_size) < len(cases):
            told = [f"{value} at {size}" for size, value in zip(by_size, told, strict=True)]
        lines.append(f"- {what}{f', {wanted[0]}' if len(wanted) == 1 else ''}: {', '.join(told)}")
    bounds = [bound for case in cases if (bound := _bound(case, module))]
    if bounds:
        what = module.least(cases[0]["values"]).what
        lines.append(f"- bound ({what}): {', '.join(_number(bound) for bound in bounds)} s")
    return [*lines, ""]


def _bound(case: dict[str, Any], module: ModuleType) -> float:
    """Seconds that operations or bytes take at the measured rates, the larger; 0 where that was not measured."""
    peaks = read("peak")
    cpu = case["machine"]["cpu"]
    if not hasattr(module, "least") or not _by_processor(case) or cpu not in peaks:
        return 0.0
    return max(least_seconds(module.least(case["values"]), peaks[cpu]))


def _by_processor(case: dict[str, Any]) -> bool:
    """Whether seconds are of the processor: every row has them, and no GPU worked."""
    return case["machine"]["gpu"] is None and all("cpu_median" in row for row in case["rows"].values())


_KNOWN = {
    "seconds",
    "median",
    "cpu_median",
    "each",
    "kind",
    "one_image_s",
    "portion",
    "prepare_seconds",
    "resident_mib",
    "rows",
    "peak_extra_mib",
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _machine(case: dict[str, Any]) -> str:
    m = case["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items() if k != "vlltr-index")
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['threads']} thread a program, {m['memory_gib']:.0f} GiB, "
        f"{m['gpu'] or 'no GPU'}; {versions}"
    )


def _where(cases: list[dict[str, Any]], machines: list[str]) -> str:
    """The machine and the commit of each size, with the least and the largest load."""
    parts = []
    for machine, commit in dict.fromkeys((_machine(case), case["commit"]) for case in cases):
        here = [case for case in cases if (_machine(case), case["commit"]) == (machine, commit)]
        sizes = f" ({', '.join(case['case'] for case in here)})" if len(here) < len(cases) else ""
        loads = sorted({case["machine"]["load"] for case in here})
        load = " to ".join(f"{x:g}" for x in (loads[0], loads[-1])[: len(loads)])
        parts.append(f"machine {machines.index(machine) + 1}{sizes}, commit {commit}, load {load}")
    return f"{'; '.join(parts)}."


def _seconds(rows: dict[str, Any], name: str) -> float:
    """Processor seconds where all rows have them."""
    every = all("cpu_median" in row for row in rows.values())
    return float(rows[name]["cpu_median" if every else "median"])


def plot(question: str, kept: Cases, path: Path) -> None:
    """Draw the median seconds of every competitor at every size, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "vlltr"
    from matplotlib import pyplot

    module = importlib.import_module(f"benchmarks.speed.{question}")
    if hasattr(module, "draw"):
        module.draw(kept, path)
        return
    cases = [c.name for c in module.CASES if c.name in kept]
    names = [n for n in module.COMPETITORS if any(n in kept[c]["rows"] for c in cases)]
    height = 0.28 * sum(len(kept[c]["rows"]) for c in cases) + 0.5 * len(cases) + 0.8
    figure, axis = pyplot.subplots(figsize=(8, height), layout="constrained")
    place = 0.0
    ticks = []
    labels = []
    hatches = ("", "//", "..", "xx", "\\\\", "--", "++", "oo")
    for case in cases:
        rows = kept[case]["rows"]
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
