"""None of these, on Glyphs-LT: images of the test split against images of held-out classes, by every score.

    python -m benchmarks.reject run --seed 0 --dir runs            a workspace of benchmarks.glyphs_lt; dev classes
    python -m benchmarks.reject run --seed 0 --dir runs --final    the final held-out classes too
    python -m benchmarks.reject table                              all results to docs/results.md

The score and its threshold are those of `vlltr calibrate`, in the recipe; the workspace itself is not changed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.glyphs_lt import RECIPE, RESULTS, surroundings
from benchmarks.glyphs_lt_table import ROOT, spread
from vlltr_index.classes import NewClass, add_classes
from vlltr_index.embedding import embed_images
from vlltr_index.encoder import Encoder
from vlltr_index.glyphs import GlyphFiles, glyph_files
from vlltr_index.loading import image_set
from vlltr_index.metrics import auroc, fpr95
from vlltr_index.recipe import load_recipe
from vlltr_index.rejection import SCORES, Score, known_scores
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.scoring import Scorer, load_scorer
from vlltr_index.stages.ingest import ingest_images
from vlltr_index.workspace import Workspace

MARKS = ("<!-- generated: python -m benchmarks.reject table -->", "<!-- end of this generated part -->")
_PROBABILITY = "largest probability"


def run(seed: int, folder: Path, groups: Sequence[str]) -> None:
    """Measure one seed's workspace."""
    data, fusion = glyph_files(), load_recipe(RECIPE).fusion
    if fusion.reject_score is None:
        raise SystemExit(
            f"the recipe {RECIPE} has no threshold: run vlltr calibrate, and put its values there"
        )
    result = {
        "seed": seed,
        "dataset": json.loads((data.folder / "manifest.json").read_text(encoding="utf-8"))["content_sha256"],
        "fusion": fusion.model_dump(mode="json"),
        **surroundings(),
        "groups": {group: _measure(folder / f"seed-{seed}", data, group, fusion) for group in groups},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"reject-{seed}.json").write_text(json.dumps(result, sort_keys=True, indent=1) + "\n")


def _measure(path: Path, data: GlyphFiles, group: str, fusion: FusionConfig) -> dict[str, Any]:
    """All scores of a group's images before its classes are added; and how many pass once they are."""
    copy = path.with_name(f"{path.name}-reject-{group}")
    shutil.rmtree(copy, ignore_errors=True)
    workspace = Workspace.open(shutil.copytree(path, copy))
    try:
        with workspace.transaction("fusion values of the recipe") as tx:
            tx.set(fusion=fusion)
        before = load_scorer(workspace, workspace.snapshot())
        texts = data.heldout_classes(group)
        add_classes(workspace, [NewClass(name, tuple(lines)) for name, lines in texts.items()])
        ingest_images(workspace, data.images, f"{group}_test")
        commit = workspace.history.last()
        assert commit is not None
        assert commit.checkpoint is not None
        encoder = Encoder.open(workspace.object_path("checkpoints", commit.checkpoint))
        encoder.eval()
        with workspace.transaction("embed the held-out images") as tx:
            embed_images(tx, encoder, f"{group}_test")
        snapshot = workspace.snapshot()
        known, unknown = image_set(snapshot, "test").features, image_set(snapshot, f"{group}_test").features
        return _rates(before, load_scorer(workspace, snapshot), known, unknown, fusion)
    finally:
        shutil.rmtree(copy)


def _rates(
    before: Scorer, after: Scorer, known: Tensor, unknown: Tensor, fusion: FusionConfig
) -> dict[str, Any]:
    found = {}
    both = [_scores(before, features) for features in (known, unknown)]
    truth = torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))]).bool()
    for name in both[0]:
        values = torch.cat([side[name] for side in both])
        found[name] = {"auroc": round(auroc(values, truth), 4), "fpr95": round(fpr95(values, truth), 4)}
    score, threshold = fusion.reject_score, fusion.reject_threshold
    assert score is not None
    assert threshold is not None
    accepted = [float((side[score] >= threshold).double().mean()) for side in both]
    later = [
        float((_scores(after, features)[score] >= threshold).double().mean()) for features in (known, unknown)
    ]
    return {
        "images": [len(known), len(unknown)],
        "scores": found,
        "accepted": [round(value, 4) for value in accepted],
        "accepted_after_adding": [round(value, 4) for value in later],
    }


@torch.inference_mode()
def _scores(scorer: Scorer, features: Tensor) -> dict[str, Tensor]:
    """Every score, and the largest probability beside them, float [N] each."""
    parts: dict[str, list[Tensor]] = {}
    for rows in features.split(512):
        visual, text = scorer.visual_logits(rows), scorer.saved.head.text_logits(rows, scorer.bank)
        found: dict[Score, Tensor] = known_scores(
            visual, text, scorer.row_class, scorer.trained, scorer.params, SCORES
        )
        best = scorer.fuse(visual, text).probabilities.amax(1)
        for name, values in {**found, _PROBABILITY: best}.items():
            parts.setdefault(str(name), []).append(values)
    return {name: torch.cat(pieces) for name, pieces in parts.items()}


def write() -> None:
    """Write the generated part of docs/results.md."""
    runs = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("reject-*.json"))]
    if not runs:
        raise SystemExit("no results; run: python -m benchmarks.reject run --seed 0 --dir runs")
    page = ROOT / "docs" / "results.md"
    page.write_text(placed(page.read_text(encoding="utf-8"), generated(runs)), encoding="utf-8")


def placed(page: str, part: str) -> str:
    """The page with the part between its marks; at the end where the page has none yet."""
    if MARKS[0] not in page:
        page = f"{page.rstrip()}\n\n## None of these\n\n{MARKS[0]}\n{MARKS[1]}\n"
    head, rest = page.split(MARKS[0])
    tail = rest.split(MARKS[1], 1)[1]
    return f"{head}{MARKS[0]}\n\n{part}\n{MARKS[1]}{tail}"


def generated(runs: Sequence[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    fusion, first = runs[0]["fusion"], runs[0]
    labels = {"dev": "100 for development", "final": "100 for final figures"}
    groups = [group for group in labels if all(group in run["groups"] for run in runs)]
    known = first["groups"][groups[0]]["images"][0]
    rate = f"{100 * fusion['reject_tpr']:.1f} %"
    lines = [
        f"Score `{fusion['reject_score']}` and threshold {fusion['reject_threshold']:.2f} are those of"
        f" `vlltr calibrate` (run `{fusion['run_id']}`, training data only), which accepted {rate} of its known"
        f" images. Known: the {known:,} test images; unknown: the test images of held-out classes, before these are"
        f" added. Seeds {', '.join(str(r['seed']) for r in runs)}; data set `{first['dataset'][:16]}`.",
        "",
        "| held-out classes | known accepted | unknown accepted | the same images once added from text | known then |",
        "| --- | --- | --- | --- | --- |",
    ]
    for group in groups:
        found = [run["groups"][group] for run in runs]
        columns = [
            ("accepted", 0),
            ("accepted", 1),
            ("accepted_after_adding", 1),
            ("accepted_after_adding", 0),
        ]
        cells = [spread([f[key][side] for f in found]) for key, side in columns]
        lines.append(f"| {labels[group]} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Each score by itself: AUROC, and unknown images accepted where 95 % of the known are (FPR).",
        "",
    ]
    lines += ["| score | " + " | ".join(f"{labels[g]}: AUROC | FPR" for g in groups) + " |"]
    lines += ["| --- |" + " --- | --- |" * len(groups)]
    for name in first["groups"][groups[0]]["scores"]:
        cells = []
        for group in groups:
            rows = [run["groups"][group]["scores"][name] for run in runs]
            cells += [f"{np.mean([r['auroc'] for r in rows]):.3f}", spread([r["fpr95"] for r in rows])]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--dir", type=Path, required=True)
    one.add_argument("--final", action="store_true", help="measure the final held-out classes too")
    commands.add_parser("table")
    args = parser.parse_args()
    if args.command == "run":
        run(args.seed, args.dir, ("dev", "final") if args.final else ("dev",))
    else:
        write()


if __name__ == "__main__":
    main()
