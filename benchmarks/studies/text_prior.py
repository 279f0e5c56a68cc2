"""Later classes beside a tower that never saw them: what texts tell the generative model, by each way to read them.

    python -m benchmarks text_prior run --text OWNER/NAME@COMMIT       or a folder; without it none is tried
    python -m benchmarks text_prior table

The shipped encoder as it is, on all training images of Glyphs-LT and of Icons-LT; no head is trained. The classes of a
group are added at once, each known by its text, by images, or both, and an offset on them, the same for all, lets the
old classes lose one point. Texts are read by a linear map of their vectors alone, or also by their likeness to other
classes' texts, as vectors and words tell it, or a sentence-embedding model (`prior.text`) beside them; and by words, or
words and that model, as where the encoder has no text tower and the vectors are zeros. Permuted texts and no texts are
the controls. The development group was used to choose, the final one for nothing.
"""

from __future__ import annotations

import json
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.kept import keep, read, surroundings
from benchmarks.studies.heldout import Group, drawn, features_of, read_group
from benchmarks.studies.new_classes import at_equal_loss
from benchmarks.studies.paired import clustered_interval
from benchmarks.studies.rejections import SHIPPED
from benchmarks.studies.workspaces import GLYPHS, ICONS, NAMES, dataset, files_of
from benchmarks.study import Command, Study
from vlltr_index.data.glyphs import GlyphFiles
from vlltr_index.data.words import number_words
from vlltr_index.embedding.loading import recipe_encoder
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.sentence_model import SentenceModel
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.moments import Moments
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import fit_model, predict
from vlltr_index.heads.text_prior import TextKernel, class_features
from vlltr_index.tensors import unit_rows

DATA = (GLYPHS, ICONS)
GROUPS = ("dev", "final")
LINEAR, KERNEL, READ, PERMUTED, NONE = (
    "vectors",
    "vectors and likeness",
    "the same and a sentence model",
    "likeness, texts of other classes",
    "no text",
)
WORDS, WORDS_READ, WORDS_PERMUTED = (
    "no text tower: words",
    "no text tower: words and a sentence model",
    "no text tower: words, texts of other classes",
)
TOWERLESS = (WORDS, WORDS_READ, WORDS_PERMUTED)
READINGS = (LINEAR, KERNEL, READ, PERMUTED, *TOWERLESS, NONE)
SHOTS = (0, 1, 5)
LOST = 0.01
_SENTENCES = 16  # a class: the first


@dataclass(frozen=True, eq=False)
class Old:
    """The training images and test images of the old classes, and their texts."""

    moments: Moments
    bank: AnchorBank
    test: Tensor
    owners: Tensor


def add_arguments(parser: ArgumentParser) -> None:
    """Add `--text`."""
    parser.add_argument("--text", help="a sentence-embedding model, as prior.text names it")


def run(text: str | None) -> None:
    """Measure the groups that are not measured yet."""
    reader = SentenceModel(text) if text else None
    encoder = recipe_encoder(SHIPPED).eval()
    for data in DATA:
        files = files_of(data)
        units = [f"{data}-{group}" for group in GROUPS]
        if all(unit in read("text_prior") for unit in units):
            continue
        old = _old(files, encoder, reader)
        for group, unit in zip(GROUPS, units, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                new = read_group(files, group, encoder, Path(folder))
            result = {"dataset": dataset(files), "labels": new.labels.tolist(), **surroundings()}
            result["reader"] = reader and reader.fingerprint
            keep("text_prior", unit, result | measured(old, new, encoder, reader))


def measured(old: Old, new: Group, encoder: Encoder, reader: SentenceModel | None) -> dict[str, Any]:
    """Which images of the new classes are right, by each reading and number of images; and old ones before."""
    whole = old.bank, bank_of([new.texts[name] for name in new.names], encoder, reader)
    blank = [replace(bank, vectors=torch.zeros_like(bank.vectors)) for bank in whole]
    order = torch.randperm(whole[1].num_classes, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {"rows": {}, "old": {}, "r2": {}}
    for reading in READINGS:
        read_too = reading in (READ, WORDS_READ)
        if read_too and reader is None:
            continue
        known, late = blank if reading in TOWERLESS else whole
        by = None if reading in (LINEAR, NONE) else TextKernel.of(known, with_readings=read_too)
        texts, told = class_features(known, by), class_features(late, by)
        if reading == NONE:
            texts, told = torch.zeros_like(texts), torch.zeros_like(told)
        if reading in (PERMUTED, WORDS_PERMUTED):
            told = told[order]
        fitted = fit_model(old.moments, texts, kernel=by)
        found["r2"][reading] = round(fitted.shared.text_r2, 4)
        before = fitted.log_likelihoods(old.test)
        found["old"][reading] = round(float((before.argmax(1) == old.owners).double().mean()), 5)
        for shots in SHOTS:
            found["rows"][f"{reading}, {shots}"] = _added(old, new, fitted, told, shots)
    return found


def _added(old: Old, new: Group, fitted: PLDA, told: Tensor, shots: int) -> list[int]:
    """Which images of the new classes are right, 0 or 1 each, where the old ones lose a point to them."""
    counts = torch.zeros(len(new.names), dtype=torch.int64)
    sums = torch.zeros(len(new.names), old.test.shape[1], dtype=torch.float64)
    for number, name in enumerate(new.names):
        there = drawn(name, len(new.support[name]), shots, 0)
        counts[number] = len(there)
        sums[number] = unit_rows(new.support[name][there]).double().sum(0)
    later = PLDA(fitted.shared, counts, sums, predict(fitted.shared, told))
    images = unit_rows(new.features)
    of_new = torch.cat([fitted.log_likelihoods(images), later.log_likelihoods(images)], 1)
    of_old = torch.cat([fitted.log_likelihoods(old.test), later.log_likelihoods(old.test)], 1)
    added = torch.arange(of_new.shape[1]) >= len(fitted.counts)
    lost = int(LOST * len(old.test))
    right = at_equal_loss(of_new, new.labels + len(fitted.counts), of_old, old.owners, added, lost)
    return right.int().tolist()


def bank_of(texts: list[list[str]], encoder: Encoder, reader: SentenceModel | None = None) -> AnchorBank:
    """Return the first sentences of each class as anchors."""
    told = [(number, text) for number, some in enumerate(texts) for text in some[:_SENTENCES]]
    vectors = encoder.encode_texts([text for _, text in told])
    words = number_words([text for _, text in told])
    owner = torch.tensor([number for number, _ in told])
    bank = AnchorBank.build(vectors, owner, list(range(len(texts))), words=words)
    return replace(bank, readings=reader and reader.encode([text for _, text in told]))


def _old(files: GlyphFiles, encoder: Encoder, reader: SentenceModel | None) -> Old:
    """Read the classes that have training images."""
    rows = pq.read_table(files.images, columns=["image", "label", "split"]).to_pylist()
    train, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    names = sorted({row["label"] for row in train})
    place = {name: number for number, name in enumerate(names)}
    features, asked = (
        unit_rows(features_of(encoder, [row["image"] for row in some])) for some in (train, test)
    )
    labels, owners = (torch.tensor([place[row["label"]] for row in some]) for some in (train, test))
    moments = Moments.of(features[None], labels, torch.arange(len(labels)), len(names))
    told = json.loads(files.texts.read_text(encoding="utf-8"))
    return Old(moments, bank_of([told[name] for name in names], encoder, reader), asked, owners)


def parts() -> Mapping[str, str]:
    """A table a data set and group."""
    kept = read("text_prior")
    lines = list[str]()
    for data in DATA:
        for group in GROUPS:
            if f"{data}-{group}" in kept:
                lines += _table(data, group, kept[f"{data}-{group}"])
    return {"results/text_prior.md": "\n".join(lines) + "\n"} if lines else {}


def _table(data: str, group: str, kept: Mapping[str, Any]) -> list[str]:
    """Rows of the readings: right among all classes, and the paired gain over vectors, or over likeness."""
    labels = np.array(kept["labels"])
    lines = [
        f"## {NAMES[data]}, {'classes to choose by' if group == 'dev' else 'final classes'}",
        "",
        f"{len(set(kept['labels']))} classes added, {len(labels)} images; data set `{kept['dataset'][:16]}`.",
        "",
        "| texts are read by | R^2 | old classes before | text | text + 1 image | text + 5 images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for reading in (one for one in READINGS if one in kept["r2"]):
        base = {READ: KERNEL, WORDS_READ: WORDS, WORDS: KERNEL}.get(reading, LINEAR)
        cells = [reading, f"{100 * kept['r2'][reading]:.0f} %", f"{100 * kept['old'][reading]:.1f}"]
        for shots in SHOTS:
            right, plain = (np.array(kept["rows"][f"{one}, {shots}"], float) for one in (reading, base))
            cell = f"{100 * right.mean():.1f}"
            if reading != LINEAR:
                low, high = clustered_interval(right - plain, labels)
                cell += f" ({100 * (right - plain).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


STUDY = Study({"run": Command(run, add_arguments)}, parts)
