"""The figures on Glyphs-LT or Icons-LT: the method, image-only at equal image budget, and the method without text.

    python -m benchmarks.long_tailed run --seed 0 --dir runs                    resumable; to results/glyphs_lt-0.json
    python -m benchmarks.long_tailed run --seed 0 --dir runs --texts permuted   to results/glyphs_lt-permuted-0.json
    python -m benchmarks.long_tailed table                                      all results to docs/results.md

Each with `--data icons_lt` is about Icons-LT.

hypothesis: vl-ltr less linear + generative without text is above 0 on few-shot classes

Each row of one seed is evaluated on the same images; differences are paired, their intervals cluster by class. With
`--texts permuted` each class has another one's sentences from stage 1 on. The image-only rows are those of an earlier
result of the seed, which does not depend on the method; `--baseline` trains them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.without_text import WHOLE, held_out, rows_without_text, training_data
from vlltr_index.anchors.selection import select
from vlltr_index.data.glyphs import GlyphFiles, glyph_files
from vlltr_index.embedding.loading import image_set, usable_images
from vlltr_index.evaluation.metrics import expected_calibration_error
from vlltr_index.heads.checkpoint import Parts
from vlltr_index.heads.fusion import PartWeights
from vlltr_index.heads.weighing import HeldOutScores, fit_temperature, fit_weights, image_weights
from vlltr_index.pipelines.baselines import ADJUSTED, FC, score_baselines, train_baseline_stage
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.config import Recipe, WorkspaceConfig
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions
from vlltr_index.train.stage_two_data import StageTwoData

RESULTS = Path(__file__).parent / "results"
GLYPHS, ICONS = DATA = ("glyphs_lt", "icons_lt")
METHOD = "vl-ltr"
WEIGHED = f"{METHOD}, had test images weighed"
TEXTS = ("true", "permuted")
SPLITS = ("train", "val", "test")


def run(
    data: str, seed: int, folder: Path, texts: str = "true", baseline: bool = False, fast: bool = False
) -> None:
    """Train and evaluate one seed; a step that is done is not done again. With `fast` no result is kept."""
    name = f"seed-{seed}" if texts == "true" else f"seed-{seed}-{texts}"
    files, recipe = files_of(data, fast), seeded(data, seed, fast)
    seconds = Clock(folder / f"seconds-{name}.json")
    told = files.texts if texts == "true" else permuted(files.texts, folder / "texts-permuted.json")
    workspace = made(folder / name, recipe, told, files.images, seconds)
    if baseline and "train baseline fc" not in {c.command for c in workspace.history.list()}:
        with seconds("train baseline fc"):
            train_baseline_stage(workspace, recipe.baseline)
    result = {
        "seed": seed,
        "texts": texts,
        "recipe": recipe.model_dump(mode="json"),
        "protocol": recipe.protocol,
        "dataset": dataset(files),
        **surroundings(),
        "seconds": seconds.values,
        **measure(workspace, baseline),
    }
    if not baseline and not fast:
        _copy_baseline(data, result)
    if fast:
        shares = {n: round(b.count("1") / len(b), 3) for n, b in result["right"].items()}
        sys.stdout.write(json.dumps({**shares, "decided": result["decided"]}, indent=1) + "\n")
    else:
        write_result(f"{data}-{seed}" if texts == "true" else f"{data}-{texts}-{seed}", result)


def files_of(data: str, fast: bool = False) -> GlyphFiles:
    """The files of one of `DATA`, or of Glyphs-LT's small slice. Icons-LT lies in the repository alone."""
    if data == GLYPHS:
        return glyph_files(fast)
    folder = Path(__file__).parents[1] / "recipes" / data / "data"
    return GlyphFiles(folder / f"{data}.parquet", folder / "texts.json", folder / "heldout.json", folder)


def about(workspace: Workspace) -> str:
    """Which of `DATA` a workspace's recipe is for."""
    return workspace.recipe.name.partition("/")[0]


def seeded(data: str, seed: int, fast: bool = False) -> Recipe:
    """The recipe for one of `DATA`, every training in it from one seed."""
    parts = ("cvlp", "lgr", "baseline")
    recipe = load_recipe(f"{data}/{'fast' if fast else 'ours'}")
    return override(recipe, tuple(f"{part}.seed={seed}" for part in parts))


def made(
    path: Path,
    recipe: Recipe,
    texts: Path,
    images: Path,
    seconds: Clock,
    splits: Sequence[str] = SPLITS,
    left_out: Sequence[str] = (),
) -> Workspace:
    """The workspace in `path` with all steps of the method done but those `left_out`; `vlltr.toml` is written anew."""
    there = (path / "vlltr.toml").exists()
    workspace = Workspace(path, WorkspaceConfig(recipe=recipe)) if there else Workspace.create(path, recipe)
    workspace.write_config()
    with seconds("ingest"):
        ingest_text(workspace, texts)
        for split in splits:
            ingest_images(workspace, images, split)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("train cvlp", lambda: train_cvlp_stage(workspace, recipe.cvlp)),
        ("embed", lambda: embed(workspace)),
        ("select", lambda: select(workspace, recipe.select)),
        ("train lgr", lambda: train_lgr_stage(workspace, recipe.lgr)),
        ("index", lambda: index_anchors(workspace)),
    ]
    done = {commit.command for commit in workspace.history.list()} | set(left_out)
    for name, step in steps:
        if name not in done:
            with seconds(name):
                step()
    return workspace


def permuted(texts: Path, target: Path) -> Path:
    """Write the texts with each class's sentences given to another one, the same at every call; returns `target`."""
    told: dict[str, list[str]] = json.loads(texts.read_text(encoding="utf-8"))
    order = sorted(told)
    random.Random(0).shuffle(order)  # a cycle through all classes: none keeps its own
    giver = dict(zip(order, [*order[1:], order[0]], strict=True))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({name: told[giver[name]] for name in told}), encoding="utf-8")
    return target


def measure(workspace: Workspace, baseline: bool) -> dict[str, Any]:
    """Which test images each row has right, and what was decided; the image-only rows where there is a `baseline`."""
    snapshot = workspace.snapshot()
    scorer, test = Model.open(snapshot), image_set(snapshot, "test")
    counts = training_counts(snapshot, scorer.class_ids)
    labels = class_positions(scorer.class_ids, test.class_ids)
    fused, data = scorer.exhaustive(test.features), training_data(workspace, snapshot)
    plain, parts = rows_without_text(data, scorer, test.features)
    tempered = _tempered(data, scorer, test.features)
    rows = {METHOD: fused.probabilities, "image side": fused.by_image} | tempered | plain
    if baseline:
        found = score_baselines(workspace, snapshot, "test", test.image_ids)
        rows |= {row.label: scores for row, scores in found if row.label in (FC, ADJUSTED)}
    chances = {METHOD: fused.probabilities, WHOLE: rows[WHOLE].softmax(1)}
    chances |= {name: scores.softmax(1) for name, scores in tempered.items()}
    assert scorer.saved.parts is not None
    weighed = weights_of(scorer, test.features, labels, counts)
    saved = replace(scorer.saved, parts=replace(scorer.saved.parts, weights=weighed))
    rows[WEIGHED] = replace(scorer, saved=saved).exhaustive(test.features).probabilities
    return {
        "counts": counts[labels].tolist(),
        "labels": labels.tolist(),
        "groups": usable_images(snapshot, "test", ["group"])["group"].to_pylist(),
        "right": {name: bits(scores.argmax(1) == labels) for name, scores in rows.items()},
        "top5": {name: bits(in_top5(scores, labels)) for name, scores in rows.items()},
        "calibration_error": {
            name: round(expected_calibration_error(shares.amax(1), shares.argmax(1) == labels), 4)
            for name, shares in chances.items()
        },
        "decided": {
            METHOD: decided(scorer.saved.parts),
            WHOLE: decided(parts),
            "of test images": asdict(weighed),
        },
    }


@torch.inference_mode()
def _tempered(data: StageTwoData, scorer: Model, features: Tensor) -> dict[str, Tensor]:
    """Logits [N, C] of the linear layer and the text branch, each at the temperature of the images held out."""
    held, labels, weights = held_out(data, scorer.trained)
    rows = {}
    for name, logits in (("linear layer", scorer.visual_logits), ("text branch", scorer.text_logits)):
        factor = fit_temperature(logits(held)[:, scorer.trained], labels, weights)
        rows[name] = factor * torch.cat([logits(part) for part in features.split(512)])
    return rows


@torch.inference_mode()
def weights_of(scorer: Model, features: Tensor, labels: Tensor, counts: Tensor) -> PartWeights:
    """What images of the test split would have weighed the parts, had they been the ones held out."""
    known = scorer.trained[labels]
    some, position = features[known], scorer.trained.long().cumsum(0) - 1
    parts = [
        logits(some)[:, scorer.trained]
        for logits in (scorer.visual_logits, scorer.log_likelihoods, scorer.text_logits)
    ]
    owners = position[labels[known]]
    weights = image_weights(owners, counts[scorer.trained], torch.arange(len(owners)))
    return fit_weights(HeldOutScores(owners, *parts, weights))


def decided(parts: Parts) -> dict[str, Any]:
    """What `train lgr` decided."""
    return asdict(parts.weights) | {"noise": parts.shared.noise, "text_r2": parts.shared.text_r2}


def _copy_baseline(data: str, result: dict[str, Any]) -> None:
    """Take the image-only rows of an earlier result of the seed over: the same images, in the same order."""
    path = RESULTS / f"{data}-{result['seed']}.json"
    if not path.exists():
        return
    old = json.loads(path.read_text(encoding="utf-8"))
    if (old["dataset"], old["counts"]) != (result["dataset"], result["counts"]):
        raise SystemExit(
            f"{path.name} is of other test images: its image-only rows cannot be taken; use --baseline"
        )
    for key in ("right", "top5"):
        result[key] |= {name: old[key][name] for name in (FC, ADJUSTED) if name in old[key]}
    facts = {key: old[key] for key in ("versions", "machine")}
    facts |= {"settings": old["recipe"]["baseline"], "seconds": old["seconds"].get("train baseline fc")}
    result["baseline"] = old.get("baseline", facts)


def write_result(name: str, result: dict[str, Any]) -> None:
    """Write a result file."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, sort_keys=True, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def dataset(data: GlyphFiles) -> str:
    """SHA-256 of the data set: of its content, or of the list of its files' hashes."""
    manifest = (data.folder / "manifest.json").read_bytes()
    return str(json.loads(manifest).get("content_sha256") or hashlib.sha256(manifest).hexdigest())


def surroundings() -> dict[str, Any]:
    """Versions of the libraries, and the machine."""
    names = ("torch", "open_clip_torch", "lancedb", "faiss-cpu", "vlltr-index")
    return {
        "versions": {n: version(n) for n in names},
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


class Clock:
    """Wall seconds of each step, kept in a file beside the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str) -> Clock:
        self._name, self._start = name, time.monotonic()
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self.values.setdefault(self._name, round(time.monotonic() - self._start, 1))
        self._path.write_text(json.dumps(self.values))


def in_top5(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether each image's class int64 [N] is among the five best of scores [N, C], bool [N]."""
    return (scores.topk(min(5, scores.shape[1]), 1).indices == labels[:, None]).any(1)


def bits(values: Tensor) -> str:
    """Booleans as a text of ones and zeros."""
    return "".join("1" if v else "0" for v in values.tolist())


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--dir", type=Path, required=True)
    one.add_argument("--texts", choices=TEXTS, default="true")
    one.add_argument("--baseline", action="store_true", help="train the image-only baseline too")
    one.add_argument(
        "--fast", action="store_true", help="on Glyphs-LT's small slice, to see whether it works"
    )
    for command in (one, commands.add_parser("table")):
        command.add_argument("--data", choices=DATA, default=GLYPHS)
    args = parser.parse_args()
    if args.command == "run":
        args.dir.mkdir(parents=True, exist_ok=True)
        run(args.data, args.seed, args.dir, args.texts, args.baseline, args.fast)
    else:
        from benchmarks.long_tailed_table import write

        write(args.data)


if __name__ == "__main__":
    main()
