"""Wrong sentences among the right ones: what selection (AnSS) and attention leave of the text branch.

    python -m benchmarks noise run --workspace DIR

DIR is a finished workspace of the study long_tailed; it is not written to. Beside each right sentence of a class
stand 0, 1 or 3 of other classes. The class's anchors are chosen from all of them: by AnSS, as many at random, or all.
Attention is uniform, or that of the workspace's head, which was trained on its own anchors; each right or wrong
sentence has its AnSS loss. What is drawn is drawn anew in each of several draws.
"""

from __future__ import annotations

import logging
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.kept import keep, read, surroundings
from benchmarks.studies.workspaces import DATA, about, by_data
from benchmarks.study import Command, Study
from vlltr_index.anchors.anss import anchor_limits, score_sentences, select_anchors
from vlltr_index.anchors.selection import score_images
from vlltr_index.embedding.loading import image_set, image_vectors_of
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.pipelines.train_baseline import sentences_of
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions, cosine_logits

_log = logging.getLogger(__name__)
WRONG = (0, 1, 3)  # of other classes, for each right sentence
WAYS = ("AnSS", "random", "all")
ATTENTION = ("uniform", "trained")
DRAWS = 3
_BATCH = 256


def run(workspace: Path, draws: int = DRAWS) -> None:
    """Measure the ladder on one workspace."""
    opened = Workspace.open(workspace)
    snapshot = opened.snapshot()
    config = opened.recipe.select
    scorer = Model.open(snapshot)
    test = image_set(snapshot, "test")
    right = sentences_of(snapshot, scorer.class_ids)
    assert snapshot.commit.text_fp is not None
    name = sentence_vectors_name(snapshot.commit.text_fp)
    vectors = snapshot.store.vectors(name, "text_hash", right.hashes)
    chosen = score_images(snapshot, config)
    images = image_vectors_of(snapshot, chosen.ids)
    owners = class_positions(scorer.class_ids, chosen.class_ids)
    assert not bool(right.prompts.any()), "prompts would be chosen apart"
    ranked = torch.isin(right.labels, owners)
    limits = anchor_limits(right.labels, right.prompts, ranked, config.max_anchors, config.max_share)
    labels = class_positions(scorer.class_ids, test.class_ids)
    found: dict[str, list[float]] = {}
    for draw in range(draws):
        for wrong in WRONG:
            generator = torch.Generator().manual_seed(draw)
            text, classes = with_wrong(vectors, right.labels, wrong, generator)
            losses = score_sentences(text, classes, images, owners, snapshot.commit.logit_scale).loss
            for way in WAYS:
                kept = _kept(way, losses, classes, limits.repeat(1 + wrong), generator)
                bank = AnchorBank.build(
                    text[kept], classes[kept], torch.arange(len(scorer.class_ids)), losses[kept].float()
                )
                for attention in ATTENTION:
                    share = _accuracy(scorer.saved.head, bank, attention, test.features, labels)
                    found.setdefault(f"{wrong}, {way}, {attention}", []).append(round(share, 5))
                    _log.info("draw %d: %d, %s, %s: %.1f", draw, wrong, way, attention, 100 * share)
    result = {
        "accuracy": found,
        "recipe": opened.recipe.name,
        "seed": opened.recipe.lgr.seed,
        "images": len(labels),
        "sentences": len(right.labels),
        **surroundings(),
    }
    keep("noise", about(opened), result)


def with_wrong(
    vectors: Tensor, classes: Tensor, wrong: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The sentences, and beside each of them `wrong` others, drawn from all other classes.

    Args:
        vectors: Float [N_t, D].
        classes: Int64 [N_t].
        wrong: How many.
        generator: Of the draws.

    Returns:
        Vectors [(1 + wrong) N_t, D] and the class that each counts as.
    """
    order = classes.argsort(stable=True)
    counts = torch.bincount(classes)
    own = counts[classes]
    first = (counts.cumsum(0) - counts)[classes]
    parts = [vectors]
    owners = [classes]
    for _ in range(wrong):
        step = (torch.rand(len(classes), generator=generator) * (len(classes) - own)).long()
        parts.append(vectors[order[(first + own + step) % len(classes)]])
        owners.append(classes)
    return torch.cat(parts), torch.cat(owners)


def _kept(way: str, losses: Tensor, classes: Tensor, limits: Tensor, generator: torch.Generator) -> Tensor:
    """Places of the anchors: of each class those with the least losses, as many drawn ones, or all.

    Losses, classes and limits are [N]; a limit is the most anchors that the sentence's class may have.
    """
    if way == "all":
        return torch.arange(len(classes))
    if way == "random":
        losses = torch.rand(len(losses), generator=generator, dtype=losses.dtype)
    return select_anchors(losses, classes, torch.arange(len(losses)), limits).positions


@torch.inference_mode()
def _accuracy(head: LGRHead, bank: AnchorBank, attention: str, features: Tensor, labels: Tensor) -> float:
    """Top-1 of the text branch on features [N, D] of the classes int64 [N]."""
    uniform = attention == "uniform"
    best = torch.cat(
        [
            (cosine_logits(part, bank.prototypes()) if uniform else head.text_logits(part, bank)).argmax(1)
            for part in features.split(_BATCH)
        ]
    )
    return float((bank.class_ids[best] == labels).double().mean())


def parts() -> dict[str, str]:
    """Return the tables of the data sets that were measured."""
    found = read("noise")
    tables = {data: generated(found[data]) for data in DATA if data in found}
    return {"results/noise.md": by_data(tables)} if tables else {}


def generated(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    found: dict[str, Sequence[float]] = result["accuracy"]
    lines = [
        f"Top-1 of the text branch in per cent on {result['images']:,} test images; recipe `{result['recipe']}`, seed"
        f" {result['seed']}, {result['sentences']:,} right sentences; mean and standard deviation of"
        f" {len(next(iter(found.values())))} draws.",
        "",
        "| wrong sentences for each right one | attention | " + " | ".join(WAYS) + " |",
        "| --- | --- |" + " --- |" * len(WAYS),
    ]
    for wrong in WRONG:
        for attention in ATTENTION:
            cells = [_cell(found[f"{wrong}, {way}, {attention}"]) for way in WAYS]
            lines.append(f"| {wrong} | {attention} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(set(values)) > 1 else "")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=DRAWS)


STUDY = Study({"run": Command(run, _arguments)}, parts)
