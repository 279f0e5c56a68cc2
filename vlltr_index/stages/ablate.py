"""`vlltr ablate`: Table 4 over a workspace's data, a cell at a time, each kept as it comes."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlltr_index import __version__
from vlltr_index.ablation import ROWS, AblationRow, RowSummary, recipe_of, summarise
from vlltr_index.encoder import Encoder
from vlltr_index.errors import EncoderError, MissingStepError
from vlltr_index.loading import check_runs
from vlltr_index.lock import write_lock
from vlltr_index.metrics import AccuracyReport
from vlltr_index.schemas.config import WorkspaceConfig
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.stages.ablate_heads import fc_report, knn_report
from vlltr_index.stages.embed import embed
from vlltr_index.stages.evaluate import evaluate
from vlltr_index.stages.pipeline import train_all
from vlltr_index.stages.train_cvlp import train_cvlp_stage
from vlltr_index.workspace import Workspace

if TYPE_CHECKING:
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.storage import Storage

__all__ = ["AblationReport", "ablate", "dataset_hash"]

_FORMAT = 1
_TABLES = ("classes", "sentences", "images")
_FACTS = "stage1.json"
_PACKAGES = ("torch", "open_clip_torch", "lancedb", "numpy")


@dataclass(frozen=True)
class AblationReport:
    """The table, and where each of its figures stands."""

    dataset: str
    recipe: str
    protocol: str
    split: str
    convention: str
    rows: list[RowSummary]
    files: list[str]
    trained: int  # cells that this call ran
    found: int  # cells that were there


def ablate(
    workspace: Workspace,
    recipe: Recipe,
    rows: Sequence[int] = tuple(ROWS),
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "test",
    progress: Progress | None = None,
) -> AblationReport:
    """Run the rows of Table 4 over the seeds, or what is left of them.

    Each cell is written to `reports/ablate/<row>-<seed>.json` when it is done, and not run again while data, settings
    and split are the same. Cells work in workspaces of their own under `runs/ablate`, which hold copies of the ingested
    tables; cells that need the same stage 1 share one. The workspace itself gets no commit.

    Args:
        workspace: Where images and texts are.
        recipe: The settings; a row changes nothing but what it is about.
        rows: Numbers of `ROWS`.
        seeds: Each row is run once for each.
        split: What is evaluated.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        MissingStepError: If there are no images in `train` or in `split`, or no sentences.
        WorkspaceError: If there is something to run, and the workspace cannot be written.
    """
    source = workspace.snapshot()
    _check_splits(source, split)
    dataset = dataset_hash(source)
    reasons = {n: reason for n in rows if (reason := _missing(ROWS[n], recipe)) is not None}
    results, files, trained = [], [], 0
    for seed in seeds:
        for number in rows:
            if number in reasons:
                continue
            cell = _Cell(workspace, ROWS[number], seed, recipe_of(ROWS[number], recipe, seed), split, dataset)
            name = f"reports/ablate/{number}-{seed}.json"
            result = cell.read(name)
            if result is None:
                result = cell.run(source, _named(progress, f"row {number}, seed {seed}"))
                _write(workspace.storage, name, result)
                trained += 1
            results.append(result)
            files.append(workspace.storage.at(name))
    table = summarise(rows, results, reasons)
    return AblationReport(
        dataset, recipe.name, recipe.protocol, split, "release", table, files, trained, len(results) - trained
    )


def dataset_hash(snapshot: Snapshot) -> str:
    """SHA-256 over class names, their sentences, and the images' content, classes and splits; not the rows' order."""
    names = snapshot.class_table().names
    classes = snapshot.table("classes", ["class_id", "retired_at"]).to_pylist()
    sentences = snapshot.table("sentences", ["class_id", "text_hash", "position"]).to_pylist()
    images = snapshot.table(
        "images", ["image_id", "content_hash", "class_id", "split", "problem"]
    ).to_pylist()
    facts: list[Any] = [
        sorted(names[c["class_id"]] for c in classes if c["retired_at"] is None),
        sorted([names.get(s["class_id"], ""), s["text_hash"], s["position"] or 0] for s in sentences),
        sorted(
            [i["image_id"], i["content_hash"] or "", names.get(i["class_id"], ""), i["split"]]
            for i in images
            if i["problem"] is None
        ),
    ]
    return digest_json(facts)


def _check_splits(source: Snapshot, split: str) -> None:
    for name in ("train", split):
        rows = source.table("images", ["split"])["split"].to_pylist()
        if name not in rows:
            raise MissingStepError(
                f"there are no images in split {name!r}", f"Run: vlltr ingest images PATH --split {name}"
            )


def _missing(row: AblationRow, recipe: Recipe) -> str | None:
    """Why a row cannot be run: its weights are not there."""
    config = recipe.encoder
    if not row.pretrained:
        return None
    if config.pretrained is None:
        return f"the recipe {recipe.name} names no pretrained weights (encoder.pretrained)"
    try:
        Encoder.load(config.model, config.pretrained, image_size=config.image_size, device="cpu")
    except EncoderError as error:
        return error.message
    return None


def _named(progress: Progress | None, cell: str) -> Progress | None:
    """Progress whose steps say which cell they belong to."""
    if progress is None:
        return None
    return lambda step, done, total: progress(f"{cell}: {step}", done, total)


def _write(storage: Storage, name: str, value: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    storage.write(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("utf-8"))


@dataclass(frozen=True)
class _Cell:
    """One row under one seed."""

    parent: Workspace
    row: AblationRow
    seed: int
    recipe: Recipe
    split: str
    dataset: str

    @property
    def settings(self) -> str:
        """Digest of everything that the cell's figures depend on."""
        recipe = self.recipe.model_dump(mode="json", exclude={"name"})
        return digest_json([_FORMAT, self.row.number, self.seed, self.split, self.dataset, recipe])

    @property
    def stage_key(self) -> str:
        """Digest of what stage 1 depends on: cells with the same one share it."""
        recipe = self.recipe
        stage = None if self.row.cvlp == "none" else recipe.cvlp.model_dump(mode="json")
        return short(
            digest_json([_FORMAT, self.seed, self.dataset, recipe.encoder.model_dump(mode="json"), stage])
        )

    def read(self, name: str) -> dict[str, Any] | None:
        """What was written for these very settings, or None."""
        try:
            value: dict[str, Any] = json.loads(self.parent.storage.read(name))
        except (OSError, ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) and value.get("settings") == self.settings else None

    def run(self, source: Snapshot, progress: Progress | None) -> dict[str, Any]:
        """Train and evaluate; a run that was stopped goes on."""
        check_runs(self.parent)
        folder = self.parent.path / "runs" / "ablate" / self.stage_key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with write_lock(folder.parent / f"{self.stage_key}.lock", "ablate"):
            workspace = self._workspace(folder, source)
            seconds = {"stage 1": self._stage_one(workspace, folder / _FACTS, progress)}
            started = time.monotonic()
            report = self._head(workspace, progress)
            seconds["the rest"] = round(time.monotonic() - started, 1)
        return {**self._facts(), "seconds": seconds, **asdict(report)}

    def _workspace(self, folder: Path, source: Snapshot) -> Workspace:
        there = (folder / "vlltr.toml").exists()
        workspace = Workspace.open(folder) if there else Workspace.create(folder, self.recipe)
        workspace.write_config(WorkspaceConfig(recipe=self.recipe))
        if workspace.history.last() is None:
            with workspace.transaction("copy of the ingested tables") as tx:
                for name in _TABLES:
                    tx.upsert(name, source.scan(name))
        return workspace

    def _stage_one(self, workspace: Workspace, path: Path, progress: Progress | None) -> float:
        """Bring the workspace to the end of stage 1; how long that took, in this call or an earlier one."""
        facts: dict[str, Any] = {"checkpoint": None, "seconds": 0.0}
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
        elif self.row.cvlp != "none":
            started = time.monotonic()
            facts["checkpoint"] = train_cvlp_stage(workspace, self.recipe.cvlp, progress).digest
            facts["seconds"] = round(time.monotonic() - started, 1)
        _write(workspace.storage, _FACTS, facts)
        with workspace.transaction("back to stage 1") as tx:
            tx.set(checkpoint=facts["checkpoint"], text_fp=None, image_fp=None, head=None, index=None)
            tx.set(selection_id=None, fusion=None)
            tx.note(tuned=None)
        return float(facts["seconds"])

    def _head(self, workspace: Workspace, progress: Progress | None) -> AccuracyReport:
        if self.row.head == "LGR":
            train_all(workspace, self.recipe, progress, stage_one=False)
            return evaluate(workspace, self.split, progress=progress).rows["vl-ltr"]
        embed(workspace, progress=progress)
        report = fc_report if self.row.head == "FC" else knn_report
        return report(workspace, self.split, progress)

    def _facts(self) -> dict[str, Any]:
        return {
            "row": self.row.number,
            "cells": self.row.cells,
            "seed": self.seed,
            "split": self.split,
            "settings": self.settings,
            "dataset": self.dataset,
            "protocol": self.recipe.protocol,
            "recipe": self.recipe.model_dump(mode="json"),
            "versions": {"vlltr-index": __version__, **_versions()},
            "machine": {
                "system": platform.platform(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            },
        }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
