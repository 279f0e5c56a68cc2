"""The bare products in chunks, thrown away: what any exact method has to pay at the least."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed.anss.common import tensors, wait
from benchmarks.speed.harness import Arrays

_ROWS = 1024


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """As they come."""
    texts, _, images, _ = tensors(inputs, values)
    columns = min(len(images), 65_536)
    return texts, images, torch.empty(_ROWS, columns, device=texts.device)


@torch.inference_mode()
def run(state: Any) -> Arrays:
    """Products into one buffer."""
    texts, images, buffer = state
    for start in range(0, len(texts), _ROWS):
        part = texts[start : start + _ROWS]
        for first in range(0, len(images), buffer.shape[1]):
            some = images[first : first + buffer.shape[1]]
            torch.mm(part, some.T, out=buffer[: len(part), : len(some)])
    wait()
    return {"last": buffer[:1, :8].double().cpu().numpy()}
