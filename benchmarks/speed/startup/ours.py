"""The `vlltr` command."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.speed.harness import Arrays
from benchmarks.speed.startup import programs


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """The command's arguments, and what it is to agree on where its output does not say."""
    if values["what"] == "help":
        return values, [*programs.vlltr(), "--help"], [1.0]
    if values["what"] == "list":
        path = programs.class_list(values["classes"])
        return values, [*programs.vlltr(), "-w", str(path), "--json", "classes", "list"], None
    path, _, image = programs.trained(values["model"])
    from vlltr_index import Recognizer

    norm = float(Recognizer.open(path).features([image])[0].norm())
    return values, [*programs.vlltr(), "-w", str(path), "--json", "predict", str(image)], [norm]


def run(state: Any) -> Arrays:
    """Start it, wait for its end."""
    _, arguments, known = state
    took, out = programs.call(arguments)
    answer = known if known is not None else [float(len(json.loads(out)))]
    return {"facts": programs.facts(answer), "_extra": took}
