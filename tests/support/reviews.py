"""Lists of pictures to look at that are made by hand, for the tests of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlltr_index.cli.ui.review_service import ReviewService
from vlltr_index.pipelines.review.queue import Beside, Entry, Reason, Review
from vlltr_index.store.workspace import Workspace


class Listing:
    """Training pictures of a workspace, to make entries of; each is given once."""

    def __init__(self, workspace: Workspace) -> None:
        snapshot = workspace.snapshot()
        self.names = snapshot.class_table().names
        columns = ["image_id", "uri", "class_id", "split"]
        rows = snapshot.table("images", columns, "split = 'train'").sort_by("image_id").to_pylist()
        self._of = {i: [row for row in rows if row["class_id"] == i] for i in self.names}
        self.largest = sorted(
            self.names, key=lambda i: -len(self._of[i])
        )  # classes, those of most pictures first

    def entry(
        self, reason: Reason, class_ids: Sequence[int] = (0,), likely: Sequence[int] = (1, 0, 2)
    ) -> Entry:
        """An entry of a picture of each of the classes, the first one large."""
        first, *others = (self._of[i].pop() for i in class_ids)
        return Entry(
            **self._facts(first),
            reason=reason,
            wrong=0.75,
            likely=tuple((self.names[i], 0.5 / place) for place, i in enumerate(likely, 1)),
            beside=tuple(Beside(**self._facts(row)) for row in others),
        )

    def _facts(self, row: dict[str, Any]) -> dict[str, Any]:
        name = self.names[row["class_id"]]
        return {"picture": row["uri"], "image_id": row["image_id"], "class_name": name, "split": row["split"]}


def group(paths: Sequence[str]) -> Entry:
    """Pictures without labels that may be one class."""
    first, *others = paths
    return Entry(first, "unknown", beside=tuple(Beside(path, None, None, None) for path in others))


def review_of(entries: Sequence[Entry]) -> Review:
    """A list."""
    reasons = [one.reason for one in entries]
    return Review(tuple(entries), {reason: reasons.count(reason) for reason in reasons}, len(entries))


def keep(workspace: Workspace, entries: Sequence[Entry], folders: Sequence[str] = ()) -> None:
    """Leave a list where a page finds it."""
    ReviewService(workspace, folders)._keep(review_of(entries))
