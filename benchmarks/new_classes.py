"""New classes on Glyphs-LT: recognised among all, from text, from images, from both; and what old classes lose by it.

    python -m benchmarks.new_classes run --workspace DIR --seed 0 --group dev    to results/new_classes-0-dev.json
    python -m benchmarks.new_classes table                                       all results to docs/results.md

DIR is a finished workspace of `benchmarks.glyphs_lt`; it is copied, and not written to. All classes of a group are
added at once. The final group is for figures, the development group for choosing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from vlltr_index.baselines import class_means, cosine_logits
from vlltr_index.baselines_text import (
    TipCache,
    choose_tip,
    first_of_each_class,
    tip_logits,
    waffle_noise,
    waffle_text,
)
from vlltr_index.classes import NewClass, Session, add_classes
from vlltr_index.fusion import imprint_row
from vlltr_index.glyphs import GlyphFiles, glyph_files
from vlltr_index.images.decode import open_image
from vlltr_index.loading import class_positions, image_set
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.scoring import Scorer, load_scorer
from vlltr_index.stages.refit import refit
from vlltr_index.stages.upgrade import upgrade
from vlltr_index.workspace import Workspace

RESULTS = Path(__file__).parent / "results"
DRAWS = 3
SHOTS = (1, 5)
ALPHAS, BETAS = (
    (0.5, 1.0, 2.0, 5.0, 10.0, 20.0),
    (1.0, 3.0, 5.5, 10.0, 20.0),
)  # of Tip-Adapter, chosen on split val
CACHE = 16  # images a class in its cache
Row = dict[str, str]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """Held-out classes: their names, sentences, support images as files, and features of their test images."""

    names: list[str]
    texts: dict[str, list[str]]
    files: dict[str, list[Path]]
    support: dict[str, Tensor]  # [n, D] a class
    features: Tensor
    labels: Tensor  # positions in `names`


@dataclass(frozen=True)
class Old:
    """The workspace before anything is added, and its images."""

    workspace: Workspace
    scorer: Scorer
    test: Tensor
    test_owners: Tensor
    before: Tensor  # bool, which test images are right

    @classmethod
    def load(cls, workspace: Workspace) -> Old:
        """Read a finished workspace."""
        snapshot = workspace.snapshot()
        scorer, test = load_scorer(workspace, snapshot), image_set(snapshot, "test")
        best = scorer.class_ids[scorer.exhaustive(test.features).probabilities.argmax(1)]
        return cls(workspace, scorer, test.features, test.class_ids, best == test.class_ids)


def run(source: Path, seed: int, group_name: str) -> None:
    """Measure all rows for one group."""
    started, data = time.monotonic(), glyph_files()
    with tempfile.TemporaryDirectory() as folder:
        workspace = _copy(source, Path(folder) / "base")
        upgrade(workspace)
        workspace = Workspace.open(workspace.path)
        old, session = Old.load(workspace), Session(workspace)
        group = _group(data, group_name, workspace, session, Path(folder) / "support")
        rows: dict[str, Row] = {}
        for name, wanted, refitted in _conditions(group):
            rows |= _added(old, group, name, wanted, refitted, Path(folder))
            _log.info("%6.0f s  %s: %s", time.monotonic() - started, name, _percent(rows[name]))
        for name, row in _baselines(old, group, session):
            rows[name] = row
            _log.info("%6.0f s  %s: %s", time.monotonic() - started, name, _percent(row))
        result = {
            "seed": seed,
            "group": group_name,
            "recipe": workspace.recipe.model_dump(mode="json"),
            "head": getattr(workspace.history.last(), "head", None),
            "dataset": json.loads((data.folder / "manifest.json").read_text(encoding="utf-8"))[
                "content_sha256"
            ],
            **_surroundings(),
            "classes": len(group.names),
            "old_before": _bits(old.before),
            "rows": rows,
            "seconds": round(time.monotonic() - started, 1),
        }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"new_classes-{seed}-{group_name}.json"
    path.write_text(json.dumps(result, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def _surroundings() -> dict[str, Any]:
    names = ("torch", "open_clip_torch", "lancedb", "faiss-cpu", "vlltr-index")
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"versions": {n: version(n) for n in names}, "machine": machine}


def _copy(source: Path, target: Path) -> Workspace:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("runs", "logs", "reports"))
    return Workspace.open(target, any_format=True)


def _percent(row: Row) -> str:
    new, lost = _share(row["right"]), _share(row["old"])
    return f"new {100 * new:.1f}, top-5 {100 * _share(row['top5']):.1f}, old {100 * lost:.1f}"


def _share(bits: str) -> float:
    return bits.count("1") / len(bits)


def _bits(values: Tensor) -> str:
    return "".join("1" if v else "0" for v in values.tolist())


def _group(data: GlyphFiles, name: str, workspace: Workspace, session: Session, folder: Path) -> Group:
    texts = data.heldout_classes(name)
    names = sorted(texts)
    rows = pq.read_table(data.images, columns=["image", "label", "split"]).to_pylist()
    encoder = session.encoder(workspace.snapshot())

    def features(images: Sequence[bytes]) -> Tensor:
        with torch.inference_mode():
            pixels = [encoder.preprocess(open_image(image)) for image in images]
            return torch.cat(
                [encoder.encode_pixels(torch.stack(pixels[i : i + 128])) for i in range(0, len(pixels), 128)]
            )

    files: dict[str, list[Path]] = {n: [] for n in names}
    support = {
        n: features([r["image"] for r in rows if r["label"] == n and r["split"] == f"{name}_support"])
        for n in names
    }
    for row in rows:
        if row["split"] == f"{name}_support":
            path = folder / str(names.index(row["label"])) / f"{len(files[row['label']])}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"])
            files[row["label"]].append(path)
    tests = [r for r in rows if r["split"] == f"{name}_test"]
    labels = torch.tensor([names.index(r["label"]) for r in tests])
    return Group(names, texts, files, support, features([r["image"] for r in tests]).float(), labels)


def drawn(group: Group, shots: int, draw: int) -> dict[str, list[int]]:
    """Which support images of each class a draw takes."""
    picked = {}
    for name in group.names:
        order = list(range(len(group.files[name])))
        random.Random(f"{draw}:{name}").shuffle(order)
        picked[name] = order[:shots]
    return picked


def _draws(shots: int) -> Iterator[tuple[int, str]]:
    """With five images there is one draw: they are all."""
    for draw in range(DRAWS if shots < 5 else 1):
        yield draw, f"{shots} image{'s' if shots > 1 else ''}, draw {draw}"


def _conditions(group: Group) -> Iterator[tuple[str, list[NewClass], bool]]:
    """Ways to add the classes: a name, what is known of each, and whether the head is trained again."""
    words = sorted({w for texts in group.texts.values() for t in texts for w in re.findall(r"[a-z]{3,}", t)})
    noise = waffle_noise(words, 28, seed=0)
    waffle = {n: [n, *(waffle_text(f"a picture of the {n}.", words) for words in noise)] for n in group.names}
    ways: list[tuple[str, dict[str, list[str]]]] = [
        ("text", group.texts),
        ("name", {n: [n] for n in group.names}),
        ("random words", waffle),
    ]
    for label, texts in ways:
        yield label, [NewClass(n, tuple(texts[n])) for n in group.names], False
    for shots in SHOTS:
        for draw, label in _draws(shots):
            picked = drawn(group, shots, draw)
            images = {n: tuple(group.files[n][i] for i in picked[n]) for n in group.names}
            alone = [NewClass(n, image_files=images[n]) for n in group.names]
            both = [NewClass(n, tuple(group.texts[n]), image_files=images[n]) for n in group.names]
            yield f"{label}", alone, False
            yield f"text + {label}", both, False
            if draw == 0:
                yield (
                    f"random words + {label}",
                    [NewClass(n, tuple(waffle[n]), image_files=images[n]) for n in group.names],
                    False,
                )
    yield "text + 5 images, refit", both, True


def _added(
    old: Old, group: Group, name: str, wanted: list[NewClass], refitted: bool, folder: Path
) -> dict[str, Row]:
    """Add the classes to a copy of the workspace, and score."""
    workspace = _copy(old.workspace.path, folder / "added")
    add_classes(workspace, wanted)
    if refitted:
        refit(workspace, workspace.recipe.lgr)
    snapshot = workspace.snapshot()
    scorer, table = load_scorer(workspace, snapshot), snapshot.class_table()
    ids = torch.tensor([table.lookup(n) for n in group.names])
    new, kept = scorer.exhaustive(group.features).probabilities, scorer.exhaustive(old.test).probabilities
    shutil.rmtree(workspace.path)
    return {
        name: _row(
            new,
            kept,
            class_positions(scorer.class_ids, ids[group.labels]),
            class_positions(scorer.class_ids, old.test_owners),
        )
    }


def _row(new: Tensor, kept: Tensor, labels: Tensor, owners: Tensor) -> Row:
    """Which images are right, as bits."""
    best = new.topk(5, 1).indices
    return {
        "right": _bits(best[:, 0] == labels),
        "top5": _bits((best == labels[:, None]).any(1)),
        "old": _bits(kept.argmax(1) == owners),
    }


def _baselines(old: Old, group: Group, session: Session) -> Iterator[tuple[str, Row]]:
    """Ways without the head, over old and new classes together: the new ones come last."""
    classes = len(old.scorer.class_ids)
    owners = class_positions(old.scorer.class_ids, old.test_owners)
    prototypes = torch.cat([_text_means(old, session), _new_text_means(old, group, session)])
    scale = old.scorer.saved.head.logit_scale.item()

    def row(score: Any) -> Row:
        return _row(score(group.features), score(old.test), group.labels + classes, owners)

    yield "text prototypes", row(lambda f: cosine_logits(f, prototypes))
    train = image_set(old.workspace.snapshot(), "train")
    places = class_positions(old.scorer.class_ids, train.class_ids)
    first = first_of_each_class(places, CACHE)
    val = image_set(old.workspace.snapshot(), "val")
    own = TipCache(train.features[first], places[first], prototypes[:classes], scale)
    alpha, beta, _ = choose_tip(
        val.features, class_positions(old.scorer.class_ids, val.class_ids), own, ALPHAS, BETAS
    )
    for shots in SHOTS:
        for draw, label in _draws(shots):
            picked = drawn(group, shots, draw)
            some = [group.support[n][picked[n]] for n in group.names]
            yield f"imprinting alone, {label}", row(_imprinted(old, some))
            owner = torch.arange(len(some)).repeat_interleave(torch.tensor([len(s) for s in some])) + classes
            cache = TipCache(torch.cat([own.keys, *some]), torch.cat([own.labels, owner]), prototypes, scale)
            yield f"Tip-Adapter, {label}", row(lambda f, cache=cache: tip_logits(f, cache, alpha, beta))


def _imprinted(old: Old, some: Sequence[Tensor]) -> Any:
    """The visual classifier alone, with full-strength rows for the new classes."""
    head = old.scorer.saved.head.visual_head
    assert isinstance(head, nn.Linear)
    weight, bias = head.weight.detach(), head.bias.detach()
    made = [imprint_row(images.mean(0), old.scorer.saved.training_mean, weight, bias) for images in some]
    columns = class_positions(old.scorer.saved.class_ids, old.scorer.class_ids)
    rows = torch.cat([weight[columns], torch.stack([row for row, _ in made])])
    biases = torch.cat([bias[columns], torch.stack([offset for _, offset in made])])
    return lambda features: features @ rows.T + biases


def _text_means(old: Old, session: Session) -> Tensor:
    """Mean of all sentences of each old class, [C, D]."""
    snapshot = old.workspace.snapshot()
    rows = snapshot.table("sentences", ["class_id", "text_hash"])
    name = sentence_vectors_name(old.scorer.saved.text_fp)
    vectors = snapshot.store.vectors(name, "text_hash", rows["text_hash"].to_pylist())[1]
    owner = class_positions(old.scorer.class_ids, torch.tensor(rows["class_id"].to_pylist()))
    return class_means(vectors, owner, len(old.scorer.class_ids))


def _new_text_means(old: Old, group: Group, session: Session) -> Tensor:
    encoder = session.encoder(old.workspace.snapshot())
    means = []
    for name in group.names:
        vectors = encoder.encode_texts(encoder.tokenize(group.texts[name]))
        means.append(class_means(vectors, torch.zeros(len(vectors), dtype=torch.int64), 1))
    return torch.cat(means)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--workspace", type=Path, required=True)
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--group", choices=("dev", "final"), required=True)
    commands.add_parser("table")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.command == "run":
        run(args.workspace, args.seed, args.group)
    else:
        from benchmarks.new_classes_table import write

        write()


if __name__ == "__main__":
    main()
