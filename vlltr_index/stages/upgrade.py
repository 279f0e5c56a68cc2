"""`vlltr upgrade`: workspaces of older formats, brought to this program's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlltr_index.schemas.config import FORMAT

if TYPE_CHECKING:
    from vlltr_index.workspace import Workspace

__all__ = ["UpgradeReport", "upgrade"]


@dataclass(frozen=True)
class UpgradeReport:
    """What bringing a workspace up to date did.

    Attributes:
        before: The format it had.
        after: The format it has.
        steps: What was changed, in words.
        commit: The commit that holds the changed tables; null where no table had to be changed.
    """

    before: int
    after: int
    steps: tuple[str, ...]
    commit: int | None

    def lines(self) -> list[str]:
        """The report for people."""
        if self.before == self.after:
            return [f"The workspace has format {self.after} already."]
        made = f", in commit {self.commit}" if self.commit is not None else ""
        return [
            f"The workspace has format {self.after} now; it had {self.before}{made}.",
            *(f"  {step}" for step in self.steps),
            "Old commits can still be read. Older versions of the program cannot open it any more.",
        ]


def upgrade(workspace: Workspace) -> UpgradeReport:
    """Bring a workspace that was opened with `any_format` up to date: its tables in one commit, then `vlltr.toml`.

    Interrupted, it is run again; run again, it changes nothing. Old commits stay as they are, and are read with the
    columns of today.
    """
    before, steps, commit = workspace.config.format, list[str](), None
    if before == FORMAT:
        return UpgradeReport(before, FORMAT, (), None)
    with workspace.transaction("upgrade") as tx:
        last = tx.commit
        if tx.widen("sentences"):
            steps.append("sentences have positions: the order in which they lie in the table, by class")
        if tx.widen("images"):
            steps.append("images have groups: none, until they are brought in again with theirs")
    if tx.result_commit is not None and tx.result_commit != last:
        commit = tx.result_commit.id
    workspace.write_format()
    return UpgradeReport(before, FORMAT, tuple(steps), commit)
