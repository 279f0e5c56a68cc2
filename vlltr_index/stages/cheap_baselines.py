"""`vlltr train baseline NAME`: the baselines on stored vectors, over a workspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlltr_index.errors import UsageError
from vlltr_index.stages.baseline_fits import FITS, Making
from vlltr_index.stages.baseline_text_fits import TEXT_FITS
from vlltr_index.stages.baselines import CHEAP, save_baseline

if TYPE_CHECKING:
    from vlltr_index.schemas.baselines import BaselinesConfig
    from vlltr_index.schemas.records import Progress
    from vlltr_index.workspace import Workspace

__all__ = ["BaselineReport", "train_cheap_baseline"]

_ALL = {**FITS, **TEXT_FITS}


@dataclass(frozen=True)
class BaselineReport:
    """What was made: the digest of its files, and each row's settings and note."""

    name: str
    digest: str
    classes: int
    settings: dict[str, dict[str, Any]]
    notes: dict[str, str]


def train_cheap_baseline(
    workspace: Workspace, name: str, config: BaselinesConfig, progress: Progress | None = None
) -> BaselineReport:
    """Make one of the baselines on stored vectors, and commit it under its name; others may write meanwhile.

    Args:
        workspace: Where images, sentences and towers are.
        name: One of `CHEAP`.
        config: The recipe's `baselines` section.
        progress: Called while embedding and training.

    Raises:
        UsageError: If there is no such baseline.
        MissingStepError: If a step before has not been run; the hint names it.
    """
    if name not in _ALL:
        raise UsageError(f"no baseline {name!r}", f"There are: fc, {', '.join(CHEAP)}.")
    rows = _ALL[name](Making(workspace, workspace.snapshot(), config, progress))
    with workspace.transaction(f"train baseline {name}") as tx:
        digest = workspace.put_object("heads", lambda path: save_baseline(rows, path))
        there = tx.commit.info.get("baselines", {}) if tx.commit is not None else {}
        tx.note(baselines={**there, name: digest})
    return BaselineReport(
        name,
        digest,
        len(rows[0].class_ids),
        {row.label: row.settings for row in rows},
        {row.label: row.note for row in rows if row.note},
    )
