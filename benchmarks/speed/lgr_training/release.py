"""The release's head in a training step."""

from __future__ import annotations

from typing import Any

from benchmarks.speed.harness import Arrays
from benchmarks.speed.lgr_common import ReleaseHead, images_of
from benchmarks.speed.lgr_training.step import Step


def prepare(inputs: Arrays, values: dict[str, Any]) -> Step:
    """Head, optimizer, batch."""
    head = ReleaseHead(inputs, values)
    return Step(head, lambda images: head(images), head.query_proj.weight, *images_of(inputs))


def run(state: Step) -> Arrays:
    """One step."""
    return state()
