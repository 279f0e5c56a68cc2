"""Baselines as files, and the scores they give: what `vlltr evaluate` shows beside the method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.baselines import adjusted_logits, cosine_logits, knn_sentence_logits, linear_logits
from vlltr_index.baselines_text import TipCache, tip_logits
from vlltr_index.embedding import all_embedded, embed_images
from vlltr_index.encoder import Encoder
from vlltr_index.errors import FingerprintMismatch, MissingStepError, WorkspaceError
from vlltr_index.loading import class_positions
from vlltr_index.schemas.tables import image_vectors_name, sentence_vectors_name
from vlltr_index.stages.training import read_visual, starting_encoder

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.workspace import Workspace

__all__ = [
    "ADJUSTED",
    "CHEAP",
    "FC",
    "BaselineRow",
    "ScoredRow",
    "Sentences",
    "baseline_labels",
    "fc_checkpoint",
    "load_baseline",
    "save_baseline",
    "score_baselines",
    "score_fc",
    "sentences_of",
]

FC = "image-only"
ADJUSTED = "image-only + logit adjustment"
"""The strongest image-only row: what the method is compared with unless another row is named."""

CHEAP = (
    "ncm",
    "crt",
    "tau-norm",
    "lws",
    "imprint",
    "zero-shot",
    "knn",
    "tip-adapter",
    "tip-adapter-f",
    "waffle",
)
"""The baselines on stored vectors, in the order of the table: seconds to minutes each."""

Rule = Literal["linear", "cosine", "knn", "tip"]
Tower = Literal["fc", "own", "start"]


@dataclass(frozen=True, eq=False)
class BaselineRow:
    """One row of the table: a rule over the features of one visual tower.

    Attributes:
        label: The row's name.
        rule: `linear` (weight, bias), `cosine` (weight; `scale`), `tip` (keys, key_labels, prototypes; `scale`,
            `alpha`, `beta`) or `knn` over the commit's sentences (`k`, `text_fp`).
        tower: The fc baseline's, the workspace's own, or the one the recipe starts from.
        checkpoint: The encoder's checkpoint; None where it is the recipe's pretrained start.
        image_fp: Fingerprint of the visual tower.
        class_ids: int64 [C], ascending.
        tensors: What the rule needs, float32 but for labels.
        settings: Numbers the rule needs, what was chosen, and on what.
        probabilities: Whether softmax of its scores is meant as a probability.
        note: What a reader must know of it.
    """

    label: str
    rule: Rule
    tower: Tower
    checkpoint: str | None
    image_fp: str
    class_ids: Tensor
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    probabilities: bool = True
    note: str = ""

    def scores(self, features: Tensor, snapshot: Snapshot) -> Tensor:
        """Scores [N, C] of features [N, D], unnormalised, of the row's tower."""
        t, numbers = self.tensors, self.settings
        if self.rule == "linear":
            return linear_logits(features, t["weight"], t["bias"])
        if self.rule == "cosine":
            return cosine_logits(features, t["weight"], numbers["scale"])
        if self.rule == "tip":
            cache = TipCache(t["keys"], t["key_labels"], t["prototypes"], numbers["scale"])
            return tip_logits(features, cache, numbers["alpha"], numbers["beta"])
        sentences = sentences_of(snapshot, self.class_ids)
        name = sentence_vectors_name(numbers["text_fp"])
        _, vectors = snapshot.store.vectors(name, "text_hash", sentences.hashes)
        return knn_sentence_logits(features, vectors, sentences.labels, len(self.class_ids), numbers["k"])


@dataclass(frozen=True, eq=False)
class ScoredRow:
    """A row's scores of the images of one split.

    Attributes:
        label: The row's name.
        class_ids: int64 [C], the class of each column.
        scores: Float [N, C], in the order of the image ids.
        probabilities: Whether softmax of the scores is meant as a probability.
        note: What a reader must know of the row.
    """

    label: str
    class_ids: Tensor
    scores: Tensor
    probabilities: bool
    note: str


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences of some classes: labels int64 [N_t] are positions in `class_ids` int64 [C]."""

    class_ids: Tensor
    labels: Tensor
    hashes: list[str]
    texts: list[str]
    prompts: Tensor  # bool [N_t], made from the class name


def sentences_of(snapshot: Snapshot, class_ids: Tensor | None = None) -> Sentences:
    """The commit's sentences of `class_ids`, default: of every class that has one, ordered by sentence_id.

    Raises:
        MissingStepError: If there is none.
    """
    rows = snapshot.table("sentences", ["sentence_id", "class_id", "text_hash", "text", "source"])
    rows = rows.sort_by("sentence_id")
    owner = torch.from_numpy(rows["class_id"].to_numpy().copy()).long()
    if class_ids is None:
        active = torch.tensor(snapshot.class_table().ids, dtype=torch.int64)
        class_ids = torch.unique(owner[torch.isin(owner, active)])
    positions = class_positions(class_ids, owner)
    kept = (positions >= 0).nonzero()[:, 0]
    if not len(kept):
        raise MissingStepError("there are no sentences", "Run: vlltr ingest text PATH")
    rows = rows.take(kept.numpy())
    prompts = torch.tensor([s == "prompt" for s in rows["source"].to_pylist()])
    return Sentences(
        class_ids, positions[kept], rows["text_hash"].to_pylist(), rows["text"].to_pylist(), prompts
    )


def save_baseline(rows: list[BaselineRow], folder: Path) -> None:
    """Write `baseline.json` and `baseline.safetensors` into `folder`."""
    tensors: dict[str, Tensor] = {}
    facts: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        tensors |= {
            f"{number}.{k}": v.detach().clone(memory_format=torch.contiguous_format)
            for k, v in row.tensors.items()
        }
        tensors[f"{number}.class_ids"] = row.class_ids.clone()
        plain = ("label", "rule", "tower", "checkpoint", "image_fp", "settings", "probabilities", "note")
        facts.append({name: getattr(row, name) for name in plain})
    save_file(tensors, folder / "baseline.safetensors")
    record = {"format": 1, "rows": facts}
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    (folder / "baseline.json").write_text(text, encoding="utf-8")


def load_baseline(workspace: Workspace, name: str, digest: str) -> list[BaselineRow]:
    """Read the rows of a committed baseline.

    Raises:
        MissingStepError: If its files are gone.
        WorkspaceError: If they are damaged.
    """
    again = f"Make it again: vlltr train baseline {name}"
    try:
        rows = _rows_in(workspace.object_path("heads", digest))
        workspace.whole_object("heads", digest)
    except WorkspaceError as error:
        raise type(error)(error.message, again) from None
    return rows


def _rows_in(folder: Path) -> list[BaselineRow]:
    try:
        tensors = load_file(folder / "baseline.safetensors")
        record = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
        rows = []
        for number, facts in enumerate(record["rows"]):
            prefix = f"{number}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            rows.append(BaselineRow(class_ids=own.pop("class_ids"), tensors=own, **facts))
        return rows
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise WorkspaceError(f"the baseline in {folder} cannot be read: {error}") from None


def fc_checkpoint(workspace: Workspace, snapshot: Snapshot) -> Path:
    """The folder of the fc baseline's tower and classifier.

    Raises:
        MissingStepError: If it was not trained, or is gone.
    """
    digest = snapshot.commit.info.get("baseline_fc") if snapshot.commit is not None else None
    again = "Run: vlltr train baseline fc"
    if not digest:
        raise MissingStepError("the image-only baseline has not been trained yet", again)
    try:
        return workspace.object_path("checkpoints", digest)
    except MissingStepError as error:
        raise MissingStepError(error.message, again) from None


def baseline_labels(workspace: Workspace, snapshot: Snapshot) -> list[str]:
    """Names of the rows that `score_baselines` gives, in its order.

    Raises:
        MissingStepError: If a baseline's files are gone.
    """
    info = snapshot.commit.info if snapshot.commit is not None else {}
    names = []
    if info.get("baseline_fc"):
        adjusted = _fc_config(fc_checkpoint(workspace, snapshot))["logit_adjustment"] != 0
        names = [FC] if adjusted else [FC, ADJUSTED]
    for name, digest in _committed(info):
        names += [row.label for row in load_baseline(workspace, name, digest)]
    return names


def score_baselines(
    workspace: Workspace,
    snapshot: Snapshot,
    split: str,
    image_ids: list[str],
    progress: Progress | None = None,
) -> Iterator[ScoredRow]:
    """Every baseline of the commit, one row at a time; images that lack vectors are embedded (resumable).

    Args:
        workspace: Where the baselines are.
        snapshot: Whose baselines, and whose sentences.
        split: The images' split.
        image_ids: Images in the order of the scores.
        progress: Called while images are embedded.

    Raises:
        MissingStepError: If a baseline's files are gone.
        FingerprintMismatch: If the encoder a baseline was made with is not there any more.
    """
    info = snapshot.commit.info if snapshot.commit is not None else {}
    known: dict[str, Tensor] = {}
    if info.get("baseline_fc"):
        yield from score_fc(workspace, snapshot, split, image_ids, progress)
    for name, digest in _committed(info):
        for row in load_baseline(workspace, name, digest):
            if row.image_fp not in known:
                known = {row.image_fp: _features(workspace, row, name, split, image_ids, progress)}
            scores = row.scores(known[row.image_fp], snapshot)
            note = "; ".join(filter(None, (row.note, _age(row, snapshot, name))))
            yield ScoredRow(row.label, row.class_ids, scores, row.probabilities, note)


def score_fc(
    workspace: Workspace,
    snapshot: Snapshot,
    split: str,
    image_ids: list[str],
    progress: Progress | None = None,
) -> Iterator[ScoredRow]:
    """The image-only baseline, as trained and (where it was trained without) with logit adjustment after training.

    Raises:
        MissingStepError: If it was not trained, or its files are gone.
    """
    folder = fc_checkpoint(workspace, snapshot)
    visual = read_visual(folder, "vlltr train baseline fc")
    config = _fc_config(folder)
    features = _embedded(workspace, Encoder.open(folder), split, image_ids, progress)
    logits, ids = linear_logits(features, visual["weight"], visual["bias"]), visual["class_ids"]
    yield ScoredRow(FC, ids, logits, True, "")
    if config["logit_adjustment"] == 0:
        adjusted = adjusted_logits(logits, visual["counts"], config["sampler_power"])
        yield ScoredRow(ADJUSTED, ids, adjusted, True, "")


def _committed(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and digests of the committed baselines, in the order of `CHEAP`."""
    there = info.get("baselines", {})
    return [(name, there[name]) for name in CHEAP if name in there]


def _fc_config(folder: Path) -> dict[str, Any]:
    """The settings that the fc baseline was trained by; `score_fc` wants two of them as numbers."""
    path = folder / "train.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["config"]
        for name in ("logit_adjustment", "sampler_power"):
            float(config[name])
        return config
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkspaceError(
            f"{path} is damaged: {type(error).__name__}: {error}", "Make it again: vlltr train baseline fc"
        ) from None


def _features(
    workspace: Workspace,
    row: BaselineRow,
    name: str,
    split: str,
    image_ids: list[str],
    progress: Progress | None,
) -> Tensor:
    """The stored vectors of the row's tower; its encoder is only opened where some are missing."""
    keys = [f"{i}:0" for i in image_ids]
    try:
        return workspace.store.vectors(image_vectors_name(row.image_fp), "vector_key", keys)[1]
    except MissingStepError:
        pass
    if row.checkpoint is not None:
        encoder = Encoder.open(workspace.object_path("checkpoints", row.checkpoint))
    else:
        encoder = starting_encoder(workspace.recipe, None, 0)
    if encoder.image_fp != row.image_fp:
        raise FingerprintMismatch(
            f"baseline {name!r} was made with encoder {row.image_fp}, the one that loads now is {encoder.image_fp}",
            f"Make it again: vlltr train baseline {name}",
        )
    return _embedded(workspace, encoder, split, image_ids, progress)


def _embedded(
    workspace: Workspace, encoder: Encoder, split: str, image_ids: list[str], progress: Progress | None
) -> Tensor:
    if not all_embedded(workspace.snapshot(), encoder.image_fp, image_ids):
        with workspace.transaction("evaluate") as tx:  # only the cache grows: no commit
            embed_images(tx, encoder.eval(), split, progress=progress)
    keys = [f"{i}:0" for i in image_ids]
    return workspace.store.vectors(image_vectors_name(encoder.image_fp), "vector_key", keys)[1]


def _age(row: BaselineRow, snapshot: Snapshot, name: str) -> str:
    """Says so where the tower the row was made with is not the commit's any more."""
    commit = snapshot.commit
    if commit is None or row.tower == "start":
        return ""
    now = commit.info.get("baseline_fc") if row.tower == "fc" else commit.checkpoint
    return "" if now == row.checkpoint else f"made with an earlier tower: vlltr train baseline {name}"
