"""What follows where a source has lost images or texts: a question where it is much, and classes that are retired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from vlltr_index.errors import UsageError
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.schemas.tables import CLASSES, FROM_NAME
from vlltr_index.store.tables import one_of

if TYPE_CHECKING:
    from vlltr_index.store.origins import IngestedSource
    from vlltr_index.store.transaction import Transaction


@dataclass(frozen=True)
class Agreed:
    """Who is asked whether what is gone from a source is to be removed."""

    agree: Callable[[str], None] | None
    dry_run: bool

    def check(self, source: IngestedSource, gone: int, there: int, what: str) -> list[str]:
        """Ask where more than a third of the rows that a source gave is gone; return the notes of a dry run instead.

        Raises:
            UsageError: If there is nobody to ask.
        """
        if 3 * gone <= there:
            return []
        told = f"{gone:,} of the {there:,} {what} that this source gave are gone from it"
        if source.is_gone:
            told = f"there is no {source.address} (renamed, or not mounted?): {told}"
        if self.dry_run:
            return [f"{told}; without --dry-run they are removed only after a yes, or with --yes"]
        if self.agree is None:
            raise UsageError(told, "If that is meant, run the same command with --yes.")
        self.agree(f"{told}. Remove them here too?")
        return []


def remove_sentences(tx: Transaction, sentence_ids: Sequence[str]) -> None:
    """Remove sentences, and the anchors among them; scores and other anchors stay until the next selection."""
    tx.delete_any("sentences", "sentence_id", sentence_ids)
    if tx.delete_any("anchors", "sentence_id", sentence_ids):
        facts = [tx.state.selection_id, sorted(sentence_ids)]
        tx.set(selection_id=short(digest_json(facts)))


def without_images(tx: Transaction, class_ids: set[int]) -> list[str]:
    """Return the names of those of the classes, but for retired ones, that have no image."""
    table = tx.class_table()
    pictured = tx.table("images", ["class_id"], one_of("class_id", class_ids))["class_id"].to_pylist()
    return [table.names[i] for i in sorted(class_ids.intersection(table.ids).difference(pictured))]


def retire(tx: Transaction, class_ids: set[int]) -> list[str]:
    """Retire those of the classes that nothing is left of but prompts, and return their names."""
    table = tx.class_table()
    where = one_of("class_id", class_ids)
    rows = tx.table("sentences", ["sentence_id", "class_id", "source"], where).to_pylist()
    with_text = {row["class_id"] for row in rows if row["source"] not in FROM_NAME}
    with_images = tx.table("images", ["class_id"], where)["class_id"].to_pylist()
    gone = class_ids.intersection(table.ids).difference(with_text, with_images)
    if gone:
        there = tx.table("classes", where=one_of("class_id", gone)).to_pylist()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        retired = [{**row, "retired_at": now} for row in there]
        tx.upsert("classes", pa.Table.from_pylist(retired, schema=CLASSES))
        tx.delete("class_stats", one_of("class_id", gone))
        remove_sentences(tx, [row["sentence_id"] for row in rows if row["class_id"] in gone])
    return [table.names[i] for i in sorted(gone)]
