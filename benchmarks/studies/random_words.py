"""The random-words control of WaffleCLIP: how much of what sentences are worth is worth as many words without meaning.

Roth et al., "Waffling around for Performance: Visual Classification with Random Words and Broad Concepts", ICCV 2023.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vlltr_index.data.text import class_prompts
from vlltr_index.embedding.loading import image_set, open_encoder
from vlltr_index.evaluation.rules import class_means
from vlltr_index.heads.weighing import balanced_accuracy
from vlltr_index.pipelines.train_baseline import sentences_of
from vlltr_index.recognition.state import ModelState
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions, cosine_logits

__all__ = ["control", "waffle_noise", "waffle_text"]

SEEDS = 5


def control(workspace: Workspace, seed: int, features: Tensor) -> Iterator[tuple[str, Tensor, Tensor, str]]:
    """Label, class ids [C], scores [N, C] of features [N, D], and note of both rows.

    Each class has as many meaningless sentences as it has anchors, which are the other row by the same rule. Of `SEEDS`
    draws the one with the median accuracy on split val is taken.
    """
    snapshot = workspace.snapshot()
    encoder = open_encoder(snapshot).eval()
    bank = ModelState(snapshot).anchors.bank
    val = image_set(snapshot, "val")
    counts = bank.offsets.diff()
    known = class_positions(bank.class_ids, val.class_ids)
    seen = val.features[known >= 0]
    labels = known[known >= 0]
    words = sorted(
        {w for text in sentences_of(snapshot).texts for w in re.findall(r"[a-z]{3,}", text.lower())}
    )
    prompts = []
    recipe = workspace.recipe
    names = snapshot.class_table().names
    template = "a photo of a {}." if recipe.prompts == "clip" else (recipe.prompts or ("{}",))[0]
    for class_id in bank.class_ids.tolist():
        prompts.append(class_prompts(names[class_id], [template])[0].text)
    found = []
    for draw in range(SEEDS):
        noise = waffle_noise(words, int(counts.max()), seed * 1000 + draw)
        texts = [
            waffle_text(prompt, noise[n])
            for prompt, count in zip(prompts, counts.tolist(), strict=True)
            for n in range(count)
        ]
        owner = torch.arange(len(counts)).repeat_interleave(counts)
        weight = class_means(encoder.encode_texts(texts), owner, len(counts))
        found.append((balanced_accuracy(cosine_logits(seen, weight), labels), weight))
    found.sort(key=lambda pair: pair[0])
    scale, (low, high) = encoder.logit_scale, (found[0][0], found[-1][0])
    note = f"random words, the median of {SEEDS} seeds on val, where they range"
    note += f" from {100 * low:.1f} to {100 * high:.1f} %"
    yield "waffle", bank.class_ids, cosine_logits(features, found[SEEDS // 2][1], scale), note
    ours = class_means(bank.vectors, bank.class_of_row, len(counts))
    scores = cosine_logits(features, ours, scale)
    yield "waffle with our anchors", bank.class_ids, scores, "waffle's rule, our sentences"


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
