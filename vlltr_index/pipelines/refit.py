"""`vlltr refit`: the head and its weights once more, over all classes that have images by now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlltr_index.classes.change import Effect, View
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace


@dataclass(frozen=True)
class RefitReport:
    """What the head was trained on, and what that did to the classes that it knew before."""

    digest: str
    classes: int
    new_classes: list[str]  # trained now and not before
    text_only: int
    images: int
    notes: tuple[str, ...]
    effect: Effect

    def lines(self) -> list[str]:
        """The report for people."""
        more = ", ".join(self.new_classes[:5]) + (" ..." if len(self.new_classes) > 5 else "")
        lines = [
            f"Trained the head on {many(self.images, 'image')} of {many(self.classes, 'class', 'classes')}:"
            f" {self.digest[:16]}",
            f"New in it: {more or 'none'}. Known by text alone: {many(self.text_only, 'class', 'classes')}.",
        ]
        return lines + list(self.notes) + self.effect.lines()


def refit(workspace: Workspace, config: LGRConfig, progress: Progress | None = None) -> RefitReport:
    """Train the head, the generative model and the weights on the stored vectors of all current classes; one commit.

    Encoder, anchors and index stay; classes known by text alone stay so. Merged classes become one.

    Args:
        workspace: With a trained head.
        config: The `lgr` section of a recipe; `tune`, `mixup` and `cutmix` are not looked at.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        MissingStepError: If there is no head yet, or vectors of training images are missing.
        WorkspaceError: If another command changed the workspace meanwhile.
    """
    before = View.load(workspace, workspace.snapshot())
    snapshot = workspace.snapshot()
    views = min(config.views, snapshot.commit.info.views)
    stored = config.model_copy(update={"tune": "head", "mixup": 0.0, "cutmix": 0.0, "views": views})
    report = train_lgr_stage(workspace, stored, progress, resume=False, command="refit")
    after = View.load(workspace, workspace.snapshot())
    names, known = snapshot.class_table().names, set(before.scorer.row_owners.tolist())
    effect = after.effect(before, set(before.scorer.class_ids.tolist()) - known)
    text_only = len(after.scorer.class_ids) - len(after.scorer.visual_sides())
    new = [names[i] for i in after.scorer.row_owners.tolist() if i not in known]
    return RefitReport(report.digest, report.classes, new, text_only, report.images, report.notes, effect)
