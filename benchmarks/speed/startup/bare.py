"""What the same thing costs without us: click alone, click with lancedb, open_clip alone."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.speed.harness import Arrays
from benchmarks.speed.startup import programs


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """The program's file and its arguments."""
    if values["what"] == "help":
        from vlltr_index.cli.commands import COMMANDS

        source = programs.HELP.format(names=list(COMMANDS))
        return values, [sys.executable, programs.script(source), "--help"]
    if values["what"] == "list":
        uri = programs.class_list(values["classes"]) / "lance"
        return values, [sys.executable, programs.script(programs.LIST), str(uri)]
    _, weights, image = programs.trained(values["model"])
    return values, [
        sys.executable,
        programs.script(programs.PREDICT),
        values["model"],
        str(weights),
        str(image),
    ]


def run(state: Any) -> Arrays:
    """Start it, wait for its end."""
    values, arguments = state
    took, out = programs.call(arguments)
    found = {"help": [1.0], "list": [len(out.splitlines())]}.get(values["what"])
    answer = programs.facts(found if found else [float(out.split()[-1])])
    return {"facts": answer, "_extra": took}
