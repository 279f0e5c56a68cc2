"""How each baseline on stored vectors is made; what can be chosen is chosen on split val, never on test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from vlltr_index.baselines import (
    HeadTraining,
    best_setting,
    class_means,
    cosine_logits,
    fc_head,
    hold_back,
    linear_logits,
    lws_scales,
    softmax_scale,
    tau_normalised,
)
from vlltr_index.embedding import all_embedded, embed_images
from vlltr_index.encoder import Encoder
from vlltr_index.errors import MissingStepError
from vlltr_index.loading import class_positions, open_encoder, usable_images
from vlltr_index.schemas.tables import image_vectors_name
from vlltr_index.stages.baselines import BaselineRow, Rule, Tower, fc_checkpoint
from vlltr_index.stages.training import read_visual

if TYPE_CHECKING:
    from vlltr_index.schemas.baselines import BaselinesConfig
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.workspace import Workspace

__all__ = ["FITS", "Making", "TowerData", "choose", "own_data", "tower_data"]

_Setting = TypeVar("_Setting")
_Model = TypeVar("_Model")


@dataclass(frozen=True)
class Making:
    """What every fit is given."""

    workspace: Workspace
    snapshot: Snapshot
    config: BaselinesConfig
    progress: Progress | None


@dataclass(frozen=True, eq=False)
class TowerData:
    """Training features of one tower, and what settings are chosen on.

    Attributes:
        encoder: The tower.
        tower: Whose it is.
        checkpoint: Its checkpoint; None where it is the recipe's start.
        class_ids: int64 [C].
        image_ids: N training images.
        features: float32 [N, D], unnormalised.
        labels: int64 [N], positions in `class_ids`.
        fitted: bool [N], what may be fitted on while settings are tried.
        seen: float32 [M, D], images that settings are chosen on.
        seen_labels: int64 [M].
        chosen_on: What those are.
    """

    encoder: Encoder
    tower: Tower
    checkpoint: str | None
    class_ids: Tensor
    image_ids: list[str]
    features: Tensor
    labels: Tensor
    fitted: Tensor
    seen: Tensor
    seen_labels: Tensor
    chosen_on: str

    def row(
        self,
        label: str,
        rule: Rule,
        tensors: dict[str, Tensor],
        settings: dict[str, Any],
        probabilities: bool = True,
        note: str = "",
    ) -> BaselineRow:
        """A row over this tower's features and classes."""
        return BaselineRow(
            label,
            rule,
            self.tower,
            self.checkpoint,
            self.encoder.image_fp,
            self.class_ids,
            {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()},
            settings,
            probabilities,
            note,
        )


def tower_data(
    making: Making, encoder: Encoder, tower: Tower, checkpoint: str | None, class_ids: Tensor | None
) -> TowerData:
    """Features of splits train and val through `encoder`, embedded where they lack (resumable).

    Without `class_ids` the classes are those with training images.

    Raises:
        MissingStepError: If there are no training images.
    """
    encoder.eval()
    ids, owner, features = _split(making, encoder, "train")
    if not ids:
        raise MissingStepError("there are no training images", "Run: vlltr ingest images PATH --split train")
    present = torch.unique(owner)
    class_ids = present if class_ids is None else class_ids
    labels = class_positions(class_ids, owner)
    kept = labels >= 0
    ids, labels, features = (
        [i for i, k in zip(ids, kept.tolist(), strict=True) if k],
        labels[kept],
        features[kept],
    )
    _, val_owner, val = _split(making, encoder, "val")
    val_labels = class_positions(class_ids, val_owner)
    if bool((val_labels >= 0).any()):
        known = val_labels >= 0
        fitted = torch.ones(len(labels), dtype=torch.bool)
        seen, seen_labels, chosen_on = val[known], val_labels[known], "val"
    else:
        fitted = ~hold_back(labels, making.config.held_back)
        seen, seen_labels = features[~fitted], labels[~fitted]
        chosen_on = "held-back training images" if len(seen) else "nothing: defaults"
    return TowerData(
        encoder, tower, checkpoint, class_ids, ids, features, labels, fitted, seen, seen_labels, chosen_on
    )


def _split(making: Making, encoder: Encoder, split: str) -> tuple[list[str], Tensor, Tensor]:
    now = making.workspace.snapshot()
    rows = usable_images(now, split, [])
    if not all_embedded(now, encoder.image_fp, rows["image_id"].to_pylist()):
        with making.workspace.transaction("embed for a baseline") as tx:
            embed_images(tx, encoder, split, progress=making.progress)
        now = making.workspace.snapshot()  # without what turned out to be unreadable
        rows = usable_images(now, split, [])
    ids: list[str] = rows["image_id"].to_pylist()
    owner = torch.from_numpy(rows["class_id"].to_numpy().copy()).long()
    if not ids:
        return ids, owner, torch.empty(0, encoder.dim)
    name = image_vectors_name(encoder.image_fp)
    return ids, owner, now.store.vectors(name, "vector_key", [f"{i}:0" for i in ids])[1]


def own_data(making: Making, class_ids: Tensor | None = None) -> TowerData:
    """Features of the workspace's encoder: the checkpoint its commit names, or the recipe's pretrained weights.

    Raises:
        MissingStepError: If it has no weights yet, or there are no training images.
    """
    encoder = open_encoder(making.workspace, making.snapshot)
    checkpoint = making.snapshot.commit.checkpoint if making.snapshot.commit is not None else None
    return tower_data(making, encoder, "own", checkpoint, class_ids)


def _fc_data(making: Making) -> tuple[TowerData, Tensor, Tensor]:
    """Features of the fc baseline's tower, and its classifier's weight and bias for their classes.

    Raises:
        MissingStepError: If the fc baseline has not been trained.
    """
    folder = fc_checkpoint(making.workspace, making.snapshot)
    visual = read_visual(folder, "vlltr train baseline fc")
    owner = torch.from_numpy(usable_images(making.snapshot, "train", [])["class_id"].to_numpy().copy()).long()
    rows = torch.isin(visual["class_ids"], owner)
    assert making.snapshot.commit is not None
    digest = making.snapshot.commit.info["baseline_fc"]
    data = tower_data(making, Encoder.open(folder), "fc", digest, visual["class_ids"][rows])
    return data, visual["weight"][rows], visual["bias"][rows]


def choose(
    data: TowerData,
    settings: Sequence[_Setting],
    fit: Callable[[_Setting, Tensor], _Model],
    scores: Callable[[_Model], Tensor],
) -> tuple[_Setting, _Model, dict[str, Any]]:
    """Fit with every setting, keep the best on what is held out, and fit it again on all where it saw less.

    Args:
        data: The tower's features.
        settings: What there is to choose from; with nothing to choose on the middle one is taken.
        fit: From a setting and the rows to use, bool [N], to a model.
        scores: From a model to scores of `data.seen`.

    Returns:
        The setting, the model fitted on all training images, and what was chosen on what, for the record.
    """
    everything = torch.ones_like(data.fitted)
    if not len(data.seen):
        middle = settings[len(settings) // 2]
        return middle, fit(middle, everything), {"chosen_on": data.chosen_on}
    tried = [fit(setting, data.fitted) for setting in settings]
    place, accuracy = best_setting(range(len(tried)), lambda at: scores(tried[at]), data.seen_labels)
    model = tried[place] if bool(data.fitted.all()) else fit(settings[place], everything)
    return settings[place], model, {"chosen_on": data.chosen_on, "accuracy": round(accuracy, 4)}


def _ncm(making: Making) -> list[BaselineRow]:
    data, _, _ = _fc_data(making)
    means = class_means(data.features, data.labels, len(data.class_ids))
    return [data.row("ncm", "cosine", {"weight": means}, {"scale": 1.0}, probabilities=False)]


def _crt(making: Making) -> list[BaselineRow]:
    data, _, _ = _fc_data(making)

    def fit(lr: float, rows: Tensor) -> tuple[Tensor, Tensor]:
        training = _training(making.config, lr)
        return fc_head(data.features[rows], data.labels[rows], len(data.class_ids), training, making.progress)

    lr, (weight, bias), facts = choose(
        data, making.config.lrs, fit, lambda model: linear_logits(data.seen, *model)
    )
    return [data.row("crt", "linear", {"weight": weight, "bias": bias}, {"lr": lr, **facts})]


def _tau_norm(making: Making) -> list[BaselineRow]:
    data, weight, bias = _fc_data(making)
    tau, scaled, facts = choose(
        data,
        making.config.taus,
        lambda tau, rows: tau_normalised(weight, tau),
        lambda scaled: linear_logits(data.seen, scaled),
    )
    tensors = {"weight": scaled, "bias": torch.zeros_like(bias)}
    return [data.row("tau-norm", "linear", tensors, {"tau": tau, **facts})]


def _lws(making: Making) -> list[BaselineRow]:
    data, weight, bias = _fc_data(making)

    def fit(lr: float, rows: Tensor) -> Tensor:
        training = _training(making.config, lr)
        return lws_scales(data.features[rows], data.labels[rows], weight, bias, training, making.progress)

    lr, factors, facts = choose(
        data, making.config.lrs, fit, lambda factors: linear_logits(data.seen, weight, bias) * factors
    )
    tensors = {"weight": weight * factors[:, None], "bias": bias * factors}
    return [data.row("lws", "linear", tensors, {"lr": lr, **facts})]


def _imprint(making: Making) -> list[BaselineRow]:
    data = own_data(making)
    classes = len(data.class_ids)
    scales, facts = making.config.scales, {"chosen_on": data.chosen_on}
    scale = scales[len(scales) // 2]
    if len(data.seen):
        means = class_means(data.features[data.fitted], data.labels[data.fitted], classes)
        scale = softmax_scale(cosine_logits(data.seen, means), data.seen_labels, scales)
    means = class_means(data.features, data.labels, classes)
    return [data.row("imprint", "cosine", {"weight": means}, {"scale": scale, **facts})]


def _training(config: BaselinesConfig, lr: float) -> HeadTraining:
    return HeadTraining(config.epochs, config.batch_size, lr, config.weight_decay, 1.0, 0.0, config.seed)


FITS: dict[str, Callable[[Making], list[BaselineRow]]] = {
    "ncm": _ncm,
    "crt": _crt,
    "tau-norm": _tau_norm,
    "lws": _lws,
    "imprint": _imprint,
}
"""The baselines that look at images alone."""
