"""What the texts of a trained workspace are worth: other texts in their place after stage 1, and rules beside the head.

    python -m benchmarks text_controls run --workspace DIR

DIR is a finished workspace of the study long_tailed; it is copied, and not written to. Stage 1 saw each class's own
sentences in all rows: only what follows it (embed, select, train lgr) is done anew with the other texts.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kept import surroundings
from benchmarks.studies.long_tailed.table import BY_FAMILY
from benchmarks.studies.paired import BINS, METHOD, Runs, difference, keep_run, mean, read_runs
from benchmarks.studies.without_text import training_data, weighted_visual, with_rows_for_all
from benchmarks.studies.workspaces import (
    DATA,
    about,
    bits,
    by_data,
    dataset,
    decided,
    files_of,
    in_top5,
    permuted,
)
from benchmarks.study import Command, Study
from vlltr_index.anchors.selection import select
from vlltr_index.embedding.loading import image_set, usable_images
from vlltr_index.heads.fusion import fuse
from vlltr_index.heads.moments import class_sums
from vlltr_index.heads.plda import PLDA
from vlltr_index.pipelines.baseline_scores import score_baselines
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.pipelines.train_baseline import train_baseline
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.records import SentenceRecord
from vlltr_index.store.ingestion import sentence_rows
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions, unit_rows
from vlltr_index.train.stage_two import weigh
from vlltr_index.train.stage_two_data import StageTwoData

Texts = Mapping[str, list[str]]
RULES = ("zero-shot", "tip-adapter")
PRIOR_OFF = "text prior off"
BRANCH = ", text branch"
WAYS = ("no sentence", "own name replaced", "bare name", "another class's sentences", "random words")
ORDER = (METHOD, PRIOR_OFF, *RULES, *(f"{way}{end}" for way in WAYS for end in ("", BRANCH)))
_log = logging.getLogger(__name__)


def without_name(name: str, sentences: list[str]) -> list[str]:
    """The sentences with the class's name, in either number, replaced by `thing`."""
    lemma = re.compile(rf"\b{re.escape(name)}(s|es)?\b", re.IGNORECASE)
    return [lemma.sub("thing", sentence) for sentence in sentences]


def random_sentences(texts: Texts) -> dict[str, list[str]]:
    """Words drawn from all sentences, as often as they are there, in sentences of the same lengths."""
    words = [word for told in texts.values() for sentence in told for word in sentence.split()]
    draw = random.Random(0)
    return {
        name: [" ".join(draw.choices(words, k=len(s.split()))) for s in told] for name, told in texts.items()
    }


def ways(texts: Texts, permuted_texts: Texts) -> dict[str, Texts]:
    """The texts that stand in the place of a class's own, by the name of their row."""
    unnamed = {name: without_name(name, told) for name, told in texts.items()}
    bare = {name: [name] for name in texts}
    return dict(zip(WAYS, ({}, unnamed, bare, permuted_texts, random_sentences(texts)), strict=True))


def run(workspace: Path, wanted: Sequence[str] | None = None) -> None:
    """Measure rows on one workspace; those of `WAYS` that are not wanted stay as an earlier result has them."""
    started = time.monotonic()
    source = Workspace.open(workspace)
    rows = dict[str, Tensor]()
    weighed = dict[str, Any]()
    snapshot = source.snapshot()
    files = files_of(about(source))
    scorer = Model.open(snapshot)
    test = image_set(snapshot, "test")
    labels = class_positions(scorer.class_ids, test.class_ids)

    def add(name: str, scores: Tensor) -> None:
        rows[name] = scores
        right = float((scores.argmax(1) == labels).double().mean())
        _log.info("%6.0f s  %s: %.1f", time.monotonic() - started, name, 100 * right)

    add(METHOD, scorer.exhaustive(test.features).probabilities)
    assert scorer.saved.parts is not None
    weighed[METHOD] = decided(scorer.saved.parts)
    add(PRIOR_OFF, _prior_off(source, scorer, test.features))
    with tempfile.TemporaryDirectory() as folder:
        for name, scores in _rules(_copy(source, Path(folder) / "rules"), test.image_ids):
            add(name, scores)
        texts = json.loads(files.texts.read_text(encoding="utf-8"))
        swapped = json.loads(
            permuted(files.texts, Path(folder) / "permuted.json").read_text(encoding="utf-8")
        )
        for name, told in ways(texts, swapped).items():
            if name not in (wanted or WAYS):
                continue
            copy = _copy(source, Path(folder) / "told")
            other = _told(copy, told)
            shutil.rmtree(copy.path)
            said = other.exhaustive(test.features)
            assert other.saved.parts is not None
            weighed[name] = decided(other.saved.parts)
            add(name, said.probabilities)
            if told:
                add(f"{name}{BRANCH}", said.by_text)
    result = {
        "seed": source.recipe.lgr.seed,
        "recipe": source.recipe.name,
        "dataset": dataset(files),
        **surroundings(),
        "counts": training_counts(snapshot, scorer.class_ids)[labels].tolist(),
        "labels": labels.tolist(),
        "groups": usable_images(snapshot, "test", ["group"])["group"].to_pylist(),
        "right": {name: bits(scores.argmax(1) == labels) for name, scores in rows.items()},
        "top5": {name: bits(in_top5(scores, labels)) for name, scores in rows.items()},
        "decided": weighed,
    }
    keep_run("text_controls", f"{about(source)}/{source.recipe.lgr.seed}", result, stay=ORDER)


def _copy(source: Workspace, target: Path) -> Workspace:
    shutil.copytree(source.path, target, ignore=shutil.ignore_patterns("runs", "logs", "reports"))
    return Workspace.open(target)


def _told(workspace: Workspace, texts: Texts) -> Model:
    """The scorer after all steps behind stage 1 are done with other texts."""
    with workspace.transaction("replace sentences") as tx:
        ids = tx.class_table().lookup
        records = {ids(n): [SentenceRecord(n, s, "json") for s in told] for n, told in texts.items()}
        tx.replace("sentences", sentence_rows(records))
        tx.delete("anchors", "true")  # they are of the sentences before
    embed(workspace)
    select(workspace, workspace.recipe.select)
    train_lgr_stage(workspace, workspace.recipe.lgr)
    return Model.open(workspace.snapshot())


def _rules(workspace: Workspace, image_ids: list[str]) -> Iterator[tuple[str, Tensor]]:
    for name in RULES:
        train_baseline(workspace, name, workspace.recipe.baselines)
    for row, scores in score_baselines(workspace, workspace.snapshot(), "test", image_ids):
        if row.label in RULES:
            yield row.label, scores


class _Untold(StageTwoData):
    """Stage 2's data whose generative model learns nothing from text."""

    kernel = None

    @property
    def prototypes(self) -> Tensor:
        return torch.zeros(self.classes, self.features.shape[2])


def _prior_off(workspace: Workspace, scorer: Model, features: Tensor) -> Tensor:
    """Probabilities [N, C] with the text branch, and a generative model without text, weighed anew beside the head."""
    data = training_data(workspace, workspace.snapshot())
    places = class_positions(scorer.bank.class_ids, scorer.class_ids)
    data = replace(data, bank=scorer.bank, places=places)
    data = _Untold(**{field.name: getattr(data, field.name) for field in fields(data)})
    parts = weigh(data, with_rows_for_all(scorer)).parts
    assert parts is not None
    counts, sums = class_sums(unit_rows(data.features[0]), data.labels, data.classes, data.weights)
    model = PLDA(parts.shared, counts, sums, data.prototypes)
    with torch.inference_mode():
        likelihoods = model.log_likelihoods(unit_rows(features))
        image = weighted_visual(parts.weights, likelihoods, scorer.visual_logits(features), scorer.trained)
        text = torch.cat([scorer.text_logits(part) for part in features.split(512)])
        return fuse(image, text, parts.weights).probabilities


def parts() -> dict[str, str]:
    """Return the tables of the data sets that were measured."""
    runs = read_runs("text_controls")
    found = {data: [run for unit, run in runs.items() if unit.startswith(f"{data}/")] for data in DATA}
    tables = {data: generated(some) for data, some in found.items() if some}
    return {"results/text_controls.md": by_data(tables)} if tables else {}


def generated(runs: Runs) -> str:
    """The table as Markdown."""
    lines = [
        f"Top-1 in per cent, mean over the seeds; then {METHOD} less the row on few-shot classes, in points, with the"
        " 95 % interval over classes, and over families.",
        "",
        "| | seeds | "
        + " | ".join(BINS)
        + f" | {METHOD} less it, few | {BY_FAMILY} | weight of text | text_r2 |",
        "| --- |" + " --- |" * (len(BINS) + 5),
    ]
    for name in ORDER:
        having = [run for run in runs if name in run["right"]]
        if not having:
            continue
        cells = [", ".join(str(run["seed"]) for run in having)]
        cells += [f"{100 * np.mean([mean(run, name, b) for run in having]):.1f}" for b in BINS]
        gaps = [difference(having, "few", name, by=by) for by in ("labels", "groups")]
        cells += ["", ""] if name == METHOD else gaps
        for key in ("text", "text_r2"):
            found = [run["decided"][name][key] for run in having if name in run["decided"]]
            cells.append(f"{np.mean(found):.2g}" if found else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument(
        "--way", dest="wanted", choices=WAYS, action="append", help="these other texts alone; default: all"
    )


STUDY = Study({"run": Command(run, _arguments)}, parts)
