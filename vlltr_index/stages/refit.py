"""`vlltr refit`: the head trained again on stored vectors, over all classes that have images by now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.classes.reports import Effect
from vlltr_index.classes.session import View
from vlltr_index.errors import WorkspaceError
from vlltr_index.heads import SavedHead, mean_feature, save_head
from vlltr_index.loading import class_positions, image_set
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.train.recognition import train_lgr
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.scoring import Scorer
    from vlltr_index.workspace import Workspace

__all__ = ["RefitReport", "refit", "starting_rows"]


@dataclass(frozen=True)
class RefitReport:
    """What the head was trained on, and what that did to the classes that it knew before."""

    digest: str
    classes: int
    new_classes: list[str]  # trained now and not before
    text_only: int
    images: int
    epochs: int
    effect: Effect

    def lines(self) -> list[str]:
        """The report for people."""
        more = ", ".join(self.new_classes[:5]) + (" ..." if len(self.new_classes) > 5 else "")
        lines = [
            f"Trained the head on {many(self.images, 'image')} of {many(self.classes, 'class', 'classes')},"
            f" {many(self.epochs, 'epoch')}: {self.digest[:16]}",
            f"New in it: {more or 'none'}. Known by text alone: {many(self.text_only, 'class', 'classes')}.",
        ]
        return lines + self.effect.lines()


def refit(workspace: Workspace, config: LGRConfig, progress: Progress | None = None) -> RefitReport:
    """Train the head on the stored vectors of all current classes with training images; commit it.

    The visual rows start where they are: trained rows from the current head, those of added classes from their
    imprint. Encoder, anchors and index stay; classes known by text alone stay so. Merged rows become one.

    Args:
        workspace: With a trained head.
        config: The `lgr` section of a recipe; `tune` is not looked at.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        MissingStepError: If there is no head yet, or vectors of training images are missing.
        WorkspaceError: If another command changed the workspace meanwhile.
    """
    snapshot = workspace.snapshot()
    before = View.load(workspace, snapshot)
    scorer, commit = before.scorer, snapshot.commit
    assert commit is not None
    first = image_set(snapshot, "train")
    views = min(config.views, int(commit.info.get("views", 1)))
    augment = workspace.recipe.lgr.augment
    rest = [image_set(snapshot, "train", view, augment).features for view in range(1, views)]
    class_ids, labels = torch.unique(first.class_ids, return_inverse=True)
    log: list[dict[str, float]] = []
    head = train_lgr(
        torch.stack([first.features, *rest]),
        labels,
        scorer.bank.select(class_positions(scorer.class_ids, class_ids)),
        config,
        visual_init=starting_rows(scorer, class_ids) if config.visual == "linear" else None,
        logit_scale=float(scorer.saved.head.logit_scale.detach()),
        progress=progress,
        log=log,
    )
    saved = SavedHead(
        head, class_ids, mean_feature(first.features), scorer.saved.text_fp, scorer.saved.image_fp
    )
    with workspace.transaction("refit") as tx:
        if tx.commit is None or tx.commit.id != commit.id:
            raise WorkspaceError(
                "the workspace changed while the head was trained", "Run it again: vlltr refit"
            )
        settings = config.model_dump(mode="json")
        digest = workspace.put_object("heads", lambda path: save_head(saved, path, log, settings))
        tx.set(head=digest)
        tx.delete("imprints", "true")
        tx.note(merged=None)
    after = View.load(workspace, workspace.snapshot())
    names, known = snapshot.class_table().names, set(scorer.row_owners.tolist())
    new = [names[i] for i in class_ids.tolist() if i not in known]
    effect = after.effect(before, set(scorer.class_ids.tolist()) - known)
    text_only = len(scorer.class_ids) - len(class_ids)
    return RefitReport(digest, len(class_ids), new, text_only, len(labels), config.epochs, effect)


def starting_rows(scorer: Scorer, class_ids: Tensor) -> tuple[Tensor, Tensor] | None:
    """Where the visual rows of `class_ids` int64 [C] start: weight [C, D] and bias [C].

    A class's own trained row, else its imprinted one, else that of a class merged into it, else the mean row. None
    where the current visual classifier is not linear.
    """
    visual = scorer.saved.head.visual_head
    if not isinstance(visual, nn.Linear):
        return None
    weight, bias = visual.weight.detach(), visual.bias.detach()
    rows, biases = weight.mean(0).repeat(len(class_ids), 1), bias.mean().repeat(len(class_ids))
    sources = (
        (scorer.row_owners, weight, bias),
        (scorer.imprint_class_ids, *scorer.moderate_rows()),
        (scorer.saved.class_ids, weight, bias),
    )
    for owners, from_rows, from_biases in sources:
        at = class_positions(class_ids, owners)
        there = at >= 0
        rows[at[there]], biases[at[there]] = from_rows[there], from_biases[there]
    return rows, biases
