"""New classes: recognised among all, from text, from images, from both; and what old classes lose by it.

    python -m benchmarks new_classes run --workspace DIR --seed 0 --group dev
    python -m benchmarks new_classes frozen --dir runs --group dev              with --data icons_lt too
    python -m benchmarks new_classes oracle --dir runs --seed 0 --images 1      with --data icons_lt too

DIR is a finished workspace of the study long_tailed; it is copied, and not written to. `frozen` makes one without
stage 1: the shipped encoder, which saw neither old nor new classes. All classes of a group are added at once. The
oracle is a workspace of old and new classes together, both stages trained on all of them; a step of a workspace that is
done is not done again. The final group is for figures, the development group for choosing.

Rows of a method before in an earlier result of the same seed and group stay in the new one with their commit, and
beside them which images are right now if the offset is moved until the old classes lose as many as then.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.datasets.files import add_data, digest, files_of
from benchmarks.kept import keep, read, surroundings
from benchmarks.studies.new_classes.heldout import Group, drawn, read_group
from benchmarks.studies.new_classes.random_words import waffle_noise, waffle_text
from benchmarks.studies.new_classes.table import frozen_name, page
from benchmarks.studies.paired import pack, share
from benchmarks.studies.vectors import SHIPPED
from benchmarks.studies.workspaces import SPLITS, StepSeconds, about, bits, in_top5, made, seeded
from benchmarks.study import Command, Study, add_folder
from vlltr_index.classes import NewClass, add_classes
from vlltr_index.data.glyphs import GlyphFiles
from vlltr_index.embedding.loading import image_set, open_encoder
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.evaluation.rules import (
    TipCache,
    choose_tip,
    class_means,
    first_of_each_class,
    tip_logits,
)
from vlltr_index.pipelines.train_lgr import refit
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions, cosine_logits

DRAWS = 3
SHOTS = (1, 5)
ALPHAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)  # of Tip-Adapter, as BETAS; chosen on split val
BETAS = (1.0, 3.0, 5.5, 10.0, 20.0)
CACHE = 16  # images a class in its cache
Row = dict[str, str]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Old:
    """The workspace before anything is added, and its images."""

    workspace: Workspace
    scorer: Model
    test: Tensor
    test_owners: Tensor
    right: Tensor  # bool, which test images are

    @classmethod
    def load(cls, workspace: Workspace) -> Old:
        """Read a finished workspace."""
        snapshot = workspace.snapshot()
        scorer = Model.open(snapshot)
        test = image_set(snapshot, "test")
        best = scorer.class_ids[scorer.exhaustive(test.features).probabilities.argmax(1)]
        return cls(workspace, scorer, test.features, test.class_ids, best == test.class_ids)


def run(workspace: Path, seed: int, group: str) -> None:
    """Measure all rows for one group."""
    data = about(Workspace.open(workspace))
    _measure(workspace, data, f"{data}/{group}/{seed}", {"seed": seed, "group": group})


def frozen(data: str, folder: Path, group: str) -> None:
    """Measure all rows for one group beside the shipped encoder as it is."""
    files = files_of(data)
    path = folder / f"frozen-{data}"
    recipe = load_recipe("ours").model_copy(update={"name": f"{data}/frozen", "encoder": SHIPPED})
    seconds = StepSeconds(folder / f"seconds-frozen-{data}.json")
    made(path, recipe, files.texts, files.images, seconds, left_out=["train cvlp"])
    _measure(path, data, f"{frozen_name(data)}/{group}/0", {"seed": 0, "group": group})


def _measure(workspace: Path, name: str, unit: str, facts: Mapping[str, Any]) -> None:
    """Measure all rows for a group of a data set, and keep them."""
    started = time.monotonic()
    group = facts["group"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = _copy(workspace, folder / "base")
        data = files_of(name)
        earlier = _earlier(unit)
        old = Old.load(base)
        encoder = open_encoder(base.snapshot())
        new = read_group(data, group, encoder, folder / "support")
        rows: dict[str, Row] = {}
        for label, wanted, refitted in _conditions(new):
            lost = _lost(earlier["rows"][label], earlier) if label in earlier.get("rows", {}) else None
            rows[label] = _added(old, new, wanted, refitted, lost, folder)
            _log.info("%6.0f s  %s: %s", time.monotonic() - started, label, _percent(rows[label]))
        for label, row in _baselines(old, new, encoder):
            rows[label] = row
            _log.info("%6.0f s  %s: %s", time.monotonic() - started, label, _percent(row))
        result = {
            **facts,
            "recipe": base.recipe.name,
            "dataset": digest(data),
            **surroundings(),
            "labels": new.labels.tolist(),
            "old_images": len(old.test_owners),
            "old_before": int(old.right.sum()),
            "rows": {label: compact(row) for label, row in rows.items()},
            "before": earlier,
            "seconds": round(time.monotonic() - started, 1),
        }
    keep("new_classes", unit, result)


def compact(row: Row) -> dict[str, Any]:
    """Return a row with the new images that are right packed, and of the top five and old images the numbers alone."""
    kept: dict[str, Any] = {key: pack(row[key]) for key in ("right", "right_at_equal_loss") if key in row}
    return kept | {"top5": share(row["top5"]), "old": row["old"].count("1")}


def oracle(data: str, folder: Path, seed: int, images: int, group: str) -> None:
    """Train both stages on old and new classes together, `images` of each new one, and measure as `run` does."""
    files = files_of(data)
    name = f"oracle-{group}-{seed}-{images}"
    seconds = StepSeconds(folder / f"seconds-{name}.json")
    recipe = seeded(data, seed)
    texts, pictures = _together(files, group, images, folder / name)
    workspace = made(folder / name, recipe, texts, pictures, seconds, SPLITS)
    snapshot = workspace.snapshot()
    scorer = Model.open(snapshot)
    test = image_set(snapshot, "test")
    with tempfile.TemporaryDirectory() as support:
        new = read_group(files, group, open_encoder(snapshot), Path(support))
    row = _row(scorer, snapshot.class_table().lookup, new, test.features, test.class_ids)
    _log.info("%s: %s", name, _percent(row))
    facts = {"seed": seed, "group": group, "images": images, "dataset": digest(files)}
    facts |= {"recipe": recipe.name, "seconds": seconds.values, **surroundings()}
    kept = {**facts, "labels": new.labels.tolist(), "old_images": len(test.class_ids), "row": compact(row)}
    keep("new_classes", f"{data}/{name}", kept)


def _together(data: GlyphFiles, group_name: str, images: int, target: Path) -> tuple[Path, Path]:
    """Files of texts and images of all classes, the drawn support images in split train."""
    told = json.loads(data.texts.read_text(encoding="utf-8")) | data.heldout_classes(group_name)
    table = pq.read_table(data.images)
    split = table["split"].to_pylist()
    place = dict[str, list[int]]()
    for row, (which, label) in enumerate(zip(split, table["label"].to_pylist(), strict=True)):
        if which == f"{group_name}_support":
            place.setdefault(label, []).append(row)
    for label, rows in place.items():
        for at in drawn(label, len(rows), images, 0):
            split[rows[at]] = "train"
    table = table.set_column(table.column_names.index("split"), "split", pa.array(split))
    texts = target.with_suffix(".json")
    pictures = target.with_suffix(".parquet")
    texts.write_text(json.dumps(told), encoding="utf-8")
    pq.write_table(table.filter(pc.is_in(table["split"], pa.array(SPLITS))), pictures)
    return texts, pictures


def _earlier(unit: str) -> dict[str, Any]:
    """Return rows of the method before, from a result that is there already."""
    found: dict[str, Any] = read("new_classes").get(unit, {}).get("before", {})
    return found


def _lost(row: Mapping[str, Any], result: Mapping[str, Any]) -> int:
    """Return how many test images of old classes a kept row lost."""
    lost: int = result["old_before"] - row["old"]
    return lost


def _copy(source: Path, target: Path) -> Workspace:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("runs", "logs", "reports"))
    return Workspace.open(target)


def _percent(row: Row) -> str:
    new, top5, old = (100 * row[key].count("1") / len(row[key]) for key in ("right", "top5", "old"))
    return f"new {new:.1f}, top-5 {top5:.1f}, old {old:.1f}"


def _draws(shots: int) -> Iterator[tuple[int, str]]:
    """With five images there is one draw: they are all."""
    for draw in range(DRAWS if shots < 5 else 1):
        yield draw, f"{shots} image{'s' if shots > 1 else ''}, draw {draw}"


def _conditions(group: Group) -> Iterator[tuple[str, list[NewClass], bool]]:
    """Ways to add the classes: a name, what is known of each, and whether the head is trained again."""
    words = sorted({w for texts in group.texts.values() for t in texts for w in re.findall(r"[a-z]{3,}", t)})
    noise = waffle_noise(words, 28, seed=0)
    ways: dict[str, dict[str, list[str]]] = {
        "text": group.texts,
        "name": {n: [n] for n in group.names},
        "random words": {
            n: [n, *(waffle_text(f"a picture of the {n}.", words) for words in noise)] for n in group.names
        },
    }
    for label, texts in ways.items():
        yield label, [NewClass(n, tuple(texts[n])) for n in group.names], False
    for shots in SHOTS:
        for draw, label in _draws(shots):
            images = {
                n: tuple(files[i] for i in drawn(n, len(files), shots, draw))
                for n, files in group.files.items()
            }
            yield label, [NewClass(n, images=images[n]) for n in group.names], False
            both = [NewClass(n, tuple(group.texts[n]), images=images[n]) for n in group.names]
            yield f"text + {label}", both, False
    yield "text + 5 images, refit", both, True


def _added(
    old: Old, group: Group, wanted: list[NewClass], refitted: bool, lost: int | None, folder: Path
) -> Row:
    """Add the classes to a copy of the workspace, and score."""
    workspace = _copy(old.workspace.path, folder / "added")
    add_classes(workspace, wanted)
    if refitted:
        refit(workspace, workspace.recipe.lgr)
    snapshot = workspace.snapshot()
    scorer = Model.open(snapshot)
    lookup = snapshot.class_table().lookup
    shutil.rmtree(workspace.path)
    return _row(scorer, lookup, group, old.test, old.test_owners, lost)


def _row(
    scorer: Model,
    lookup: Callable[[str], int],
    group: Group,
    test: Tensor,
    owners: Tensor,
    lost: int | None = None,
) -> Row:
    """Which images of the group and of the old classes are right, as bits; `lost` as for `at_equal_loss`."""
    ids = torch.tensor([lookup(name) for name in group.names])
    labels = class_positions(scorer.class_ids, ids[group.labels])
    places = class_positions(scorer.class_ids, owners)
    new, old = (_scores(scorer, features) for features in (group.features, test))
    row = _bits_of(new, old, labels, places)
    if lost is not None:
        added = torch.isin(torch.arange(new.shape[1]), class_positions(scorer.class_ids, ids))
        row["right_at_equal_loss"] = bits(at_equal_loss(new, labels, old, places, added, lost))
    return row


def _scores(scorer: Model, features: Tensor) -> Tensor:
    """What probabilities are the softmax of, [N, C]."""
    fused = scorer.exhaustive(features)
    return fused.visual_part + fused.text_part


def at_equal_loss(
    new: Tensor, labels: Tensor, old: Tensor, owners: Tensor, added: Tensor, lost: int
) -> Tensor:
    """Which images of added classes are right once an offset on these lets so many images of the old ones be lost.

    Args:
        new: Float [N, C], scores of images of the added classes.
        labels: Int64 [N], their columns.
        old: Float [M, C], scores of images of the others.
        owners: Int64 [M], their columns.
        added: Bool [C].
        lost: How many of the M that were right without the added classes may be wrong.

    Returns:
        Bool [N].
    """
    others = ~added
    mine = added.nonzero()[:, 0]
    right = others.nonzero()[:, 0][old[:, others].argmax(1)] == owners
    room = (old[:, others].amax(1) - old[:, added].amax(1))[right].sort().values
    offset = room[lost] if lost < len(room) else torch.inf
    needed = new[:, others].amax(1) - new[:, added].amax(1)
    return (needed < offset) & (mine[new[:, added].argmax(1)] == labels)


def _bits_of(new: Tensor, old: Tensor, labels: Tensor, owners: Tensor) -> Row:
    return {
        "right": bits(new.argmax(1) == labels),
        "top5": bits(in_top5(new, labels)),
        "old": bits(old.argmax(1) == owners),
    }


def _baselines(old: Old, group: Group, encoder: Encoder) -> Iterator[tuple[str, Row]]:
    """Ways without the head, over old and new classes together: the new ones come last."""
    classes = len(old.scorer.class_ids)
    owners = class_positions(old.scorer.class_ids, old.test_owners)
    prototypes = torch.cat([_text_means(old), _new_text_means(old, group, encoder)])
    scale = old.scorer.saved.head.logit_scale.item()

    def row(score: Callable[[Tensor], Tensor]) -> Row:
        return _bits_of(score(group.features), score(old.test), group.labels + classes, owners)

    yield "text prototypes", row(lambda f: cosine_logits(f, prototypes))
    train = image_set(old.workspace.snapshot(), "train")
    places = class_positions(old.scorer.class_ids, train.class_ids)
    first = first_of_each_class(places, CACHE)
    val = image_set(old.workspace.snapshot(), "val")
    own = TipCache(train.features[first], places[first], prototypes[:classes], scale)
    (alpha, beta), _ = choose_tip(
        val.features, class_positions(old.scorer.class_ids, val.class_ids), own, ALPHAS, BETAS
    )
    for shots in SHOTS:
        for draw, label in _draws(shots):
            some = [group.support[n][drawn(n, len(group.support[n]), shots, draw)] for n in group.names]
            owner = torch.arange(len(some)).repeat_interleave(torch.tensor([len(s) for s in some])) + classes
            cache = TipCache(torch.cat([own.keys, *some]), torch.cat([own.labels, owner]), prototypes, scale)
            yield f"Tip-Adapter, {label}", row(partial(tip_logits, cache=cache, alpha=alpha, beta=beta))


def _text_means(old: Old) -> Tensor:
    """Mean of all sentences of each old class, [C, D]."""
    snapshot = old.workspace.snapshot()
    rows = snapshot.table("sentences", ["class_id", "text_hash"])
    name = sentence_vectors_name(old.scorer.saved.text_fp)
    vectors = snapshot.store.vectors(name, "text_hash", rows["text_hash"].to_pylist())
    owner = class_positions(old.scorer.class_ids, torch.tensor(rows["class_id"].to_pylist()))
    return class_means(vectors, owner, len(old.scorer.class_ids))


def _new_text_means(old: Old, group: Group, encoder: Encoder) -> Tensor:
    means = []
    for name in group.names:
        vectors = encoder.encode_texts(encoder.tokenize(group.texts[name]))
        means.append(class_means(vectors, torch.zeros(len(vectors), dtype=torch.int64), 1))
    return torch.cat(means)


def _run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--group", choices=("dev", "final"), required=True)


def _frozen_arguments(parser: ArgumentParser) -> None:
    add_folder(parser)
    parser.add_argument("--group", choices=("dev", "final"), required=True)
    add_data(parser)


def _oracle_arguments(parser: ArgumentParser) -> None:
    add_folder(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, choices=SHOTS, required=True)
    parser.add_argument("--group", choices=("dev", "final"), default="final")
    add_data(parser)


STUDY = Study(
    {"results/new_classes.md": page},
    commands={
        "run": Command(run, _run_arguments),
        "frozen": Command(frozen, _frozen_arguments),
        "oracle": Command(oracle, _oracle_arguments),
    },
)
