"""The random-words control of WaffleCLIP: how much of what sentences are worth is worth as many words without meaning.

Roth et al., "Waffling around for Performance: Visual Classification with Random Words and Broad Concepts", ICCV 2023.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

__all__ = ["waffle_noise", "waffle_text"]


def waffle_noise(words: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` meaningless descriptors: two words at a time, and the same with random letters, in turn.

    They are the same for every class, as in WaffleCLIP: only the name tells.

    Args:
        words: What random words are drawn from; with none, all are letters.
        count: How many.
        seed: Of the draw.
    """
    draw = random.Random(seed)
    noise = []
    for number in range(count):
        if words and number % 2 == 0:
            pair = [draw.choice(words) for _ in range(2)]
            noise.append(" ".join(pair))
        else:
            lengths = [len(draw.choice(words)) if words else draw.randint(4, 8) for _ in range(2)]
            noise.append(" ".join("".join(draw.choices(string.ascii_lowercase, k=n)) for n in lengths))
    return noise


def waffle_text(prompt: str, noise: str) -> str:
    """`a photo of a tench, which has NOISE.` of the prompt `a photo of a tench.`"""
    return f"{prompt.rstrip('. ')}, which has {noise}."
